"""Responses that nobody closed: run their callbacks at a moment that is safe (rule 7).

Dropped by the last reference, a body is closed in place. Dropped by the garbage collector, it waits
for the next call of a middleware, the next end of a request, or the exit of the process: the
collector stops code that may hold a lock, parse or import, so nothing of an app may run there.
"""

from __future__ import annotations

import gc
import warnings
from collections import deque
from contextvars import copy_context
from threading import get_ident
from typing import TYPE_CHECKING

from . import process
from .logs import log, logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from .body import Body

#: Dropped by the collector, and not closed yet.
waiting: deque[Body] = deque()

_closing: set[int] = set()  # threads in close_waiting()
process.after_fork.append(_closing.clear)


class Collector:
    """In which thread the garbage collector runs now, if in any.

    Python calls it at both ends of a collection, the last one of an ending interpreter too: it
    needs no globals, which are gone by then.
    """

    __slots__ = ("get_ident", "thread")

    def __init__(self, get_ident: Callable[[], int]) -> None:
        self.get_ident = get_ident
        self.thread: int | None = None

    def __call__(self, phase: str, info: object) -> None:
        self.thread = self.get_ident() if phase == "start" else None


_collector = Collector(get_ident)
gc.callbacks.append(_collector)


def drop(body: Body) -> None:
    """Close ``body`` in place of the server, which dropped it: for the finalizer only."""
    after = body._after
    if after._forks != process.forks:
        return  # a copy in a forked child
    if _collector.thread == get_ident():
        waiting.append(body)
        return
    after._executor = None  # submit() may wait for a lock that is held further up
    close_unclosed(body)


def close_unclosed(body: Body) -> None:
    """Close ``body``, with a warning if it has callbacks."""
    after = body._after
    after._write = None  # no flush from here: whose thread this is, is not known
    try:
        if after:
            warnings.warn(
                f"The response of {after._request_line()} was never closed, so its "
                "callbacks run at garbage collection. The server, or a middleware around "
                "AfterResponseMiddleware, dropped the iterable without calling its close(), "
                "which PEP 3333 demands.",
                ResourceWarning,
                stacklevel=4,
            )
    finally:
        # In a copy, because on CPython 3.11 ContextVar.set() can crash the interpreter when a
        # finalizer calls it in the context of whatever code it interrupted.
        copy_context().run(body.close)


def close_waiting() -> None:
    """Close what waits, one after the other; not from within a callback of one of them.

    An exception of one does not concern this request: it is logged, as Python reports what a
    finalizer raises.
    """
    thread = get_ident()
    if thread in _closing:
        return
    _closing.add(thread)
    try:
        while waiting:
            try:
                body = waiting.popleft()
            except IndexError:  # another thread has it
                break
            if body._after._forks == process.forks:
                _close_and_log(body)
    finally:
        _closing.discard(thread)


def _close_and_log(body: Body) -> None:
    label = body._after._request_line()
    try:
        close_unclosed(body)
    except Exception as error:
        log(logger.error, _FAILED, label, exc_info=error)


_FAILED = "Closing the response of %s, which its server had dropped, raised an exception."


def at_exit(kind: type) -> None:
    """Close what waits, and have the finalizers that still come run in place.

    The last collection of the interpreter comes after this. Nobody would close what waits then,
    and nothing can be imported any more: if there are bodies in cycles, they are collected here.

    :param kind: the class of the bodies.
    """
    if any(issubclass(type(thing), kind) for thing in gc.get_objects()):
        gc.collect()
    gc.callbacks.remove(_collector)
    _collector.thread = None
    close_waiting()
