"""The logger, and texts for it that nothing a client sends can break."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_after")


def log(
    method: Callable[..., None],
    message: str,
    /,
    *args: object,
    exc_info: BaseException | None = None,
    extra: dict[str, object] | None = None,
) -> None:
    """Call a method of the logger; a filter or handler of the user's must not cost callbacks."""
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
    """The text of what a client may have had a hand in, in one line: it cannot forge a log line."""
    try:
        text = text_of(thing)
    except Exception:
        text = object.__repr__(thing)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def request_line(environ: WSGIEnvironment) -> str:
    """Method and path, escaped."""
    method = environ.get("REQUEST_METHOD", "?")
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    return f"{method} {path}".encode("unicode_escape").decode("ascii")
