"""Hand the callbacks of a request over to whoever takes them, and lose none on the way."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from threading import Thread, get_ident
from typing import TYPE_CHECKING, Any

from ..registering import decide
from . import process
from .callbacks import ENDED, HANDED_OVER, RUNNING, SENT, CallbackList
from .let_out import goes_on
from .logs import LET_OUT, LOST, log, log_refusal, logger
from .run import run_callbacks

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..executor import SupportsSubmit

#: The key of a request's slot in the environ: see wsgi_after.moment.
MOMENT = "wsgi_after.moment"
#: Finds a slot that is not in the environ: of uWSGI.
find_slot: Callable[[WSGIEnvironment], Any] | None = None
#: Whether slots are used in this process.
moments = True

#: Returns who takes the callbacks of a request before all others, or ``None``: an open capture().
capturing: Callable[[], SupportsSubmit | None] | None = None


class OwnThread:
    """Takes callbacks that must not run here into a thread that lives as long as they run."""

    def submit(self, fn: Callable[..., object], /, *args: object) -> None:
        Thread(target=fn, args=args, name="wsgi_after").start()


def offer(callbacks: CallbackList, raised: BaseException | None) -> BaseException | None:
    """Hand the callbacks over to the first that takes them, if one does.

    An open ``capture()``, else the executor, then the server's moment; where this thread is not
    theirs, one of their own. Return ``raised``, or what has to go on.
    """
    capture = None if capturing is None else capturing()
    executor = callbacks._executor if capture is None else capture
    # After an interruption, do not ask an executor whose submit() has raised.
    takers = [executor] if executor is not None and callbacks._state < RUNNING else []
    slot = None if capture is not None else slot_of(callbacks)
    if slot is not None and slot.takes(callbacks):
        takers.append(slot)
    if callbacks._thread is not None and callbacks._thread != get_ident():
        takers.append(OwnThread())
    if callbacks._notes is not None:
        decide(callbacks)  # do not hand over what must not run
    forks, refusal = process.forks, None
    try:
        for taker in takers if callbacks else ():
            refusal = hand_over(callbacks, taker)
            if process.forks != forks:  # submit() forked, and this is the child
                return refusal
            if raised is None and refusal is not None and goes_on(refusal):
                raised = refusal
            if callbacks._state >= HANDED_OVER:
                break
        return raised
    finally:
        del raised, refusal  # or this frame and the traceback would hold each other


def slot_of(callbacks: CallbackList) -> Any:
    """The slot of a request, unless the process or the maker of the list does without."""
    environ, maker = callbacks._environ, callbacks._maker
    if not moments or environ is None or (maker is not None and not maker._moment):
        return None
    slot = environ.get(MOMENT)
    return find_slot(environ) if slot is None and find_slot is not None else slot


def hand_over(callbacks: CallbackList, executor: SupportsSubmit) -> BaseException | None:
    """Submit the one job of a request, which runs the callbacks; return what ``submit`` raised.

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
    except Exception as error:  # the job is accepted, so it must not run again
        if not isinstance(error, AttributeError):  # no future: a queue's job, or nothing
            traceback.print_exc()
    return None


def look_at(callbacks: CallbackList, label: str, future: Any) -> None:
    """Log what became of a job if it did not just return; end the list."""
    try:
        error = future.exception()
    except BaseException as raised:  # a cancelled job's future raises; gevent's always does
        error = raised
    ran = callbacks._state == ENDED or not callbacks
    # If it ran here, it has ended the list, and a late entry is taken back by who registered it.
    while callbacks._state != ENDED and not callbacks._end():
        callbacks.clear()
    if error is not None:
        log(logger.error, LET_OUT if ran else LOST, label, exc_info=error)
    del error  # or this frame and the traceback would hold each other
