"""Attack what must happen once, from threads that begin at the same instant.

``python tests/contested.py --rounds 1000000`` runs each attack that often, best on a free-threaded
build; ``-k prepare`` takes the attacks that have the word in their name. It prints how many rounds
were wrong, and its exit status is 1 if one was. ``tests/test_free_threading.py`` runs a few rounds.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from wsgiref.util import setup_testing_defaults

from wsgi_after import AfterResponseMiddleware, run_callbacks
from wsgi_after.executor import BoundedThreadPoolExecutor
from wsgi_after.integration import notes_of

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()

Action = Callable[[], object]
#: The actions of the threads, and a check for when all have returned: the fault, or a false value.
Round = tuple[list[Action], Callable[[], object]]


class Closable:
    """The app's iterable."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"1"])

    def close(self) -> None:
        self.events.append("closed")


def called(app: Any) -> tuple[Any, Any]:
    """The body and the list of a request to this middleware."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    body = app(environ, lambda *args: print)
    return body, environ["wsgi.after"]


def serve(events: list[str], *callbacks: Action, executor: Any = None) -> tuple[Any, Any]:
    """Make a request and read its body; return the body, which is not closed, and the list."""

    def app(environ: Any, start_response: Any) -> Closable:
        environ["wsgi.after"].extend(callbacks)
        start_response("200 OK", [])
        return Closable(events)

    body, after = called(AfterResponseMiddleware(app, executor=executor))
    list(body)
    return body, after


def unless(events: list[str], *right: list[str]) -> str | None:
    """Return the events as text, unless they are one of the right lists, in any order."""
    return None if sorted(events) in [sorted(one) for one in right] else str(events)


class Attempt:
    """An action that may come too late, and then raises."""

    def __init__(self, fn: Callable[..., object], *args: Any, error: Any = RuntimeError) -> None:
        self.fn, self.args, self.error = fn, args, error
        self.refused = False

    def __call__(self) -> None:
        try:
            self.fn(*self.args)
        except self.error:
            self.refused = True


def close_and_close() -> Round:
    """Two threads close one body: the app's iterable is closed once, each callback runs once."""
    events: list[str] = []
    body, _ = serve(events, *[partial(events.append, name) for name in "abc"])
    return [body.close, body.close], lambda: unless(events, ["closed", "a", "b", "c"])


def iadd(after: Any, fn: Any) -> None:
    after += [fn]


REGISTER: dict[str, Callable[..., object]] = {
    "append": lambda after, fn: after.append(fn),
    "call": lambda after, fn: after(fn),
    "insert": lambda after, fn: after.insert(0, fn),
    "extend": lambda after, fn: after.extend([fn]),
    "iadd": iadd,
}


def register_and_close(register: Callable[..., object], names: tuple[str, ...] = ("b",)) -> Round:
    """All entries run once, or registering them raises."""
    events: list[str] = []
    body, after = serve(events, partial(events.append, "a"))
    registers = Attempt(register, after, *[partial(events.append, name) for name in names])

    def wrong() -> object:
        late = () if registers.refused else names
        return unless(events, ["closed", "a", *late]) or list(after)

    return [body.close, registers], wrong


def drop_and_append() -> Round:
    """A finalizer finishes a response that nothing closed, while a thread registers."""
    events: list[str] = []
    body, after = serve(events, partial(events.append, "a"))
    holder = [body]
    del body
    registers = Attempt(after.append, partial(events.append, "late"))

    def wrong() -> object:
        late = [] if registers.refused else ["late"]
        # A body that is dropped by a thread that did not make it is finalized a little later.
        return unless(events, ["closed", "a", *late]) if events else None

    return [holder.clear, registers], wrong


def late_and_late(register: Callable[..., object]) -> Round:
    """Two threads register when the list has ended: both are refused, and nothing stays."""
    body, after = serve([])
    body.close()
    attempts = [Attempt(register, after, fn) for fn in (int, str)]
    return [*attempts], lambda: list(after) or not all(each.refused for each in attempts)


def remove_and_close() -> Round:
    """Cancelling removes the callback, or says that it has run; the others run."""
    events: list[str] = []
    body, after = serve(events)
    for name in "abc":
        after.once(events.append, name)
    cancels = Attempt(after.remove, partial(events.append, "b"), error=ValueError)

    def wrong() -> object:
        return unless(events, ["closed", "a", "c", *["b"] * cancels.refused])

    return [body.close, cancels], wrong


