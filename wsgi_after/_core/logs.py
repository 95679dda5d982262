"""What the package says: its logger, its log lines, and the texts of its errors.

Nothing that a client sends can break a log line, and nothing that fails here stops a callback.
"""

from __future__ import annotations

import codecs
import logging
import os
import sys
import traceback
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

from .let_out import goes_on

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_after")

# Looked up now: an ending interpreter, which still collects responses, finds no codec any more.
_escape = codecs.getencoder("unicode_escape")

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


#: Called with the text and the exception of each failure that is logged:
#: ``wsgi_after.testing.strict()``.
failure_hooks: list[Callable[[str, BaseException | None], object]] = []

slow_ones = Throttle()
refusals = Throttle()


def log(
    method: Callable[..., None],
    message: str,
    /,
    *args: object,
    exc_info: BaseException | None = None,
    extra: dict[str, object] | None = None,
) -> None:
    """Call a method of the logger. A failing filter or handler must not stop the callbacks."""
    if sys.is_finalizing():
        write_at_the_end(message % args, exc_info)
        return
    try:
        method(message, *args, exc_info=exc_info, extra=extra)
    except BaseException as error:
        if goes_on(error):
            raise
        with suppress(Exception):  # the cause may be a stderr that is closed
            traceback.print_exc()


def write_at_the_end(message: str, error: BaseException | None) -> None:
    """Write to stderr what cannot be logged any more, because Python is ending.

    Handlers are closed, nothing can be imported, and a lock of ``logging`` may be held by a daemon
    thread that never runs again.
    """
    lines = [message]
    if error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}')
        lines.append(printable(error, repr))
    if logger.getEffectiveLevel() <= logging.ERROR > logger.manager.disable:
        with suppress(OSError):
            os.write(2, "\n".join([*lines, ""]).encode("ascii", "backslashreplace"))


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


# Callbacks


def log_failure(callback: object, request: str, seconds: float, error: BaseException) -> None:
    """Log what a callback raised.

    :param seconds: how long the callback ran.
    """
    if not callable(callback):
        outcome, message = "not callable", NOT_CALLABLE
    elif isinstance(error, SystemExit):
        outcome, message = "system exit", SYSTEM_EXIT
    else:
        outcome, message = "failed", FAILED
    _log_failure(outcome, message, callback, request, seconds, error)


def log_not_run(callback: object, request: str, seconds: float, outcome: object) -> None:
    """Log that calling the callback has run nothing, because of what it returned; close that."""
    if isinstance(outcome, (Coroutine, Generator)):
        outcome.close()
    if isinstance(outcome, Coroutine):
        _log_failure("coroutine", COROUTINE, callback, request, seconds, None)
    else:
        _log_failure("generator", GENERATOR, callback, request, seconds, None)


def _log_failure(
    outcome: str,
    message: str,
    callback: object,
    request: str,
    seconds: float,
    error: BaseException | None,
) -> None:
    name = describe(callback)
    # Attributes of the record. Not "request", where Django's handlers expect an object of theirs.
    extra = {"callback": name, "request_line": request, "seconds": seconds, "outcome": outcome}
    log(logger.error, message, name, request, exc_info=error, extra=extra)
    for hook in failure_hooks:
        hook(message % (name, request), error)


def log_interruption(request: str, error: BaseException) -> None:
    """Log what was raised between two callbacks."""
    log(logger.error, INTERRUPTED, request, exc_info=error)


def log_slow(callback: object, request: str, seconds: float) -> None:
    """Log, once a minute, that a callback held up its server."""
    times = slow_ones.passes()
    if times:
        log(logger.warning, SLOW, describe(callback), request, seconds, times)


FAILED = "Callback %s of %s failed."
COROUTINE = (
    "Callback %s of %s returned a coroutine, so it has not run: callbacks are plain functions. "
    "Register asgiref.sync.async_to_sync(fn) in place of fn."
)
GENERATOR = (
    "Callback %s of %s returned a generator, so it has not run: callbacks are plain functions. "
    "Take the yield out of it, or register a function that iterates over it."
)
NOT_CALLABLE = (
    "Entry %s of %s is not callable. The usual cause is a function that was called where it should "
    "be passed: append(fn), not append(fn())."
)
SYSTEM_EXIT = (
    "Callback %s of %s raised SystemExit, which is contained: it would end the server's worker."
)
INTERRUPTED = (
    "Something was raised between the callbacks of %s; the others run. The usual cause is a signal "
    "handler, such as that of gunicorn's worker timeout."
)
SLOW = (
    "Callback %s of %s took %.1f seconds in close(). Meanwhile this worker, or this thread of it, "
    "served nobody, and the next request on the connection waited. Pass executor= to "
    "AfterResponseMiddleware, or let the callback put its work into a queue. There were %d slow "
    "callbacks since this was last told."
)


