"""If two threads want the same thing at the same instant, exactly one gets it.

With the GIL, no other thread runs between two lines that call nothing, or during a call of a C
function that calls no Python code. Without the GIL, one may.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import compress, count, repeat
from operator import call, index, is_
from threading import Lock
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

T = TypeVar("T")

#: Whether this process runs without the GIL, on a free-threaded build. If the GIL is turned on
#: later, the lock is superfluous and harmless. With the GIL, looking at a flag is enough: a ticket
#: for each body took 3% more instructions.
WITHOUT_GIL = not getattr(sys, "_is_gil_enabled", lambda: True)()


class _Held:
    """A lock. A forked child gets a new one, because another thread may have held the old one."""

    lock = Lock()

    @classmethod
    def renew(cls) -> None:
        cls.lock = Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch -- else nothing forks
    os.register_at_fork(after_in_child=_Held.renew)


def atomically(*steps: partial[Any]) -> list[Any]:
    """Call C functions that call no Python code, and return what they return.

    All calls are one instruction of Python. No other thread, finalizer or signal handler runs
    between them. Without the GIL, a lock guards them. It is held for an instant, and its holder
    waits for nothing.
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
    """Mark a body as closed. Returns true to one caller only: the one that found it open."""
    flag = type(body)._closed  # a slot, whose methods are written in C
    was_closed, _ = atomically(partial(flag.__get__, body), partial(flag.__set__, body, True))
    return not was_closed


def notes_of(after: Any) -> dict[str, Any]:
    """Return the notes of a ``CallbackList``. Threads that ask at the same instant get the same."""
    return _filled(after, type(after)._notes, {})


def response_callbacks_of(after: Any) -> list[Any]:
    """Return the list of the response callbacks of a ``CallbackList``, as :func:`notes_of`."""
    mine: list[Any] = []
    if WITHOUT_GIL:
        return _filled(after, type(after)._response_callbacks, mine)
    kept: list[Any] | None = after._response_callbacks
    if kept is None:  # with the GIL, this is safe, and takes 1 us less
        kept = after._response_callbacks = mine
    return kept


def _filled(after: Any, slot: Any, mine: T) -> T:
    """Put ``mine`` into a slot that holds ``None``, and return what the slot holds then."""
    if slot.__get__(after) is None:
        missing = compress((mine,), map(is_, map(slot.__get__, (after,)), (None,)))
        atomically(partial(next, map(partial(slot.__set__, after), missing), None))
    filled: T | None = slot.__get__(after)
    return mine if filled is None else filled  # None: the request has ended meanwhile


# The places of a list


def take(callbacks: list[Any], entries: Sequence[object]) -> bool:
    """Remove these entries from a list, unless the first is gone. Returns whether it was there.

    Entries are found by identity: ``==`` may be Python code, during which other threads run.
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
    """A list that does not change while :func:`take` works on it, without the GIL."""

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
