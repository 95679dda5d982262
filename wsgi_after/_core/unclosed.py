"""Responses that nobody closed: run their callbacks when it is safe (rule 7).

The garbage collector interrupts code that may hold a lock, parse or import. So a response that it
frees waits for the next call of a middleware, the next end of a request, or the process's exit.
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

#: Bodies that the collector freed, and that are not closed yet.
waiting: deque[Any] = deque()

_closing: set[tuple[int, int]] = set()  # processes and threads in close_waiting()


class Collector:
    """Knows in which thread the garbage collector runs. Uses no globals: at exit, they go first."""

    get_ident = staticmethod(get_ident)
    thread: int | None = None

    def __call__(self, phase: str, info: object) -> None:
        self.thread = self.get_ident() if phase == "start" else None


collector = Collector()
gc.callbacks.append(collector)


def must_wait(body: Any) -> bool:
    """Return whether the collector calls this. If so, queue ``body`` to be closed later."""
    if collector.thread != get_ident():
        return False
    body._closed = False
    waiting.append(body)
    return True


def drop(body: Any) -> None:
    """Close ``body``, which the server dropped without closing it: for the finalizer only."""
    if not must_wait(body) and body._after._forks == process.forks:  # else: a copy in a child
        body._after._executor = None  # run here: submit() may wait for a lock of this very thread
        close_unclosed(body)


def close_unclosed(body: Any) -> None:
    """Close ``body``, with a warning if it has callbacks."""
    after = body._after
    after._write = None  # no flush from here: this may be any thread
    try:
        if after:
            warnings.warn(UNCLOSED % after._request_line(), ResourceWarning, stacklevel=4)
    finally:
        # On CPython 3.11, ContextVar.set() in a finalizer can crash in the context it interrupts.
        copy_context().run(body.close)


def close_waiting(raised: BaseException | None = None) -> BaseException | None:
    """Close the waiting bodies, one by one. Does nothing if a callback of one of them calls it.

    Their exceptions are logged, because they belong to other requests. Return ``raised`` or, if
    that is ``None``, the first exception that must be re-raised.
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
