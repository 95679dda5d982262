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
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import count, pairwise
from reprlib import recursive_repr
from reprlib import repr as short_repr
from time import monotonic
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from . import process
from .let_out import goes_on

if TYPE_CHECKING:
    from types import FrameType

    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger("wsgi_after")

# Looked up at import: an interpreter that is ending still collects responses, but finds no codec.
_escape = codecs.getencoder("unicode_escape")

REST = 60.0  # seconds between two events that a Throttle lets pass


class Throttle:
    """Lets one of many similar events through, once a minute, and counts the others.

    It takes no lock, because a finalizer may call it at any time. Threads that call it at the same
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


#: ``wsgi_after.testing.strict()``: called with the text and the exception of each logged failure.
failure_hooks: list[Callable[[str, BaseException | None], object]] = []


#: What ``on_error=`` takes: it is called with the callback, what that raised, and the list.
OnError = Callable[[Callable[[], object], BaseException, Any], object]
#: What ``around=`` takes: it is called with the callback and the list.
Around = Callable[[Callable[[], object], Any], AbstractContextManager[object]]


class Maker(Protocol):
    """Who made a list: what its callbacks need to know of a middleware, or of a class as below."""

    _call: Callable[..., object] | None
    _on_error: OnError | None
    _moment: bool
    _observer: Callable[..., object] | None


class Nobody:
    """In place of a maker: the list was made by hand, or in another process."""

    _call: ClassVar[Callable[..., object] | None] = None
    _on_error: ClassVar[OnError | None] = None
    _moment: ClassVar[bool] = True
    _observer: ClassVar[Callable[..., object] | None] = None


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
    # By default, dictConfig() and fileConfig() disable every logger that they do not name.
    logger.disabled = False
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


def call_of(callback: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The function that a callback calls in the end, its arguments and its keywords."""
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    while isinstance(callback, partial):
        args, keywords = (*callback.args, *args), {**callback.keywords, **keywords}
        callback = callback.func
    return callback, args, keywords


def describe(callback: Any) -> str:
    """The name of a callback in the log: ``module.function`` if it has one, else its ``repr``."""
    fn, _, _ = call_of(callback)
    try:
        return f"{fn.__module__}.{fn.__qualname__}"
    except Exception:
        return printable(fn, repr)


def call_text(callback: Any) -> str:
    """How a callback will be called, such as ``shop.send_mail('ada@example.com', copies=2)``."""
    if not callable(callback):
        return short_repr(callback)
    fn, args, keywords = call_of(callback)
    named = [f"{name}={short_repr(value)}" for name, value in keywords.items()]
    return f"{describe(fn)}({', '.join([*map(short_repr, args), *named])})"


@recursive_repr("<CallbackList [...]>")
def list_text(callbacks: list[Any]) -> str:
    """The ``repr`` of a list of ours: the names of its callbacks, and their arguments."""
    return f"<CallbackList [{', '.join(map(call_text, callbacks))}]>"


def printable(thing: object, text_of: Callable[[object], str] = str) -> str:
    """The text of ``thing`` in one line: what a client sent cannot forge a log line."""
    try:
        text = text_of(thing)
    except Exception:
        text = object.__repr__(thing)
    return text if text.isprintable() else _escape(text)[0].decode("ascii")


def request_line(environ: WSGIEnvironment) -> str:
    """Method and path, escaped for the log."""
    method = environ.get("REQUEST_METHOD", "?")
    path = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
    return _escape(f"{method} {path}")[0].decode("ascii")


# Callbacks


def label(request: str | None, after: Any) -> str:
    """What the log calls a request: by its label, or by its list, if that is one of ours."""
    return request or ("a request" if after is None else after._request_line())


def log_failure(
    callback: object, request: str | None, seconds: float, error: BaseException, after: Any
) -> None:
    """Log what a callback raised, and tell ``on_error=``.

    :param seconds: how long the callback ran.
    :param after: the list, if it is one of ours, else ``None``.
    """
    if not callable(callback):
        outcome, message = "not callable", NOT_CALLABLE
    elif isinstance(error, SystemExit):
        outcome, message = "system exit", SYSTEM_EXIT
    else:
        outcome, message = "failed", FAILED
    if lacks_arguments(error):
        error.add_note(NO_ARGUMENTS)
    _log_failure(outcome, message, callback, request, seconds, error, after)


