"""For tests: hold callbacks back to look at them, and fail where a callback does.

::

    with capture() as captured:
        client.get("/orders/7").close()
    assert [request.request for request in captured] == ["GET /orders/7"]
    captured.run()

    with strict():
        client.get("/orders/7").close()    # a callback that raises fails the test

Which requests belong to a block: those handled in the thread, or the context of ``contextvars``,
that has entered it, the innermost block of several; and those handled in a thread that has entered
none, such as a server's, which belong to the block of the process that was entered last. So threads
that test at the same time do not mix, unless they share a server.

Caution: callbacks run when the response is closed. WebTest closes each; werkzeug's and Flask's
clients need ``response.close()``, ``with``, or ``buffered=True``.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from threading import Lock
from typing import Any, Generic, TypeVar

from .callbacks import CallbackList, EndedCallbackList
from .finish import capture_hooks
from .run import failure_hooks, run_callbacks

T = TypeVar("T")


class CapturedRequest:
    """A request whose response is out, and whose callbacks have not run.

    :ivar request: method and path, such as ``"GET /path"``.
    :ivar callbacks: what was registered, in order; with arguments, it is a ``functools.partial``.
        Empty once they ran.
    """

    def __init__(self, after: CallbackList) -> None:
        self.request = after._request_line()
        self.callbacks: list[Callable[[], object]] = []
        self._after = after
        self._kind = type(after)
        after._write = None  # nobody is left to be sent anything
        self._move()
        after.__class__ = EndedCallbackList
        self._move()  # another thread may have registered before the mark of the end

    def _move(self) -> None:
        self.callbacks += self._after
        self._after.clear()

    def __repr__(self) -> str:
        return f"<{self.request}: {self.callbacks!r}>"

    @property
    def after(self) -> CallbackList:
        """The list of the request, which tells its status, headers, error and completeness."""
        return self._after

    def run(self) -> None:
        """Run the callbacks as ever: in order, contained, logged, knowing their request.

        What they register runs too. A second call does nothing.

        :raises BaseException: as :func:`wsgi_after.run_callbacks` does.
        """
        pending, self.callbacks = self.callbacks, []
        if not pending:
            return
        self._after.__class__ = self._kind
        list.extend(self._after, pending)
        try:
            run_callbacks(self._after, self.request)
        finally:
            self._after._environ = self._after._error = None


class Capture(list[CapturedRequest]):
    """The requests of a block that had callbacks, in the order in which their responses ended."""

    @property
    def callbacks(self) -> list[Callable[[], object]]:
        """What has not run yet, of all requests."""
        return [callback for request in self for callback in request.callbacks]

    def run(self) -> None:
        """Run what has not run yet, request by request; inside the block, or after it.

        Callbacks that make requests themselves have theirs run, too, if the block is still open.
        """
        for request in self:  # sees what is appended meanwhile
            request.run()


class Blocks(Generic[T]):
    """The blocks of one kind that are open."""

    def __init__(self, name: str) -> None:
        self._lock = Lock()
        self._open: tuple[T, ...] = ()  # in the process; never changed in place
        self._entered: ContextVar[tuple[T, ...]] = ContextVar(name, default=())

    @contextmanager
    def entered(self, block: T) -> Iterator[T]:
        with self._lock:
            self._open = (*self._open, block)
        self._entered.set((*self._entered.get(), block))
        try:
            yield block
        finally:
            self._entered.set(without(self._entered.get(), block))
            with self._lock:
                self._open = without(self._open, block)

    def innermost(self) -> T | None:
        """The one that a request handled here belongs to. Takes no lock: for finalizers, too."""
        still_open = self._open
        entered = [block for block in self._entered.get() if is_in(block, still_open)]
        blocks = entered or still_open
        return blocks[-1] if blocks else None


def without(blocks: tuple[T, ...], block: T) -> tuple[T, ...]:
    return tuple(other for other in blocks if other is not block)


def is_in(block: object, blocks: tuple[object, ...]) -> bool:
    return any(other is block for other in blocks)  # not "in": lists are equal if both are empty


captures: Blocks[Capture] = Blocks("wsgi_after.testing.capture")
stricts: Blocks[list[BaseException]] = Blocks("wsgi_after.testing.strict")


@contextmanager
def capture() -> Iterator[Capture]:
    """Collect the callbacks of the requests made inside, which do not run.

    The block yields the :class:`Capture`. Of nested blocks the innermost gets a request. What is
    not run by ``run()`` never runs. A request without callbacks is not in it.
    """
    with captures.entered(Capture()) as captured:
        yield captured


@contextmanager
def strict() -> Iterator[list[BaseException]]:
    """Raise, at the end of the block, what callbacks inside raised.

    They are run, contained and logged as ever; that a callback returned a coroutine counts, too.
    The block yields the list of failures so far, from which a test may remove what it expected. Of
    nested blocks the innermost gets a failure.

    :raises BaseException: the one failure; of several, an ``ExceptionGroup``, or on Python 3.10
        what looks like one. If the block itself raises, that goes on in their place.
    """
    with stricts.entered([]) as failures:
        yield failures
    raise_failures(failures)


def raise_failures(failures: list[BaseException]) -> None:
    """Raise them, and forget them."""
    raised = failures.copy()
    failures.clear()
    if len(raised) == 1:
        raise raised[0]
    if raised:
        raise group_class()(f"{len(raised)} callbacks failed", raised)


NAME = "BaseExceptionGroup"


class CallbackFailures(Exception):  # noqa: N818 -- it stands for ExceptionGroup
    """What several callbacks raised: the shape of ``ExceptionGroup``, where there is none."""

    def __init__(self, message: str, exceptions: list[BaseException]) -> None:
        super().__init__(message, exceptions)
        self.message = message
        self.exceptions = tuple(exceptions)

    def __str__(self) -> str:
        return f"{self.message}: {', '.join(map(repr, self.exceptions))}"


def group_class() -> Any:
    """``BaseExceptionGroup``; before Python 3.11 its backport, which pytest brings, or our own."""
    try:
        module = builtins if hasattr(builtins, NAME) else import_module("exceptiongroup")
    except ImportError:
        return CallbackFailures
    return getattr(module, NAME)


def keep(after: CallbackList) -> bool:
    """Take the callbacks of a request, if a ``capture()`` is open for it."""
    captured = captures.innermost()
    if captured is None:
        return False
    captured.append(CapturedRequest(after))
    return True


def note(text: str, error: BaseException | None) -> None:
    """Take a failure, if a ``strict()`` is open for it."""
    failures = stricts.innermost()
    if failures is not None:
        failures.append(RuntimeError(text) if error is None else error)


capture_hooks.append(keep)
failure_hooks.append(note)
