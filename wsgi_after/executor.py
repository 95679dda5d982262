"""The interface of ``executor=``, and a thread pool with a limit on pending jobs.

Use the pool for callbacks that must not hold up a worker.

::

    from wsgi_after.executor import BoundedThreadPoolExecutor

    pool = BoundedThreadPoolExecutor(max_workers=4, max_pending=100)
    application = AfterResponseMiddleware(application, executor=pool)

Jobs that the pool refuses run in ``close()`` instead: the client that caused them waits, and memory
does not fill up. At a normal exit of the interpreter, pending jobs finish. Many servers end their
workers in other ways: call :meth:`~BoundedThreadPoolExecutor.drain` in the server's own hook.

Caution: a process that is killed loses its jobs. Put work that must survive into a queue.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from time import monotonic
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class SupportsSubmit(Protocol):
    """An object to hand callbacks over to, such as a :class:`concurrent.futures.Executor`.

    ``submit`` may return anything. If it returns a future, a failure of the job is logged.
    """

    @property
    def submit(self) -> Callable[..., Any]:
        """``submit(fn, *args)`` schedules the call ``fn(*args)``, or raises to refuse it."""


class BoundedThreadPoolExecutor(Executor):
    """A :class:`concurrent.futures.ThreadPoolExecutor` that refuses jobs when it is full.

    You can create it at import, before a server forks: each process starts its own threads when it
    submits its first job.

    :param max_workers: the maximum number of threads.
    :param max_pending: the maximum number of jobs that wait while all threads are busy.
    :raises ValueError: if one of the two is less than 1.
    """

    def __init__(self, *, max_workers: int = 4, max_pending: int = 100) -> None:
        for name, size in (("max_workers", max_workers), ("max_pending", max_pending)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size!r}.")
        self._max_workers = max_workers
        self._max_jobs = max_workers + max_pending
        self._is_shut_down = False
        self._jobs_of: dict[int, _Jobs] = {}  # by process id

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call ``fn(*args, **kwargs)`` in a thread, with the caller's context variables.

        :raises RuntimeError: if ``max_pending`` jobs are waiting already, after :meth:`shutdown`,
            or while the interpreter exits. ``fn`` is then not called.
        """
        if self._is_shut_down:
            raise RuntimeError("This executor has been shut down, so it accepts no more jobs.")
        return self._jobs().submit(copy_context().run, fn, *args, **kwargs)

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until no job is pending or running, including jobs submitted meanwhile.

        :param timeout: the longest time to wait, in seconds; ``None`` for no limit.
        :return: whether all jobs have finished.
        :raises RuntimeError: if a job of this executor calls this; it would wait for itself.
        """
        jobs = self._jobs()
        if threading.get_ident() in jobs.running:
            raise RuntimeError(
                "drain() was called from within a job of this executor, which would wait for "
                "itself. Call it where the process ends, such as in a hook of the server."
            )
        return jobs.drain(timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more jobs, as :meth:`concurrent.futures.Executor.shutdown` does.

        Callbacks of later responses run in ``close()``.
        """
        self._is_shut_down = True
        self._jobs().threads.shutdown(wait, cancel_futures=cancel_futures)

    def _jobs(self) -> _Jobs:
        """What belongs to this process alone: a forked child has no threads, and held locks.

        The process id tells, because uWSGI forks without running ``os.register_at_fork()``. The
        parent's jobs are kept, untouched: to free them could wait for a lock that nobody releases.
        """
        process = os.getpid()
        try:
            return self._jobs_of[process]
        except KeyError:  # setdefault: of two threads that come here at once, one wins
            jobs = _Jobs(self._max_workers, self._max_jobs)
            return self._jobs_of.setdefault(process, jobs)


class _Jobs:
    """The threads of one process, and the jobs that they have not finished."""

    def __init__(self, max_workers: int, max_jobs: int) -> None:
        self.threads = ThreadPoolExecutor(max_workers, thread_name_prefix="wsgi_after")
        self.slots = threading.Semaphore(max_jobs)  # running or waiting
        self.unfinished: set[Future[Any]] = set()
        self.running: set[int] = set()  # ids of threads

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if not self.slots.acquire(blocking=False):
            raise RuntimeError(
                "This executor is full: all threads are busy, and max_pending jobs are waiting. "
                "The usual cause is callbacks that take too long."
            )
        try:
            # In one, because Sentry's integration for threads has a "fn" of its own in submit().
            future = self.threads.submit(partial(self.run, fn, *args, **kwargs))
        except BaseException:
            self.slots.release()
            raise
        self.unfinished.add(future)
        future.add_done_callback(self.finished)  # of a cancelled one, too
        return future

    def run(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        thread = threading.get_ident()
        self.running.add(thread)
        try:
            return fn(*args, **kwargs)
        finally:
            self.running.discard(thread)

    def finished(self, future: Future[Any]) -> None:
        self.unfinished.discard(future)
        self.slots.release()

    def drain(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else monotonic() + timeout
        while jobs := [job for job in self.unfinished.copy() if not job.done()]:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if wait(jobs, left).not_done:
                return False
        return True
