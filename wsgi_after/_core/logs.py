"""The logger, and texts for it that nothing a client sends can break."""

from __future__ import annotations

import codecs
import logging
import traceback
from collections.abc import Callable
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_after")

# Looked up now: an ending interpreter, which still collects responses, finds no codec any more.
_escape = codecs.getencoder("unicode_escape")


def log(
    method: Callable[..., None],
    message: str,
    /,
    *args: object,
    exc_info: BaseException | None = None,
    extra: dict[str, object] | None = None,
) -> None:
    """Call a method of the logger. A failing filter or handler must not stop the callbacks."""
    try:
        method(message, *args, exc_info=exc_info, extra=extra)
    except Exception:
        traceback.print_exc()


def describe(callback: Any) -> str:
    """A name for the log: ``module.function`` where there is one, else the ``repr``."""
    fn = callback.func if isinstance(callback, partial) else callback
    try:
        return f"{fn.__module__}.{fn.__qualname__}"
    except Exception:
        return printable(fn, repr)


def printable(thing: object, text_of: Callable[[object], str] = str) -> str:
    """The text of ``thing`` in one line: what a client sent cannot forge a log line."""
    try:
        text = text_of(thing)
    except Exception:
        text = object.__repr__(thing)
    return text if text.isprintable() else _escape(text)[0].decode("ascii")


def request_line(environ: WSGIEnvironment) -> str:
    """Method and path, escaped."""
    method = environ.get("REQUEST_METHOD", "?")
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    return _escape(f"{method} {path}")[0].decode("ascii")


REST = 60.0  # seconds between two events that a Throttle lets pass


class Throttle:
    """Lets one of many like events through, once a minute, and counts the others.

    It takes no lock, because a finalizer may come by at any time. Threads that come at the same
    moment may all pass, and share the count.
    """

    def __init__(self) -> None:
        self._closed_until = 0.0
        self._counter = count(1)
        self._told = 0

    def passes(self) -> int:
        """Count one event. Return how many there were since the last that passed, or 0."""
        total, now = next(self._counter), monotonic()
        if now < self._closed_until:
            return 0
        self._closed_until = now + REST
        since, self._told = total - self._told, total
        return since
