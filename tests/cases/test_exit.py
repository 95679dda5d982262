"""The exit of Python: callbacks of unclosed responses run once, and failures go to stderr.

``test_unclosed.py`` tests their order; this file tests the ways in which a process ends.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, product
from pathlib import Path

import pytest
from commands import environment
from conftest import Exchange, registers
from reporting import count

from wsgi_after import exits as wsgi_after_exits
from wsgi_after._core import logs
from wsgi_after._core.body import Body

from . import run_script

#: Prints a line for each thing that happens to a response; ``who`` serves it and ends.
EXITS = """
import gc, importlib, logging, multiprocessing, os, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from wsgi_after import AfterResponseMiddleware

who, place, end, thread = sys.argv[1:]

def tell(what):
    os.write(1, f"{what}\\n".encode())

def fail():
    tell("first callback")
    raise ValueError("on purpose \\u2013 \\ud800")

def load():
    import fileinput    # as a callback does that needs something seldom
    tell("second callback")

class Chunks(list):
    def close(self):
        tell("close")

def app(environ, start_response):
    environ["wsgi.after"].extend([fail, tell_last if thread != "none" else load])
    start_response("200 OK", [])
    return Chunks([b"chunk"])

def tell_last():
    tell("second callback")

def serve():
    global kept, local
    pool = ThreadPoolExecutor(1) if thread == "pool" else None    # which takes no job at exit
    body = AfterResponseMiddleware(app, executor=pool)({"PATH_INFO": "/\\xe9"}, lambda *args: print)
    if place == "this module":
        kept = body
    elif place == "another module":
        import json
        json.kept = body
    elif place == "a thread-local":
        local = threading.local()
        local.kept = body
    elif place == "a chunk read":
        kept = iter(body)
        next(kept)
    elif place == "a frame":    # of the traceback of what ended the script
        raise KeyError("of the script")
    else:
        cycle = [body]
        cycle.append(cycle)
        del body
    if place == "collected":
        gc.collect()

def leave():
    if end == "sys.exit":
        sys.exit(3)
    if end == "raises":
        raise KeyError("of the script")

def work():
    serve()
    leave()

def log_noise():
    while True:
        logging.error("noise")

gc.disable()
if thread == "sleeps":
    threading.Thread(target=time.sleep, args=[60], daemon=True).start()
if thread == "logs":
    threading.Thread(target=log_noise, daemon=True).start()
if __name__ == "__main__":
    if who == "os.fork":
        if pid := os.fork():
            os.waitpid(pid, 0)
            sys.exit()
        work()
    elif who == "main":
        work()
    else:
        child = multiprocessing.get_context(who).Process(target=work)
        child.start()
        child.join()
"""

ALL = ["close", "first callback", "second callback"]

#: Where the response is.
PLACES = ["this module", "another module", "a thread-local", "a chunk read", "a cycle", "collected"]
ENDS = ["of the script", "sys.exit", "raises"]
WHO = ["main", "os.fork", "fork", "spawn"]


def ended(directory: Path, *arguments: str) -> tuple[list[str], bool]:
    """Run a process to its end; return what happened, and whether stderr shows the failure."""
    script = directory / "script.py"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, *arguments],
            env=environment(PYTHONFAULTHANDLER=1),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            cwd=directory,
        )
    except subprocess.TimeoutExpired as error:
        return [*(error.stdout or b"").decode().splitlines(), "blocked"], False
    text = done.stderr.decode(errors="replace")
    failure = rb"fail of ? /\xe9 failed" in done.stderr and b"ValueError" in done.stderr
    return done.stdout.decode().splitlines(), failure and "LookupError" not in text


def all_ended(directory: Path, rows: list[tuple[str, ...]]) -> dict[tuple[str, ...], object]:
    """Run several processes, two at a time."""
    (directory / "script.py").write_text(EXITS)
    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(rows, pool.map(lambda row: ended(directory, *row), rows), strict=True))
    count(
        f"exits of Python, {rows[0][0]}",
        tried=len(rows),
        as_they_should=sum(outcome == (ALL, True) for outcome in outcomes.values()),
    )
    return outcomes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.parametrize(
    ("who", "thread"),
    [
        *((who, "none") for who in WHO),
        # A daemon thread may be sending what it holds: close that only when the thread has stopped.
        ("main", "sleeps"),
    ],
)
def test_whoever_ends_in_whichever_way_all_callbacks_run_and_what_fails_is_told(
    who, thread, tmp_path
):
    """In children of multiprocessing, too, which skip ``atexit`` and end by ``os._exit()``."""
    pairs = product(PLACES, ENDS) if who == "main" else zip(PLACES, cycle(ENDS))
    rows = [(who, place, end, thread) for place, end in pairs]
    assert all_ended(tmp_path, rows) == dict.fromkeys(rows, (ALL, True))


def test_what_a_traceback_refers_to_runs_too_and_what_a_pool_takes_no_more(tmp_path):
    rows = [
        ("main", "a frame", "raises", "none"),
        ("main", "collected", "of the script", "pool"),
        ("main", "a cycle", "of the script", "pool"),
    ]
    assert all_ended(tmp_path, rows) == dict.fromkeys(rows, (ALL, True))


def test_a_daemon_thread_that_stands_still_in_a_log_handler_does_not_block_the_exit(tmp_path):
    """It never releases the handler's lock, so failures are written to stderr without the lock."""
    (tmp_path / "script.py").write_text(EXITS)
    row = ("main", "another module", "of the script", "logs")
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(lambda _: ended(tmp_path, *row), range(20))] == [(ALL, True)] * 20


