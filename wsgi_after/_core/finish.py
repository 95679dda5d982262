"""The end of a request: run its callbacks here, or hand them over. The one place that decides."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING

from . import process, unclosed
from .callbacks import EXHAUSTED_EMPTY, HANDED_OVER, RUNNING, CallbackList
from .hand_off import OwnThread, hand_over
from .let_out import goes_on
from .logs import log_early_close, logger, looks
from .run import run
from .servers import recognise

if TYPE_CHECKING:
    from ..executor import SupportsSubmit

PATIENCE = 1.0  # seconds that a callback may keep a worker in close() before that is reported

#: Returns who takes the callbacks of a request before all others, or ``None``: an open capture().
capturing: Callable[[], SupportsSubmit | None] | None = None


def finish(callbacks: CallbackList, error: BaseException | None = None) -> None:
    """Run the callbacks or hand them over, and end their list. A second call runs what is left.

    The app's iterable has been closed by then, or the app raised before it returned one.

    :param error: an exception of the app, or what interrupted the first call. It is on its way to
        the server: nothing else is raised here, unless a callback forked and this is the child.
    :raises BaseException: what goes on of what the callbacks raised.
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
            raised = unclosed.close_waiting(raised)
        if raised is not error:
            raise raised  # type: ignore[misc]  # it is not None
    finally:
        del raised, error  # or this frame and the traceback would hold each other


def run_or_hand_over(callbacks: CallbackList, raised: BaseException | None) -> BaseException | None:
    """Run the callbacks here, unless somebody else takes them.

    Return ``raised``, which is on its way to the server, or what has to go on.
    """
    try:
        named = callbacks._executor is not None or callbacks._thread is not None
        if named or capturing is not None:
            raised = offer(callbacks, raised)
            if callbacks._state >= HANDED_OVER or callbacks._forks != process.forks:
                return raised
        if raised is None and callbacks._progress == EXHAUSTED_EMPTY:
            raised = flush(callbacks)
        if looks and raised is None:
            log_early_close(callbacks._environ or {}, callbacks._request_line())
        return run(callbacks, None, raised, PATIENCE)
    finally:
        del raised  # or this frame and the traceback would hold each other


def offer(callbacks: CallbackList, raised: BaseException | None) -> BaseException | None:
    """Hand the callbacks over to the first that takes them, if one does; return as above.

    An open ``capture()`` or the executor; where this thread is not theirs, one of their own.
    """
    capture = None if capturing is None else capturing()
    executor = callbacks._executor if capture is None else capture
    # Interrupted after submit() had raised, do not ask it again.
    takers = [executor] if executor is not None and callbacks._state < RUNNING else []
    if callbacks._thread is not None and callbacks._thread != get_ident():
        takers.append(OwnThread())
    forks, refusal = process.forks, None
    try:
        for taker in takers:
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


def flush(callbacks: CallbackList) -> BaseException | None:
    """Make a server that merely holds the headers of an empty response send them.

    PEP 3333 does not want ``write()`` used like this. It changes no byte, only when it is sent; not
    after an error, which the server may answer otherwise. Returns what has to go on.
    """
    write = callbacks._write
    if write is None or callbacks._error is not None:
        return None
    try:
        if recognise(callbacks._environ or {}).holds_headers:
            write(b"")
    except BaseException as error:  # most often the client has left: the callbacks run all the same
        if goes_on(error):
            return error
        logger.debug("Flushing the headers of %s failed.", callbacks._request_line(), exc_info=True)
    return None
