"""Find out that arguments are wrong when a callback is registered, rather than when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._core.logs import describe, no_around, no_on_error, not_callable


def check_arguments(
    fn: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, Any], expected: str
) -> None:
    """Raise a ``TypeError`` unless the signature of ``fn`` accepts these arguments.

    :param expected: the end of the message, in sentences: how ``fn`` will be called, and the usual
        cause of the error.
    """
    if not callable(fn):
        raise not_callable(fn)
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # it does not tell: some that are written in C
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        message = f"Callback {describe(fn)}{signature} cannot be called: {error}. {expected}"
        raise TypeError(message) from None


def check_on_error(fn: object) -> None:
    """Raise a ``TypeError`` unless ``fn`` can be what ``on_error=`` takes."""
    if not callable(fn) or inspect.iscoroutinefunction(fn):
        raise no_on_error(fn)
    check_arguments(fn, (None, None, None), {}, ON_ERROR)


def check_around(fn: object) -> None:
    """Raise a ``TypeError`` unless ``fn`` can be what ``around=`` takes."""
    functions = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
    if not callable(fn) or any(is_one(fn) for is_one in functions):
        raise no_around(fn)
    check_arguments(fn, (None, None), {}, AROUND)


AROUND = "around= expects a callable that takes the callback and the list."
ON_ERROR = "on_error= expects a callable that takes the callback, its exception and the list."
THE_ENVIRON = (
    "after_response() expects a callable that takes the environ. In Flask, app.after_response() "
    "registers a function without arguments."
)
