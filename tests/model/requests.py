"""One request, sent three times: to the bare app, to the reference, and to the middleware."""

from __future__ import annotations

import gc
import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from wsgiref.util import FileWrapper

from conftest import Exchange, hello, in_a_thread, make_environ

import wsgi_after
from wsgi_after import AfterResponseMiddleware
from wsgi_after.integration import current_list

from .apps import Plan, Script
from .callbacks import WAYS_IN_CONTEXT, WAYS_OF_LISTS, Callback, for_each
from .executors import EXECUTORS, Later, pool
from .reference import Expected, Reference, close_waiting
from .stacks import LATE, OF_REFERENCE, stacked

FILE_WRAPPERS = {"class": FileWrapper, "function": lambda file, size=8192: file}
NOTHING = object()
CHUNKS = {"first chunk", "mid-body"}
CANCELS = {
    "the first": lambda after: after and after.pop(0) and None,
    "the last": lambda after: after and after.remove(after[-1]),
    "all": lambda after: after.clear(),
}


SAID = {
    "are lost": "lost",
    "left the executor": "let out",
    "which its server had dropped": "closing failed",
}


class Log(logging.Handler):
    """The errors that the package logs, by the number in the path of their request."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.of: dict[int, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        record.exc_info = None  # pytest keeps the record, and its frames hold unclosed bodies
        text = record.getMessage()
        number = int(re.search(r"GET /(\d+)", text)[1])
        [of_request] = [said for words, said in SAID.items() if words in text] or [record.outcome]
        self.of.setdefault(number, []).append(of_request)


def same(what: str, real: Any, expected: Any) -> None:
    assert real == expected, f"{what}:\n{real}\n{expected}"


def attempt(fn: Any, *args: Any) -> Any:
    """What the server gets: a value, or the type of what was raised."""
    try:
        return fn(*args)
    except BaseException as error:
        return type(error)


def end_garbage() -> tuple[Any, Any]:
    """Send an unrelated request, which closes what the collector dropped.

    :return: what propagates out of that, with ours and with the reference.
    """
    real = attempt(Exchange, wsgi_after.AfterResponseMiddleware(hello))
    raised = close_waiting()
    return isinstance(real, type) and real, raised is not None and type(raised)


@dataclass(eq=False, repr=False)
class Side:
    """What the server sees of one of the three: only this may be compared."""

    number: int
    expected: Expected
    later: Later
    is_late: bool
    is_real: bool = False
    log: list[Any] = field(default_factory=list)  # what app and server see
    ran: list[Any] = field(default_factory=list)
    started: bool = False
    sent: bool = False
    after: Any = None
    middleware: Any = None
    environ: Any = None
    result: Any = NOTHING
    pass_: Any = None  # by iter()
    direct: Any = None  # by next()

    def is_current(self, place: str) -> bool:
        """Whether the current list is this request's while the app is called, and none otherwise.

        A middleware around the app may already read the body within the call. And the error of
        another list, which that list drops at its end, may be the last to hold this body.
        """
        list_, in_call = current_list(), place in ("call", "return")
        if not self.is_real or list_ is None:
            return not self.is_real or not in_call
        may_be_called = in_call or self.result is NOTHING or self.is_late
        return (may_be_called and list_ is self.after) or (place == "close" and list_.ended)

    def register(self, name: str, way: str, does: str) -> None:
        callback = Callback(self.after, self.log, self.ran, self.is_real, name, does)
        ways = WAYS_IN_CONTEXT if self.is_real else WAYS_OF_LISTS
        ways.get(way, ways["append"])(self.after, callback)

    def start_response(self, *args: Any) -> Any:
        """As PEP 3333 defines it, including what it refuses."""
        status, headers, exc_info = (*args, None)[:3]
        self.log.append((status, [*headers], exc_info and exc_info[0], len(args)))
        if exc_info and self.sent:
            raise exc_info[1]
        assert exc_info or not self.started, "start_response was called twice"
        self.started = True
        return self.write

    def write(self, chunk: bytes) -> None:
        self.log.append(("write", chunk))
        self.sent = True

    def call(self, middleware: Any, application: Any, file_wrapper: Any) -> Any:
        """Send the request.

        :param middleware: what takes the place of ours within the application.
        """
        self.middleware = middleware
        self.environ = make_environ(
            **{"PATH_INFO": f"/{self.number}", "HTTP_ACCEPT_ENCODING": "gzip", "wsgi.after": []},
            **{"wsgi.file_wrapper": file_wrapper, "model.side": self},
        )
        if self.is_real:
            del self.environ["wsgi.after"]
        self.result = application(self.environ, self.start_response)
        return hasattr(type(self.result), "__len__") and len(self.result)

    def read(self, how: str) -> Any:
        """Read one chunk, or all.

        :param how: by the pass that was begun, a fresh one, or ``next()`` of what the app returned.
        """
        if how == "all by next":
            while self.read("next") != "end":
                pass
            return None
        if how == "all":
            self.pass_ = None
            for chunk in self.result:
                self.got(chunk)
            return len(self.result) if hasattr(type(self.result), "__len__") else None
        if how == "next":
            if self.direct is None:  # what the bare app returned need not be an iterator
                has_next = hasattr(type(self.result), "__next__")
                self.direct = self.result if has_next else iter(self.result)
            return self.got(next(self.direct, "end"))
        if how == "fresh" or self.pass_ is None:
            self.pass_ = iter(self.result)
        return self.got(next(self.pass_, "end"))

    def got(self, chunk: Any) -> Any:
        self.log.append(("got", chunk))
        self.sent |= chunk not in (b"", "end")
        return chunk

    def close(self) -> None:
        getattr(self.result, "close", lambda: None)()

    def drop(self) -> None:
        self.result = self.pass_ = self.direct = self.after = self.environ = None
        self.middleware = None

    def run_job(self) -> None:
        self.later.run(f"GET /{self.number}")


@dataclass(kw_only=True, eq=False)
class Stack:
    """The app three times, each with the same middlewares, for any number of requests."""

    plan: Plan
    registers: list[tuple[str, str]]  # how each callback is registered, and what it does
    app_wide: list[str]  # what each app-wide callback does
    around: list[str]
    inside: list[str]
    executor: str
    file_wrapper: str

    def __post_init__(self) -> None:
        self.later = Later()
        fns = [partial(for_each, f"app-wide {i}", does) for i, does in enumerate(self.app_wide)]
        app = stacked(self.inside, self.app)
        real = AfterResponseMiddleware(app, executor=EXECUTORS[self.executor](self.later))
        for fn in fns:
            real.after_response(fn)
        told = stacked(self.inside, self.app, OF_REFERENCE)
        middlewares = told, Reference(told, fns, self.executor), real
        self.applications = [(each, stacked(self.around, each)) for each in middlewares]
        self.is_late = LATE in self.inside  # whether the app is called when its body is read

    def app(self, environ: dict[str, Any], start_response: Any) -> Any:
        side = environ["model.side"]
        side.after = environ["wsgi.after"]
        for index, each in enumerate(self.registers):
            side.register(f"callback {index}", *each)
        return Script(self.plan, side.log, environ, start_response, side.is_current).run()


class Request:
    """One request to all three, and what must be the same."""

    def __init__(self, number: int, log: Log, stack: Stack) -> None:
        self.number, self.log, self.stack = number, log, stack
        self.is_closed = self.is_garbage = False
        self.names = len(stack.registers)
        self.expected = Expected()
        common = {"number": number, "expected": self.expected, "is_late": stack.is_late}
        self.bare, self.reference = Side(later=Later(), **common), Side(later=Later(), **common)
        self.real = Side(later=stack.later, is_real=True, **common)
        self.sides = self.bare, self.reference, self.real
        applications = iter(stack.applications)
        self.step(lambda side: side.call(*next(applications), FILE_WRAPPERS[stack.file_wrapper]))
        self.is_open = self.real.result is not NOTHING and self.real.result is not None

    def step(self, do: Any, in_thread: bool = False, bare: bool = True) -> None:
        """Do the same to all, and check that the outcome is the same."""
        outcomes = [
            here_or_there(attempt, in_thread, do, side)
            for side in self.sides
            if bare or side is not self.bare
        ]
        self.settle()
        real, logged = self.real, self.log.of.get(self.number, [])
        same("the context", current_list(), None)
        same("the outcome", outcomes[-1], outcomes[-2])
        same("what app and server see", real.log, self.reference.log)
        same("what callbacks see", self.told(real), self.told(self.reference))
        same("what is logged", logged, self.expected.logged)
        if bare and not self.expected.differs:
            same("the outcome, and the bare app's", outcomes[-1], outcomes[0])
            same("what is seen, and of the bare app", real.log, self.bare.log)

    def told(self, side: Side) -> list[Any]:
        """What callbacks recorded: after a collection, without the error and how much was seen.

        The order in which a cycle is finalized is not defined: a generator of the app may come
        before the body that would have closed it, and what it raises then reaches nobody.
        """
        return [entry[:-1] for entry in side.ran] if self.is_garbage else side.ran

    def settle(self) -> None:
        """Wait for the pool; collect garbage if the environ, or an error, holds the body."""
        self.drain()
        real, reference = (
            (side.log, self.told(side), side.after is not None and side.after.ended)
            for side in (self.real, self.reference)
        )
        if real != reference:
            for side in self.sides:
                side.environ = side.after = None
            self.collect()

    def drain(self) -> None:
        pool.drain()
        self.expected.drain()

    def collect(self, *generation: int) -> None:
        """Collect garbage, which waits for the next request (rule 7), and send that request."""
        ran = self.ran()
        gc.collect(*generation)
        same("what runs while the collector runs", self.ran(), ran)
        same("what goes on of garbage", *end_garbage())
        self.drain()
        self.is_garbage |= self.ran() != ran

    def ran(self) -> list[int]:
        return [len(side.ran) for side in self.sides]

    def read(self, how: str, in_thread: bool) -> None:
        # After the end, our start_response refuses.
        starts = self.stack.is_late or CHUNKS & {self.stack.plan.starts, self.stack.plan.restarts}
        if not self.is_closed or not starts:
            self.step(lambda side: side.read(how), in_thread)

    def close(self, in_thread: bool = False) -> None:
        self.step(Side.close, in_thread)
        self.is_closed = True

    def run_job(self) -> None:
        self.step(Side.run_job, bare=False)

    def register(self, way: str, does: str) -> None:
        if self.real.after is not None:
            self.names += 1
            name = f"late {self.names}"
            self.step(lambda side: side.register(name, way, does), bare=False)

    def cancel(self, how: str) -> None:
        if self.real.after is not None:
            self.step(lambda side: CANCELS[how](side.after), bare=False)

    def forget(self) -> None:
        for side in self.sides:
            side.drop()

    def drop(self) -> None:
        self.expected.differs = self.is_garbage = True
        self.forget()
        self.collect(0)
        self.step(lambda side: None)
        self.is_open = False

    def count(self) -> Counter[str]:
        """Count the callbacks that must have run."""
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
    return in_a_thread(fn, *args) if in_thread else fn(*args)
