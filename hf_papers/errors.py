"""Errors that are sentences: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The command line prints the sentence alone and exits with status 2."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """The tail of a sentence that names the closest of `choices`, or nothing when none is close.

    >>> nearest("learning_rat", ["learning_rate", "seed"])
    " Did you mean 'learning_rate'?"
    """
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""
