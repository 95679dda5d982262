"""The contract, told once more: plain, slow, and for one kind of server.

:class:`Reference` takes the place of ``AfterResponseMiddleware`` in the same stack, around the same
app. Whatever the middlewares around it do with what it returns, what becomes of the callbacks there
has to become of them with the real one, too.
"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any
from wsgiref.util import FileWrapper

from .apps import File


class Expected:
    """What becomes of a request. The test holds it, and so nothing of the request."""

    def __init__(self) -> None:
        self.ended = False
        self.finalized = False  # closed by nobody but the reference's finalizer
        self.differs = False  # from the bare app: something was let out, or closed by a finalizer
        self.logged: list[str] = []
        self.lost = 0
        self.pool: list[ReferenceList] = []

    def drain(self) -> None:
        """Run what is in the pool."""
        while self.pool:
            if self.pool.pop().run(None) is not None:
                self.logged.append("let out")


class ReferenceList(list[Any]):
    """The callbacks, and what became of the response."""

    def __init__(self, executor: str, environ: dict[str, Any]) -> None:
        super().__init__()
        self.executor, self.label = executor, f"GET {environ['PATH_INFO']}"
        self.later, self.expected = environ["model.side"].later, environ["model.side"].expected
        self.status = self.headers = self.error = None
        self.completed: bool | None = False

    def insert(self, index: Any, fn: Any) -> None:
        if self.expected.ended:
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
        # The first one counts. Not that very one: its traceback would keep what is to be dropped.
        self.error = self.error or type(error).__new__(type(error), *error.args)

    def finish(self, error: BaseException | None = None, in_place: bool = False) -> None:
        """The callbacks run, here or elsewhere: rules 4 and 6, and those of executors."""
        if error is not None:
            self.fail(error)
        executor = "None" if in_place else self.executor
        if not self:
            self.expected.ended = True
        elif executor == "loses":
            self.expected.lost += len(self)
            self.expected.logged.append("lost")
            self.clear()
            self.expected.ended = True
        elif executor == "later":
            self.later.submit(ReferenceList.run_job, self, self.label)
        elif executor == "pool":
            self.expected.pool.append(self)
        elif (out := self.run(error)) is not error:
            self.expected.differs = True
            raise out

    def run_job(self, label: str) -> None:
        out = self.run(None)
        if out is not None:
            raise out

    def run(self, out: BaseException | None) -> BaseException | None:
        """Run all; what is to be let out, which is ``out`` if that is on its way."""
        logged = self.expected.logged
        while self:
            try:
                outcome = self.pop(0)()
                if isinstance(outcome, Coroutine):
                    outcome.close()
                    logged.append("coroutine")
            except SystemExit:
                logged.append("system exit")
            except Exception:
                logged.append("failed")
            except BaseException as error:
                if out is not None:
                    logged.append("failed")
                out = out or error
        self.expected.ended = True
        self.error = None
        return out


class Result:
    """What the server gets: a pass writes down how it went, the end of it all is ``close()``."""

    def __init__(self, result: Any, after: ReferenceList) -> None:
        self.result, self.after = result, after
        self.next: Any = None
        # The server sends a file itself: nothing is known of that.
        self.is_file = isinstance(result, (File, FileWrapper))
        if self.is_file:
            after.completed = None

    def __iter__(self) -> Any:
        # A file that a function returned as it is: ours has its close() alone, too.
        return iter(self.result) if isinstance(self.result, File) else self.chunks()

    def chunks(self) -> Any:
        after = self.after  # until the pass ends, even if somebody closes meanwhile
        self.completed(False, after)
        try:
            for chunk in self.result:  # yield from would close it
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failed(error, after)
            raise
        self.completed(True, after)

    def __next__(self) -> Any:
        try:
            if self.next is None:
                self.completed(False, self.after)
                self.next = iter(self.result)
            return next(self.next)
        except StopIteration:
            self.completed(True, self.after)
            raise
        except BaseException as error:
            self.failed(error, self.after)
            raise

    def completed(self, completed: bool, after: ReferenceList | None) -> None:
        if after is not None and not self.is_file:
            after.completed = completed

    def failed(self, error: BaseException, after: ReferenceList | None) -> None:
        if after is not None and not self.is_file:
            after.fail(error)

    def close(self, in_place: bool = False) -> None:
        after, self.after = self.after, None
        if after is None:
            return
        try:
            close = getattr(self.result, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            after.finish(error, in_place)
            raise
        after.finish(in_place=in_place)

    def __del__(self) -> None:
        if self.after is not None:
            expected = self.after.expected
            expected.finalized = expected.differs = True  # the bare app's iterable is not closed
            self.close(in_place=True)


class SizedResult(Result):
    def __len__(self) -> int:
        return len(self.result)


class Reference:
    """In the place of ``AfterResponseMiddleware``."""

    def __init__(self, app: Any, app_wide: list[Any], executor: str) -> None:
        self.app, self.app_wide, self.executor = app, app_wide, executor

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        after = environ["wsgi.after"] = ReferenceList(self.executor, environ)
        after.extend([partial(fn, environ) for fn in self.app_wide])

        def recording(status: str, headers: Any, *exc_info: Any) -> Any:
            write = start_response(status, headers, *exc_info)
            after.status, after.headers = status, headers
            return write

        try:
            result = self.app(environ, recording)
        except BaseException as error:
            after.finish(error)
            raise
        if isinstance(result, bytes):  # the one thing that the server gets otherwise
            after.expected.differs, result = True, [result]
        if hasattr(result, "__len__"):
            return SizedResult(result, after)
        if hasattr(result, "__iter__") or hasattr(result, "__getitem__"):
            made = Result(result, after)
            if isinstance(result, File):  # a function for a file wrapper: nothing else can know it
                environ["model.made"] = made  # so if it is not closed, it waits for the environ
            return made
        after.finish()
        return result
