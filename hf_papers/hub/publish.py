"""From a finished run to a repository on the Hub, in one commit."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from transformers import AutoTokenizer, PreTrainedModel

from hf_papers.errors import UserError
from hf_papers.hub.bundle import write_bundle
from hf_papers.hub.cards import eval_results_yaml, render_card
from hf_papers.hub.checkpoints import PICKLES, load_strict
from hf_papers.hub.problems import hub_problems
from hf_papers.registry import Paper, find_paper


# Waits before the commit is tried again after a server error. huggingface_hub retries every other request by itself.
COMMIT_RETRIES_S = (1.0, 2.0, 4.0, 8.0)
TEMPORARY_STATUSES = (408, 429, 500, 502, 503, 504)

# What of a run goes along as it is, beside the bundle and the card. Checkpoints, logs and metrics stay at home.
RECORDS = ("recipe.yaml", "results.json")
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".mp4")


def check_can_push(repo_id: str) -> str:
    """Says before a long training whether its push can work: a well-formed id, a token, a valid one, and the namespace.

    Returns the name of the user that the token belongs to. Raises `UserError` with what to do.
    """
    check_repo_id(repo_id)
    token = get_token()
    if not token:
        raise UserError(
            f"There is no token to publish '{repo_id}' with: run `hf auth login` or set HF_TOKEN (a token with write "
            f"access, from {constants.ENDPOINT}/settings/tokens)."
        )
    with hub_problems("Checking the token", repo_id):
        user = HfApi().whoami(token)
    namespace = repo_id.split("/")[0]
    mine = [user["name"], *(organization["name"] for organization in user.get("orgs") or [])]
    if namespace not in mine:
        name = repo_id.split("/")[1]
        raise UserError(
            f"Your token is {user['name']}'s and cannot publish under '{namespace}'. Use "
            f"{' or '.join(f'{owner}/{name}' for owner in mine)}, or log in as somebody who may."
        )
    if ((user.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise UserError(
            f"Your token may only read. Make one with write access at {constants.ENDPOINT}/settings/tokens, then run "
            "`hf auth login` or set HF_TOKEN."
        )
    return user["name"]


def check_repo_id(repo_id: str) -> None:
    """Refuses what the Hub would refuse: an id is user/name, of letters, digits, `-`, `_` and `.`."""
    if not isinstance(repo_id, str) or repo_id.count("/") != 1:
        raise UserError(f"'{repo_id}' is not a repository id: write it as user/name, such as 'ada/vae-mnist'.")
    for part in repo_id.split("/"):
        if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?", part) or ".." in part or "--" in part:
            raise UserError(
                f"'{repo_id}' is not a repository id: '{part}' may hold letters, digits, '-', '_' and '.', at most 96, not "
                "'--' or '..', and neither begin nor end with '-' or '.'."
            )


def push_run(
    run: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Publishes a finished run; returns the address of the repository.

    Weights, config, processor, code, card, figures, recipe and results are put together in a temporary folder, loaded from
    there as a check, and sent in one commit: the repository has either all of it or none.

    Args:
        run: the folder that a training wrote.
        repo_id: user/name. The repository is created if it does not exist.
        private: of a new repository.
        revision: a branch; made from `main` if it does not exist. By default `main`.
        commit_message: of the commit.

    Raises `UserError`: not a finished run, a checkpoint that is not sound, no token, no right, server errors that last.
    """
    check_can_push(repo_id)
    with tempfile.TemporaryDirectory(prefix="hf-papers-push-") as temporary:
        staged = stage_run(Path(run), Path(temporary), repo_id)
        message = commit_message or f"Upload {repo_id.split('/')[1]}"
        return upload(staged, repo_id, "model", message, private=private, revision=revision)


def stage_run(run: Path, folder: Path, repo_id: str | None = None) -> Path:
    """Everything that `push_run` publishes, in `folder`."""
    results = read_results(run)
    paper = find_paper(results["paper"])
    recipe = _read_recipe(run)
    model = load_strict(paper, run)
    write_bundle(model, load_processor(paper, run), folder)
    for name in RECORDS:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    for path in sorted((run / "figures").glob("*")):
        if path.suffix.lower() in PICTURES:
            (folder / "figures").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "figures" / path.name)
    card = render_card(paper, model.config.to_dict(), recipe, results, repo_id=repo_id)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if (entries := eval_results_yaml(recipe, results)) is not None:
        (folder / ".eval_results").mkdir(exist_ok=True)
        (folder / ".eval_results" / f"{recipe['data']['dataset'].split('/')[-1]}.yaml").write_text(
            entries, encoding="utf-8"
        )
    check_staged(paper, model, folder)
    return folder


