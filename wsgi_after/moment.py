"""The server's own moment after the response: each request has a slot, which an adapter runs.

Some servers call ``close()`` before the end of the response is out. To adapt such a server, make a
slot in the thread that serves the request, before the app is called. Run it when the response is
out::

    environ[wsgi_after.moment.KEY] = slot = Slot()
    ...  # the server serves the request
    slot.run()

In ``close()``, the middleware leaves the callbacks to the slot. They still run in the thread of the
request, with the context variables that ``close()`` had.

Caution: call ``run()`` even if the response fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from threading import get_ident
from types import SimpleNamespace
from typing import TYPE_CHECKING

from ._core import hand_off, process
from ._core.body import Body
from ._core.callbacks import CallbackList
from ._core.current import current
from ._core.hand_off import MOMENT as KEY
from ._core.logs import HOOK_FAILED, log, logger

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["KEY", "Slot", "disable", "set_finder"]


#: Set in the context of ``close()``: which slot took the callbacks there.
closed_for: ContextVar[object] = ContextVar("wsgi_after.moment", default=None)


class Slot:
    """Takes the callbacks of one request, and runs them when an adapter calls :meth:`run`.

    A slot belongs to the thread or greenlet that made it. It takes nothing if ``close()`` is called
    in another one, or in a child that was forked after the slot was made. It takes nothing for a
    request that the app makes within its own call, or after it has run. In these cases the
    callbacks run in ``close()``.

    :param before_each: called without arguments before each callback, for a server that expects a
        sign of life. Its exceptions are logged, and the callback still runs.
    """

    def __init__(self, before_each: Callable[[], object] | None = None) -> None:
        self._before_each = before_each
        self._here: object = here()
        self._forks = process.forks
        self._jobs: list[Body] = []
        self._mark = object()

    def run(self) -> None:
        """Run the callbacks that the slot took, in this thread. After that, it takes nothing.

        If a slot is dropped without this call, its callbacks run like those of a response that
        nobody closed.

        :raises BaseException: when all callbacks have run, the first exception that rule 6 of the
            contract re-raises.
        """
        self._here = None
        raised: BaseException | None = None
        try:
            while self._jobs and self._forks == process.forks:
                job = self._jobs.pop(0)
                try:
                    job.close()
                except BaseException as error:
                    raised = raised or error
            if raised is not None:
                raise raised
        finally:
            closed_for.set(None)
            del raised  # otherwise this frame and the traceback would hold each other

    def takes(self, callbacks: CallbackList) -> bool:
        """Return whether the slot takes these callbacks. The middleware asks in ``close()``."""
        return (
            self._here == here()
            and self._forks == process.forks
            and current.get(callbacks) is callbacks
        )

    def submit(self, fn: Callable[..., object], callbacks: CallbackList, /, *args: object) -> None:
        """Take the one job of a request, as an executor does: for the middleware only."""
        if self._before_each is not None:
            callbacks._call = partial(call_behind, self._before_each, callbacks._call)
        context = copy_context()
        closed_for.set(self._mark)
        job = partial(fn, callbacks, *args)
        run = partial(run_in, context, self._mark, job)
        self._jobs.append(Body(SimpleNamespace(close=run), callbacks))


def run_in(context: Context, mark: object, job: Callable[[], object]) -> None:
    """Run a job in a copy of the context of ``close()``.

    If the server is still in that context, copy back the variables that the job sets. A server's
    thread keeps its context from one request to the next, and a callback may clean it.
    """
    before = context.copy()
    try:
        context.run(job)
    finally:
        if closed_for.get() is mark:
            for variable, value in context.items():
                if before.get(variable, before) is not value:
                    variable.set(value)


def call_behind(
    hook: Callable[[], object],
    call: Callable[..., object] | None,
    taken: list[Callable[[], object]],
    request: str | None,
) -> object:
    """Call the hook, then ``taken[0]()`` as without the hook: see :mod:`.around`."""
    callback = taken[0]
    try:
        hook()
    except Exception as error:
        log(logger.error, HOOK_FAILED, hook, exc_info=error)
    finally:  # a signal handler may have raised
        if call is not None:
            outcome = call(taken, request)
        else:
            del taken[0]
            outcome = callback()
    return outcome


def here() -> object:
    """Return an object that identifies this greenlet or, if there is none, this thread."""
    greenlet = sys.modules.get("greenlet")  # not imported: without it there are no greenlets
    return get_ident() if greenlet is None else greenlet.getcurrent()


def set_finder(find: Callable[[WSGIEnvironment], Slot | None]) -> None:
    """Find the slots of requests that have none in their environ.

    Use this for a server that has a moment, but no place to make a slot before the app is called.

    :param find: called with the environ, in ``close()``; returns the slot, or ``None``.
    """
    hand_off.find_slot = find


def disable() -> None:
    """Run all callbacks of this process in ``close()``, whatever its server offers.

    For one middleware, pass ``moment=False`` to it.
    """
    hand_off.moments = False
