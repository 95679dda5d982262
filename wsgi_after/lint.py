"""Check app, server and the middlewares between them against the contract of ``wsgi.after``.

Use it in development and in tests. Put it inside to watch the app, outside to watch the server and
the middlewares in between, or in both places; it detects its position::

    application = LintMiddleware(AfterResponseMiddleware(LintMiddleware(application)))

A violation is a :class:`WSGIAfterWarning` that names the rule, who is at fault, and how to fix it.

Caution: a missing ``close()`` shows only when the response is freed. Even ``strict=True`` cannot
raise there: Python reports an exception of a finalizer as ignored.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial
from itertools import pairwise
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from . import CallbackList
from .integration import KEY, describe, file_of, is_shared, observe, request_line

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Check(NamedTuple):
    """A sentence of the contract that code other than this package can break."""

    rule: int
    sentence: str
    way_out: str


#: The way out, by whose fault it is: beside that of the check itself.
AROUND = {
    "app": "",
    "middleware": "Put AfterResponseMiddleware around that middleware, so that the server holds "
    "its iterable; to find the culprit among several, put a LintMiddleware between each two.",
    "server": "Report it to that project, or use another server: as an adapter to ASGI, a2wsgi "
    "closes, and asgiref's WsgiToAsgi does not.",
}
ENTRY = Check(
    1,
    "An entry is a callable without arguments, but not a coroutine function or a generator "
    "function.",
    "Register the function itself, not what it returns; arguments go into "
    "after(fn, *args); a coroutine function into asgiref.sync.async_to_sync(fn); a generator "
    "function into a function that iterates over it.",
)
KEPT = Check(
    1,
    "The app must not replace or delete the list.",
    'Use environ["wsgi.after"].append(fn) to add, and clear() to cancel.',
)
CLOSED = Check(
    3,
    "Whoever receives an iterable must call its ``close()``, whatever happened, and not that of "
    "its iterator.",
    "PEP 3333 requires it. The callbacks still run, at garbage collection.",
)
AT_REST = Check(
    3,
    "An iterable must not be closed from within its iteration, or iterated after ``close()``.",
    "Iterate first, then close, from the same thread.",
)
ONCE = Check(
    4,
    "``close()`` must be called once.",
    "The second call runs nothing here, but it may harm an app without this package.",
)
REGISTERED_IN_TIME = Check(
    4,
    "Registering after the last callback has run raises ``RuntimeError``.",
    'Register while the app, its body or a callback runs: a thread, or a reference to environ["'
    'wsgi.after"], has outlived its request.',
)
PREPARED_IN_TIME = Check(
    4,
    "Calling ``on_prepare`` after ``start_response`` raises ``RuntimeError``.",
    "Call on_prepare(), or after_this_request(), before the view returns its response.",
)
LATE = {
    "too late": (REGISTERED_IN_TIME, "registered after the last callback had run"),
    "on_prepare too late": (PREPARED_IN_TIME, "called on_prepare() too late"),
}
FILE = Check(
    8,
    "An object made by ``wsgi.file_wrapper`` reaches the server as it is.",
    "A server sends a file by itself only if it gets the same object back. Make that middleware "
    "pass instances of wsgi.file_wrapper through unchanged.",
)


class Rule(NamedTuple):
    """One rule of the contract: its sentences are the text of docs/contract.rst."""

    title: str
    sentences: tuple[str, ...]


#: The contract, in the order in which its rules are numbered, from 1. This is its one text.
CONTRACT = (
    Rule(
        "The list.",
        (
            'Before the app is called, ``environ["wsgi.after"]`` is set to a list.',
            ENTRY.sentence,
            "All operations of ``list`` work: ``remove`` and ``clear`` cancel callbacks.",
            KEPT.sentence,
        ),
    ),
    Rule(
        "Shared within a call, never across calls.",
        (
            "A call that finds a list in the environ uses it, and adds its app-wide callbacks at "
            "the end, while the call that made the list is running.",
            "Any instance but the one that made the list also uses it while the body of that call "
            "is being read.",
            "The instance that made a list does not use it again once its call has returned.",
            "A list that the server made is used until it has ended.",
            "In every other case the request gets its own list.",
            "A plain list guarantees only list operations and ``after_this_response``.",
            "Any other value raises a ``TypeError`` that names it.",
        ),
    ),
    Rule(
        "When and where.",
        (
            "Callbacks run after the server has called ``close()`` and the app's own iterable has "
            "been closed, never earlier, and not when the iterable is exhausted.",
            "They run in the thread, the greenlet and the context in which the server calls "
            "``close()``, unless an executor was passed.",
            "The instance that made the list runs each callback inside the context manager of its "
            "``around=``, which it enters in the callback's thread and context.",
            "If the context manager raises, that is logged, and the callback still runs once.",
            "If a server closes a file in the thread that serves all sockets, callbacks run in a "
            "new thread that ends with them.",
            CLOSED.sentence,
            AT_REST.sentence,
        ),
    ),
    Rule(
        "Exactly once, in order of registration.",
        (
            ONCE.sentence,
            "A second call, or one from another thread, runs nothing.",
            "A callback that a running callback registers runs last.",
            REGISTERED_IN_TIME.sentence,
            PREPARED_IN_TIME.sentence,
            "Nothing is dropped silently.",
            "A list belongs to the process that made it: a forked child runs none of its "
            "callbacks, and registering there raises ``RuntimeError``.",
            "If a callback forks, the child runs no other callback, and an exception raised in the"
            " child propagates.",
        ),
    ),
    Rule(
        "Whatever happened.",
        (
            "Callbacks run even if the body is cut short or never asked for, and even if the app "
            "raises before or after ``start_response``, in mid-body, or in its ``close()``.",
            "If the app raises before it returns, there is nothing to close: the callbacks run, or "
            "are handed over, and then the exception propagates.",
            "No exception of the app is swallowed or altered.",
        ),
    ),
    Rule(
        "Contained.",
        (
            "Whatever a callback raises is logged at ERROR on the logger ``wsgi_after``, with the "
            "traceback and the names of the callback and the request; the other callbacks still "
            "run.",
            "``KeyboardInterrupt``, ``GreenletExit``, and what a signal handler raises, unless it "
            "is an ``Exception``, are re-raised after the others have run.",
            "Only the first of them is re-raised, and none while the app's own exception "
            "propagates; the rest are logged.",
            "If a callback returns a coroutine, a generator or an async generator, its code has "
            "not run, and this is logged at ERROR.",
        ),
    ),
    Rule(
        "Never lost to someone else's bug.",
        (
            "If ``close()`` is never called, the callbacks still run, with a ``ResourceWarning``.",
            "A response that is freed with its last reference is closed on the spot.",
            "A response that the garbage collector frees is closed at the next call of a "
            "middleware, the next end of a request, or the exit of the process.",
        ),
    ),
    Rule(
        "Invisible.",
        (
            "The server sees what it would see without the middleware: status, headers, chunks, "
            "``len()``, ``write()``, ``exc_info``, when ``start_response`` is called and with how "
            "many arguments, the attributes of the app's object.",
            'So does the app: ``isinstance(x, environ["wsgi.file_wrapper"])`` gives the same '
            "answer.",
            FILE.sentence,
            "Nothing iterates over the body before the server does.",
        ),
    ),
    Rule(
        "Nothing kept, nothing mixed.",
        (
            "Once the callbacks have run, the list is empty, and nothing refers to the environ or "
            "to a callback.",
            "The middleware holds no state of any request.",
            "A deep copy of the environ shares the request's one list.",
        ),
    ),
    Rule(
        "Not forgeable.",
        ("A request header cannot reach the key: headers arrive as ``HTTP_...``.",),
    ),
    Rule(
        "Not durable.",
        (
            "Callbacks run at most once, and exist only in memory: a killed process loses those "
            "that have not run.",
        ),
    ),
)

WATCH = "wsgi_after.lint"
PACKAGE = __name__.partition(".")[0]

#: They take an environ as an app does, and are servers all the same.
ADAPTERS = {"a2wsgi", "asgiref", "hypercorn", "uvicorn"}

_registry: dict[str | tuple[str, type[Warning], int], int] = {}  # what was shown, as a module has


class Place(NamedTuple):
    """Where in the code somebody was."""

    module: str
    function: str
    filename: str
    lineno: int

    @property
    def package(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.module}.{self.function} ({self.filename}, line {self.lineno})"


class WSGIAfterWarning(UserWarning):
    """A rule of the contract was broken.

    :ivar rule: the number of the rule, as in the contract.
    :ivar sentence: the sentence of the rule, word for word.
    :ivar fault: ``"app"``, ``"middleware"`` or ``"server"``: who broke it, most likely.
    :ivar culprit: where in the code that is, such as ``"module.function (file.py, line 7)"``;
        ``"the server"`` if that is not written in Python.
    :ivar request: method and path, such as ``"GET /path"``.
    """

    def __init__(
        self, check: Check, fault: str, place: Place | None, request: str, seen: str
    ) -> None:
        self.rule, self.sentence, way_out = check
        self.fault = fault
        self.culprit = str(place or "the server")
        self.request = request
        super().__init__(
            f"{request}: the {fault} at fault, {self.culprit}, {seen}. Rule {self.rule} of "
            f'wsgi.after: "{self.sentence}" {way_out} {AROUND[fault]}'.rstrip()
        )


def report(
    check: Check, fault: str, place: Place | None, request: str, seen: str, strict: bool
) -> None:
    """Warn at the place of the culprit, or raise if ``strict``."""
    warning = WSGIAfterWarning(check, fault, place, request, seen)
    if strict:
        raise warning
    module, _, filename, lineno = place or Place("sys", "", "sys", 1)
    warnings.warn_explicit(warning, None, filename, lineno, module, _registry)


class LintMiddleware:
    """A WSGI app that calls ``app``, and checks the behaviour of the app and of the caller.

    It is inside if a middleware in its place would share the list under ``environ["wsgi.after"]``,
    else outside. In both places it watches how the caller treats the iterable; inside, it also
    watches what the app does to the list.

    :param app: any WSGI application.
    :param strict: raise a violation where it is found, instead of warning.
    """

    def __init__(self, app: WSGIApplication, *, strict: bool = False) -> None:
        self.app = app
        self.strict = strict

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the app, as PEP 3333 has it.

        :raises WSGIAfterWarning: if ``strict``, or if warnings are errors.
        """
        outer: Watch | None = environ.get(WATCH)
        watch = environ[WATCH] = Watch(environ, self, outer)
        try:
            result = self.app(environ, start_response)
        finally:
            if outer is None:
                del environ[WATCH]
            else:
                environ[WATCH] = outer
        try:
            watch.check_file(result)
            watch.check_list()
        except WSGIAfterWarning:
            getattr(result, "close", nothing)()  # or it would be lost, on top of all
            raise
        body: Iterable[bytes] = watched(result, environ, watch)
        return body


