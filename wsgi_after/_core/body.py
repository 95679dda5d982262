"""What the server gets in place of the app's iterable: pass it on, record how it went, finish.

A body is never a ``list``, ``tuple`` or ``bytes``: several servers skip ``close()`` for these. It
has ``__len__`` if and only if the app's object has it, because servers look for that on the type
and derive Content-Length from it. It has ``__next__``, because fastwsgi closes nothing else.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterable, Iterator
from copy import copy, deepcopy
from operator import attrgetter
from typing import Any

from . import unclosed
from .callbacks import EXHAUSTED, EXHAUSTED_EMPTY, FAILED, IN_BODY, CallbackList
from .finish import finish


class Body:
    """An iterable of the app, passed on chunk by chunk."""

    __slots__ = ("_after", "_closed", "_iterable", "_iterator")

    def __init__(self, iterable: Any, after: CallbackList) -> None:
        self._closed = False
        self._iterable: Iterable[bytes] = iterable
        self._iterator: Iterator[bytes] | None = None  # the pass that __next__ is on
        self._after = after

    def __iter__(self) -> Iterator[bytes]:
        """A fresh pass over the app's iterable: gevent and eventlet make two, one for the length.

        A generator, which costs 20 ns a chunk where an iterator in Python costs 40. It refers to
        this body, so that a server which holds the iterator alone does not trigger the finalizer.
        """
        after = self._after
        after._progress = IN_BODY
        chunk = b""
        try:
            # Not "yield from": that would close the app's iterable together with this generator.
            for chunk in self._iterable:
                yield chunk
        except GeneratorExit:  # the server stopped reading
            raise
        except BaseException as error:
            self._fail(error)
            raise
        ends_empty = type(chunk) is bytes and not chunk
        after._progress = EXHAUSTED_EMPTY if ends_empty else EXHAUSTED

    def __next__(self) -> bytes:
        try:
            if self._iterator is None:
                self._after._progress = IN_BODY
                self._iterator = iter(self._iterable)
            return next(self._iterator)
        except StopIteration:
            self._after._progress = EXHAUSTED
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        """Record what a pass raised; of two, the first."""
        self._after._progress = FAILED
        if self._after._error is None and not self._closed:
            self._after._error = error

    def close(self) -> None:
        """Close the app's iterable, then run the callbacks. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        after = self._after
        try:
            close = getattr(self._iterable, "close", None)
            if close is not None:
                close()
            finish(after)
        # One of three: what the app's close() raised, what goes on of a callback's, or a signal
        # handler interrupted this, and callbacks are left.
        except BaseException as error:
            finish(after, error)
            raise

    def __del__(self) -> None:
        if not self._closed:
            unclosed.drop(self)

    # A cache outside may keep the body: it gets a copy of what the app returned.

    def __copy__(self) -> Any:
        return copy(self._iterable)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy(self._iterable, memo)

    def __reduce_ex__(self, protocol: object) -> Any:
        return as_returned, (self._iterable,)

    def __eq__(self, other: object) -> bool:
        return self._iterable == other

    def __hash__(self) -> int:
        return hash(self._iterable)


atexit.register(unclosed.at_exit, Body)


class ListBody(Body):
    """A ``list``, the body that most apps return.

    Its class has no ``__getattr__``: on CPython 3.11 that would slow each attribute of the body
    down, by 150 ns a request in all. A list has no attributes but its methods.
    """

    __slots__ = ()

    _iterable: list[bytes]

    def __len__(self) -> int:
        return len(self._iterable)


for _name in dir(list):
    if not _name.startswith("_"):
        setattr(ListBody, _name, property(attrgetter(f"_iterable.{_name}")))


class ObjectBody(Body):
    """Any other iterable, such as a generator or a response object, with its attributes."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        # By way of object: a slot that is not set yet must not bring us back here.
        return getattr(object.__getattribute__(self, "_iterable"), name)


class SizedBody(ObjectBody):
    """An object that has a length, too."""

    __slots__ = ()

    _iterable: Any

    def __len__(self) -> int:
        return len(self._iterable)


class BufferBody(SizedBody):
    """Bytes, or what has their bytes. uWSGI sends them whole: they are one chunk."""

    __slots__ = ()

    def __init__(self, iterable: Any, after: CallbackList) -> None:
        super().__init__([iterable], after)


def as_returned(iterable: Any) -> Any:
    """What a pickled body becomes: what the app returned."""
    return iterable


#: By type of the app's iterable, because to look for ``__len__`` where there is none costs 200 ns.
#: An app has few. If it makes a type for each request, they must not all be kept.
_body_classes: dict[type, type[Body] | None] = {list: ListBody}


def body_class(kind: type) -> type[Body] | None:
    """The class of the body for objects of a type; ``None`` if these cannot be iterated."""
    try:
        return _body_classes[kind]
    except KeyError:
        pass
    found: type[Body] | None = None
    if issubclass(kind, (bytes, bytearray, memoryview)):
        found = BufferBody
    elif hasattr(kind, "__len__"):
        found = SizedBody
    elif hasattr(kind, "__iter__") or hasattr(kind, "__getitem__"):
        found = ObjectBody
    if len(_body_classes) >= 64:
        _body_classes.clear()
        _body_classes[list] = ListBody
    _body_classes[kind] = found
    return found
