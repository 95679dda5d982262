"""Hand the callbacks of a request over to an executor, and lose none on the way.

The executor gets one job for a request, ``run_callbacks(callbacks, label)``, in which they run in
order, contained, and logged with the request that they belong to.
"""

from __future__ import annotations

import os
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

from .callbacks import CallbackList, EndedCallbackList
from .logs import log, logger, printable
from .run import run_callbacks
from .throttle import Throttle

if TYPE_CHECKING:
    from .executor import SupportsSubmit

_refusals = Throttle()
_announced_in: set[int] = set()  # ids of processes


def announce(server: str, end: str) -> None:
    """Log the first hand-off of this process that nobody asked for.

    :param end: what tells the client where the response ends.
    """
    if os.getpid() not in _announced_in:
        _announced_in.add(os.getpid())
        log(
            logger.info,
            "Callbacks run in a thread pool where the client would wait for them, as now: %s sends "
            "%s, after close() only. AfterResponseMiddleware(app, executor=None) keeps all in "
            "close(). This is told once.",
            *(server, end),
        )


def hand_over(callbacks: CallbackList, executor: SupportsSubmit) -> BaseException | None:
    """Submit the job of a request; return what ``submit`` raised, if it did not take it.

    The list ends when the job has run, or has been pickled. It lets go of what is the server's now:
    that need not wait, and a job that runs in another process never comes back to do so.
    """
    label = callbacks._request_line()
    try:
        future = executor.submit(run_callbacks, callbacks, label)
    except BaseException as error:
        _log_refusal(error, label)
        return error
    callbacks._environ = callbacks._write = None
    if hasattr(callbacks, "_pickled"):  # it has left this process
        callbacks.__class__ = EndedCallbackList
    try:
        future.add_done_callback(partial(_look_at, callbacks, label))
    except AttributeError:  # no future: a queue's job, or nothing
        pass
    except Exception:  # it is accepted, so it must not run again, whatever this was
        traceback.print_exc()
    return None


def _log_refusal(error: BaseException, label: str) -> None:
    times = _refusals.passes()
    if times:
        log(
            logger.warning,
            "The executor did not take the callbacks of %s, so they run in close(), where the "
            "client may wait for them: %s: %s. This happened %d times since it was last reported.",
            *(label, type(error).__name__, printable(error), times),
        )


def _look_at(callbacks: CallbackList, label: str, future: Any) -> None:
    """Log what became of a job, if that is not what was to be; end the list."""
    error = _error_of(future)
    ran = not callbacks
    if not ran:  # not in this process, at least
        callbacks.__class__ = EndedCallbackList  # first, or what comes in between were lost
        callbacks.clear()
        callbacks._error = None
    if error is not None:
        log(logger.error, _LET_OUT if ran else _LOST, label, exc_info=error)


def _error_of(future: Any) -> BaseException | None:
    try:
        error: BaseException | None = future.exception()
    except BaseException as raised:  # a cancelled job's future raises; gevent's always does
        return raised
    return error


_LOST = (
    "The callbacks of %s are lost: the executor accepted them, but the job failed or was cancelled "
    "before it reported that they ran. They are not run again: some of them may have."
)
_LET_OUT = "A callback of %s let this out of the executor's job."
