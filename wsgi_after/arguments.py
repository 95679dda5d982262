"""Find out that arguments are wrong when a callback is registered, rather than when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._core.logs import describe


def check_arguments(
    fn: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, Any], expected: str
) -> None:
    """Raise a ``TypeError`` unless ``fn(*args, **kwargs)`` fits what ``fn`` says that it takes.

    :param expected: how ``fn`` will be called, and the usual cause of an error, in sentences.
    """
    if not callable(fn):
        raise TypeError(f"A callback must be callable, not {type(fn).__name__}: {fn!r}. {expected}")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # it does not tell: some that are written in C
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        message = f"Callback {describe(fn)}{signature} cannot be called: {error}. {expected}"
        raise TypeError(message) from None


THE_ENVIRON = (
    "after_response() expects a callable that takes the environ. It is after_response() of "
    "wsgi_after.flask that passes nothing."
)
