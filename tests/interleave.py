"""Run two threads in every order, and interrupt one at every place, that CPython allows.

CPython lets another thread run, and runs the handlers of signals, between two instructions of a
function only where it looks for such work: where a function begins, after a call, and after a jump
back ("eval breaker" in Python/ceval.c). Without the GIL, another thread goes on between any two
instructions: ``everywhere`` explores that on any build. A tracer counts these places in the code
of the package and of the test that uses it. At given places, the tracer lets the other thread go
on, or raises. Everything that can happen is tried, and each failure can be repeated.
"""

from __future__ import annotations

import dis
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import wsgi_after
from wsgi_after.claims import WITHOUT_GIL

PACKAGE = str(Path(wsgi_after.__file__).parent)
TIMEOUT = 60  # seconds, after which two threads are assumed to wait for each other
#: From 3.12 on, CPython does not report each instruction when it first traces a function, nor when
#: it first does so after a tracer has raised. So the code to trace is run once before.
IS_COLD = sys.version_info >= (3, 12)

Action = Callable[[], object]


@cache
def places(code: CodeType) -> frozenset[int]:
    """The offsets of the instructions before which CPython looks for other work."""
    found = set()
    looked = True  # where a function begins
    for instruction in dis.get_instructions(code):
        name, offset = instruction.opname, instruction.offset
        if looked and name not in ("RESUME", "PRECALL", "COPY_FREE_VARS", "MAKE_CELL"):
            found.add(offset)
            looked = False
        if name.startswith("CALL") or name in ("YIELD_VALUE", "RETURN_GENERATOR"):
            looked = True
        jumps = instruction.opcode in (*dis.hasjrel, *dis.hasjabs)
        if jumps and instruction.argval < offset:
            found.add(instruction.argval)
    return frozenset(found)


def trace(
    at_place: Callable[[], object], *files: str, everywhere: bool = False
) -> Callable[..., Any]:
    """A tracer for ``sys.settrace``: calls ``at_place`` at each place in the package and files.

    :param everywhere: each instruction is a place.
    """

    def begin(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE) and name not in files:
            return None
        offsets = places(frame.f_code)
        frame.f_trace_opcodes, frame.f_trace_lines = True, False

        def step(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
            if event == "opcode" and (everywhere or frame.f_lasti in offsets):
                at_place()
            return step

        return step

    return begin


class Switched:
    """An order of two threads: one of them runs at a time, and they switch at given places.

    :param runs: how many places the threads pass, in turns, before they switch: ``(3, 2)`` is three
        of the first thread, two of the second, then the first to its end, then the second.
    """

    def __init__(self, actions: tuple[Action, ...], runs: tuple[int, ...]) -> None:
        self.passed = [0, 0]
        self.errors: list[BaseException] = []
        self._actions = [*actions]
        self._left = list(runs)
        self._turn = [threading.Semaphore(1), threading.Semaphore(0)]
        self._ended = [False, False]

    def run(self, number: int, tracer: Callable[..., Any]) -> None:
        """Run one of the actions, and drop it. Its thread calls this.

        Without the GIL, tracing stays on. CPython stops all threads to turn it on or off, which
        would take most of the time. With the GIL, tracing must end: CPython 3.12.1 crashes when the
        main thread closes a generator that is traced in another thread.
        """
        try:
            self._wait(number)
            if sys.gettrace() is not tracer:
                sys.settrace(tracer)
            Context().run(self._actions[number])
        except BaseException as error:  # for the test to see
            self.errors.append(error)
        finally:
            if not WITHOUT_GIL:
                sys.settrace(None)
            self._actions[number] = None
            self._ended[number] = True
            self._turn[not number].release()

    def _wait(self, number: int) -> None:
        assert self._turn[number].acquire(timeout=TIMEOUT), "the threads wait for each other"

    def place(self, number: int) -> None:
        """Note that this thread is at a place, and switch if the order says so."""
        while self._left and self._left[0] == 0:
            del self._left[0]
            if not self._ended[not number]:
                self._turn[not number].release()
                self._wait(number)
        self.passed[number] += 1
        if self._left:
            self._left[0] -= 1


def interleavings(
    make: Callable[[], tuple[Action, Action]], file: str, switches: int, *, everywhere: bool = False
) -> Iterator:
    """Run two actions in every order with at most that many switches; yield after each order.

    Either thread may be the first: that does not count as a switch.

    :param make: makes the two actions, anew for each run; the caller looks at what they did.
    :param everywhere: switch between any two instructions, as without the GIL.
    :return: how the threads took turns.
    """
    order: Switched

    def at_place(number: int) -> None:
        order.place(number)

    tracers = [trace(partial(at_place, number), file, everywhere=everywhere) for number in (0, 1)]
    threads = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]

    def run(runs: tuple[int, ...], first: int) -> Switched:
        """Run each action in its thread; raise what an action raised."""
        nonlocal order
        actions = make()
        order = Switched((actions[first], actions[not first]), runs)
        each = zip((0, 1), threads, tracers, strict=True)
        futures = [thread.submit(order.run, number, tracer) for number, thread, tracer in each]
        for future in futures:
            future.result(2 * TIMEOUT)
        if order.errors:
            raise order.errors[0]
        return order

    try:
        for first in (0, 1):
            run((), first)  # do not count what happens once: imports, and see IS_COLD
            yield from _deeper(partial(run, first=first), (), first, switches)
    finally:
        for thread in threads:
            thread.shutdown(wait=False)  # run() has raised if one hangs


def _deeper(run: Callable, runs: tuple[int, ...], first: int, switches: int) -> Iterator:
    """Run all orders that begin with these runs, adding switches while there are places."""
    switched = run(runs)
    yield first, runs
    if len(runs) == switches:
        return
    number = len(runs) % 2  # the thread that goes on to its end after these runs
    places_left = switched.passed[number] - sum(runs[number::2])
    for length in range(1, places_left + 1):
        yield from _deeper(run, (*runs, length), first, switches)


class Interruption:
    """Calls ``action`` and raises ``error`` at one place in it, as a signal handler does."""

    def __init__(self, action: Action, at: int, error: BaseException, *files: str) -> None:
        self.came_out: BaseException | None = None
        self.raised = False
        self._left = at
        self._error: BaseException | None = error
        thread = threading.Thread(target=self._run, args=(action, files))
        thread.start()
        thread.join(TIMEOUT)

    def _run(self, action: Action, files: tuple[str, ...]) -> None:
        sys.settrace(trace(self._place, *files))
        try:
            action()
        except BaseException as error:
            self.came_out = error
        finally:
            sys.settrace(None)

    def forget(self) -> None:
        """Drop the exceptions: their tracebacks hold what was interrupted."""
        self.came_out = self._error = None

    def _place(self) -> None:
        self._left -= 1
        if self._left == -1:
            self.raised = True
            raise self._error


def interruptions(action: Callable[[], Action], error: Callable[[], BaseException], *files: str):
    """Interrupt ``action()`` at the first place, the second, and so on; yield after each."""
    at = 0
    while True:
        if IS_COLD:
            Interruption(action(), sys.maxsize, error(), *files)
        # The collector discards exceptions of its callbacks, and would choose the place.
        gc.disable()
        try:
            interruption = Interruption(action(), at, error(), *files)
        finally:
            gc.enable()
        if not interruption.raised:
            return
        yield interruption
        at += 1
