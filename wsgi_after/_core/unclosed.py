"""Responses that nobody closed: run their callbacks at a moment that is safe (rule 7).

The garbage collector stops code that may hold a lock, parse or import. What it drops waits for the
next call of a middleware, the next end of a request, or the exit of the process.
"""

from __future__ import annotations

import gc
import warnings
from collections import deque
from contextvars import copy_context
from threading import get_ident
from typing import Any

from . import process
from .let_out import goes_on
from .logs import UNCLOSED, UNCLOSED_FAILED, log, logger

#: Bodies that the collector dropped, and that are not closed yet.
waiting: deque[Any] = deque()

_closing: set[tuple[int, int]] = set()  # processes and threads in close_waiting()


class Collector:
    """In which thread the garbage collector runs now. It needs no globals: they end before it."""

    get_ident = staticmethod(get_ident)
    thread: int | None = None

    def __call__(self, phase: str, info: object) -> None:
        self.thread = self.get_ident() if phase == "start" else None


collector = Collector()
gc.callbacks.append(collector)


def must_wait(body: Any) -> bool:
    """Whether this is called by the collector: then ``body`` is closed later."""
    if collector.thread != get_ident():
        return False
    body._closed = False
    waiting.append(body)
    return True


def drop(body: Any) -> None:
    """Close ``body`` in place of the server, which dropped it: for the finalizer only."""
    if not must_wait(body) and body._after._forks == process.forks:  # else: a copy in a child
        body._after._executor = None  # in place, submit() may wait for a lock held further up
        close_unclosed(body)


def close_unclosed(body: Any) -> None:
    """Close ``body``, with a warning if it has callbacks."""
    after = body._after
    after._write = None  # no flush from here: whose thread this is, is not known
    try:
        if after:
            warnings.warn(UNCLOSED % after._request_line(), ResourceWarning, stacklevel=4)
    finally:
        # On CPython 3.11, ContextVar.set() in a finalizer can crash in the context it interrupts.
        copy_context().run(body.close)


def close_waiting(raised: BaseException | None = None) -> BaseException | None:
    """Close what waits, one after the other; not from within a callback of one of them.

    What they raise is logged: it is not of this request. Return ``raised``, or what has to go on.
    """
    forks = process.forks
    here = (forks, get_ident())
    if here in _closing:
        return raised
    try:
        _closing.add(here)
        while waiting:
            body = waiting.popleft()
            label = body._after._request_line()
            try:
                if body._after._forks == forks:
                    close_unclosed(body)
            except BaseException as error:
                if process.forks != forks:  # a callback forked, and this is the child
                    return error
                if raised is None and goes_on(error):
                    raised = error
                else:
                    log(logger.error, UNCLOSED_FAILED, label, exc_info=error)
    except IndexError:  # another thread has taken the last one
        pass
    finally:
        _closing.discard(here)
    return raised
