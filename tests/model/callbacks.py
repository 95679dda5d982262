"""Random callbacks: each records what it can know, then does one thing."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import wsgi_after
from wsgi_after.integration import current_list

from .apps import FAILS

#: How a callback is registered: on any list, on ours, and while the app is called. If its way is
#: not possible, it is appended.
WAYS_OF_LISTS = {
    "append": lambda after, fn: after.append(fn),
    "insert": lambda after, fn: after.insert(0, fn),
    "extend": lambda after, fn: after.extend(iter([fn])),
    "+=": lambda after, fn: operator.iadd(after, [fn]),
}
WAYS = {
    **WAYS_OF_LISTS,
    "call": lambda after, fn: after(fn),
    "call with arguments": lambda after, fn: after(called_with, fn, fn=fn),
}
WAYS_IN_CONTEXT = {
    **WAYS,
    "after_this_response": lambda after, fn: wsgi_after.after_this_response(fn),
}


def called_with(*args: Any, **kwargs: Any) -> object:
    """Call the function that came both by position and by name."""
    [by_position], by_name = args, kwargs["fn"]
    assert by_position is by_name
    return by_name()


class Clock:
    """In place of ``time.monotonic``: a slow callback moves it on, so nobody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


clock = Clock()


async def coroutine() -> None:
    """Never runs."""


async def async_generator() -> Any:
    """Never runs either."""
    yield


NOT_RUN = {
    "returns a coroutine": coroutine,
    "returns a generator": lambda: (None for _ in ()),
    "returns an async generator": async_generator,
}
DOES = [*("nothing", "registers", "inserts", "removes", "clears", "takes long"), *NOT_RUN, *FAILS]


@dataclass(eq=False, repr=False)
class Callback:
    """An entry of a list.

    It records its name, whether its list is the current one, what the list says of the response,
    and how much has been seen.
    """

    after: Any
    seen: list[Any]  # what app and server have seen so far
    ran: list[Any]  # where it records that
    is_real: bool  # whether its list is one of the package's
    name: str
    does: str

    def __call__(self) -> object:
        after = self.after
        headers = after.headers and [*after.headers]
        told = (after.status, headers, after.completed)
        error = type(after.error), type(after.error) in FAILS.values() and after.error.args
        self.ran.append((self.name, self.is_mine(), *told, (error, len(self.seen))))
        if self.does == "registers":
            (wsgi_after.after_this_response if self.is_real else after.append)(self.nested())
        elif self.does == "inserts":
            after.insert(0, self.nested())
        elif self.does == "removes" and after:
            after.remove(after[0])
        elif self.does == "clears":
            after.clear()
        elif self.does == "takes long":
            clock.now += 2
        elif self.does in NOT_RUN:
            return NOT_RUN[self.does]()
        elif self.does in FAILS:
            raise FAILS[self.does]
        return None

    def nested(self) -> Callback:
        return replace(self, name=f"{self.name}, nested", does="nothing")

    def is_mine(self) -> bool:
        """Whether the current list is this request's; always true if its list is not ours."""
        return not self.is_real or current_list() is self.after


def for_each(name: str, does: str, environ: dict[str, Any], after: Any = None) -> object:
    """What ``AfterResponseMiddleware.after_response`` calls, with the environ of the request.

    :param after: the list that it is in, if that is not ours.
    """
    side = environ["model.side"]
    after = current_list() if after is None else after
    name = f"{name} of {environ['PATH_INFO']}"
    return Callback(after, side.log, side.ran, side.is_real, name, does)()