class Watch:
    """What is known of one request at one place."""

    def __init__(self, environ: WSGIEnvironment, lint: LintMiddleware, outer: Watch | None) -> None:
        self.request = request_line(environ)
        self.strict = lint.strict
        self.app = lint.app
        self.outer = outer
        self.caller, self.server = callers()
        self.closed = self.iterating = False
        # What the app inside returned, if it is to be passed on, and who called that.
        self.file: tuple[object, Place | None] = (None, None)
        self.reported: set[Check] = set()
        self.environ: WSGIEnvironment | None = None  # until the end, inside
        self.callbacks: list[Any] | None = None
        callbacks = environ.get(KEY)
        if isinstance(callbacks, list) and is_shared(callbacks, lint):
            self.environ = environ
            self.callbacks = callbacks
            self.check_entries()
            # A plain list tells nothing: what is in it is looked at now and then.
            observe(callbacks, self.observe)

    def check_entries(self) -> None:
        for entry in list(self.callbacks or ()):
            check_entry(entry, code_place(entry), self.request, self.strict)

    def observe(self, after: object, event: str, *fns: object) -> None:
        """Check what the app registers: whether it can run, and whether it is in time."""
        place = place_of(caller_frame())
        for fn in fns:
            check_entry(fn, place, self.request, self.strict)
        if event in LATE:
            report(LATE[event][0], "app", place, self.request, LATE[event][1], self.strict)

    def check_list(self) -> None:
        """See that the list is still where it was, with entries in it that can be run."""
        if self.environ is None:
            return
        present = self.environ.get(KEY)
        # A retry sends the environ again: that call has another list, before this body is closed.
        is_retry = self.closed and isinstance(present, CallbackList)
        if present is not self.callbacks and not is_retry and KEPT not in self.reported:
            self.reported.add(KEPT)
            seen = "deleted" if KEY not in self.environ else f"replaced by {present!r}"
            report(
                *(KEPT, "app", code_place(self.app), self.request),
                f'or a middleware around it, left environ["{KEY}"] {seen}',
                self.strict,
            )
        elif not isinstance(self.callbacks, CallbackList):
            self.check_entries()

    def check_file(self, result: object) -> None:
        """See that the file which a watch inside let through is what arrived."""
        passed, caller = self.file
        self.file = (None, None)
        if passed is not None and result is not passed:
            seen = f"returned {type(result).__name__} for the app's {type(passed).__name__}"
            report(FILE, "middleware", caller, self.request, seen, self.strict)

    def break_(self, check: Check, seen: str, place: Place | None = None) -> None:
        """Report what the caller did: once, and unless a watch further out has."""
        watch: Watch | None = self
        while watch is not None:
            if check in watch.reported:
                return
            watch = watch.outer
        self.reported.add(check)
        place = place or self.caller
        fault = "middleware" if self.is_middleware(place) else "server"
        report(check, fault, place, self.request, seen, self.strict)

    def is_middleware(self, place: Place | None) -> bool:
        """Whether a middleware is there, rather than the server."""
        if place is None:
            return False
        if place == self.caller or self.caller == self.server:
            return self.caller != self.server
        return self.server is None or place.package != self.server.package

    def close(self, close: Callable[[], object] | None) -> None:
        """Pass a ``close()`` on, and see whether it is time for it."""
        if self.closed:
            self.break_(ONCE, "called close() a second time", place_of(caller_frame()))
            return
        self.closed = True
        iterating = self.iterating
        try:
            if close is not None:
                close()
        finally:
            if iterating:
                self.break_(
                    AT_REST, "called close() while the body was iterated", place_of(caller_frame())
                )
        self.check_list()
        self.environ = self.callbacks = None

    def dropped(self) -> None:
        """See whether what is being garbage-collected was closed."""
        if not self.closed:
            self.break_(CLOSED, "or its caller, dropped the iterable without close()")


