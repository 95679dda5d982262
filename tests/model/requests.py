"""One request, sent three times: to the bare app, to the reference, and to the middleware."""

from __future__ import annotations

import gc
import logging
import re
import threading
from collections import Counter
from typing import Any
from wsgiref.util import FileWrapper

from conftest import make_environ

from wsgi_after import AfterResponseMiddleware, after_this_response
from wsgi_after.callbacks import EndedCallbackList

from .apps import Plan, Script
from .callbacks import Callback
from .executors import Later, arguments, pool
from .reference import Reference, ReferenceList
from .stacks import stacked

FILE_WRAPPERS = {"class": FileWrapper, "function": lambda file, size=8192: file}
NOTHING = object()


class Log(logging.Handler):
    """The errors that the package logs, by the number in the path of their request."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.of: dict[int, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        number = int(re.search(r"GET /(\d+)", text)[1])
        ends = "lost" if "are lost" in text else "let out"
        self.of.setdefault(number, []).append(getattr(record, "outcome", ends))


def same(what: str, real: Any, expected: Any) -> None:
    assert real == expected, f"{what}:\n{real}\n{expected}"


def attempt(fn: Any, *args: Any) -> Any:
    """What the server gets: a value, or the type of what was raised."""
    try:
        return fn(*args)
    except BaseException as error:
        return type(error)


class Side:
    """The server's view of one of the three, which is all that may be compared."""

    def __init__(self) -> None:
        self.log: list[Any] = []  # what app and server see
        self.ran: list[Any] = []
        self.after: Any = None
        self.environ: Any = None
        self.result: Any = NOTHING
        self.pass_: Any = None  # by iter()
        self.direct: Any = None  # by next()
        self.later = Later()
        self.is_real = False

    def app(self, plan: Plan, register: Any, registered: list[tuple[str, str]]) -> Any:
        def app(environ: dict[str, Any], start_response: Any) -> Any:
            self.after = environ["wsgi.after"]
            for name, does in registered:
                self.register(register, name, does)
            return Script(plan, self.log, environ, start_response).run()

        return app

    def register(self, register: Any, name: str, does: str) -> None:
        after = self.after
        self.after.append(Callback(after, self.ran, register or after.append, name, does))

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        self.log.append((status, [*headers], exc_info and exc_info[0]))
        return self.log.append

    def call(self, application: Any, number: int, file_wrapper: str) -> Any:
        self.environ = make_environ(
            **{"PATH_INFO": f"/{number}", "HTTP_ACCEPT_ENCODING": "gzip", "wsgi.after": []},
            **{"wsgi.file_wrapper": FILE_WRAPPERS[file_wrapper]},
        )
        if self.is_real:
            del self.environ["wsgi.after"]
        self.result = application(self.environ, self.start_response)
        return hasattr(type(self.result), "__len__") and len(self.result)

    def read(self, how: str) -> Any:
        """One chunk: by a fresh pass, the same one, or by ``next()`` of what the app returned."""
        if how == "next":
            if self.direct is None:  # nothing that the bare app returned need be an iterator
                has_next = hasattr(type(self.result), "__next__")
                self.direct = self.result if has_next else iter(self.result)
            return next(self.direct, "end")
        if how == "fresh" or self.pass_ is None:
            self.pass_ = iter(self.result)
        return next(self.pass_, "end")

    def close(self) -> None:
        getattr(self.result, "close", lambda: None)()

    def drop(self) -> None:
        self.result = self.pass_ = self.direct = self.after = self.environ = None

    def run_job(self) -> None:
        if self.later.jobs:
            self.later.jobs.pop(0)()


