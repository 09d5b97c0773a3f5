"""What can go wrong between here and the Hub, as sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_papers.errors import UserError


@contextmanager
def hub_problems(action: str, repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turns what the Hub's client raises inside into one `UserError`: what was being done, what is wrong, what to do.

    `action` starts the sentence: "Downloading the checkpoint", "Publishing". The client has retried transient errors
    (5xx, 429, time-outs) with back-off before they arrive here.
    """
    where = f"'{repo_id}' at {constants.ENDPOINT}"
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{action} failed: {where} is gated. Ask for access on its page, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{action} failed: there is no repository {where}, or it is private and you are not logged in. "
            "Check the spelling (user/name), or log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{action} failed: {where} has no revision '{revision}'. Name a branch, tag or commit of it."
        ) from error
    except LocalEntryNotFoundError as error:
        # Nothing in the cache either: what counts is why the Hub was of no help.
        cause = error.__cause__
        if isinstance(cause, OfflineModeIsEnabled):
            reason = "offline mode is on and it is not in the local cache. Unset HF_HUB_OFFLINE to download it."
        elif isinstance(cause, HfHubHTTPError):
            reason = _status_sentence(cause, where)
        else:
            reason = "it could not be reached and is not in the local cache. Check the connection, then try again."
        raise UserError(f"{action} failed for {where}: {reason}") from error
    except EntryNotFoundError as error:
        raise UserError(f"{action} failed: {where} lacks a file: {_first_line(error)}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"{action} failed: offline mode is on. Unset HF_HUB_OFFLINE to reach {where}.") from error
    except HFValidationError as error:
        raise UserError(f"{action} failed: '{repo_id}' is not a repository id, which reads user/name.") from error
    except HfHubHTTPError as error:
        raise UserError(f"{action} failed: {_status_sentence(error, where)}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{action} failed: {constants.ENDPOINT} does not answer as a Hub does. Is HF_ENDPOINT right?"
        ) from error
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise UserError(
            f"{action} failed: the connection to {where} broke ({_first_line(error) or type(error).__name__}). "
            "Nothing was changed there; try again later."
        ) from error


def _status_sentence(error: HfHubHTTPError, where: str) -> str:
    """What a status code of the Hub means for whoever has to act on it."""
    status = getattr(error.response, "status_code", None)
    said = (error.server_message or _first_line(error)).strip().rstrip(".")
    if status == 401:
        return f"the token was refused by {constants.ENDPOINT}. Run `hf auth login`, or set HF_TOKEN to a valid token."
    if status == 403:
        return f"your token may not do this to {where} ({said}). Use a token with write access to that namespace."
    if status == 412:
        return f"somebody else committed to {where} at the same moment. Look at what changed there, then try again."
    if status == 429:
        return f"{where} asks for fewer requests (429). Wait a few minutes, then try again."
    if status is not None and status >= 500:
        return (
            f"{where} answered with server error {status}, also after retries. Try again later; nothing is lost here."
        )
    return f"{where} answered {status}: {said}."


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
