"""What the server gets in place of the app's iterable: pass it on, record how it went, finish.

A body is never a ``list``, ``tuple`` or ``bytes``: several servers do not close these. It has
``__len__`` if and only if the app's object has it: servers derive Content-Length from it. It has
``__next__``: fastwsgi closes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from operator import attrgetter
from typing import Any

from ..claims import WITHOUT_GIL, claim
from . import unclosed
from .callbacks import EXHAUSTED, EXHAUSTED_EMPTY, FAILED, IN_BODY, STARTED, CallbackList
from .finish import finish


class Body:
    """An iterable of the app, passed on chunk by chunk."""

    __slots__ = ("_after", "_closed", "_iterable", "_iterator")

    def __init__(self, iterable: Any, after: CallbackList) -> None:
        self._closed = False
        self._iterable = iterable
        self._iterator: Iterator[bytes] | None = None  # the pass that __next__ is on
        self._after = after

    def __iter__(self) -> Iterator[bytes]:
        """A fresh pass over the app's iterable: gevent and eventlet make two, one for the length.

        A generator costs half as much as an iterator in Python. It keeps this body alive.
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
        after._progress = EXHAUSTED_EMPTY if type(chunk) is bytes and not chunk else EXHAUSTED

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
        """Record what a pass raised. If two passes fail, keep the first error."""
        self._after._progress = FAILED
        if self._after._error is None and not self._closed:
            self._after._error = error

    def close(self) -> None:
        """Close the app's iterable, then run the callbacks. A second call does nothing."""
        after = self._after
        try:
            try:
                if self._closed or (WITHOUT_GIL and not claim(self)):
                    return
                self._closed = True
                if unclosed.collector.thread is not None and unclosed.must_wait(self):
                    return
                close = getattr(self._iterable, "close", None)
                if close is not None:
                    close()
                # Most requests end here, without the call of finish(): see the middleware.
                if after or after._state != STARTED or unclosed.waiting or not after._end():
                    finish(after)
                else:
                    after._let_go()
            except BaseException as error:  # of the app's close(), or let out by a callback
                finish(after, error)
                raise
        except BaseException as error:  # a signal handler may have interrupted finish()
            finish(after, error)
            raise

    def __del__(self) -> None:
        if not self._closed:
            unclosed.drop(self)

    def __reduce_ex__(self, protocol: object) -> Any:
        """Pickle, copy and deep-copy as what the app returned: a cache outside may keep it."""
        return copy, (self._iterable,)

    def __eq__(self, other: object) -> bool:
        return bool(self._iterable == other)

    def __hash__(self) -> int:
        return hash(self._iterable)


class ListBody(Body):
    """A list: without ``__getattr__``, which costs 150 ns a request on CPython 3.11."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._iterable)


for _name in dir(list):
    if not _name.startswith("_"):
        setattr(ListBody, _name, property(attrgetter(f"_iterable.{_name}")))


class ObjectBody(Body):
    """An iterable with its attributes: a generator, a response object."""

    __slots__ = ("__weakref__",)

    def __getattr__(self, name: str) -> Any:
        # Through object: a slot that is not set yet would call __getattr__ again.
        return getattr(object.__getattribute__(self, "_iterable"), name)


class SizedBody(ObjectBody):
    """An iterable that also has a length."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._iterable)


class BufferBody(SizedBody):
    """Bytes, or a buffer of bytes: one chunk, because uWSGI sends them whole."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        self._after._progress = IN_BODY
        yield self._iterable
        self._after._progress = EXHAUSTED if len(self) else EXHAUSTED_EMPTY

    def __next__(self) -> bytes:
        if self._iterator is None:
            self._after._progress = IN_BODY
            self._iterator = iter([self._iterable])
        return super().__next__()


class BodyClasses(dict[type, "type[Body] | None"]):
    """The class of the body by type of the app's iterable; ``None`` if that cannot be iterated.

    Each type is looked up once: looking for a missing ``__len__`` costs 200 ns.
    """

    def __missing__(self, kind: type) -> type[Body] | None:
        found: type[Body] | None = None
        if hasattr(kind, "__iter__") or hasattr(kind, "__getitem__"):
            found = ObjectBody
        if hasattr(kind, "__len__"):
            found = ListBody if kind is list else SizedBody
        if issubclass(kind, (bytes, bytearray, memoryview)):
            found = BufferBody
        if len(self) >= 64:  # an app may make a type for each request: do not keep them all
            self.clear()
        self[kind] = found
        return found


body_classes = BodyClasses()
