"""A request made within a request: what its body registers must not reach the outer one.

While the outer app is being called, its list is the current one. An inner app, called in-process
with an environ of its own, makes its own list current; but when it has returned, and the outer app
iterates its body, the outer list is current again. In a streaming body ``after_this_response``
must refuse, so the bodies of this module make no list current while the inner app's code runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import Token
from typing import Any, TypeVar

from .body import Body, ObjectBody, SizedBody
from .callbacks import reset_current, set_current

T = TypeVar("T")

#: What ``token.old_value`` is where a request is not within another.
NOT_NESTED = Token.MISSING
_END: Any = object()


def without_request(fn: Callable[..., T], /, *args: object) -> T:
    """Call ``fn`` with no list current."""
    token = set_current(None)
    try:
        return fn(*args)
    finally:
        reset_current(token)


class NestedBody(Body):
    """A body whose iterable runs, and is closed, with no list current."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        chunks = super().__iter__()
        while (chunk := without_request(next, chunks, _END)) is not _END:
            yield chunk

    def __next__(self) -> bytes:
        return without_request(super().__next__)

    def close(self) -> None:
        without_request(super().close)


class NestedObjectBody(NestedBody, ObjectBody):
    """Any iterable but a list, whose items are there already."""

    __slots__ = ()


class NestedSizedBody(NestedBody, SizedBody):
    """An object that has a length, too."""

    __slots__ = ()


_NESTED: dict[type, type[Body]] = {ObjectBody: NestedObjectBody, SizedBody: NestedSizedBody}


def nested(wrapped: Any) -> Any:
    """Make ``wrapped``, what the server of an inner request gets, one of these if it is a body."""
    kind = _NESTED.get(type(wrapped))
    if kind is not None:
        wrapped.__class__ = kind
    return wrapped
