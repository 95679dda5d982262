"""How the callbacks of a list are run, and what becomes of an exception of one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from time import monotonic

from ..claims import WITHOUT_GIL, insert, take_first
from . import process
from .callbacks import HANDED_OVER, WHILE_RUNNING, CallbackList
from .current import reset_current, set_current
from .let_out import goes_on
from .logs import OTHER_PROCESS, Nobody, log_failure, log_interruption, log_not_run, log_slow

#: What calling a coroutine function or a generator function returns, and nothing has run. Other
#: awaitables may have been started: futures of Dask, tasks of asyncio, deferreds of Twisted.
NOT_RUN = (Coroutine, Generator, AsyncGenerator)


def run_callbacks(callbacks: list[Callable[[], object]], request: str | None = None) -> None:
    """Run and remove the callbacks, first to last, including those that callbacks register.

    What a callback raises is logged at ERROR on the logger ``wsgi_after``; the others still run. A
    :class:`CallbackList` has ended afterwards.

    :param callbacks: any list of callables without arguments.
    :param request: a label for the log such as ``"GET /path"``; never the environ.
    :raises BaseException: after the others ran, the first that rule 6 of the contract lets out.
    :raises RuntimeError: if the list belongs to a request of the process that forked this one.
    """
    if isinstance(callbacks, CallbackList) and callbacks._forks != process.forks:
        if callbacks._state != HANDED_OVER:
            raise RuntimeError(OTHER_PROCESS)
        # An executor forked, and brought the job here.
        callbacks._forks, callbacks._maker = process.forks, Nobody
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
    patience: float = float("inf"),
) -> BaseException | None:
    """As :func:`run_callbacks`, but return what has to go on: ``raised``, if there is one.

    A callback that takes more than ``patience`` seconds is reported as slow.
    """
    after = callbacks if isinstance(callbacks, CallbackList) else None
    call = None
    if after is not None:
        after._state, call = WHILE_RUNNING[after._state], after._call
    forks = process.forks
    taken: Callable[[], object] | None = None
    kept: list[Callable[[], object]] | None = None  # call() empties it where it calls the callback
    token = set_current(callbacks)
    try:
        while True:
            try:
                began = monotonic()
                while callbacks:
                    # pop() decides which thread runs it. A signal handler can raise when that has
                    # returned, before the next line: then "taken", or "kept", is put back.
                    if WITHOUT_GIL:  # another thread may come between two lines
                        take_first(callbacks, kept := [])
                        [callback], kept = kept, None
                    else:
                        taken = callbacks[0]
                        callback = callbacks.pop(0)
                        taken = None
                    try:
                        outcome = callback() if call is None else call(kept := [callback], request)
                        if outcome is not None and isinstance(outcome, NOT_RUN):
                            log_not_run(callback, request, monotonic() - began, outcome, after)
                    # Catch everything: one callback's bug must not stop the others.
                    except BaseException as error:
                        if process.forks != forks:
                            return error
                        if kept:  # call() was interrupted before it called the callback
                            raise
                        if raised is None and goes_on(error):
                            raised = error
                        else:
                            log_failure(callback, request, monotonic() - began, error, after)
                    if process.forks != forks:  # the callback forked, and this is the child
                        return raised
                    ended = monotonic()
                    if ended - began > patience:
                        log_slow(callback, request, ended - began, after)
                    began = ended
                if after is None or after._end():
                    return raised
            except IndexError:  # another thread has taken the last one
                taken = None
            # A signal handler can raise between two callbacks, or while a failure is being logged.
            except BaseException as error:
                if process.forks != forks:  # on_error, or a log handler, forked
                    return error
                if kept or taken is not None:
                    insert(callbacks, 0, kept.pop() if kept else taken)
                    taken = None
                if raised is None and goes_on(error):
                    raised = error
                else:
                    log_interruption(request, error, after)
    finally:
        reset_current(token)
        del raised  # or this frame and the traceback would hold each other
