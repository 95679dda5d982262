"""``wsgi.file_wrapper``: let the server send the file itself, and finish when it closes the file.

A server recognises a file by the object that its own wrapper made, so it must get that object:

* of a Python class (gunicorn, waitress, wsgiref), with a ``close`` of its own. The key stays.
* of a function that returns the file itself (uWSGI), or a type in C (mod_wsgi, bjoern): it takes no
  attribute. A :class:`FileWrapper` under the key gives the server's own a :class:`File` that does.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        self._file = self._iterator = file  # most files are their own iterators

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_file"), name)

    def __iter__(self) -> Iterator[bytes]:
        self._iterator = iter(self._file)
        return self  # must live as long as the iterator is used

    def __next__(self) -> bytes:
        return next(self._iterator)  # type: ignore[no-any-return]


#: By the ``id`` of what a server's file wrapper made, which holds the file as long as it lives.
_files: WeakValueDictionary[int, File] = WeakValueDictionary()


class FileWrapper:
    """Calls the server's own file wrapper, and remembers which file its result is for."""

    def __init__(self, file_wrapper: Any) -> None:
        self._file_wrapper = file_wrapper

    def __call__(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        proxy = File(file)
        made = self._file_wrapper(proxy, *args, **kwargs)
        _files[id(made)] = proxy
        return made

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._file_wrapper)


def watch(environ: WSGIEnvironment) -> None:
    """Put a :class:`FileWrapper` under ``wsgi.file_wrapper``, if the server's own needs one."""
    wrapper = environ["wsgi.file_wrapper"]
    in_python = isinstance(wrapper, type) and (
        wrapper.__dictoffset__ or hasattr(wrapper, "__slots__")
    )
    if callable(wrapper) and not in_python and type(wrapper) is not FileWrapper:
        environ["wsgi.file_wrapper"] = FileWrapper(wrapper)


def file_of(result: Any, environ: WSGIEnvironment) -> Any:
    """What the server closes, if its file wrapper made ``result``; else ``None``."""
    wrapper = environ.get("wsgi.file_wrapper")
    if type(wrapper) is FileWrapper:
        return _files.get(id(result))
    return result if isinstance(wrapper, type) and isinstance(result, wrapper) else None


def arm(result: Any, after: CallbackList, environ: WSGIEnvironment) -> bool:
    """Make ``result`` finish the request on ``close()``; return whether it will.

    It will if the server's file wrapper made it. Otherwise, wrap it like any other iterable.
    """
    file = file_of(result, environ)
    if file is None:
        return False
    try:
        body = Body(ArmedFile(file), after)
        body._closed = True  # until the file is sure to close it: its finalizer must do nothing
        file.close = body.close
        body._closed = False
    except Exception:  # it has slots, or a close that the server shall find broken, as in a body
        return False
    after._progress = UNSEEN
    if recognise(environ).closes_elsewhere:
        after._thread = get_ident()  # in that of all connections, 2 seconds stalled another by 1.8
    return True


class ArmedFile:
    """Stands for a file in a body. Closed, it gives the file its own ``close`` back, and calls it.

    An app may return the file again. Nothing here refers to it: that would be a cycle.
    """

    def __init__(self, file: Any) -> None:
        self._file = ref(file)
        self._own = vars(file).get("close")
        close = getattr(file, "close", None)
        self._close = None if getattr(close, "__self__", None) is file else close

    def close(self) -> None:
        file, close = self._file(), self._close
        if file is not None:  # else it is being collected
            vars(file).pop("close", None)
            if self._own is not None:
                file.close = self._own
            close = close or getattr(file, "close", None)
        if close is not None:
            close()
