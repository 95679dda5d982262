"""Executors at random: none, a pool, one that refuses, one that loses, one that runs later."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from conftest import Loses, Refuses

from wsgi_after.executor import BoundedThreadPoolExecutor

EXECUTORS = ["default", "None", "pool", "refuses", "loses", "later"]


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
        self.gate.clear()


pool = Gated()


class Later:
    """Keeps the jobs, for the test to run."""

    def __init__(self) -> None:
        self.jobs: dict[str, Any] = {}  # by the label of the request

    def submit(self, fn: Any, callbacks: Any, label: str) -> None:
        self.jobs[label] = partial(fn, callbacks, label)

    def run(self, label: str) -> None:
        self.jobs.pop(label, lambda: None)()


def arguments(kind: str, later: Later) -> dict[str, Any]:
    """What ``AfterResponseMiddleware`` is made with."""
    made = {"None": None, "pool": pool, "refuses": Refuses(), "loses": Loses(), "later": later}
    return {"executor": made[kind]} if kind in made else {}
