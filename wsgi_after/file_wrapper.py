"""``wsgi.file_wrapper``: let the server send the file itself, and finish when it closes the file.

A server knows a file by the object that its own ``wsgi.file_wrapper`` made, so that very object
has to come back to it: wrapped in a body, its file would be copied through Python.

Where the wrapper is a Python class (gunicorn, waitress, wsgiref), the object that the app returns
gets a ``close`` of its own, which calls the one it had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .callbacks import CallbackList
from .finish import finish, finish_unclosed


class FileClose:
    """The ``close`` of a file wrapper's instance."""

    __slots__ = ("_callbacks", "_close")

    def __init__(self, close: Callable[[], object] | None, callbacks: CallbackList) -> None:
        self._close = close
        self._callbacks: CallbackList | None = callbacks

    def __call__(self) -> None:
        """Close the file, then run the callbacks. A second call does nothing."""
        callbacks, close = self._callbacks, self._close
        self._callbacks = self._close = None
        if callbacks is not None:
            finish(callbacks, close)

    def __del__(self) -> None:
        if self._callbacks is not None:
            finish_unclosed(self, self._callbacks)


def arm(result: Any, callbacks: CallbackList, file_wrapper: Any) -> bool:
    """Make ``result`` finish the request on ``close()``, if it is one of the server's wrappers.

    :param file_wrapper: what the server has under ``wsgi.file_wrapper``.
    :return: whether it is one, and will: else it has to be wrapped as any other iterable.
    """
    # On some servers it is a function: isinstance() would raise.
    if not isinstance(file_wrapper, type) or not isinstance(result, file_wrapper):
        return False
    file_close = FileClose(getattr(result, "close", None), callbacks)
    try:
        result.close = file_close  # type: ignore[attr-defined]
    except AttributeError:  # a type in C
        file_close._callbacks = None
        return False
    callbacks._completed = None
    return True