def hand_over_and_insert() -> Round:
    """A callback that is not due is removed before the hand-over; one that comes meanwhile runs."""
    events: list[str] = []
    queue = Queue()
    body, after = serve(events, partial(events.append, "a"), executor=queue)
    after.on_success(events.append, "a")
    after.on_success(events.append, "b")
    after.append(partial(events.append, "c"))
    after._given = ("500 Internal Server Error", [])

    def wrong() -> object:
        queue.work()
        return unless(events, ["closed", "a", "c", "late"]) or list(after)

    return [body.close, partial(after.insert, 0, partial(events.append, "late"))], wrong


def once_and_once() -> Round:
    """Two threads register the same call, and both run the list: the call is made once."""
    events: list[str] = []
    body, after = serve(events)

    def registers_and_runs() -> None:
        with suppress(RuntimeError):
            after.once(events.append, "a")
        run_callbacks(after)

    def wrong() -> object:
        body.close()
        return unless(events, ["a", "closed"])

    return [registers_and_runs, registers_and_runs], wrong


def notes_and_notes() -> Round:
    """Two threads are the first to ask for the notes of a list: they get the same."""
    body, after = serve([])
    notes: list[Any] = []

    def asks() -> None:
        notes.append(notes_of(after))

    def wrong() -> object:
        kept = notes_of(after)
        body.close()
        return [note for note in notes if note is not kept]

    return [asks, asks], wrong


def starts_when_read(environ: Any, start_response: Any) -> Iterator[bytes]:
    """An app that calls ``start_response`` when the server reads its body."""
    start_response("200 OK", [])
    yield b""


def on_prepare_and_start_response() -> Round:
    """A response callback is called once, or its registration raises."""
    events: list[str] = []

    body, after = called(AfterResponseMiddleware(starts_when_read))
    registers = Attempt(after.on_prepare, lambda response: events.append("ran"))

    def wrong() -> object:
        body.close()
        return unless(events, [] if registers.refused else ["ran"])

    return [partial(next, body), registers], wrong


def on_prepare_and_on_prepare() -> Round:
    """Two threads register the first response callbacks: both run."""
    events: list[str] = []

    body, after = called(AfterResponseMiddleware(starts_when_read))
    registers = [
        partial(after.on_prepare, lambda response, name=name: events.append(name)) for name in "ab"
    ]

    def wrong() -> object:
        next(body)
        body.close()
        return unless(sorted(events), ["a", "b"])

    return registers, wrong