class Request:
    """The three, and what has to be the same."""

    def __init__(
        self,
        number: int,
        plan: Plan,
        registered: list[tuple[str, str]],
        around: list[str],
        inside: list[str],
        executor: str,
        file_wrapper: str,
        log: Log,
    ) -> None:
        self.number, self.log = number, log
        self.is_garbage = False
        self.names = len(registered)
        self.sides = self.bare, self.reference, self.real = Side(), Side(), Side()
        self.real.is_real = True
        self.expected = ReferenceList(executor, self.reference.later.jobs)
        registers = (None, None, after_this_response)
        apps = [
            stacked(inside, side.app(plan, register, registered))
            for side, register in zip(self.sides, registers, strict=True)
        ]
        options = arguments(executor, self.real.later)
        applications = [
            stacked(around, apps[0]),
            stacked(around, Reference(apps[1], self.expected)),
            stacked(around, AfterResponseMiddleware(apps[2], **options)),
        ]
        made = iter(applications)
        self.step(lambda side: side.call(next(made), number, file_wrapper))
        self.is_closed = False
        self.is_open = self.real.result is not NOTHING and self.real.result is not None

    def step(self, do: Any, in_thread: bool = False, bare: bool = True) -> None:
        """Do the same to all, with the same outcome."""
        outcomes = [
            here_or_there(attempt, in_thread, do, side)
            for side in self.sides
            if bare or side is not self.bare
        ]
        self.settle()
        real, logged = self.real, self.log.of.get(self.number, [])
        same("the outcome", outcomes[-1], outcomes[-2])
        same("what app and server see", real.log, self.reference.log)
        same("what callbacks see", self.told(real), self.told(self.reference))
        same("what is logged", logged, self.expected.logged)
        if bare and not self.expected.differs:
            same("the outcome, and the bare app's", outcomes[-1], outcomes[0])
            same("what is seen, and of the bare app", real.log, self.bare.log)

    def told(self, side: Side) -> list[Any]:
        """What callbacks wrote down: without the error where garbage was collected.

        In which order that finalizes a cycle is not defined: a generator of the app may come before
        the body that would have closed it, and what it raises then is nobody's.
        """
        return [entry[:-1] for entry in side.ran] if self.is_garbage else side.ran

    def settle(self) -> None:
        """Wait for the pool; and for garbage, where the environ, or an error, holds the body."""
        pool.drain()
        self.expected.drain()
        ended = isinstance(self.real.after, EndedCallbackList)
        real, reference = (
            (side.log, self.told(side), has_ended)
            for side, has_ended in ((self.real, ended), (self.reference, self.expected.ended))
        )
        if real != reference:
            for side in self.sides:
                side.environ = side.after = None
            self.is_garbage = True
            gc.collect()

    def read(self, how: str, in_thread: bool) -> None:
        if not self.is_closed:
            self.step(lambda side: side.read(how), in_thread)

    def close(self, in_thread: bool = False) -> None:
        self.step(Side.close, in_thread)
        self.is_closed = True

    def run_job(self) -> None:
        self.step(Side.run_job, bare=False)

    def register(self, does: str) -> None:
        if self.real.after is not None:
            self.names += 1
            ways = {self.reference: None, self.real: after_this_response}
            name = f"late {self.names}"
            self.step(lambda side: side.register(ways[side], name, does), bare=False)

    def forget(self) -> None:
        for side in self.sides:
            side.drop()

    def drop(self) -> None:
        self.expected.differs = self.is_garbage = True
        self.forget()
        gc.collect(0)
        self.step(lambda side: None)
        self.is_open = False

    def count(self) -> Counter[str]:
        """Of the callbacks that have to have run."""
        reference, real = (
            Counter(name for name, *_ in side.ran) for side in (self.reference, self.real)
        )
        return Counter(
            callbacks_run=len(self.real.ran),
            lost=(reference - real).total(),
            doubled=(real - reference).total(),
            mixed=sum(not is_mine for _, is_mine, *_ in self.real.ran),
            taken_and_lost_by_an_executor=self.expected.lost,
        )


def here_or_there(fn: Any, in_thread: bool, *args: Any) -> Any:
    """Call ``fn`` in this thread, or in one of its own."""
    if not in_thread:
        return fn(*args)
    returned: list[Any] = []
    thread = threading.Thread(target=lambda: returned.append(fn(*args)))
    thread.start()
    thread.join()
    return returned[0]
