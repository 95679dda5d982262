"""Random apps: what they return, when they start the response, where they fail.

An app passes places, in order: it is called, it returns, its first chunk is read, its second, its
iterable is closed. :meth:`Script.reach` does what is planned for a place.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from greenlet import GreenletExit

PLACES = ["call", "return", "first chunk", "mid-body", "close"]
STARTS = ["call", "return", "first chunk", "never"]


class Boom(Exception):
    """The error that is raised on purpose."""


class BaseBoom(BaseException):
    """Like a timeout of gevent, or the cancellation of a task."""


FAILS = {
    "boom": Boom,
    "stop": StopIteration,
    "exit": SystemExit,
    "base": BaseBoom,
    "interrupt": KeyboardInterrupt,
    "kill": GreenletExit,
}
#: Those of them that leave ``close()`` if a callback raises them.
GO_ON = (KeyboardInterrupt, GreenletExit)


class Plan(NamedTuple):
    """What was drawn for an app."""

    kind: str
    starts: str  # where it calls start_response
    writes: bool  # whether it then calls the write() that it got
    restarts: str | None  # where it calls start_response with exc_info
    fails: dict[str, str]  # where it raises, and what


@dataclass
class Script:
    """One call of an app: it does what is planned, and logs the places that it passes."""

    plan: Plan
    log: list[Any]
    environ: dict[str, Any]
    start_response: Any
    is_current: Any  # whether after_this_response() finds what it should, by place

    def run(self) -> Any:
        self.reach("call")
        result = KINDS[self.plan.kind](self)
        self.reach("return")
        return result

    def reach(self, place: str) -> None:
        self.log.append(place if self.is_current(place) else f"{place}, in the wrong context")
        if place == self.plan.starts:
            write = self.start_response("200 OK", [("Content-Type", "image/x-none")])
            if self.plan.writes:
                write(b"written")
        if place == self.plan.restarts:
            try:
                raise Boom
            except Boom:
                self.start_response("500 Restarted", [("X-Restarted", place)], sys.exc_info())
        if place in self.plan.fails:
            raise FAILS[self.plan.fails[place]](len(self.log))  # each has its own argument


class Closable:
    """Closes only once: OpenTelemetry's middleware closes what it gets twice, ours once."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.closed = False

    def chunks(self):
        for place, chunk in (("first chunk", b"1"), ("mid-body", b"2"), ("last chunk", b"3")):
            self.script.reach(place)
            yield chunk

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.script.reach("close")


class SeparateIterator(Closable):
    def __iter__(self):
        return self.chunks()


class OwnIterator(Closable):
    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.pass_ = self.chunks()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.pass_)


class Sized(SeparateIterator):
    def __len__(self):
        return 3


class Falsy(SeparateIterator):
    def __bool__(self):
        return False


class ByIndex(Closable):
    """Iterated by the old protocol; when it has raised, it ends, like a generator."""

    raised = False

    def __getitem__(self, index):
        if index == 3 or self.raised:
            raise IndexError
        self.raised = True
        self.script.reach(["first chunk", "mid-body", "last chunk"][index])
        self.raised = False
        return b"123"[index : index + 1]


class ListWithClose(list):
    def __init__(self, script: Script) -> None:
        super().__init__([b"1", b"2", b"3"])
        self.close = Closable(script).close


class File(OwnIterator):
    """What a file wrapper gets: the three chunks are read from it."""

    def read(self, size: int = -1) -> bytes:
        return next(self, b"")


def generator(script: Script):
    try:
        yield from Closable(script).chunks()
    finally:
        script.reach("close")


KINDS = {
    "list": lambda script: [b"1", b"2", b"3"],
    "tuple": lambda script: (b"1", b"2", b"3"),
    "empty": lambda script: [],
    "bytes": lambda script: b"123",
    "list with close": ListWithClose,
    "iterator of a list": lambda script: iter([b"1", b"2", b"3"]),
    "generator": generator,
    "own iterator": OwnIterator,
    "separate iterator": SeparateIterator,
    "sized": Sized,
    "falsy": Falsy,
    "by index": ByIndex,
    "file": lambda script: script.environ["wsgi.file_wrapper"](File(script)),
    "not iterable": lambda script: None,
}
