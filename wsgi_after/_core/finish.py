"""The end of a request: run its callbacks here, or hand them over."""

from __future__ import annotations

from . import hand_off, process, unclosed
from .callbacks import EXHAUSTED_EMPTY, HANDED_OVER, CallbackList
from .hand_off import MOMENT, offer
from .let_out import goes_on
from .logs import log_early_close, logger, looks
from .run import run
from .servers import recognise

PATIENCE = 1.0  # seconds that a callback may keep a worker in close() before that is reported


def finish(callbacks: CallbackList, error: BaseException | None = None) -> None:
    """Run the callbacks or hand them over, and end their list. A second call runs what is left.

    By now the app's iterable has been closed, or the app raised before it returned one.

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
                here = True
                if (
                    callbacks._executor is not None
                    or callbacks._thread is not None
                    or hand_off.capturing is not None
                    or hand_off.find_slot is not None
                    or MOMENT in (callbacks._environ or ())
                ):
                    raised = offer(callbacks, raised)
                    here = callbacks._state < HANDED_OVER and callbacks._forks == process.forks
                if here:
                    if raised is None and callbacks._progress == EXHAUSTED_EMPTY:
                        raised = flush(callbacks)
                    if looks and raised is None:
                        log_early_close(callbacks._environ or {}, callbacks._request_line())
                    raised = run(callbacks, None, raised, PATIENCE)
        callbacks._let_go()
        if unclosed.waiting:
            raised = unclosed.close_waiting(raised)
        if raised is not error:
            raise raised  # type: ignore[misc]  # it is not None
    finally:
        del raised, error  # or this frame and the traceback would hold each other


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
    except BaseException as error:  # usually the client has left: the callbacks still run
        if goes_on(error):
            return error
        logger.debug("Flushing the headers of %s failed.", callbacks._request_line(), exc_info=True)
    return None