def lacks_arguments(error: BaseException) -> bool:
    """Whether this package called a function with arguments that it does not take."""
    if not isinstance(error, TypeError) or "argument" not in str(error):
        return False
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("wsgi_after.")


def log_not_run(
    callback: object, request: str | None, seconds: float, outcome: object, after: Any
) -> None:
    """Log that a callback returned a coroutine or a generator, which has not run; close that."""
    if isinstance(outcome, (Coroutine, Generator)):
        outcome.close()
    if isinstance(outcome, Coroutine):
        _log_failure("coroutine", COROUTINE, callback, request, seconds, None, after)
    else:
        _log_failure("generator", GENERATOR, callback, request, seconds, None, after)


def _log_failure(
    outcome: str,
    message: str,
    callback: object,
    label_or_none: str | None,
    seconds: float,
    error: BaseException | None,
    after: Any,
) -> None:
    name, request = describe(callback), label(label_or_none, after)
    # Attributes of the record. Not "request", where Django's handlers expect an object of theirs.
    extra = {"callback": name, "request_line": request, "seconds": seconds, "outcome": outcome}
    log(logger.error, message, name, request, exc_info=error, extra=extra)
    for hook in failure_hooks:
        hook(message % (name, request), error)
    maker = None if after is None else after._maker
    if maker is not None and maker._on_error is not None:
        forks = process.forks
        try:
            told = RuntimeError(message % (name, request)) if error is None else error
            maker._on_error(callback, told, after)
        except BaseException as raised:
            if process.forks != forks or goes_on(raised):  # forked: this is the child
                raise
            log(logger.error, ON_ERROR_FAILED, describe(maker._on_error), request, exc_info=raised)


def log_interruption(request: str | None, error: BaseException, after: Any) -> None:
    """Log what was raised between two callbacks."""
    log(logger.error, INTERRUPTED, label(request, after), exc_info=error)


def log_slow(callback: object, request: str | None, seconds: float, after: Any) -> None:
    """Log, at most once a minute, that a callback held up its server."""
    times = slow_ones.passes()
    if times:
        more = since_last(times, "There were {} slow callbacks")
        log(logger.warning, SLOW, describe(callback), label(request, after), seconds, more)


def log_around(
    around: object, callback: object, request: str | None, error: BaseException, after: Any
) -> None:
    """Log that a context manager around a callback could not be entered, or left."""
    names = describe(around), describe(callback), label(request, after)
    log(logger.error, AROUND_FAILED, *names, exc_info=error)


def since_last(times: int, events: str) -> str:
    """What to add to a message that stands for all events since it was last logged."""
    return f" {events.format(times)} since this was last logged." if times > 1 else ""


# A middleware outside that closes too early

#: One for each request that this process will still look at.
looks = [None] * 100

CO_VARARGS, CO_GENERATOR = 0x04, 0x20  # as in the module inspect, which is large

#: These take an environ as an app does, but are servers.
NOT_OUTSIDE = {"a2wsgi", "asgiref", "hypercorn", "uvicorn", "wsgi_after"}


def log_early_close(environ: WSGIEnvironment, request: str) -> None:
    """Log, once, that a middleware outside closes a response before it returns it.

    Looking costs as much as a callback or two, so only the first requests of a process are checked.
    """
    with suppress(Exception):  # another thread has taken the last look, or a frame is odd
        looks.pop()
        culprit = unreturned(environ)
        if culprit is not None:
            looks.clear()
            log(logger.warning, EARLY_CLOSE, culprit, request)


def unreturned(environ: WSGIEnvironment) -> str | None:
    """The innermost WSGI app that was called with ``environ`` and has not returned, if not ours."""
    for frame, _ in traceback.walk_stack(None):
        if is_called_with(environ, frame):
            module = str(frame.f_globals.get("__name__"))
            is_outside = module.partition(".")[0] not in NOT_OUTSIDE
            return f"{module}.{frame.f_code.co_qualname}" if is_outside else None
    return None


