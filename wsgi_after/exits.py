"""The end of the process, and of those that it forks: close what nobody has closed (rule 7)."""

from __future__ import annotations

import _thread
import atexit
import gc
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

from ._core.unclosed import close_waiting, collector, waiting

#: Whether an interpreter can be asked for the frames of its threads. One that allows no daemon
#: threads is isolated, and on 3.12 and 3.13 it may crash then: python/cpython#119213.
has_frames: Callable[[], bool] = getattr(_thread, "daemon_threads_allowed", lambda: True)


def at_exit(body: type) -> None:
    """Close what is left, while Python can import and log; from now on, finalizers run in place.

    Another thread may still be sending what it holds. If there is one, close only what waits, and
    what is in cycles; the rest when that thread has stopped.
    """
    left = open_bodies(body)
    if (len(sys._current_frames()) if has_frames() else threading.active_count()) == 1:
        waiting.extend(left)
    elif left:
        left.clear()  # or nothing of it could be collected
        gc.collect()
        gc.callbacks.append(partial(at_last_collection, body))
        gc.enable()  # or there is none
    with suppress(ValueError):
        gc.callbacks.remove(collector)
    collector.thread = None
    close_waiting()


def at_last_collection(body: type, phase: str, info: object) -> None:
    """Close what is left, when daemon threads run no more, and the modules are still there.

    Not one from which a thread was reading: that stopped in the app, and may hold locks for good.
    """
    if phase == "stop" and sys.is_finalizing():
        readers = set()
        for thread in sys._current_frames().values():
            frame: FrameType | None = thread
            while frame is not None:
                readers.add(id(frame.f_locals.get("self")))
                frame = frame.f_back
        waiting.extend(thing for thing in open_bodies(body) if id(thing) not in readers)
        close_waiting()


def open_bodies(body: type) -> list[Any]:
    """The objects of this class that nobody has closed."""
    return [
        thing for thing in gc.get_objects() if issubclass(type(thing), body) and not thing._closed
    ]


def _forked(body: type) -> None:
    """Have a child of ``multiprocessing``, which runs nothing of this ``atexit``, do the same."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.register_after_fork(
            body, lambda body: util.Finalize(None, at_exit, (body,), exitpriority=-100)
        )


def watch_exits(body: type) -> None:
    """Call :func:`at_exit` at the exit of this process, and of those that it forks."""
    atexit.register(at_exit, body)
    if hasattr(os, "register_at_fork"):  # pragma: no branch -- else nothing forks
        os.register_at_fork(after_in_child=partial(_forked, body))