class LintBody:
    """An iterable that sees how it is used. It has ``__len__`` if and only if the app's has."""

    def __init__(self, iterable: Any, watch: Watch) -> None:
        self._iterable = iterable
        self._watch = watch
        self._pass: LintIterator | None = None

    def __iter__(self) -> Iterator[bytes]:
        return LintIterator(iter(self._iterable), self._watch, self)

    def __next__(self) -> bytes:  # one server closes only what is its own iterator
        if self._pass is None:
            self._pass = LintIterator(iter(self._iterable), self._watch)
        return next(self._pass)

    def close(self) -> None:
        self._watch.close(getattr(self._iterable, "close", None))

    def __del__(self) -> None:
        self._watch.dropped()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterable, name)

    def __reduce_ex__(self, protocol: object) -> Any:
        """Copy or pickle what the app returned: a cache outside may keep it."""
        return copy, (self._iterable,)

    def __eq__(self, other: object) -> bool:
        equal: bool = self._iterable == other
        return equal

    def __hash__(self) -> int:
        return hash(self._iterable)


class SizedLintBody(LintBody):
    """An iterable that has a length, too."""

    def __len__(self) -> int:
        return len(self._iterable)


class LintIterator:
    """One pass. It refers to the body, which must not look dropped to a server that keeps this."""

    def __init__(
        self, iterator: Iterator[bytes], watch: Watch, body: LintBody | None = None
    ) -> None:
        self._iterator = iterator
        self._watch = watch
        self._body = body

    def __iter__(self) -> LintIterator:
        return self

    def __next__(self) -> bytes:
        watch = self._watch
        if watch.closed:
            watch.break_(AT_REST, "iterated after close()", place_of(caller_frame()))
        watch.iterating = True
        try:
            return next(self._iterator)
        finally:
            watch.iterating = False

    def close(self) -> None:
        """What a generator has, too: "yield from" calls it, where no frame shows who does."""
        self._watch.break_(CLOSED, "called close() of the iterator, most likely by yield from")
        getattr(self._iterator, "close", nothing)()


