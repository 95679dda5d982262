"""Of two threads that close one body at the same instant, one goes on.

With the GIL, no thread comes between two lines without a call. Without it, one does.
"""

from __future__ import annotations

import sys
from typing import Any

#: Whether this process runs without the GIL: of a free-threaded build. Enabled later, it does no
#: harm. With it, the look at a flag is enough: a ticket for each body took 3% more instructions.
WITHOUT_GIL = not getattr(sys, "_is_gil_enabled", lambda: True)()

closers: dict[int, object] = {}  # by the id of a body: who is setting its flag


def claim(body: Any) -> bool:
    """Mark a body as closed; whether it was open, which one caller alone is told.

    No lock: a finalizer or a signal handler may come here while this thread is here.
    """
    me = object()
    try:
        if closers.setdefault(id(body), me) is not me:  # atomic: the first one's is there
            return False
        # Looked at again: another thread may have been here and gone.
        was_open = not body._closed
        body._closed = True
        return was_open
    finally:
        if closers.get(id(body)) is me:
            del closers[id(body)]
