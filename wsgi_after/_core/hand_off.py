"""Hand the callbacks of a request over to an executor, and lose none on the way."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from .callbacks import ENDED, HANDED_OVER, RUNNING, SENT, CallbackList
from .logs import LET_OUT, LOST, log, log_refusal, logger
from .run import run_callbacks

if TYPE_CHECKING:
    from ..executor import SupportsSubmit


class OwnThread:
    """Takes callbacks that must not run here into a thread that lives as long as they run."""

    def submit(self, fn: Callable[..., object], /, *args: object) -> None:
        Thread(target=fn, args=args, name="wsgi_after").start()


def hand_over(callbacks: CallbackList, executor: SupportsSubmit) -> BaseException | None:
    """Submit the one job of a request, in which they run as ever; return what ``submit`` raised.

    If the job is not taken, the state is ``RUNNING`` afterwards.
    """
    label = callbacks._request_line()
    try:
        callbacks._state = HANDED_OVER
        future = executor.submit(run_callbacks, callbacks, label)
    except BaseException as error:
        if callbacks._state == SENT and not isinstance(error, Exception):
            log(logger.error, LOST, label, exc_info=error)  # interrupted: it may be on its way
        elif callbacks._state != ENDED:
            callbacks._state = RUNNING
            log_refusal(label, error)
        return error
    try:
        future.add_done_callback(partial(look_at, callbacks, label))
    except Exception as error:  # it is accepted, so it must not run again, whatever this was
        if not isinstance(error, AttributeError):  # no future: a queue's job, or nothing
            traceback.print_exc()
    return None


def look_at(callbacks: CallbackList, label: str, future: Any) -> None:
    """Log what became of a job if it did not just return; end the list."""
    try:
        error = future.exception()
    except BaseException as raised:  # a cancelled job's future raises; gevent's always does
        error = raised
    ran = not callbacks
    while not callbacks._end():  # it ran in another process, or never
        callbacks.clear()
    if error is not None:
        log(logger.error, LET_OUT if ran else LOST, label, exc_info=error)
    del error  # or this frame and the traceback would hold each other
