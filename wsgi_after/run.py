"""How the callbacks of a list are run, and what is logged of those that fail."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from math import inf
from time import monotonic

from .callbacks import CallbackList, EndedCallbackList, reset_current, set_current
from .logs import describe, log, logger
from .throttle import Throttle

slow_ones = Throttle()

#: Called with the text and the exception of each failure that is logged, by wsgi_after.testing.
failure_hooks: list[Callable[[str, BaseException | None], object]] = []


def run_callbacks(callbacks: list[Callable[[], object]], request: str | None = None) -> None:
    """Run and remove the callbacks, first to last, those too that they register meanwhile.

    A callback that raises an ``Exception`` or ``SystemExit`` is logged at ERROR on the logger
    ``wsgi_after``, and the others run. A :class:`CallbackList` has ended afterwards.

    :param callbacks: any list of callables without arguments.
    :param request: a label for the log such as ``"GET /path"``; never the environ.
    :raises BaseException: the first ``KeyboardInterrupt``, greenlet kill or the like that came out
        of a callback, after the others ran.
    """
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
    """As :func:`run_callbacks`, but return what is to be let out: ``raised``, if there is one.

    This is the one place that decides what becomes of an exception of a callback.

    :param patience: how many seconds a callback may take before it is reported as slow.
    """
    ours = isinstance(callbacks, CallbackList)
    token = set_current(callbacks)
    # One function, however deep: with the inner loop in its own, a request takes 150 ns more.
    try:
        while True:
            try:
                began = monotonic()
                while callbacks:
                    try:
                        # Not pop(0): after a call, a handler of a signal may raise, and the
                        # callback be lost.
                        callback = callbacks[0]
                        del callbacks[0]
                    # An executor took the job, said that it did not, and runs it elsewhere.
                    except IndexError:
                        break
                    try:
                        outcome = callback()
                        if outcome is not None and isinstance(outcome, Coroutine):
                            outcome.close()
                            _log(_COROUTINE, callback, began, request, callbacks)
                    # As wide as this because one callback's bug must not cost the others their run.
                    # SystemExit too: passed on, it ends whole workers of several servers.
                    except (Exception, SystemExit) as error:
                        _log(_kind(callback, error), callback, began, request, callbacks, error)
                    except BaseException as error:
                        if raised is not None:
                            _log(_FAILED, callback, began, request, callbacks, error)
                        else:
                            raised = error
                    ended = monotonic()
                    if ended - began > patience:
                        _log_slow(callback, request, callbacks, ended - began)
                    began = ended
                if not ours:
                    break
                callbacks.__class__ = EndedCallbackList
                if not callbacks:  # else another thread registered before the mark
                    break
            # Raised between two callbacks, or while one's failure was being logged: by a handler of
            # a signal, or where a greenlet is killed. It must not cost the others their run either.
            except BaseException as error:
                if raised is None and not isinstance(error, (Exception, SystemExit)):
                    raised = error
                else:
                    log(logger.error, _INTERRUPTED, _label(request, callbacks), exc_info=error)
        if ours:
            callbacks._environ = callbacks._error = callbacks._write = None  # type: ignore[attr-defined]
        return raised
    finally:
        reset_current(token)
        del raised  # or this frame and the traceback would hold each other


# What can become of a callback that fails: the outcome, for machines to read, and the sentence.
_FAILED = ("failed", "Callback %s of %s failed.")
_COROUTINE = (
    "coroutine",
    "Callback %s of %s returned a coroutine, so it has not run: callbacks are plain functions. "
    "Register asgiref.sync.async_to_sync(fn) in place of fn.",
)
_NOT_CALLABLE = (
    "not callable",
    "Entry %s of %s is not callable. The usual cause is a function that was called where it should "
    "be passed: append(fn), not append(fn()).",
)
_SYSTEM_EXIT = (
    "system exit",
    "Callback %s of %s raised SystemExit, which is contained: it would end the server's worker. In "
    "a main thread it may come from a signal handler, such as that of gunicorn's worker timeout.",
)
_INTERRUPTED = (
    "Something was raised between the callbacks of %s; the others run. The usual cause is a "
    "handler of a signal, such as that of gunicorn's worker timeout."
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
    for hook in failure_hooks:
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
