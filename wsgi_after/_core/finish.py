"""The end of a request: run its callbacks here, or hand them over. The one place that decides.

The app's iterable has been closed by then. The bodies call this, and the middleware where the app
raised before it returned.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING

from . import process, unclosed
from .callbacks import EXHAUSTED_EMPTY, HANDED_OVER, CallbackList
from .hand_off import OwnThread, hand_over
from .logs import logger
from .run import goes_on, run
from .servers import recognise

if TYPE_CHECKING:
    from ..executor import SupportsSubmit

PATIENCE = 1.0  # seconds that a callback may keep a worker in close() before that is reported


def finish(callbacks: CallbackList, error: BaseException | None = None) -> None:
    """Run the callbacks or hand them over, and end their list. A second call runs what is left.

    :param error: an exception of the app, or what interrupted the first call. It is on its way to
        the server: nothing else is raised here, unless a callback forked and this is the child.
    :raises BaseException: what goes on of what the callbacks raised (rule 6).
    """
    if callbacks._forks != process.forks:
        return  # they belong to the process that forked this one (rule 4)
    raised = error
    try:
        if callbacks._state < HANDED_OVER:
            if error is not None and callbacks._error is None:
                callbacks._error = error
            if callbacks or not callbacks._end():
                raised = run_or_hand_over(callbacks, error)
        callbacks._let_go()
        if unclosed.waiting:
            unclosed.close_waiting()
        if raised is not error:
            raise raised  # type: ignore[misc]  # it is not None
    finally:
        del raised, error  # or this frame and the traceback would hold each other


def run_or_hand_over(callbacks: CallbackList, raised: BaseException | None) -> BaseException | None:
    """Run the callbacks in this thread, unless somebody was named to take them.

    In this order: an open ``capture()``; the executor; a thread of their own, where this one is not
    theirs; this thread, which is also for what an executor refused.

    :param raised: what is on its way to the server.
    :return: what is to be raised: the same, if there is one.
    """
    takers: list[SupportsSubmit] = []
    if process.capturing is not None and (capture := process.capturing()) is not None:
        takers.append(capture)
    elif callbacks._executor is not None:
        takers.append(callbacks._executor)
    if callbacks._thread is not None and callbacks._thread != get_ident():
        takers.append(OwnThread())
    try:
        for taker in takers:
            refusal = hand_over(callbacks, taker)
            if raised is None and refusal is not None and goes_on(refusal):
                raised = refusal
            del refusal
            if callbacks._state >= HANDED_OVER:
                return raised
        if raised is None and callbacks._progress == EXHAUSTED_EMPTY:
            raised = flush(callbacks)
        return run(callbacks, None, raised, PATIENCE)
    finally:
        del raised  # or this frame and the traceback would hold each other


def flush(callbacks: CallbackList) -> BaseException | None:
    """Make a server that merely holds the headers of an empty response send them.

    PEP 3333 does not want ``write()`` used like this. It is done for servers that the tests start,
    where it changes no byte, only when it is sent; and only after a body that was exhausted, in an
    app that raised nothing, because the server may still answer an error with another response.

    :return: what has to go on after the callbacks, such as a ``KeyboardInterrupt``.
    """
    write, environ = callbacks._write, callbacks._environ
    if write is None or environ is None or callbacks._error is not None:
        return None
    if not recognise(environ).holds_headers:
        return None
    try:
        write(b"")
    except BaseException as error:  # most often the client has left: the callbacks run all the same
        if goes_on(error):
            return error
        logger.debug("Flushing the headers of %s failed.", callbacks._request_line(), exc_info=True)
    return None