def read_results(run: Path) -> dict[str, Any]:
    path = run / "results.json"
    if not run.is_dir():
        raise UserError(f"There is no run {run}. Give the folder that `hf-papers train` wrote.")
    if not path.is_file():
        raise UserError(
            f"{run} is not a finished run: it has no results.json. Finish it with `hf-papers train … --resume auto`."
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results["paper"] = str(results["paper"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged. Run `hf-papers evaluate {run}` to write it anew.") from error
    return results


def _read_recipe(run: Path) -> dict[str, Any]:
    path = run / "recipe.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def load_processor(paper: Paper, run: Path) -> Any | None:
    """What was saved with the run to feed its model: an image processor or a tokenizer; None where a paper has neither."""
    if paper.image_processor_class is not None:
        _look_for(run / "preprocessor_config.json", "pictures")
        return paper.image_processor_class.from_pretrained(run)
    if paper.tokenizer_trainer is not None:
        _look_for(run / "tokenizer_config.json", "texts")
        return AutoTokenizer.from_pretrained(run)
    return None


def _look_for(path: Path, inputs: str) -> None:
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no {path.name}, so nobody could feed the model {inputs} as it was trained on. Train it "
            "again, or save the processor there."
        )


def check_staged(paper: Paper, model: PreTrainedModel, folder: Path) -> None:
    """The last look before it leaves: it loads, with the weights it should have, and holds no pickle."""
    copy = load_strict(type(model), folder)
    ours, theirs = model.state_dict(), copy.state_dict()
    if differing := [name for name in ours if not ours[name].equal(theirs[name])]:
        raise UserError(
            f"The bundle in {folder} does not hold the weights of the run (first difference: {differing[0]})."
        )
    load_processor(paper, folder)
    if pickles := [path.name for path in folder.rglob("*") if path.suffix in PICKLES]:
        raise UserError(f"The bundle holds pickles ({', '.join(pickles)}), which are never published.")


def upload(
    folder: Path,
    repo_id: str,
    repo_type: str,
    message: str,
    private: bool = False,
    revision: str | None = None,
    **create_options: Any,
) -> str:
    """Sends all files of `folder` as one commit to a repository, which is created if need be; returns its address.

    Not `upload_folder`: that one sends several commits when there are many files or when one fails, so that an error half
    way would leave half a checkpoint. Files of the repository that the folder does not have are left as they are.
    """
    api = HfApi()

    def commit() -> Any:
        # The parent is asked for anew each time: should the answer to a commit get lost, the second try finds every file
        # unchanged and makes none; and a commit of somebody else in between is not built over (412).
        parent = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
        additions = list(_additions(folder))
        return api.create_commit(
            repo_id, additions, commit_message=message, repo_type=repo_type, revision=revision, parent_commit=parent
        )

    with hub_problems("Publishing", repo_id, revision):
        url = _patiently(
            lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **create_options)
        )
        if revision is not None:
            _patiently(lambda: api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True))
        _patiently(lambda: _without_wrapping(commit))
    return str(url)


def _additions(folder: Path) -> Iterator[CommitOperationAdd]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield CommitOperationAdd(path.relative_to(folder).as_posix(), path)


def _without_wrapping(commit: Callable[[], Any]) -> Any:
    """`commit()`, with the client's bare RuntimeError and ValueError as what they stand for."""
    try:
        return commit()
    except RuntimeError as error:
        if isinstance(error.__cause__, (HTTPError, ConnectionError, TimeoutError)):
            raise error.__cause__ from error  # the upload of one file: huggingface_hub wraps whatever broke it
        raise UserError(
            f"Publishing failed while large files travelled: {' '.join(str(error).split())}. Try again."
        ) from error
    except ConnectionError as error:
        if "xet-write-token" in str(error) and "404" in str(error):  # a Hub of one's own need not have it
            raise UserError(
                f"Publishing failed: {constants.ENDPOINT} has no Xet storage for large files. Set HF_HUB_DISABLE_XET=1 and "
                "try again."
            ) from error
        raise
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise UserError(f"Publishing failed: the Hub refuses what was sent: {' '.join(str(error).split())}") from error


def _patiently(call: Callable[[], Any]) -> Any:
    """The result of `call`, tried again with growing waits while the server is busy, breaks the line or talks gibberish."""
    for wait in (*COMMIT_RETRIES_S, None):
        try:
            return call()
        except (HTTPError, ConnectionError, TimeoutError, json.JSONDecodeError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if wait is None or (status is not None and status not in TEMPORARY_STATUSES):
                raise
            time.sleep(wait)
