"""Random executors: none, a pool, one that refuses, one that loses, one that runs later."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from conftest import Loses, Refuses

from wsgi_after.executor import BoundedThreadPoolExecutor


class Gated:
    """The package's pool, whose jobs wait until the step of the test that submits them is over."""

    def __init__(self) -> None:
        self.pool = BoundedThreadPoolExecutor(max_workers=1, max_pending=1000)
        self.gate = threading.Event()

    def submit(self, fn: Any, *args: Any) -> Any:
        return self.pool.submit(self.run, fn, *args)

    def run(self, fn: Any, *args: Any) -> Any:
        self.gate.wait(60)
        return fn(*args)

    def drain(self) -> None:
        self.gate.set()
        assert self.pool.drain(60)
        # A job is done before its thread has logged what became of it. The next one begins then.
        self.pool.submit(int).result(60)
        self.gate.clear()


pool = Gated()


class Later:
    """Keeps the jobs, for the test to run."""

    def __init__(self) -> None:
        self.jobs: dict[str, list[Any]] = {}  # by the label of the request

    def submit(self, fn: Any, callbacks: Any, label: str) -> None:
        self.jobs.setdefault(label, []).append(partial(fn, callbacks, label))

    def run(self, label: str) -> None:
        for job in self.jobs.pop(label, []):
            job()


#: What ``AfterResponseMiddleware`` gets as ``executor``.
EXECUTORS = {
    "none": lambda later: None,
    "pool": lambda later: pool,
    "refuses": lambda later: Refuses(),
    "interrupts": lambda later: Refuses(KeyboardInterrupt),
    "loses": lambda later: Loses(),
    "later": lambda later: later,
}
