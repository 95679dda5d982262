"""How the callbacks of a list are run, and what becomes of an exception of one."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from itertools import repeat
from math import inf
from time import monotonic
from types import TracebackType

from . import process
from .callbacks import HANDED_OVER, IN_JOB, OTHER_PROCESS, RUNNING, CallbackList
from .current import reset_current, set_current
from .logs import Throttle, describe, log, logger

slow_ones = Throttle()


def run_callbacks(callbacks: list[Callable[[], object]], request: str | None = None) -> None:
    """Run and remove the callbacks, first to last, those too that they register meanwhile.

    What a callback raises is logged at ERROR on the logger ``wsgi_after``, and the others run. A
    :class:`CallbackList` has ended afterwards.

    :param callbacks: any list of callables without arguments.
    :param request: a label for the log such as ``"GET /path"``; never the environ.
    :raises BaseException: after the others ran, the first ``KeyboardInterrupt``, greenlet kill or
        exception of a signal handler that came out of a callback.
    :raises RuntimeError: if the list is of a request of another process, which forked this one.
    """
    if isinstance(callbacks, CallbackList) and callbacks._forks != process.forks:
        if callbacks._state != HANDED_OVER:
            raise RuntimeError(OTHER_PROCESS)
        callbacks._forks = process.forks  # an executor that forks brought the job here
    raised = run(callbacks, request)
    if raised is not None:
        try:
            raise raised
        finally:
            del raised  # or this frame and the traceback would hold each other


def run(
    callbacks: list[Callable[[], object]],
    request: str | None,
    raised: BaseException | None = None,
    patience: float = inf,
) -> BaseException | None:
    """As :func:`run_callbacks`, but return what has to go on: ``raised``, if there is one.

    :param patience: how many seconds a callback may take before it is reported as slow.
    """
    after = callbacks if isinstance(callbacks, CallbackList) else None
    if after is not None:
        if after._state == HANDED_OVER:
            after._state = IN_JOB
        elif after._state < RUNNING:
            after._state = RUNNING
    forks = process.forks
    token = set_current(callbacks)
    try:
        while True:
            try:
                began = monotonic()
                # One step takes a callback: between two, a signal handler could raise, and lose it,
                # or another thread could take it, too.
                for callback in map(callbacks.pop, repeat(0)):
                    try:
                        outcome = callback()
                        if outcome is not None and isinstance(outcome, LAZY):
                            _report_lazy(outcome, callback, began, request, callbacks)
                    # Catch everything: one callback's bug must not stop the others.
                    except BaseException as error:
                        if process.forks != forks:
                            return error
                        if raised is None and goes_on(error):
                            raised = error
                        else:
                            _log(_kind(callback, error), callback, began, request, callbacks, error)
                    if process.forks != forks:  # the callback forked, and this is the child
                        return raised
                    ended = monotonic()
                    if ended - began > patience:
                        _log_slow(callback, request, callbacks, ended - began)
                    began = ended
            except IndexError:  # there was none left to pop
                if not callbacks and (after is None or after._end()):
                    return raised
            # A signal handler or a greenlet kill can raise between two callbacks, or while a
            # failure is being logged.
            except BaseException as error:
                if raised is None and goes_on(error):
                    raised = error
                else:
                    log(logger.error, _INTERRUPTED, _label(request, callbacks), exc_info=error)
    finally:
        reset_current(token)
        del raised  # or this frame and the traceback would hold each other


def goes_on(error: BaseException) -> bool:
    """Whether ``error`` leaves ``close()``, because somebody outside wants to end this (rule 6).

    All else is contained. Out of ``close()``, several servers put an error page before the next
    response on the connection, or end the worker.
    """
    if isinstance(error, process.let_out):
        return True
    if isinstance(error, Exception):
        return False
    greenlet = sys.modules.get("greenlet")
    return (
        greenlet is not None and isinstance(error, greenlet.GreenletExit)
    ) or came_out_of_a_signal_handler(error.__traceback__)


def came_out_of_a_signal_handler(traceback: TracebackType | None) -> bool:
    """Whether a frame was given the frame that it interrupted, as only a signal handler is.

    This told 14 kinds of handlers from a plain ``sys.exit()``.
    """
    interrupted = None
    while traceback is not None:
        frame = traceback.tb_frame
        if interrupted is not None:
            for value in frame.f_locals.values():
                arguments = value if type(value) is tuple else (value,)
                if any(argument is interrupted for argument in arguments):
                    return True
        interrupted, traceback = frame, traceback.tb_next
    return False


#: What calling a coroutine function or a generator function returns, and nothing has run. Other
#: awaitables may have been started: futures of Dask, tasks of asyncio, deferreds of Twisted.
LAZY = (Coroutine, Generator, AsyncGenerator)

# What can become of a callback that fails: the outcome, for machines to read, and the sentence.
_FAILED = ("failed", "Callback %s of %s failed.")
_COROUTINE = (
    "coroutine",
    "Callback %s of %s returned a coroutine, so it has not run: callbacks are plain functions. "
    "Register asgiref.sync.async_to_sync(fn) in place of fn.",
)
_GENERATOR = (
    "generator",
    "Callback %s of %s returned a generator, so it has not run: callbacks are plain functions. "
    "Take the yield out of it, or register a function that iterates over it.",
)
_NOT_CALLABLE = (
    "not callable",
    "Entry %s of %s is not callable. The usual cause is a function that was called where it should "
    "be passed: append(fn), not append(fn()).",
)
_SYSTEM_EXIT = (
    "system exit",
    "Callback %s of %s raised SystemExit, which is contained: it would end the server's worker.",
)
_INTERRUPTED = (
    "Something was raised between the callbacks of %s; the others run. The usual cause is a signal "
    "handler, such as that of gunicorn's worker timeout."
)
_SLOW = (
    "Callback %s of %s took %.1f seconds in close(). Meanwhile this worker, or this thread of it, "
    "served nobody, and the next request on the connection waited. Pass executor= to "
    "AfterResponseMiddleware, or let the callback put its work into a queue. There were %d slow "
    "callbacks since this was last told."
)


def _kind(callback: object, error: BaseException) -> tuple[str, str]:
    if not callable(callback):
        return _NOT_CALLABLE
    return _SYSTEM_EXIT if isinstance(error, SystemExit) else _FAILED


def _report_lazy(
    outcome: object,
    callback: object,
    began: float,
    request: str | None,
    callbacks: list[Callable[[], object]],
) -> None:
    if isinstance(outcome, (Coroutine, Generator)):
        outcome.close()
    kind = _COROUTINE if isinstance(outcome, Coroutine) else _GENERATOR
    _log(kind, callback, began, request, callbacks)


def _log(
    kind: tuple[str, str],
    callback: object,
    began: float,
    request: str | None,
    callbacks: list[Callable[[], object]],
    error: BaseException | None = None,
) -> None:
    seconds = monotonic() - began
    outcome, message = kind
    name, label = describe(callback), _label(request, callbacks)
    # Attributes of the record. Not "request", where Django's handlers expect an object of theirs.
    extra = {"callback": name, "request_line": label, "seconds": seconds, "outcome": outcome}
    log(logger.error, message, name, label, exc_info=error, extra=extra)
    for hook in process.failure_hooks:
        hook(message % (name, label), error)


def _log_slow(
    callback: object, request: str | None, callbacks: list[Callable[[], object]], seconds: float
) -> None:
    times = slow_ones.passes()
    if times:
        label = _label(request, callbacks)
        log(logger.warning, _SLOW, describe(callback), label, seconds, times)


def _label(request: str | None, callbacks: list[Callable[[], object]]) -> str:
    if request is not None:
        return request
    return callbacks._request_line() if isinstance(callbacks, CallbackList) else "a request"
