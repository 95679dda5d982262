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


class _Held:
    """A lock, new in a forked child: another thread may have held it when this one forked."""

    lock = Lock()

    @classmethod
    def renew(cls) -> None:
        cls.lock = Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch -- else nothing forks
    os.register_at_fork(after_in_child=_Held.renew)


def atomically(*steps: partial[Any]) -> list[Any]:
    """Call functions that are written in C and call nothing in Python; return what they return.

    No other thread comes between, nor a finalizer or a signal handler of this one: all is one
    instruction of Python. So the lock, which this takes without the GIL, is held for an instant,
    and nobody who holds it waits for anything.
    """
    if not WITHOUT_GIL:
        return [*map(call, steps)]
    lock = _Held.lock
    calls: list[Callable[[], Any]] = [lock.acquire, *steps, lock.release]
    done: list[Any] = []
    try:
        done += map(call, calls)
    except BaseException:
        if done:  # acquire() has not been interrupted, so a step has raised
            lock.release()
        raise
    return done[1:-1]


def claim(body: Any) -> bool:
    """Mark a body as closed; whether it was open, which one caller alone is told."""
    flag = type(body)._closed  # a slot, whose methods are written in C
    was_closed, _ = atomically(partial(flag.__get__, body), partial(flag.__set__, body, True))
    return not was_closed


def notes_of(after: Any) -> dict[str, Any]:
    """The notes of a ``CallbackList``: the same to all threads that ask first at one instant."""
    mine: dict[str, Any] = {}
    slot = type(after)._notes
    if after._notes is None:
        missing = compress((mine,), map(is_, map(slot.__get__, (after,)), (None,)))
        atomically(partial(next, map(partial(slot.__set__, after), missing), None))
    notes: dict[str, Any] | None = after._notes
    return mine if notes is None else notes  # None: it has ended meanwhile


# The places of a list


def take(callbacks: list[Any], entries: Sequence[object]) -> bool:
    """Take these entries off a list, unless the first has gone; whether it was there.

    Themselves, not what equals them: ``==`` may be a function in Python, and let other threads in.
    """
    steps = [_taking(callbacks, entry) for entry in entries]
    return bool(steps) and atomically(partial(all, map(call, steps)))[0]


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
        return atomically(partial(list.pop, self, index(at)))[0]

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
