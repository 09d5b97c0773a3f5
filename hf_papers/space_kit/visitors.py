"""What a visitor typed, checked, and what went wrong, said in a sentence."""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import gradio as gr

from hf_papers.errors import UserError


logger = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., Any])

MAX_SEED = 2**31 - 1


def errors_as_sentences(function: Function) -> Function:
    """Show what a visitor did wrong as a sentence on the page; log what we did wrong and say that it was us.

    `UserError` and `ValueError` carry sentences for the visitor. Works on functions and on generators.
    """

    def sentence(error: Exception) -> gr.Error:
        if isinstance(error, gr.Error):
            return error
        if isinstance(error, (UserError, ValueError)):
            return gr.Error(str(error), print_exception=False)
        logger.error("%s failed", function.__name__, exc_info=error)
        return gr.Error(
            "This did not work, and it is not your fault: the details are in the log of this Space.",
            print_exception=False,
        )

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise sentence(error) from error
    else:

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                raise sentence(error) from error

    return guarded  # type: ignore[return-value]


def whole_number(value: Any, name: str, minimum: int, maximum: int) -> int:
    """`value` as an int, or a `UserError` that says what would be right: number fields can be empty or 2.5."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value != int(value)
        or not minimum <= value <= maximum
    ):
        raise UserError(f"{name} must be a whole number from {minimum} to {maximum:,}, not {value}.")
    return int(value)


def bounded(value: Any, name: str, minimum: float, maximum: float) -> float:
    """`value` as a float within its bounds, or a `UserError`: calls of the API are not held by sliders."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not minimum <= value <= maximum:
        raise UserError(f"{name} must be a number from {minimum:g} to {maximum:g}, not {value}.")
    return float(value)


def valid_seed(value: Any, name: str = "The seed") -> int:
    """`value` as a seed from 0 to MAX_SEED, or a `UserError`."""
    return whole_number(value, name, 0, MAX_SEED)
