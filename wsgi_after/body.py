"""What the server gets in place of the app's iterable: pass it on, record how it went, finish.

A body is never a ``list``, ``tuple`` or ``bytes``: several servers skip ``close()`` for these. It
has ``__len__`` if and only if the app's object has it, because servers look for that on the type
and derive Content-Length from it. It has ``__next__``, because fastwsgi closes nothing else.

A body has no ``__init__`` (170 ns a request): :func:`wrap`, and the middleware for a list, set its
three slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from .callbacks import CallbackList, EndedCallbackList
from .file_wrapper import arm
from .finish import finish, finish_interrupted, finish_unclosed

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class Body:
    """An iterable of the app, passed on chunk by chunk."""

    __slots__ = ("_callbacks", "_iterable", "_iterator")

    _callbacks: CallbackList | None  # None: closed
    _iterable: Iterable[bytes]  # the app's
    _iterator: Iterator[bytes] | None  # the pass that __next__ is on

    def __iter__(self) -> Iterator[bytes]:
        """A fresh pass over the app's iterable: gevent and eventlet make two, one for the length.

        A generator, which costs 20 ns a chunk where an iterator in Python costs 40. It refers to
        this body, so that a server which holds the iterator alone does not trigger the finalizer.
        """
        callbacks = self._callbacks
        if callbacks is None:  # iterated after close(): nobody is left to read what is recorded
            callbacks = CallbackList()
        callbacks._completed = False
        try:
            # Not "yield from": that would close the app's iterable together with this generator.
            for chunk in self._iterable:
                yield chunk
        except GeneratorExit:  # the server stopped reading
            raise
        except BaseException as error:
            if callbacks.error is None:  # of two passes, the first one's
                callbacks._error = error
            raise
        callbacks._completed = True

    def __next__(self) -> bytes:
        callbacks = self._callbacks
        if callbacks is None:
            callbacks = CallbackList()
        try:
            if self._iterator is None:
                callbacks._completed = False  # there may have been a pass by iter()
                self._iterator = iter(self._iterable)
            return next(self._iterator)
        except StopIteration:
            callbacks._completed = True
            raise
        except BaseException as error:
            if callbacks.error is None:  # of two passes, the first one's
                callbacks._error = error
            raise

    def close(self) -> None:
        """Close the app's iterable, then run the callbacks. A second call does nothing."""
        # CPython switches threads at calls and loops only: no lock is needed for these two lines.
        callbacks = self._callbacks
        self._callbacks = None
        if callbacks is not None:
            try:
                finish(callbacks, getattr(self._iterable, "close", None))
            except BaseException as error:
                finish_interrupted(callbacks, error)
                raise

    def __del__(self) -> None:
        if self._callbacks is not None:
            finish_unclosed(self.close, self._callbacks)

    def __eq__(self, other: object) -> bool:
        return self._iterable == other

    def __hash__(self) -> int:
        return hash(self._iterable)


class ListBody(Body):
    """A ``list``, the body that most apps return.

    Its class has no ``__getattr__``: on CPython 3.11 that would slow each attribute of the body
    down, by 150 ns a request in all. A list has no attributes but its methods.
    """

    __slots__ = ()

    _iterable: list[bytes]

    def __len__(self) -> int:
        return len(self._iterable)

    def close(self) -> None:
        """Run the callbacks: a list has no ``close``, and not to look for it saves 50 ns.

        Where there are none, which is most often, this is :func:`finish` in place: 80 ns.
        """
        callbacks = self._callbacks
        self._callbacks = None
        if callbacks is not None:
            try:
                if not callbacks:
                    callbacks.__class__ = EndedCallbackList
                    if not callbacks:
                        callbacks._environ = callbacks._error = None
                        callbacks._server_start_response = callbacks._write = None
                        return
                finish(callbacks)
            except BaseException as error:
                finish_interrupted(callbacks, error)
                raise


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

    _iterable: Sized  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self._iterable)


def wrap(result: Any, callbacks: CallbackList, environ: WSGIEnvironment) -> Any:
    """What the server gets for ``result``, the app's, if that is no list.

    A result that cannot be iterated is gunicorn's sign that the response is out already: it goes
    back as it is, after the callbacks.
    """
    kind = type(result)
    if "wsgi.file_wrapper" in environ and arm(result, callbacks, environ):
        return result
    body_class = _body_classes.get(kind) or _remember(kind)
    if body_class is None:
        finish(callbacks)
        return result
    if kind is bytes:  # a bug of the app which uWSGI and bjoern let pass
        result = [result]
    body = body_class()
    body._iterable = result
    body._iterator = None
    body._callbacks = callbacks
    return body


#: By type of the app's iterable, because to look for ``__len__`` where there is none costs 200 ns.
#: An app has few; one that makes a type for each request must not have them kept.
_body_classes: dict[type, type[Body]] = {}


def _remember(kind: type) -> type[Body] | None:
    """The class of the body for objects of a type; ``None`` if these cannot be iterated."""
    if hasattr(kind, "__len__"):
        body_class: type[Body] = SizedBody
    elif hasattr(kind, "__iter__") or hasattr(kind, "__getitem__"):
        body_class = ObjectBody
    else:
        return None
    if len(_body_classes) >= 64:
        _body_classes.clear()
    _body_classes[kind] = body_class
    return body_class
