"""Of two threads that want the same thing at the same instant, one gets it.

With the GIL, no thread comes between two lines without a call, nor into a call of C that calls
nothing in Python. Without it, one does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import compress, count, repeat
from operator import call, index, is_
from threading import Lock
from typing import TYPE_CHECKING, Any, SupportsIndex

#: Whether this process runs without the GIL: of a free-threaded build. Enabled later, it does no
#: harm. With it, the look at a flag is enough: a ticket for each body took 3% more instructions.
WITHOUT_GIL = not getattr(sys, "_is_gil_enabled", lambda: True)()

closers: dict[int, object] = {}  # by the id of a body: who is setting its flag
makers: dict[int, dict[str, Any]] = {}  # by the id of a list: the notes that it is to get


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


def notes_of(after: Any) -> dict[str, Any]:
    """The notes of a ``CallbackList``: the same to all threads that ask first at one instant."""
    mine: dict[str, Any] = {}
    try:
        notes = makers.setdefault(id(after), mine)
        # Looked at when that is settled: another thread may have been here and gone.
        if (made := after._notes) is None:
            made = after._notes = notes
        return made  # type: ignore[no-any-return]
    finally:
        if makers.get(id(after)) is mine:
            del makers[id(after)]


# The places of a list


class _Held:
    """A lock, new in a forked child: another thread may have held it when this one forked."""

    lock = Lock()

    @classmethod
    def renew(cls) -> None:
        cls.lock = Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch -- else nothing forks
    os.register_at_fork(after_in_child=_Held.renew)


def atomically(step: partial[Any]) -> Any:
    """Call a function that is written in C and calls nothing in Python; return what it returns.

    No other thread comes between its parts, nor a finalizer or a signal handler of this one. So the
    lock, which this takes without the GIL, is held for an instant, and never in a circle.
    """
    if not WITHOUT_GIL:
        return step()
    lock = _Held.lock
    calls: list[Callable[[], Any]] = [lock.acquire, step, lock.release]
    done: list[Any] = []
    try:
        done += map(call, calls)  # one instruction of Python
    except BaseException:
        if done:  # acquire() has not been interrupted, so the step has raised
            lock.release()
        raise
    return done[1]


def take(callbacks: list[Any], entries: Sequence[object]) -> bool:
    """Take these entries off a list, unless the first has gone; whether it was there.

    Themselves, not what equals them: ``==`` may be a function in Python, and let other threads in.
    """
    steps = [_taking(callbacks, entry) for entry in entries]
    return bool(steps) and bool(atomically(partial(all, map(call, steps))))


def _taking(callbacks: list[Any], entry: object) -> partial[bool]:
    places = compress(count(), map(is_, callbacks, repeat(entry)))
    popped: Iterable[object] = map(partial(list.pop, callbacks), places)
    return partial(next, map(is_, popped, repeat(entry)), False)


def take_first(callbacks: list[Any], taken: list[Any]) -> None:
    """Move the first entry to another list.

    :raises IndexError: if there is none.
    """
    atomically(partial(taken.extend, map(partial(list.pop, callbacks), (0,))))


def insert(callbacks: list[Any], at: SupportsIndex, entry: object) -> None:
    """``list.insert()``."""
    place = index(at)
    atomically(partial(list.__setitem__, callbacks, slice(place, place), [entry]))


class LockedList(list[Any]):
    """A list whose places do not change while :func:`take` is at it, without the GIL."""

    __slots__ = ()

    def pop(self, at: SupportsIndex = -1, /) -> Any:
        return atomically(partial(list.pop, self, index(at)))

    def clear(self) -> None:
        del self[:]

    def __delitem__(self, at: Any, /) -> None:
        removed = self[at]  # kept until the lock is released: it may have a finalizer
        atomically(partial(list.__delitem__, self, at))
        del removed


if TYPE_CHECKING:
    Places = list[Callable[[], object]]
else:
    Places = LockedList if WITHOUT_GIL else list
