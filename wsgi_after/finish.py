"""The end of a request: close what the app returned, run its callbacks, let go of everything.

Called by the bodies, by the file wrappers, and where the app raised before it returned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextvars import copy_context
from types import EllipsisType
from typing import TYPE_CHECKING

from .callbacks import CallbackList, EndedCallbackList
from .hand_off import announce, hand_over
from .logs import logger
from .run import run
from .servers import CHUNKED, CONNECTION, EMPTY, ERROR, SIZED, UNKNOWN, Server, recognise

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .executor import SupportsSubmit

PATIENCE = 1.0  # seconds that a callback may keep a worker in close() before that is reported

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
    if not callbacks:
        callbacks.__class__ = EndedCallbackList
        # Looked at once more: another thread may have registered before the mark of the end.
        if not callbacks:
            callbacks._environ = callbacks._error = None
            callbacks._server_start_response = callbacks._write = None
            return
    if capture_hooks and capture_hooks[0](callbacks):
        callbacks._server_start_response = callbacks._write = None
        return
    environ: WSGIEnvironment = callbacks._environ  # type: ignore[assignment]  # not ended yet
    server = recognise(environ, callbacks._server_start_response)
    callbacks._server_start_response = None  # from here on, registering on_prepare is too late
    # For most requests nothing else is to be decided, and to find that out takes 120 ns.
    if server is UNKNOWN and type(callbacks) is CallbackList:
        raised = run(callbacks, None, error, PATIENCE)
    else:
        raised = run_or_hand_over(callbacks, server, error)
    if raised is not error:
        try:
            raise raised  # type: ignore[misc]
        finally:
            del raised  # or this frame and the traceback would hold each other


def run_or_hand_over(
    callbacks: CallbackList, server: Server, error: BaseException | None
) -> BaseException | None:
    """Run the callbacks here, or see to it that somebody does; return what is to be let out.

    The executor that the middleware was given runs them; ``None`` is here. By default it is here,
    unless the client would wait for the end of this response, whatever is done here, and the server
    really runs threads.
    """
    executor = executor_for(server, callbacks, error)
    if executor is not None:
        refusal = hand_over(callbacks, executor)
        if refusal is None:
            return error
        if error is None and not isinstance(refusal, (Exception, SystemExit)):
            error = refusal
        del refusal  # or this frame and the traceback would hold each other, and the environ
    if server.holds_headers:
        error = flush(callbacks) or error
    try:
        return run(callbacks, None, error, PATIENCE)
    finally:
        del error  # likewise


def executor_for(
    server: Server, callbacks: CallbackList, error: BaseException | None
) -> SupportsSubmit | None:
    """Who is to run the callbacks: what the middleware was told, or as its default has it."""
    if type(callbacks) is not CallbackList:  # somebody may have said which
        executor: SupportsSubmit | EllipsisType | None = getattr(callbacks, "_executor", ...)
        if executor is not ...:
            return executor
    if not server.late or not server.runs_threads:
        return None
    # Most responses need no closer look, which takes 700 ns: an exhausted one of HTTP/1.1, by a
    # server that ends these before close(), whatever is in the headers.
    if (
        error is None
        and CHUNKED not in server.late
        and getattr(callbacks, "_completed", None)
        and getattr(callbacks, "_started", None)
        and callbacks._environ.get("SERVER_PROTOCOL") == "HTTP/1.1"  # type: ignore[union-attr]
    ):
        return None
    return by_default(server, callbacks, error)


def by_default(
    server: Server, callbacks: CallbackList, error: BaseException | None
) -> SupportsSubmit | None:
    """The small pool, if a client would wait for the end of this response; else ``None``."""
    try:
        end = end_of(callbacks, error)
        if end not in server.late:
            return None
        from .executor import shared  # loads concurrent.futures, which most never need
    except Exception:  # headers that are none, which this server let pass; or Python is at its end
        return None
    announce(server.name, end)
    return shared


def end_of(callbacks: CallbackList, error: BaseException | None) -> str:
    """What tells a client where this response ends, as far as servers differ in when that is."""
    status, headers = callbacks._given_to_server()
    # An exhausted body has no error, and to ask the list for one costs 250 ns.
    failed = error is not None or (callbacks.completed is not True and callbacks.error is not None)
    if failed or not status:
        return ERROR
    length = content_length(headers)
    environ: WSGIEnvironment = callbacks._environ  # type: ignore[assignment]  # not ended yet
    if environ.get("REQUEST_METHOD") == "HEAD" or status[:3] in {"204", "304"} or length == "0":
        return EMPTY
    if length is not None:
        return SIZED
    return CHUNKED if environ.get("SERVER_PROTOCOL") == "HTTP/1.1" else CONNECTION


def content_length(headers: list[tuple[str, str]]) -> str | None:
    """The value of the header, if the app gave it."""
    for name, value in headers:
        if name.lower() == "content-length":
            return value.strip()
    return None


def flush(callbacks: CallbackList) -> BaseException | None:
    """Make a server that merely holds the headers of an empty response send them.

    PEP 3333 does not want ``write()`` used like this. It is done for servers that the tests start,
    where it changes no byte, only when it is sent; and only after a body that was exhausted, in an
    app that raised nothing, because the server may still answer an error with another response.

    :return: what is to be let out after the callbacks, such as a ``KeyboardInterrupt``.
    """
    try:
        if callbacks._completed is not True:
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


def finish_interrupted(callbacks: CallbackList, error: BaseException) -> None:
    """After :func:`finish` raised: run what it left, if a handler of a signal raised in it.

    Nothing is left where a callback, or the ``close`` of the app's iterable, raised: then the
    callbacks have run, or an executor has them.
    """
    if callbacks and callbacks._environ is not None:
        if callbacks.error is None:
            callbacks._error = error
        callbacks._server_start_response = None
        run(callbacks, None, error, PATIENCE)


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
        callbacks._direct(None)  # nor a hand-over: submit() may wait for a lock held further up
        # In a copy, because on CPython 3.10 and 3.11 ContextVar.set() can crash the interpreter
        # when a finalizer calls it in the context of whatever code it interrupted.
        copy_context().run(close)
