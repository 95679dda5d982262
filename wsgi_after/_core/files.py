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

from collections.abc import Callable, Iterator
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary, ref

from .body import Body
from .callbacks import UNSEEN, CallbackList
from .servers import recognise

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class File:
    """The app's file, with a ``close`` that can be set."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_file"), name)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)


#: By the ``id`` of what a server's file wrapper made, which holds the file as long as it lives.
_files: WeakValueDictionary[int, File] = WeakValueDictionary()


class FileWrapper:
    """Calls the server's own file wrapper, and remembers which file its result is for."""

    def __init__(self, file_wrapper: Callable[..., Any]) -> None:
        self._file_wrapper = file_wrapper

    def __call__(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        """What the server's own returns for ``file``."""
        proxy = File(file)
        made = self._file_wrapper(proxy, *args, **kwargs)
        _files[id(made)] = proxy
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_file_wrapper"), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._file_wrapper)  # type: ignore[arg-type]

    def __subclasscheck__(self, kind: type) -> bool:
        return issubclass(kind, self._file_wrapper)  # type: ignore[arg-type]


#: The Python class that was seen last, to know it at a glance: a process has one server.
_python_class: object = None


def watch(environ: WSGIEnvironment) -> None:
    """Put a :class:`FileWrapper` under ``wsgi.file_wrapper``, if the server's own needs one."""
    global _python_class
    file_wrapper = environ["wsgi.file_wrapper"]
    if file_wrapper is _python_class or type(file_wrapper) is FileWrapper:
        return
    if isinstance(file_wrapper, type) and (
        file_wrapper.__dictoffset__ or hasattr(file_wrapper, "__slots__")
    ):
        _python_class = file_wrapper
    elif callable(file_wrapper):
        environ["wsgi.file_wrapper"] = FileWrapper(file_wrapper)


def file_of(result: Any, environ: WSGIEnvironment) -> Any:
    """What the server closes, if its file wrapper made ``result``; else ``None``."""
    file_wrapper = environ.get("wsgi.file_wrapper")
    if type(file_wrapper) is FileWrapper:
        return _files.get(id(result))
    return result if isinstance(file_wrapper, type) and isinstance(result, file_wrapper) else None


def arm(result: Any, after: CallbackList, environ: WSGIEnvironment) -> bool:
    """Make ``result`` finish the request on ``close()``, if the server's file wrapper made it.

    :return: whether it did, and will: else it has to be wrapped as any other iterable.
    """
    file = file_of(result, environ)
    if file is None:
        return False
    try:
        armed = ArmedFile(file)
    except Exception:  # a close that cannot be looked up: the server shall see it, as in a body
        return False
    body = Body(armed, after)
    try:
        file.close = body.close
    except AttributeError:  # a class with slots
        body._closed = True
        return False
    after._progress = UNSEEN
    if recognise(environ).closes_files_elsewhere:
        # Waitress closes a file that it could not send at once in the thread that does the I/O of
        # all connections: a callback of 2 seconds stalled another connection by 1.8.
        after._thread = get_ident()
    return True


class ArmedFile:
    """Stands for a file in a body: closing it closes the file as the server would have.

    The file gets back the ``close`` that it had, because an app may return it again. Nothing here
    refers to the file, or the two would wait for the garbage collector.
    """

    def __init__(self, file: Any) -> None:
        self._file = ref(file)
        self._own = vars(file).get("close")
        close: Callable[[], object] | None = getattr(file, "close", None)
        self._close = None if getattr(close, "__self__", None) is file else close

    def close(self) -> None:
        """Put back the file's own ``close``, and call it."""
        file, close = self._file(), self._close
        if file is not None:  # else it is being collected
            vars(file).pop("close", None)
            if self._own is not None:
                file.close = self._own
            close = close or getattr(file, "close", None)
        if close is not None:
            close()
