"""``wsgi.file_wrapper``: let the server send the file itself, and finish when it closes the file.

A server knows a file by the object that its own ``wsgi.file_wrapper`` made, so that very object
has to come back to it: wrapped in a body, its file would be copied through Python. There are
three kinds.

* A Python class (gunicorn, waitress, wsgiref): the object that the app returns gets a ``close`` of
  its own, which calls the one it had. The key stays: gunicorn compares with it.
* A function that returns the file itself (uWSGI), or a type in C, whose objects take no attribute
  (mod_wsgi, bjoern): a :class:`FileWrapper` stands under the key. It calls the server's own with a
  :class:`File` in place of the app's file, and the ``close`` of that is ours to set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from .callbacks import CallbackList
from .finish import finish, finish_interrupted, finish_unclosed
from .servers import recognise

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .executor import SupportsSubmit

#: The Python class that was seen last, to know it at a glance: a process has one server.
python_class: list[object] = []


def watch(environ: WSGIEnvironment) -> None:
    """Put a :class:`FileWrapper` under ``wsgi.file_wrapper``, if the server's own needs one."""
    file_wrapper = environ["wsgi.file_wrapper"]
    if type(file_wrapper) is FileWrapper:  # this environ has been through a request already
        file_wrapper = file_wrapper._file_wrapper
    if isinstance(file_wrapper, type) and (
        file_wrapper.__dictoffset__ or hasattr(file_wrapper, "__slots__")
    ):
        python_class[:] = [file_wrapper]
    elif callable(file_wrapper):
        environ["wsgi.file_wrapper"] = FileWrapper(file_wrapper)


class File:
    """The app's file, with a ``close`` that can be set."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_file"), name)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)


class FileWrapper:
    """Calls the server's own file wrapper, and remembers which file its result is for."""

    __slots__ = ("_file_wrapper", "_made")

    def __init__(self, file_wrapper: Callable[..., Any]) -> None:
        self._file_wrapper = file_wrapper
        self._made: list[tuple[Any, File]] = []

    def __call__(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        """What the server's own returns for ``file``."""
        proxy = File(file)
        made = self._file_wrapper(proxy, *args, **kwargs)
        self._made.append((made, proxy))
        return made

    def file_of(self, result: Any) -> File | None:
        """The file of ``result``, if that was made here."""
        for made, proxy in self._made:
            if made is result:
                return proxy
        return None


def arm(result: Any, callbacks: CallbackList, environ: WSGIEnvironment) -> bool:
    """Make ``result`` finish the request on ``close()``, if the server's file wrapper made it.

    :return: whether it did, and will: else it has to be wrapped as any other iterable.
    """
    file_wrapper = environ["wsgi.file_wrapper"]
    target: Any = None
    if type(file_wrapper) is FileWrapper:
        target = file_wrapper.file_of(result)
    elif isinstance(file_wrapper, type) and isinstance(result, file_wrapper):
        target = result
    if target is None:
        return False
    try:
        close = getattr(target, "close", None)
    except Exception:  # the server shall see it, where it looks: a body has it so
        return False
    file_close = FileClose(close, callbacks)
    if recognise(environ).closes_files_elsewhere:
        file_close._thread = threading.get_ident()
    try:
        target.close = file_close
    except AttributeError:  # a class with slots
        file_close._callbacks = None
        return False
    callbacks._completed = None
    return True


class FileClose:
    """The ``close`` of a file, or of the object that a file wrapper made of it."""

    __slots__ = ("_callbacks", "_close", "_thread")

    def __init__(self, close: Callable[[], object] | None, callbacks: CallbackList) -> None:
        self._close = close
        self._callbacks: CallbackList | None = callbacks
        self._thread: int | None = None  # the only one the callbacks may run in, if there is one

    def __call__(self) -> None:
        """Close the file, then run the callbacks. A second call does nothing."""
        callbacks, close = self._callbacks, self._close
        self._callbacks = self._close = None
        if callbacks is not None:
            try:
                if callbacks and self._thread not in {None, threading.get_ident()}:
                    callbacks._direct(NotHere(getattr(callbacks, "_executor", ...)))
                finish(callbacks, close)
            except BaseException as error:
                finish_interrupted(callbacks, error)
                raise

    def __del__(self) -> None:
        if self._callbacks is not None:
            self._thread = None  # a finalizer starts no thread: that takes locks
            finish_unclosed(self, self._callbacks)


def no_executor(*args: object) -> None:
    raise RuntimeError("The middleware has no executor.")


class NotHere:
    """Takes callbacks that must not run in this thread, whatever the middleware was told.

    Waitress closes a file which it could not send at once in the thread that does the I/O of all
    connections: a callback of 2 seconds stalled another connection by 1.8.

    :param executor: the middleware's; without one, and if it refuses, a thread lives as long as the
        callbacks run.
    """

    def __init__(self, executor: SupportsSubmit | EllipsisType | None) -> None:
        if executor is ...:
            from .executor import shared as executor
        self._submit: Callable[..., Any] = getattr(executor, "submit", no_executor)

    def submit(self, fn: Callable[..., object], /, *args: object) -> Any:
        """Have ``fn(*args)`` called in another thread."""
        try:
            return self._submit(fn, *args)
        except Exception:  # there is none, it is full, or was shut down
            threading.Thread(target=fn, args=args, name="wsgi_after").start()