# In this process, for what cannot be seen from outside


@pytest.fixture
def exits():
    """Begin the exit of this process; restore afterwards what that changes."""
    before = [*gc.callbacks]
    yield lambda: wsgi_after_exits.at_exit(Body)
    gc.callbacks[:] = before


@pytest.fixture
def stopped(exits, monkeypatch):
    """Begin the exit as if daemon threads ran; then act as if Python had stopped them."""

    def stopped():
        exits()
        monkeypatch.setattr(sys, "is_finalizing", lambda: True)
        gc.collect()

    return stopped


def held_by_a_thread(work):
    """Run ``work(stand)`` in a thread until it calls ``stand()``. Return a function to end it."""
    stands, goes_on = threading.Event(), threading.Event()

    def stand():
        stands.set()
        goes_on.wait(10)

    thread = threading.Thread(target=work, args=[stand])
    thread.start()
    stands.wait(10)

    def end():
        goes_on.set()
        thread.join()

    return end


def test_without_other_threads_all_is_closed_before_python_takes_itself_apart(
    exits, events, monkeypatch
):
    body = Exchange(registers(lambda: events.append("callback"))).result
    monkeypatch.setattr(sys, "_current_frames", lambda: {1: None})
    exits()
    body.close()
    assert events == ["callback"]


def test_where_nothing_is_left_nothing_is_collected(exits):
    end = held_by_a_thread(lambda stand: stand())
    collections = gc.get_stats()[2]["collections"]
    wsgi_after_exits.at_exit(type("NoBody", (), {}))
    end()
    assert gc.get_stats()[2]["collections"] == collections


def test_what_a_thread_is_reading_when_it_is_stopped_stays_with_it(stopped, events):
    """Closing it here would need what the thread holds: the generator, and often a lock."""

    def get(path, stand):
        def app(environ, start_response):
            return (step() for step in [bytes, stand])

        return Exchange(registers(lambda: events.append(f"callback {path}"), app=app)).result

    def reads(stand):
        body = get("/read", stand)
        list(body)
        body.close()

    def sends(stand):
        body = get("/sent", stand)
        next(iter(body))
        stand()
        body.close()

    ends = [held_by_a_thread(reads), held_by_a_thread(sends)]
    stopped()
    events.append("stopped")
    for end in ends:
        end()
    assert events == ["callback /sent", "stopped", "callback /read"]


def test_what_fails_at_the_very_end_is_written_without_logging(monkeypatch, capfd):
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    Exchange(registers(lambda: int("\u2013"), lambda: (step for step in ""))).finish()
    first, *_, last = capfd.readouterr().err.splitlines()
    assert first.endswith("of GET /path failed.")
    assert "returned a generator" in last


@pytest.mark.parametrize("silenced", [logs.logger, logging.root.manager])
def test_what_is_silenced_stays_silent_at_the_very_end(silenced, monkeypatch, capfd):
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    name = "level" if silenced is logs.logger else "disable"
    monkeypatch.setattr(silenced, name, logging.CRITICAL)
    Exchange(registers(lambda: 1 / 0)).finish()
    assert capfd.readouterr().err == ""


def test_a_handler_that_fails_where_stderr_is_closed_costs_no_callback(events, monkeypatch):
    def fail(record):
        raise ValueError("of the filter")

    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    monkeypatch.setattr(logs.logger, "filters", [fail])
    callbacks = [lambda: 1 / 0, lambda: events.append("second"), lambda: events.append("third")]
    Exchange(registers(*callbacks)).finish()
    assert events == ["second", "third"]


BEHIND_OURS = """
import atexit, gc

def behind():
    cycle = [AfterResponseMiddleware(app)({}, lambda *args: None)]
    cycle.append(cycle)
    del cycle
    gc.collect()

atexit.register(behind)  # before ours, so it is called after that
from wsgi_after import AfterResponseMiddleware

def app(environ, start_response):
    environ["wsgi.after"](print, "ran")
    return []
"""


def test_what_is_collected_when_our_atexit_function_has_run_is_closed_in_place(tmp_path):
    """If it waited, nothing would close it later."""
    assert run_script(BEHIND_OURS, tmp_path) == ["ran"]
