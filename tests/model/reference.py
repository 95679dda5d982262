"""The contract, implemented once more: plain, slow, and for one kind of server.

:class:`Reference` takes the place of ``AfterResponseMiddleware`` in the same stack, around the same
app. Whatever the middlewares around it do with what it returns, its callbacks must end up like
those of the real one.
"""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator, Coroutine, Generator
from functools import partial
from threading import get_ident
from typing import Any
from wsgiref.util import FileWrapper

from .apps import GO_ON, File

collecting: list[int] = []  # the thread in which the garbage collector runs, if it does
waiting: list[Result] = []  # what it has dropped


@gc.callbacks.append
def note(phase: str, info: object) -> None:
    collecting[:] = [get_ident()] if phase == "start" else []


def close_waiting(raised: BaseException | None = None) -> BaseException | None:
    """Close what the collector has dropped: rule 7. Return the exception to re-raise."""
    while waiting:
        result = waiting.pop(0)
        expected = result.after.expected
        try:
            result.close()
        except BaseException as error:
            if raised is None and isinstance(error, GO_ON):
                raised = error.with_traceback(None)
            else:
                expected.logged.append("closing failed")
    return raised


def let_out(error: BaseException | None) -> None:
    """Raise a new exception of its kind: the old one would hold the frames that hold it."""
    if error is not None:
        raise type(error)


class Expected:
    """What becomes of a request. The test holds it, so it holds nothing of the request."""

    def __init__(self) -> None:
        self.differs = False  # from the bare app: something was let out, or closed by a finalizer
        self.logged: list[str] = []
        self.lost = 0
        self.pool: list[ReferenceList] = []

    def drain(self) -> None:
        """Run what is in the pool."""
        while self.pool:
            if self.pool.pop(0).run(None) is not None:
                self.logged.append("let out")


class ReferenceList(list[Any]):
    """The callbacks, and what became of the response."""

    def __init__(self, executor: str, environ: dict[str, Any]) -> None:
        super().__init__()
        self.executor, self.label = executor, f"GET {environ['PATH_INFO']}"
        self.later, self.expected = environ["model.side"].later, environ["model.side"].expected
        self.status = self.headers = self.error = None
        self.completed: bool | None = False
        self.ended = False
        self.in_call = True  # of the instance that made it

    def insert(self, index: Any, fn: Any) -> None:
        if self.ended:
            raise RuntimeError("ended")
        super().insert(index, fn)

    def append(self, fn: Any) -> None:
        self.insert(len(self), fn)

    def extend(self, fns: Any) -> None:
        for fn in fns:
            self.append(fn)

    def __iadd__(self, fns: Any) -> Any:
        self.extend(fns)
        return self

    def fail(self, error: BaseException) -> None:
        self.error = self.error or error

    def finish(self, error: BaseException | None = None, in_place: bool = False) -> None:
        """Run the callbacks, here or elsewhere: rules 4 and 6, and those of executors."""
        if error is not None:
            self.fail(error)
        out, executor = error, "none" if in_place or not self else self.executor
        if executor == "loses":
            self.expected.lost += len(self)
            self.expected.logged.append("lost")
            self.clear()
            self.run(None)  # ends the list
        elif executor == "later":
            self.later.submit(ReferenceList.run_job, self, self.label)
        elif executor == "pool":
            self.expected.pool.append(self)
        else:
            out = self.run(error or (KeyboardInterrupt() if executor == "interrupts" else None))
        out = close_waiting(out)
        if out is not error:
            self.expected.differs = True
            let_out(out)

    def run_job(self, label: str) -> None:
        let_out(self.run(None))

    def run(self, out: BaseException | None) -> BaseException | None:
        """Run all; return the exception to re-raise: ``out``, if that already propagates."""
        while self:
            error = self.run_first()
            if error is None:
                continue
            if out is None and isinstance(error, GO_ON):
                out = error
            else:
                is_exit = isinstance(error, SystemExit)
                self.expected.logged.append("system exit" if is_exit else "failed")
        self.ended = True
        self.error = None
        return out

    def run_first(self) -> BaseException | None:
        try:
            outcome = self.pop(0)()
        except BaseException as error:
            return error.with_traceback(None)  # its frames would hold what must be dropped
        if isinstance(outcome, Coroutine):
            outcome.close()
            self.expected.logged.append("coroutine")
        elif isinstance(outcome, (Generator, AsyncGenerator)):
            self.expected.logged.append("generator")
        return None


class Result:
    """What the server gets: a pass records how it went, and ``close()`` ends the request."""

    def __init__(self, result: Any, after: ReferenceList) -> None:
        self.result, self.after = result, after
        self.is_closed = False
        self.next: Any = None
        # The server sends a file itself: whether it was read to its end is unknown.
        self.is_file = isinstance(result, (File, FileWrapper))
        if self.is_file:
            after.completed = None

    def __iter__(self) -> Any:
        self.completed(False)
        try:
            for chunk in self.result:  # yield from would close it
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failed(error)
            raise
        self.completed(True)

    def __next__(self) -> Any:
        try:
            if self.next is None:
                self.completed(False)
                self.next = iter(self.result)
            return next(self.next)
        except StopIteration:
            self.completed(True)
            raise
        except BaseException as error:
            self.failed(error)
            raise

    def completed(self, completed: bool) -> None:
        if not self.is_file:
            self.after.completed = completed

    def failed(self, error: BaseException) -> None:
        if not self.is_file:
            self.completed(False)
            if not self.is_closed:
                self.after.fail(error)

    def close(self, in_place: bool = False) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        try:
            close = getattr(self.result, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self.after.finish(error, in_place)
            raise
        self.after.finish(in_place=in_place)

    def __del__(self) -> None:
        if not self.is_closed:
            self.after.expected.differs = True  # the bare app's iterable is not closed
            if collecting == [get_ident()]:
                waiting.append(self)
            else:
                self.close(in_place=True)


class SizedResult(Result):
    def __len__(self) -> int:
        return len(self.result)


class OneChunk(bytes):
    """Bytes as the server gets them: the only thing that differs from the bare app."""

    def __iter__(self) -> Any:
        return iter([bytes(self)])


class Reference:
    """Takes the place of ``AfterResponseMiddleware``."""

    def __init__(self, app: Any, app_wide: list[Any], executor: str) -> None:
        self.app, self.app_wide, self.executor = app, app_wide, executor

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        raised = close_waiting()
        if raised is not None:
            environ["model.side"].expected.differs = True
            let_out(raised)
        present = environ["wsgi.after"]
        if isinstance(present, ReferenceList) and present.in_call:  # rule 2
            present.extend([partial(fn, environ, present) for fn in self.app_wide])
            return self.app(environ, start_response)
        after = environ["wsgi.after"] = ReferenceList(self.executor, environ)
        after.extend([partial(fn, environ, after) for fn in self.app_wide])

        def recording(status: str, headers: Any, *exc_info: Any) -> Any:
            write = start_response(status, headers, *exc_info)
            after.status, after.headers = status, headers
            return write

        try:
            result = self.app(environ, recording)
        except BaseException as error:
            after.in_call = False
            after.finish(error)
            raise
        after.in_call = False
        if isinstance(result, bytes):
            after.expected.differs, result = True, OneChunk(result)
        if hasattr(result, "__len__"):
            return SizedResult(result, after)
        if hasattr(result, "__iter__") or hasattr(result, "__getitem__"):
            return Result(result, after)
        after.finish()
        return result
