"""The end of a request: close what the app returned, run its callbacks, let go of everything.

Called by the bodies, by the file wrappers, and where the app raised before it returned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING

from .callbacks import CallbackList, EndedCallbackList, logger, run
from .servers import recognise

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Asked whether it keeps the callbacks of a request, which then do not run: by wsgi_after.testing.
capture_hooks: list[Callable[[CallbackList], bool]] = []


def finish(
    callbacks: CallbackList,
    close: Callable[[], object] | None = None,
    error: BaseException | None = None,
) -> None:
    """Close the app's iterable, then run the callbacks, then end their list.

    :param close: the ``close`` of the app's iterable, if it has one.
    :param error: an exception of the app that is on its way to the server. Then nothing is raised
        here: what a callback would let out is logged instead.
    :raises BaseException: what ``close`` raised; else what a callback let out.
    """
    if close is not None:
        try:
            close()
        except BaseException as raised_by_close:
            finish(callbacks, error=raised_by_close)
            raise
    if error is not None and callbacks.error is None:
        callbacks._error = error
    raised = error
    callbacks._server_start_response = None  # from here on, registering on_prepare is too late
    if not callbacks:
        callbacks.__class__ = EndedCallbackList
    # Looked at once more: another thread may have registered before the mark of the end.
    if callbacks:
        if capture_hooks and capture_hooks[0](callbacks):
            return
        raised = run(callbacks, None, flush(callbacks) or error)
    callbacks._environ = callbacks._error = callbacks._write = None
    if raised is not error:
        try:
            raise raised  # type: ignore[misc]
        finally:
            del raised  # or this frame and the traceback would hold each other


def flush(callbacks: CallbackList) -> BaseException | None:
    """Make a server that merely holds the headers of an empty response send them.

    PEP 3333 does not want ``write()`` used like this. It is done for servers that the tests start,
    where it changes no byte, only when it is sent; and only after a body that was exhausted, in an
    app that raised nothing, because the server may still answer an error with another response.

    :return: what is to be let out after the callbacks, such as a ``KeyboardInterrupt``.
    """
    try:
        environ: WSGIEnvironment = callbacks._environ  # type: ignore[assignment]  # not ended yet
        if callbacks._completed is not True or not recognise(environ).holds_headers:
            return None
        write = callbacks._write
    except AttributeError:  # the app did not start a response, or nobody asked for its body
        return None
    if write is None or callbacks.error is not None:
        return None
    try:
        write(b"")
    except Exception:  # most often a client that has left: the callbacks run all the same
        logger.debug("Flushing the headers of %s failed.", callbacks._request_line(), exc_info=True)
    except BaseException as interruption:
        return interruption
    return None


def finish_unclosed(close: Callable[[], object], callbacks: CallbackList) -> None:
    """Call ``close`` in place of the server, which dropped the iterable: for finalizers only.

    Runs in whatever thread the last reference went, at any allocation: it takes no lock.
    """
    try:
        if callbacks:
            warnings.warn(
                f"The response of {callbacks._request_line()} was never closed, so its "
                "callbacks run at garbage collection. The server, or a middleware around "
                "AfterResponseMiddleware, dropped the iterable without calling its close(), "
                "which PEP 3333 demands.",
                ResourceWarning,
                stacklevel=3,
            )
    finally:
        callbacks._write = None  # no flush from here: whose thread this is, is not known
        # In a copy, because on CPython 3.10 and 3.11 ContextVar.set() can crash the interpreter
        # when a finalizer calls it in the context of whatever code it interrupted.
        copy_context().run(close)