# Executors


def log_refusal(request: str, error: BaseException) -> None:
    """Log, once a minute, that an executor did not take a job."""
    times = refusals.passes()
    if times:
        kind = type(error).__name__
        log(logger.warning, REFUSED, request, kind, printable(error), times)


REFUSED = (
    "The executor did not take the callbacks of %s, so they run in close(), where the client may "
    "wait for them: %s: %s. This happened %d times since it was last reported."
)
LOST = (
    "The callbacks of %s are lost: the executor accepted them, but the job failed or was cancelled "
    "before it reported that they ran. They are not run again, because some of them may have run."
)
LET_OUT = "A callback of %s let this out of the executor's job."


# Responses that nobody closed

UNCLOSED = (
    "The response of %s was never closed, so its callbacks run at garbage collection. The server, "
    "or a middleware around AfterResponseMiddleware, dropped the iterable without calling its "
    "close(), which PEP 3333 demands."
)
UNCLOSED_FAILED = "Closing the response of %s, which its server had dropped, raised an exception."


# Errors


def not_callable(fn: object) -> TypeError:
    """What to raise where something else than a callback is registered."""
    return TypeError(
        f"A callback must be callable, not {type(fn).__name__}: {fn!r}. The usual cause is a "
        "function that was called where it should be passed: after(fn, x), not after(fn(x))."
    )


def no_application(app: object) -> TypeError:
    """What to raise where the middleware is given something else than an app."""
    return TypeError(
        f"AfterResponseMiddleware expects a WSGI application, which is a callable, not "
        f"{type(app).__name__}: {app!r}. The usual cause is a module, or the name of an "
        "application, passed in its place."
    )


def no_executor(executor: object) -> TypeError:
    """What to raise where ``executor=`` is something else."""
    return TypeError(
        f"executor= expects an object with submit(fn, *args), such as those of "
        f"concurrent.futures, or None, not {type(executor).__name__}: {executor!r}."
    )


def no_list(present: object) -> TypeError:
    """What to raise where the list's place in the environ has something else."""
    return TypeError(
        f'environ["wsgi.after"] is {type(present).__name__}, where a list was expected: '
        f"{present!r}. The usual cause is an app or a middleware that assigned to the key: use "
        "environ['wsgi.after'].append(fn)."
    )


def plain_list(callbacks: object) -> RuntimeError:
    """What to raise where a plain list cannot do what is asked."""
    return RuntimeError(
        f"after_this_request() needs the list of an AfterResponseMiddleware, but "
        f'environ["wsgi.after"] is a plain {type(callbacks).__name__}: the server, or another '
        "middleware, put it there before ours was called, and runs what is in it after the "
        "response. Of such a list only list operations and after_this_response() are promised."
    )


def outside(function: str, instead: str) -> RuntimeError:
    """What to raise where there is no current request."""
    return RuntimeError(
        f"{function}() was called outside a request. It works while the app is being "
        "called, behind AfterResponseMiddleware. In a streaming body, or in a thread of your "
        f'own, hold on to environ["wsgi.after"] and {instead} instead.'
    )


TOO_LATE = (
    "The callbacks of this request have run already, so nothing more can be registered: "
    "a callback was added after close(). The usual cause is a thread, or a reference to "
    'environ["wsgi.after"], that outlived the request it came from.'
)
OTHER_PROCESS = (
    'environ["wsgi.after"] belongs to the process that made it, which runs its callbacks, and this '
    "is a forked child: what it registers would never run. Register before the fork, or do the "
    "work in the child itself."
)
STARTED_TOO_LATE = (
    "start_response() was called after the end of its request, when the server had closed the "
    "response. The usual cause is a callback, or a thread, that answers a request once more."
)
