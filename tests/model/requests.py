"""One request, sent three times: to the bare app, to the reference, and to the middleware."""

from __future__ import annotations

import gc
import logging
import re
import threading
from collections import Counter
from functools import partial
from typing import Any
from wsgiref.util import FileWrapper

from conftest import make_environ
from wsgi_after.callbacks import EndedCallbackList, current

from wsgi_after import AfterResponseMiddleware

from .apps import Plan, Script
from .callbacks import WAYS_IN_CONTEXT, WAYS_OF_LISTS, Callback, for_each
from .executors import Later, arguments, pool
from .reference import Expected, Reference
from .stacks import OF_REFERENCE, stacked

FILE_WRAPPERS = {"class": FileWrapper, "function": lambda file, size=8192: file}
NOTHING = object()
CHUNKS = {"first chunk", "mid-body"}
CANCELS = {
    "the first": lambda after: after and after.pop(0) and None,
    "the last": lambda after: after and after.remove(after[-1]),
    "all": lambda after: after.clear(),
}


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

    def __init__(
        self, number: int, expected: Expected, later: Later, is_real: bool = False
    ) -> None:
        self.number, self.expected, self.later, self.is_real = number, expected, later, is_real
        self.log: list[Any] = []  # what app and server see
        self.started = self.sent = False
        self.ran: list[Any] = []
        self.after: Any = None
        self.environ: Any = None
        self.result: Any = NOTHING
        self.pass_: Any = None  # by iter()
        self.direct: Any = None  # by next()

    def is_current(self, place: str) -> bool:
        """Whether the current list is that of this request while the app is called, or else none.

        A middleware around the app may read the body in the call already.
        """
        list_ = current.get(None)
        if not self.is_real or (list_ is self.after and self.result is NOTHING):
            return True
        return list_ is None and place not in ("call", "return")

    def register(self, name: str, way: str, does: str) -> None:
        callback = Callback(self.after, self.log, self.ran, self.is_real, name, does)
        ways = WAYS_IN_CONTEXT if self.is_real else WAYS_OF_LISTS
        ways.get(way, ways["append"])(self.after, callback)

    def start_response(self, *args: Any) -> Any:
        """As PEP 3333 has it, down to the refusals."""
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

    def call(self, application: Any, file_wrapper: Any) -> Any:
        self.environ = make_environ(
            **{"PATH_INFO": f"/{self.number}", "HTTP_ACCEPT_ENCODING": "gzip", "wsgi.after": []},
            **{"wsgi.file_wrapper": file_wrapper, "model.side": self},
        )
        if self.is_real:
            del self.environ["wsgi.after"]
        self.result = application(self.environ, self.start_response)
        return hasattr(type(self.result), "__len__") and len(self.result)

    def read(self, how: str) -> Any:
        """One chunk, or all.

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
            if self.direct is None:  # nothing that the bare app returned need be an iterator
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

    def run_job(self) -> None:
        self.later.run(f"GET /{self.number}")


class Stack:
    """The app, thrice, each with the same middlewares: for any number of requests.

    :param registers: how each callback is registered, and what it does.
    :param app_wide: what each that runs after all requests does.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        registers: list[tuple[str, str]],
        app_wide: list[str],
        around: list[str],
        inside: list[str],
        executor: str,
        file_wrapper: str,
    ) -> None:
        self.plan, self.registers = plan, registers
        self.executor, self.later = executor, Later()
        self.file_wrapper = FILE_WRAPPERS[file_wrapper]
        for_all = [partial(for_each, f"app-wide {i}", does) for i, does in enumerate(app_wide)]
        real = AfterResponseMiddleware(stacked(inside, self.app), **arguments(executor, self.later))
        for fn in for_all:
            real.after_response(fn)
        told = stacked(inside, self.app, OF_REFERENCE)
        middlewares = told, Reference(told, for_all, executor), real
        self.applications = [stacked(around, middleware) for middleware in middlewares]

    def app(self, environ: dict[str, Any], start_response: Any) -> Any:
        side = environ["model.side"]
        side.after = environ["wsgi.after"]
        for index, each in enumerate(self.registers):
            side.register(f"callback {index}", *each)
        return Script(self.plan, side.log, environ, start_response, side.is_current).run()


class Request:
    """The three, and what has to be the same."""

    def __init__(self, number: int, log: Log, stack: Stack) -> None:
        self.number, self.log, self.stack = number, log, stack
        self.is_closed = self.is_garbage = False
        self.names = len(stack.registers)
        self.expected = Expected()
        self.sides = self.bare, self.reference, self.real = (
            Side(number, self.expected, Later()),
            Side(number, self.expected, Later()),
            Side(number, self.expected, stack.later, is_real=True),
        )
        applications = iter(stack.applications)
        self.step(lambda side: side.call(next(applications), stack.file_wrapper))
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
        same("the context", current.get(None), None)
        same("the outcome", outcomes[-1], outcomes[-2])
        same("what app and server see", real.log, self.reference.log)
        same("what callbacks see", self.told(real), self.told(self.reference))
        same("what is logged", logged, self.expected.logged)
        if bare and not self.expected.differs:
            same("the outcome, and the bare app's", outcomes[-1], outcomes[0])
            same("what is seen, and of the bare app", real.log, self.bare.log)

    def told(self, side: Side) -> list[Any]:
        """What callbacks wrote down: without what was before where garbage was collected.

        In which order that finalizes a cycle is not defined: a generator of the app may come before
        the body that would have closed it, and what it raises then is nobody's.
        """
        return [entry[:-1] for entry in side.ran] if self.is_garbage else side.ran

    def settle(self) -> None:
        """Wait for the pool; and for garbage, where the environ, or an error, holds the body."""
        pool.drain()
        self.expected.drain()
        ended = isinstance(self.real.after, EndedCallbackList)
        if self.real.after is not None and self.expected.ended and not self.expected.finalized:
            same("whether the list has ended", ended, True)
        real, reference = (
            (side.log, self.told(side), has_ended)
            for side, has_ended in ((self.real, ended), (self.reference, self.expected.ended))
        )
        if real != reference:
            ran = self.ran()
            for side in self.sides:
                side.environ = side.after = None
            gc.collect()
            self.is_garbage |= self.ran() != ran

    def ran(self) -> list[int]:
        return [len(side.ran) for side in self.sides]

    def read(self, how: str, in_thread: bool) -> None:
        # After the end, our start_response is none any more.
        if not self.is_closed or not {self.stack.plan.starts, self.stack.plan.restarts} & CHUNKS:
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
