"""For tests: hold callbacks back and inspect them, fail if a callback fails, wait for callbacks.

::

    with capture() as captured:
        client.get("/orders/7").close()
    assert [request.request for request in captured] == ["GET /orders/7"]
    captured.run()

    with strict():
        client.get("/orders/7").close()    # a callback that raises fails the test

    urlopen(live_server_url + "/orders/7").read()
    wait_for_callbacks()                   # the server may still be busy with them

A request belongs to the innermost block that was entered in its thread (more exactly, in its
``contextvars`` context). A request in a thread that has entered no block, such as a thread of a
server, belongs to the block that was entered last in the process. So tests that run in several
threads do not mix, unless they share a server.

Caution: callbacks run when the response is closed. WebTest closes each response. With the clients
of werkzeug and Flask, use ``response.close()``, ``with``, or ``buffered=True``.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from time import monotonic, sleep
from typing import Generic, TypeVar

from . import CallbackList
from .integration import add_failure_hook, current_list, set_capture, unfinished

T = TypeVar("T")


class CapturedRequest:
    """A request whose response has ended, and whose callbacks ``capture()`` holds back.

    :ivar request: method and path, such as ``"GET /path"``.
    :ivar after: the list of the request, with ``status``, ``headers``, ``error`` and ``completed``.
    """

    def __init__(self, job: Callable[..., object], after: CallbackList, request: str) -> None:
        self.request = request
        self.after = after
        self._job = job

    def __repr__(self) -> str:
        return f"<{self.request}: {self.after!r}>"

    @property
    def callbacks(self) -> list[Callable[[], object]]:
        """The callbacks that have not run, in order. Those with arguments are partials."""
        return [*self.after]

    def run(self) -> None:
        """Run the callbacks as usual: in order, contained, and logged with their request.

        Callbacks that they register run, too. A second call does nothing.

        :raises BaseException: what :func:`wsgi_after.run_callbacks` raises.
        """
        self._job(self.after, self.request)


class Capture(list[CapturedRequest]):
    """The requests of a block that had callbacks, in the order in which their responses ended.

    This list is an executor: the middleware hands the callbacks over to it.
    """

    def submit(self, job: Callable[..., object], /, after: CallbackList, request: str) -> None:
        """Keep the job of a request. The middleware calls this."""
        self.append(CapturedRequest(job, after, request))

    @property
    def callbacks(self) -> list[Callable[[], object]]:
        """The callbacks of all requests that have not run yet."""
        return [callback for request in self for callback in request.callbacks]

    def run(self) -> None:
        """Run the callbacks that have not run yet, request by request.

        Call this in the block or after it. If a callback makes a request while the block is open,
        the callbacks of that request run, too.
        """
        for request in self:  # includes what is appended meanwhile
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
        """Return the block of a request handled here. Takes no lock: finalizers call this."""
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
    """Collect the callbacks of the requests made inside the block, without running them.

    Yields a :class:`Capture`. If blocks are nested, the innermost gets the request. Call ``run()``
    to run the callbacks; otherwise they never run. Requests without callbacks are left out.
    """
    with captures.entered(Capture()) as captured:
        yield captured


@contextmanager
def strict() -> Iterator[list[BaseException]]:
    """At the end of the block, raise the failures of callbacks inside it.

    Callbacks run as usual, and their failures are contained and logged. A callback that returned a
    coroutine or a generator counts as a failure. Yields the list of failures so far; remove the
    failures that the test expects. If blocks are nested, the innermost gets the failure.

    :raises BaseException: a single failure; for several, an ``ExceptionGroup``. If the block itself
        raises, that exception propagates instead.
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
        raise BaseExceptionGroup(f"{len(raised)} callbacks failed", raised)


def wait_for_callbacks(timeout: float = 10.0) -> None:
    """Wait until the callbacks of all requests to this process have run, also those in a pool.

    Use it with a live server in a thread of the test: a client has the response before its
    callbacks have run. A request counts from the call of the app until its list has ended, or until
    ``capture()`` holds it back. Jobs handed over to another process do not count.

    :param timeout: in seconds.
    :raises TimeoutError: if callbacks are left after that time. The usual causes are a callback
        that takes longer, and a response that nobody has read and closed.
    :raises RuntimeError: if called within a request, which would wait for itself.
    """
    if current_list() is not None:
        raise RuntimeError(
            "wait_for_callbacks() was called within a request, or from a callback, and would wait "
            "for itself. Call it in the test."
        )
    deadline = monotonic() + timeout
    if unfinished():
        gc.collect()  # otherwise we would wait for responses in cycles, which nobody will close
    while left := not_captured(unfinished()):
        if monotonic() > deadline:
            raise TimeoutError(
                f"After {timeout} seconds, the callbacks of {len(left)} requests have not run, or "
                f"are running: {[[*after] for after in left]!r}. The usual causes are a callback "
                "that takes longer, and a response that nobody has read and closed."
            )
        sleep(0.005)


def not_captured(lists: list[CallbackList]) -> list[CallbackList]:
    """Return the lists that no ``capture()`` holds back. A test may never run the others."""
    captured = {id(it.after) for it in gc.get_objects() if lists and type(it) is CapturedRequest}
    return [after for after in lists if id(after) not in captured]


def note(text: str, error: BaseException | None) -> None:
    """Give a failure to the open ``strict()``, if there is one."""
    failures = stricts.innermost()
    if failures is not None:
        failures.append(RuntimeError(text) if error is None else error)


set_capture(captures.innermost)
add_failure_hook(note)