def is_called_with(environ: WSGIEnvironment, frame: FrameType) -> bool:
    """Whether a call looks like that of a WSGI app: it was given ``environ``, then a callable.

    Or a request of WebOb with that environ, as ``webob.dec.wsgify.middleware`` has it. A generator
    has returned when it runs. Reading the locals of a frame keeps them alive, so this reads only
    frames that end with a request: those with an argument that is named like one.
    """
    code = frame.f_code
    has_varargs = bool(code.co_flags & CO_VARARGS)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + has_varargs]
    named = [name for name in names if name.startswith(("env", "req"))]
    if code.co_flags & CO_GENERATOR or not (has_varargs or named):
        return False
    arguments: list[tuple[str, Any]] = []
    for name in names:
        value = frame.f_locals.get(name)
        arguments += [(name, one) for one in (value if type(value) is tuple else [value])]
    for (name, first), (_, start_response) in pairwise(arguments):
        given = first.environ if name.startswith("req") and first is not environ else first
        if callable(start_response) and given is environ:
            return True
    return False


EARLY_CLOSE = (
    "Clients wait for callbacks, because the middleware %s, around AfterResponseMiddleware, closed "
    "the response of %s before returning it to the server. Put AfterResponseMiddleware around that "
    "middleware: application = wsgi_after.AfterResponseMiddleware(application), or in Flask "
    "app.wsgi_app = wsgi_after.AfterResponseMiddleware(app.wsgi_app). An instance inside may stay: "
    "it then shares the list of the outer one. This is logged once."
)


# Callbacks that fail, and those that are slow

FAILED = "Callback %s of %s failed."
COROUTINE = (
    "Callback %s of %s returned a coroutine, so its code has not run. Callbacks must be plain "
    "functions. Register asgiref.sync.async_to_sync(fn) in place of fn."
)
GENERATOR = (
    "Callback %s of %s returned a generator, so its code has not run. Callbacks must be plain "
    "functions. Remove the yield, or register a function that iterates over it."
)
NOT_CALLABLE = (
    "Entry %s of %s is not callable. The usual cause is a function that was called instead of "
    "passed: write append(fn), not append(fn())."
)
SYSTEM_EXIT = (
    "Callback %s of %s raised SystemExit, which is contained, because it would end the server's "
    "worker. The usual cause is a call of sys.exit()."
)
INTERRUPTED = (
    "An exception was raised between two callbacks of %s. The other callbacks still run. The usual "
    "cause is a signal handler, such as that of gunicorn's worker timeout."
)
SLOW = (
    "Callback %s of %s took %.1f seconds in close(). During that time its thread served no other "
    "request, and the next request on the connection waited. Pass executor= to "
    "AfterResponseMiddleware, or let the callback put its work into a queue.%s"
)
ON_ERROR_FAILED = (
    "The function %s, passed as on_error=, raised an exception. It was called because a callback "
    "of %s failed: see the record before this one."
)
AROUND_FAILED = (
    "The function %s, passed as around=, or the context manager that it returned, raised an "
    "exception around callback %s of %s. The callback still runs once."
)


# Executors


def log_refusal(request: str, error: BaseException) -> None:
    """Log, at most once a minute, that an executor refused a job."""
    times = refusals.passes()
    if times:
        kind, more = type(error).__name__, since_last(times, "This happened {} times")
        log(logger.warning, REFUSED, request, kind, printable(error), more)


REFUSED = (
    "The executor refused the callbacks of %s (%s: %s), so they run in close(), where the client "
    "may wait for them.%s"
)
LOST = (
    "The callbacks of %s are lost: the executor accepted them, but the job failed or was cancelled "
    "before it reported that they had run. They are not run again, because some may have run."
)
LET_OUT = (
    "An exception of a callback of %s left the executor's job after the others had run. It is of a "
    "kind that is not contained, such as KeyboardInterrupt."
)


# Responses that nobody closed

UNCLOSED = (
    "The response of %s was never closed, so its callbacks run at garbage collection. The server, "
    "or a middleware around AfterResponseMiddleware, dropped the iterable without calling its "
    "close(), which PEP 3333 requires."
)
HOOK_FAILED = (
    "The function %r, called before each callback for the server, raised an exception. The "
    "callback still runs."
)
UNCLOSED_FAILED = "Closing the response of %s, which its server had dropped, raised an exception."


# Errors


def not_callable(fn: object) -> TypeError:
    """The error for registering anything other than a callback."""
    return TypeError(
        f"A callback must be callable, not {type(fn).__name__}: {fn!r}. The usual cause is a "
        "function that was called instead of passed: write after(fn, x), not after(fn(x))."
    )