class Queue:
    """An executor that keeps its job for another thread, and may claim to have refused it."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.job: list[Action] = []

    def submit(self, fn: Any, *args: Any) -> None:
        self.job.append(partial(fn, *args))
        if self.refuses:
            raise RuntimeError("full")

    def work(self) -> None:
        for _ in range(300):
            if self.job:
                self.job.pop()()
                return


def job_and_close(*, refuses: bool = False) -> Round:
    """A job runs while the server's thread goes on with the list.

    :param refuses: ``submit()`` raises although it took the job: both run the list.
    """
    events: list[str] = []
    queue = Queue(refuses=refuses)
    body, after = serve(events, *[partial(events.append, name) for name in "ab"], executor=queue)

    def wrong() -> object:
        queue.work()
        return unless(events, ["closed", "a", "b"]) or list(after)

    return [body.close, queue.work], wrong


class Submits(Queue):
    """A queue that returns a future."""

    def __init__(self) -> None:
        super().__init__()
        self.future: Future[None] = Future()

    def submit(self, fn: Any, *args: Any) -> Any:
        super().submit(fn, *args)
        return self.future


def cancelled_job_and_append() -> Round:
    """Registering while a job is cancelled raises, or the entry is lost with it, and not kept."""
    executor = Submits()
    body, after = serve([], int, executor=executor)
    body.close()
    return [executor.future.cancel, Attempt(after.append, str)], lambda: list(after)


def settled_job_and_append() -> Round:
    """While a job ends and its future is settled, an entry runs, or registering it raises."""
    events: list[str] = []
    executor = Submits()
    body, after = serve([], int, executor=executor)
    body.close()
    registers = Attempt(after.append, partial(events.append, "ran"))

    def works() -> None:
        executor.work()
        executor.future.set_result(None)

    return [works, registers], lambda: unless(events, [] if registers.refused else ["ran"])


def app_wide_and_app_wide() -> Round:
    """Two threads register app-wide callbacks: both are kept."""
    ran: list[str] = []
    middleware = AfterResponseMiddleware(lambda environ, start_response: [])
    actions: list[Action] = [
        partial(middleware.after_response, lambda environ, name=name: ran.append(name))
        for name in "ab"
    ]

    def wrong() -> object:
        called(middleware)[0].close()
        return unless(ran, ["a", "b"])

    return actions, wrong


pool = BoundedThreadPoolExecutor(max_workers=2, max_pending=1_000)


def submit_and_drain() -> Round:
    """``drain()`` during ``submit()``: neither raises, and each job runs once."""
    ran: list[int] = []

    def submits() -> None:
        for n in range(4):
            pool.submit(ran.append, n)

    def wrong() -> object:
        pool.drain()
        return None if sorted(ran) == [0, 1, 2, 3] else ran

    return [submits, pool.drain], wrong


def submit_and_shutdown() -> Round:
    """A job that was accepted before the end runs; one that is refused does not."""
    ran: list[int] = []
    accepted: list[int] = []
    ending = BoundedThreadPoolExecutor(max_workers=1)

    def submits() -> None:
        for n in range(3):
            try:
                ending.submit(ran.append, n)
            except RuntimeError:
                return
            accepted.append(n)

    def wrong() -> object:
        ending.drain()
        return None if ran == accepted else (ran, accepted)

    return [submits, partial(ending.shutdown, wait=False)], wrong


ATTACKS: dict[str, Callable[[], Round]] = {
    **{f"{name}_and_close": partial(register_and_close, fn) for name, fn in REGISTER.items()},
    "late_extend_and_close": partial(
        register_and_close, lambda after, *fns: after.extend(fns), ("b", "c")
    ),
    # A function in Python compares these entries; each entry moves the other one.
    "late_once_and_late_once": partial(late_and_late, lambda after, fn: after.once(fn)),
    "late_insert_and_late_insert": partial(late_and_late, REGISTER["insert"]),
    "refused_job_and_close": partial(job_and_close, refuses=True),
    **{
        attack.__name__: attack
        for attack in (
            *(close_and_close, remove_and_close, hand_over_and_insert, once_and_once),
            *(notes_and_notes, on_prepare_and_on_prepare),
            *(on_prepare_and_start_response, job_and_close),
            *(cancelled_job_and_append, settled_job_and_append, app_wide_and_app_wide),
            *(submit_and_drain, submit_and_shutdown, drop_and_append),
        )
    },
}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence logs and warnings, and let threads switch often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        logging.disable(logging.NOTSET)
        sys.setswitchinterval(interval)


def run(attack: Callable[[], Round], rounds: int) -> list[object]:
    """Run an attack for so many rounds, each with all threads at once; return some faults."""
    faults: list[object] = []
    at = [0, 0]
    batch: list[Round] = []

    def meet(number: int, step: int) -> None:
        at[number] = step
        spins = 0
        while at[not number] < step:  # at first without a system call, so that both leave at once
            spins += 1
            if HAS_GIL or spins > 10_000:  # the other one may have no core
                time.sleep(0)

    def perform(number: int, begin: int) -> None:
        for step, (actions, _) in enumerate(batch, begin + 1):
            meet(number, step)
            try:
                actions[number]()
            except BaseException as error:
                faults.append(error)

    done = 0
    with quiet(), ThreadPoolExecutor(2) as threads:
        while done < rounds and len(faults) < 10:
            batch[:] = [attack() for _ in range(min(500, rounds - done))]
            for future in [threads.submit(perform, number, done) for number in (0, 1)]:
                future.result()
            faults += [fault for _, wrong in batch if (fault := wrong())]
            done += len(batch)
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1_000_000)
    parser.add_argument("-k", default="", help="a word of the names")
    options = parser.parse_args()
    print(sys.version, "with the GIL" if HAS_GIL else "without the GIL", flush=True)
    failed = False
    for name, attack in ATTACKS.items():
        if options.k not in name:
            continue
        began = time.monotonic()
        faults = run(attack, options.rounds)
        took = time.monotonic() - began
        print(f"{name}: {options.rounds:,} rounds, {len(faults)} wrong, {took:.0f} s", flush=True)
        for fault in faults[:3]:
            print("   ", repr(fault))
        failed = failed or bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
