"""Callbacks at random: each writes down what it can know, then does one thing."""

from __future__ import annotations

from typing import Any

import wsgi_after.callbacks

from .apps import FAILS

DOES = ["nothing", "registers", "removes", "clears", "returns a coroutine", "takes long", *FAILS]


class Clock:
    """In place of ``time.monotonic``: a slow callback moves it, and nobody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


clock = Clock()


async def coroutine() -> None:
    """Never runs."""


class Callback:
    """An entry of a list.

    :param ran: where it writes itself down: its name, what the list says of the response, and
        whether that list is the current one.
    :param register: the way to register that it uses.
    """

    def __init__(self, after: Any, ran: list[Any], register: Any, name: str, does: str) -> None:
        self.after, self.ran, self.register = after, ran, register
        self.name, self.does = name, does

    def __call__(self) -> object:
        after = self.after
        headers = after.headers and [*after.headers]
        error = type(after.error).__name__
        self.ran.append((self.name, self.is_mine(), after.status, headers, after.completed, error))
        if self.does == "registers":
            name = f"{self.name}, nested"
            self.register(Callback(after, self.ran, self.register, name, "nothing"))
        elif self.does == "removes" and after:
            after.remove(after[0])
        elif self.does == "clears":
            after.clear()
        elif self.does == "takes long":
            clock.now += 2
        elif self.does == "returns a coroutine":
            return coroutine()
        elif self.does in FAILS:
            raise FAILS[self.does]
        return None

    def is_mine(self) -> bool:
        """Whether the current list is that of this request, where one is told to be current."""
        if self.register is not wsgi_after.after_this_response:
            return True
        return wsgi_after.callbacks.current.get(None) is self.after
