"""Worker classes for gunicorn that run callbacks when the response is out.

Name one when you start gunicorn::

    gunicorn --worker-class wsgi_after.gunicorn.GThread --threads 4 shop:application

Callbacks run in the request's own thread or greenlet, as in ``close()``. But no client waits for
them, whatever the response: error pages and HTTP/1.0 responses also end first. Without
``AfterResponseMiddleware`` in the app, the classes behave like gunicorn's.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from threading import Thread
from typing import Any

from gunicorn.workers.gthread import ThreadWorker
from gunicorn.workers.sync import SyncWorker

from .moment import KEY, Slot

__all__ = ["GThread", "Gevent", "Sync"]  # noqa: F822

#: The slot of the request that this thread, or greenlet, serves.
opened: ContextVar[Slot | None] = ContextVar("opened", default=None)


def run_slot() -> None:
    """Run what was left to the slot of this thread, if it has one."""
    slot = opened.get()
    if slot is not None:
        opened.set(None)
        slot.run()


class Opens:
    """A worker that has a slot in the environ of each request."""

    def open_slot(self) -> Slot:
        return Slot()

    def load_wsgi(self) -> None:
        """Load the app, and wrap it in a function that puts the slot into the environ."""
        super().load_wsgi()  # type: ignore[misc]
        app = self.wsgi

        def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
            environ[KEY] = opened.get()
            return app(environ, start_response)

        self.wsgi: Any = wsgi

    def handle_request(self, *args: Any) -> Any:
        """Serve a request of HTTP/1; the streams of HTTP/2 do not come here, and have no slot."""
        opened.set(self.open_slot())
        return super().handle_request(*args)  # type: ignore[misc]


class RunsAtTheEnd(Opens):
    """A worker that runs the slot when the connection is closed."""

    def handle(self, *args: Any) -> None:
        try:
            super().handle(*args)  # type: ignore[misc]
        finally:
            run_slot()


class Sync(RunsAtTheEnd, SyncWorker):  # type: ignore[misc]
    """gunicorn's worker of one thread. It serves its next request after the callbacks.

    ``--timeout`` counts anew for each callback.
    """

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called by gunicorn when it starts.

        :raises RuntimeError: for ``--threads``, which ends gunicorn with this message.
        """
        if cfg.threads > 1:
            raise RuntimeError(
                "wsgi_after.gunicorn.Sync has one thread, but --threads asks for more: "
                "use --worker-class wsgi_after.gunicorn.GThread"
            )

    def open_slot(self) -> Slot:
        return Slot(before_each=self.notify)


class GThread(Opens, ThreadWorker):  # type: ignore[misc]
    """gunicorn's worker with ``--threads``. A callback holds up no request on its connection.

    A worker that was told to end waits up to ``--graceful-timeout`` for its requests and callbacks.
    It gives signs of life meanwhile, so ``--timeout`` does not end it.
    """

    #: When it was told to end.
    told: float | None = None

    @property
    def alive(self) -> bool:
        """Whether it has not been told to end: gunicorn reads it, and sets it."""
        return self.told is None

    @alive.setter
    def alive(self, alive: bool) -> None:
        if not alive and self.told is None:
            self.told = time.monotonic()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        return Pool(self.cfg.threads)

    def run(self) -> None:
        super().run()
        self.alive = False  # it may have ended because the master has
        # gunicorn thinks that it is idle, and has shut the pool down without waiting.
        ending = Thread(target=self.tpool.shutdown, daemon=True)
        ending.start()
        deadline = self.told + self.cfg.graceful_timeout
        while ending.is_alive() and time.monotonic() < deadline:
            self.notify()
            ending.join(0.1)


class Pool(ThreadPoolExecutor):
    """Ends the future of a request, which gives its connection back, and then runs its slot."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # so nobody cancels what may be running
        super().submit(serve, future, fn, *args, **kwargs)
        return future


def serve(future: Future[Any], fn: Any, /, *args: Any, **kwargs: Any) -> None:
    try:
        served = fn(*args, **kwargs)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(served)
    run_slot()


def __getattr__(name: str) -> Any:
    """Make ``Gevent`` on demand: the other classes neither need nor load gevent."""
    if name != "Gevent":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gunicorn.workers.ggevent import GeventWorker

    class Gevent(RunsAtTheEnd, GeventWorker):  # type: ignore[misc]
        """gunicorn's worker of greenlets. The next request on a connection waits."""

        def handle_request(self, *args: Any) -> Any:
            outcome = super().handle_request(*args)
            run_slot()  # the response is out; what raised has an end, or an error page, to come
            return outcome

    globals()[name] = Gevent
    return Gevent
