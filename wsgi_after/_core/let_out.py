"""Which exceptions leave ``close()``: those raised from outside to end the work (rule 6).

All others are contained: they would put an error page before the next response, or end a worker.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from traceback import walk_tb
from types import TracebackType

#: These leave close() wherever they come from. The pytest plugin adds its own.
kinds: tuple[type[BaseException], ...] = (KeyboardInterrupt,)


def goes_on(error: BaseException) -> bool:
    """Whether ``error``, which came out of a callback, leaves ``close()``."""
    if isinstance(error, Exception):
        return isinstance(error, kinds)
    greenlet = sys.modules.get("greenlet")  # not imported: without it there is no GreenletExit
    killed = greenlet is not None and isinstance(error, greenlet.GreenletExit)
    return killed or isinstance(error, kinds) or came_out_of_a_signal_handler(error.__traceback__)


def came_out_of_a_signal_handler(traceback: TracebackType | None) -> bool:
    """Whether a frame was given the frame that it interrupted, as only a signal handler is."""
    for (interrupted, _), (frame, _) in pairwise(walk_tb(traceback)):
        for value in frame.f_locals.values():
            arguments = value if type(value) is tuple else (value,)
            if any(argument is interrupted for argument in arguments):
                return True
    return False