def is_get_response(app: Any) -> bool:
    """Whether this is what Django calls an entry of ``MIDDLEWARE`` with."""
    names = getattr(app, "__globals__", {})
    return bool(names.get("__name__") == "django.core.handlers.exception")


def no_application(app: object) -> TypeError:
    """The error for giving the middleware anything other than an app."""
    if is_get_response(app):
        return TypeError(
            "wsgi_after.AfterResponseMiddleware expects a WSGI application, not Django's "
            "get_response. In MIDDLEWARE, write wsgi_after.django.AfterResponseMiddleware."
        )
    return TypeError(
        f"AfterResponseMiddleware expects a WSGI application, which is a callable, not "
        f"{type(app).__name__}: {app!r}. The usual cause is a module, or the name of an "
        "application, passed instead of the application."
    )


def no_executor(executor: object) -> TypeError:
    """The error for an invalid ``executor=``."""
    return TypeError(
        f"executor= expects an object with submit(fn, *args), such as those of "
        f"concurrent.futures, or None, not {type(executor).__name__}: {executor!r}. The usual "
        "cause is a number of threads, or the client of a task queue, passed in its place."
    )


def no_on_error(on_error: object) -> TypeError:
    """The error for an invalid ``on_error=``."""
    return TypeError(
        f"on_error= expects a plain function fn(callback, error, after), or None, not "
        f"{type(on_error).__name__}: {on_error!r}. The usual causes are an async function, and a "
        "function that was called instead of passed."
    )


def no_around(around: object) -> TypeError:
    """The error for an invalid ``around=``."""
    return TypeError(
        f"around= expects a function fn(callback, after) that returns a context manager, or None, "
        f"not {type(around).__name__}: {around!r}. The usual causes are a context manager passed "
        "instead of the function, and a generator function without @contextlib.contextmanager."
    )


def no_list(present: object) -> TypeError:
    """The error for an ``environ["wsgi.after"]`` that is not a list."""
    return TypeError(
        f'environ["wsgi.after"] is {type(present).__name__}, where a list was expected: '
        f"{present!r}. The usual cause is an app or a middleware that assigned to the key: use "
        "environ['wsgi.after'].append(fn)."
    )


def plain_list(callbacks: object) -> RuntimeError:
    """The error for a call that needs a list of ours, and finds a plain one."""
    return RuntimeError(
        f"after_this_request() needs the list of an AfterResponseMiddleware, but "
        f'environ["wsgi.after"] is a plain {type(callbacks).__name__}. The server, or another '
        "middleware, made it, and runs its callbacks after the response. A plain list guarantees "
        "only list operations and after_this_response()."
    )


def outside(function: str, instead: str) -> RuntimeError:
    """The error for a call outside a request."""
    return RuntimeError(
        f"{function}() was called outside a request. It works only while an app behind "
        "AfterResponseMiddleware is being called. The usual causes are an app that is not wrapped, "
        "a streaming body, and a thread of your own. In the last two, keep a reference to "
        f'environ["wsgi.after"] and {instead} instead.'
    )


TOO_LATE = (
    "A callback was registered too late: the callbacks of this request have run already. The usual "
    'cause is a thread, or a reference to environ["wsgi.after"], that outlived its request.'
)
OTHER_PROCESS = (
    "This process is a forked child, in which callbacks of the request never run: "
    'environ["wsgi.after"] belongs to the process that made it. Register before the fork, or do '
    "the work in the child itself."
)
NO_ARGUMENTS = (
    "A callback is called without arguments. Pass them where you register it, as in after(fn, 1). "
    "If the function takes the response, register it with after_this_request(); if it takes the "
    "environ, with after_response() of the middleware."
)
THE_RESPONSE = (
    "A response callback is called with the response, before the headers go out. If the function "
    "takes no argument, or has to run after the response, register it with after_this_response()."
)
PREPARED_TOO_LATE = (
    "A response callback was registered too late: the response has started, so the server has its "
    "headers, or the request has ended without a response. Register it before the app calls "
    "start_response(). In a framework, that means before the view returns. A response callback may "
    "register another one."
)
STARTED_TOO_LATE = (
    "start_response() was called after the end of its request, when the server had closed the "
    "response. The usual cause is a callback, or a thread, that starts a second response."
)