class LintFileClose:
    """The ``close`` of a file, until the server calls it.

    The file then gets back what it had, because the app may return it again. So a second call of
    the server's cannot be seen.
    """

    def __init__(self, file: Any, watch: Watch) -> None:
        self._attributes = vars(file)
        self._own = {"close": file.close} if "close" in self._attributes else {}
        self._close = getattr(file, "close", None)
        self._watch = watch
        self._attributes["close"] = self

    def __call__(self) -> None:
        self._attributes.pop("close", None)
        self._attributes.update(self._own)
        self._watch.close(self._close)

    def __del__(self) -> None:
        self._watch.dropped()


def watched(result: Any, environ: WSGIEnvironment, watch: Watch) -> Any:
    """What the caller gets for ``result``, the app's."""
    kind = type(result)
    file = file_of(result, environ)
    if file is not None:
        if watch.outer is not None:
            watch.outer.file = (result, watch.caller)
        if hasattr(file, "__dict__"):  # not a type in C, nor a class with slots
            LintFileClose(file, watch)
        return result
    if hasattr(kind, "__len__"):
        # Bytes are a bug that two servers let pass.
        is_buffer = isinstance(result, (bytes, bytearray, memoryview))
        return SizedLintBody([result] if is_buffer else result, watch)
    if hasattr(kind, "__iter__") or hasattr(kind, "__getitem__"):
        return LintBody(result, watch)
    return result  # such as gunicorn's sign that the response is out already


