"""The exit of this process and its forked children: close what nobody has closed (rule 7)."""

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

#: Whether the frames of an interpreter's threads can be read. An interpreter that allows no daemon
#: threads is isolated, and may crash at this on 3.12 and 3.13: python/cpython#119213.
has_frames: Callable[[], bool] = getattr(_thread, "daemon_threads_allowed", lambda: True)


def at_exit(body: type) -> None:
    """Close what is left while Python can import and log. Later finalizers close in place.

    Another thread may still be sending a response. If there is one, close only what waits and what
    is in cycles, and the rest when that thread has stopped.
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
    """Close what is left when daemon threads have stopped and modules still exist.

    A body that a thread was reading is skipped: the thread stopped in the app, and may hold locks
    forever.
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
    """Do the same in a child of ``multiprocessing``, which does not run ``atexit`` functions."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.register_after_fork(
            body, lambda body: util.Finalize(None, at_exit, (body,), exitpriority=-100)
        )


def watch_exits(body: type) -> None:
    """Call :func:`at_exit` when this process or a forked child exits."""
    atexit.register(at_exit, body)
    if hasattr(os, "register_at_fork"):  # pragma: no branch -- else nothing forks
        os.register_at_fork(after_in_child=partial(_forked, body))
