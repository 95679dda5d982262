"""Hand the callbacks of a request over to an executor, and lose none on the way.

The executor gets one job for a request, ``run_callbacks(callbacks, label)``, in which they run in
order, contained, and logged with the request that they belong to.
"""

from __future__ import annotations

import traceback
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from .callbacks import HANDED_OVER, RUNNING, SENT, CallbackList
from .logs import Throttle, log, logger, printable
from .run import run_callbacks

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..executor import SupportsSubmit

_refusals = Throttle()


def hand_over(callbacks: CallbackList, executor: SupportsSubmit) -> BaseException | None:
    """Submit the job of a request. If it is not taken, the state is ``RUNNING`` afterwards.

    The list ends when the job has run, or has been pickled.

    :return: what ``submit`` raised.
    """
    label = callbacks._request_line()
    try:
        callbacks._state = HANDED_OVER
        future = executor.submit(run_callbacks, callbacks, label)
    except BaseException as error:
        state = callbacks._state
        if state == HANDED_OVER or (state == SENT and isinstance(error, Exception)):
            callbacks._state = RUNNING
            _log_refusal(error, label)
        elif state == SENT:  # interrupted after it was pickled: it may be on its way
            log(logger.error, _LOST, label, exc_info=error)
        return error  # else the job has begun, whatever this was
    try:
        future.add_done_callback(partial(_look_at, callbacks, label))
    except AttributeError:  # no future: a queue's job, or nothing
        pass
    except Exception:  # it is accepted, so it must not run again, whatever this was
        traceback.print_exc()
    return None


class OwnThread:
    """Takes callbacks that must not run here, into a thread that lives as long as they run."""

    def submit(self, fn: Callable[..., object], /, *args: object) -> None:
        """Call ``fn(*args)`` in a new thread.

        :raises RuntimeError: if the thread cannot start.
        """
        Thread(target=fn, args=args, name="wsgi_after").start()


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
    """Log what became of a job if it did not just return; end the list."""
    error = _error_of(future)
    ran = not callbacks
    while not callbacks._end():  # it ran in another process, or never
        callbacks.clear()
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
    "before it reported that they ran. They are not run again, because some of them may have run."
)
_LET_OUT = "A callback of %s let this out of the executor's job."