def check_entry(entry: object, place: Place | None, request: str, strict: bool) -> None:
    """See whether ``entry`` can be called without arguments, and is done when that returns."""
    wrong = what_is_wrong(entry)
    if wrong:
        seen = f"registered {describe(entry)}, which {wrong}"
        report(ENTRY, "app", place, request, seen, strict)


def what_is_wrong(entry: Any) -> str | None:
    if not callable(entry):
        return f"is {type(entry).__name__} and cannot be called"
    call = entry if isinstance(entry, partial) else partial(entry)
    fn: Any = inspect.unwrap(call.func)
    for code in (fn, type(fn).__call__):
        if inspect.iscoroutinefunction(code):
            return "is a coroutine function"
        if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
            return "is a generator function"
    try:
        inspect.signature(call.func).bind(*call.args, **call.keywords)
    except TypeError as error:
        return f"does not take these arguments: {error}"
    except ValueError:  # one in C that does not tell what it takes
        pass
    return None


def callers() -> tuple[Place | None, Place | None]:
    """Who calls the middleware, and the server, which calls it or those around it."""
    frames = list(frames_from(caller_frame()))
    server = 0
    for number, frame in enumerate(frames, 1):
        if is_app(frame):
            server = number
    caller = place_of(frames[0]) if frames else None
    return caller, place_of(frames[server]) if server < len(frames) else None


def caller_frame() -> FrameType | None:
    """The innermost frame outside this package; ``None`` if a server in C called it."""
    return next((frame for frame in frames_from(sys._getframe()) if not is_ours(frame)), None)


def frames_from(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] == PACKAGE


def is_app(frame: FrameType) -> bool:
    """Whether a frame looks like the call of a WSGI application: an environ, then a callable."""
    if str(frame.f_globals.get("__name__")).partition(".")[0] in ADAPTERS:
        return False
    code = frame.f_code
    arguments = [frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount]]
    return any(
        isinstance(environ, dict) and "wsgi.version" in environ and callable(start_response)
        for environ, start_response in pairwise(arguments)
    )


def place_of(frame: FrameType | None) -> Place | None:
    if frame is None:
        return None
    code = frame.f_code
    module = str(frame.f_globals.get("__name__"))
    return Place(module, code.co_qualname, code.co_filename, frame.f_lineno)


def code_place(fn: Any) -> Place | None:
    """Where a callable is defined, if it is in Python."""
    fn = fn.func if isinstance(fn, partial) else fn
    for candidate in (inspect.unwrap(fn), type(fn).__call__):
        code = getattr(candidate, "__code__", None)
        if isinstance(code, CodeType):
            name = getattr(fn, "__qualname__", type(fn).__qualname__)
            return Place(candidate.__module__, name, code.co_filename, code.co_firstlineno)
    return None


def nothing() -> None:
    """What is called where there is nothing to close."""
