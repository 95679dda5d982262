"""Middlewares with one fault each, which the model must find: otherwise it proves nothing.

Each is the real one with something done to the app that it calls, to what it returns, or to the
list. So no fault depends on how the real one is written.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import wsgi_after
from wsgi_after.integration import open_request

FAULTS: dict[str, type[Faulty]] = {}


class Passing:
    """Wraps what the server, or our middleware, should get, and changes nothing else."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.result, name)

    def __iter__(self) -> Any:
        return iter(self.result)


class Sized:
    def __len__(self) -> int:
        return len(self.result)


class Next:
    def __next__(self) -> Any:
        return next(self.result)


#: Servers look for these on the type.
SPECIAL = {"__len__": Sized, "__next__": Next}


def passing(result: Any, kind: type[Passing]) -> Any:
    if not hasattr(type(result), "__iter__"):
        return result
    special = [base for name, base in SPECIAL.items() if hasattr(type(result), name)]
    return type("Result", (kind, *special), {})(result)


class Faulty(wsgi_after.AfterResponseMiddleware):
    """The base class, which has no fault itself."""

    Result = Passing
    reads: tuple[Any, ...] = ()  # pairs: an attribute of the list, and what callbacks read there

    def __init_subclass__(cls) -> None:
        if cls.__doc__:
            FAULTS[sentence(cls)] = cls

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(self.call, **options)
        self.faultless = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        return passing(super().__call__(environ, start_response), self.Result)

    def call(self, environ: Any, start_response: Any) -> Any:
        result = self.faultless(environ, start_response)
        self.spoil(environ["wsgi.after"])
        return result

    def spoil(self, after: Any) -> None:
        """Do something to the list when the app has returned."""


def sentence(cls: type) -> str:
    return " ".join(cls.__doc__.split()).rstrip(".")


# What is done to the list


def drop_on_exit(after):
    if any(getattr(fn, "does", None) == "exit" for fn in after[:-1]):
        after.pop()


def let_out(after):
    for fn in after:
        if getattr(fn, "does", None) == "base":
            fn.does = "interrupt"


def iterate_over(after):
    for index, fn in enumerate(after):
        if getattr(fn, "does", None) == "returns a generator":
            after[index] = lambda fn=fn: [*fn()]


def put_app_wide_last(after):
    after.sort(key=lambda fn: getattr(fn, "keywords", None) is not None)


SPOILS = {
    "A callback runs twice": lambda after: after.extend(after[:1]),
    "The last callback is lost": lambda after: after.__setitem__(slice(-1, None), []),
    "The last callback is lost where one raises SystemExit": drop_on_exit,
    "The order is that of last to first": lambda after: after.reverse(),
    "App-wide callbacks come last": put_app_wide_last,
    "Callbacks run when the app returns": wsgi_after.run_callbacks,
    "Any BaseException of a callback leaves close()": let_out,
    "A generator that a callback returns is iterated over, and not reported": iterate_over,
}
READS = {
    "Callbacks read no error": ("error", None),
    "Callbacks read that all was sent": ("completed", True),
    "Callbacks read another status": ("status", "200 Fine"),
}
FAULTS |= {
    name: type("Spoils", (Faulty,), {"spoil": staticmethod(spoil)})
    for name, spoil in SPOILS.items()
}
FAULTS |= {name: type("Reads", (Faulty,), {"reads": (reads,)}) for name, reads in READS.items()}


# What the server gets


class Around(Passing):
    """In place of what a middleware without a fault returns."""

    def __init_subclass__(cls) -> None:
        if cls.__doc__:
            FAULTS[sentence(cls)] = type("Returns", (Faulty,), {"Result": cls})


class RunsAtExhaustion(Around):
    """Callbacks run when the body is exhausted."""

    def __iter__(self):
        yield from self.result
        self.result.close()


class SkipsInThreads(Around):
    """Nothing runs where another thread closes."""

    def close(self):
        if threading.current_thread() is threading.main_thread():
            self.result.close()


class SwallowsInBody(Around):
    """A BaseException of the body does not get to the server."""

    def __iter__(self):
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            yield from self.result


class EndsInCollector(Around):
    """What is dropped is closed at once, wherever that is."""

    def __del__(self):
        self.result.close()


# What the app returns, and calls


class ClosesNot(Faulty):
    """The close() of what the app returns is forgotten."""

    class Unclosed(Passing):
        def close(self):
            pass

    def call(self, environ, start_response):
        return passing(super().call(environ, start_response), self.Unclosed)


class ReadsAhead(Faulty):
    """The body is read before the server asks for it."""

    class Read(Passing):
        def __init__(self, result):
            super().__init__(result)
            self.chunks = [*result]

        def __iter__(self):
            return iter(self.chunks)

    def call(self, environ, start_response):
        return passing(super().call(environ, start_response), self.Read)


class StartsEarly(Faulty):
    """The response is started before the app does."""

    def call(self, environ, start_response):
        start_response("200 OK", [])
        return super().call(environ, lambda *args: None)


# The call


class Swallows(Faulty):
    """An exception of the app's call does not get to the server."""

    def __call__(self, environ, start_response):
        try:
            return super().__call__(environ, start_response)
        except BaseException:
            return []


class AddsHeader(Faulty):
    """The server sees another header."""

    def __call__(self, environ, start_response):
        def adding(status, headers, *rest):
            return start_response(status, [*headers, ("X-A", "1")], *rest)

        return super().__call__(environ, adding)


class DropsExcInfo(Faulty):
    """The exc_info does not get to the server."""

    def __call__(self, environ, start_response):
        return super().__call__(
            environ, lambda status, headers, *rest: start_response(status, headers)
        )


class LeavesCurrent(Faulty):
    """A list stays the current one."""

    def __call__(self, environ, start_response):
        try:
            return super().__call__(environ, start_response)
        finally:
            open_request({}).__enter__()


class SharesList(Faulty):
    """Two requests have the same callbacks."""

    kept = ()

    def spoil(self, after):
        after.extend(self.kept)
        self.kept = [*after]


class SharesAcrossCalls(Faulty):
    """A second call takes the callbacks of the first."""

    def __call__(self, environ, start_response):
        self.left = [*environ.get("wsgi.after", [])]
        with contextlib.suppress(KeyError):
            environ["wsgi.after"].clear()
        return super().__call__(environ, start_response)

    def spoil(self, after):
        after[:0] = self.left


class SharesNothing(Faulty):
    """A call within the call has a list of its own."""

    def __call__(self, environ, start_response):
        environ.pop("wsgi.after", None)
        return super().__call__(environ, start_response)
