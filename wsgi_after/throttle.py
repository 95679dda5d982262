"""Let one of many like events through, once in a while, and count the others."""

from __future__ import annotations

from itertools import count
from time import monotonic

REST = 60.0  # seconds in which nothing passes after something has


class Throttle:
    """Says whether an event may be logged; the count is of those since the last that was.

    It takes no lock, because a finalizer may come by at any allocation: threads that come at the
    same moment may all pass, and share what is to be counted.
    """

    def __init__(self) -> None:
        self._closed_until = 0.0
        self._counter = count(1)
        self._told = 0

    def passes(self) -> int:
        """Count one event: how many there were since the last that passed, or 0: not yet."""
        total, now = next(self._counter), monotonic()
        if now < self._closed_until:
            return 0
        self._closed_until = now + REST
        since, self._told = total - self._told, total
        return since
