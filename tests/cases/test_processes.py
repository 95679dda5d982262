"""Rule 4: a list belongs to the process that made it. Whoever forks, its callbacks run once."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from commands import ask, serving
from servers.harness import wait_until

from . import run_script

#: A server's worker in one file. Each process prints what happens in it.
WORKER = """
import gc, logging, os, sys
from contextlib import closing
from wsgiref.util import setup_testing_defaults
from wsgi_after import AfterResponseMiddleware, after_this_response, run_callbacks

logging.disable()
parent = os.getpid()

def tell(what):
    who = "parent" if os.getpid() == parent else "child"
    print(f"{who}: {what}", flush=True)

def fork(leave):
    if pid := os.fork():
        os.waitpid(pid, 0)
    elif leave == "raises":
        raise ValueError("on purpose")
    elif leave != "returns":
        {"os._exit": os._exit, "sys.exit": sys.exit}[leave](0)

def get(app, path="/", **options):
    environ = {"PATH_INFO": path}
    setup_testing_defaults(environ)
    return AfterResponseMiddleware(app, **options)(environ, lambda *args: print)

def serve(app, **options):
    seen = "served"
    try:
        with closing(get(app, **options)) as body:
            list(body)
    except BaseException as error:
        seen += f" {type(error).__name__}"
    tell(seen)
    if os.getpid() != parent:
        os._exit(0)

class Body:
    def __init__(self, read=bool, close=bool):
        self.read, self.close = read, close

    def __iter__(self):
        yield b"chunk"
        self.read()

def answer(environ, start_response):
    start_response("200 OK", [])
    return [b"chunk"]

def in_a_cycle(body):
    cycle = [body]
    cycle.append(cycle)
"""

FORKS = """
place, leave = sys.argv[1:]
def app(environ, start_response):
    after = environ["wsgi.after"]
    after(tell, "first")
    if place.startswith("callback"):
        after(fork, leave)
    after(tell, "last")
    if place == "call":
        fork(leave)
    start_response("200 OK", [])
    if "raised" in place:
        raise KeyError("of the app")
    return Body(lambda: place == "body" and fork(leave), lambda: place == "close" and fork(leave))
serve(app)
"""


@pytest.mark.parametrize("leave", ["os._exit", "sys.exit", "raises", "returns"])
@pytest.mark.parametrize("place", ["call", "body", "close", "callback", "callback, the app raised"])
def test_a_fork_anywhere_in_a_request_leaves_the_callbacks_to_the_parent(place, leave, tmp_path):
    """What ends the child propagates even if the app raised, or it would be a second server."""
    of_the_app = " KeyError" if "raised" in place else ""
    ends = {"sys.exit": " SystemExit", "raises": " ValueError", "returns": of_the_app}
    child = [f"child: served{ends[leave]}"] if leave in ends else []
    expected = ["parent: first", "parent: last", f"parent: served{of_the_app}"]
    position = 1 if place.startswith("callback") else 0
    expected[position:position] = child
    assert run_script(WORKER + FORKS, tmp_path, place, leave) == expected


#: By what happens: the code, and what is printed.
CASES = {
    "children inherit responses that nobody closed": (
        """
        def app(environ, start_response):
            start_response("200 OK", [])
            environ["wsgi.after"](tell, f"callback {environ['PATH_INFO']}")
            return Body(close=lambda: tell(f"close {environ['PATH_INFO']}"))
        gc.disable()
        paths = "held", "begun", "waits", "waits too", "in a cycle"
        held, begun, *collected, uncollected = [get(app, path) for path in paths]
        chunks = iter(begun)
        next(chunks)
        while collected:
            in_a_cycle(collected.pop(0))
            gc.collect()
        in_a_cycle(uncollected)
        del begun, uncollected
        for leave in (os._exit, sys.exit):
            if pid := os.fork():
                os.waitpid(pid, 0)
                continue
            del held, chunks
            gc.collect()
            get(answer).close()
            tell(f"leaves by {leave.__name__}")
            leave(0)
        gc.collect()
        get(answer).close()
        del held, chunks
        """,
        "child: leaves by _exit | child: leaves by exit | "
        "parent: close waits | parent: callback waits | "
        "parent: close waits too | parent: callback waits too | "
        "parent: close in a cycle | parent: callback in a cycle | "
        "parent: close held | parent: callback held | parent: close begun | parent: callback begun",
    ),
    "a response that waits to be closed has callbacks that fork": (
        """
        def app(environ, start_response):
            environ["wsgi.after"](fork, "raises")
            environ["wsgi.after"](fork, "sys.exit")
            environ["wsgi.after"](tell, "last")
            return answer(environ, start_response)
        in_a_cycle(get(app))
        gc.collect()
        serve(answer)
        """,
        "child: served ValueError | child: served SystemExit | parent: last | parent: served",
    ),
    "the executor forks for each job": (
        """
        class Forks:
            def __init__(self, leave):
                self.leave = leave
            def submit(self, fn, *args):
                if pid := os.fork():
                    os.waitpid(pid, 0)
                else:
                    fn(*args)
                    self.leave(0)
        def app(environ, start_response):
            environ["wsgi.after"](tell, "first")
            environ["wsgi.after"].append(lambda: 1 / 0)
            environ["wsgi.after"](fork, "os._exit")
            environ["wsgi.after"](tell, "last")
            return answer(environ, start_response)
        serve(app, executor=Forks(os._exit))
        serve(app, executor=Forks(sys.exit))
        """,
        "child: first | child: last | parent: served | "
        "child: first | child: last | child: served SystemExit | parent: served",
    ),
    "the context manager of around= forks": (
        """
        from contextlib import contextmanager
        @contextmanager
        def around(callback, after):
            fork("raises")
            yield
            fork("returns")
        def app(environ, start_response):
            environ["wsgi.after"](tell, "first")
            environ["wsgi.after"](tell, "last")
            return answer(environ, start_response)
        serve(app, around=around)
        """,
        "child: served ValueError | parent: first | child: served | "
        "child: served ValueError | parent: last | child: served | parent: served",
    ),
    "the child registers": (
        """
        def refused(register, *args):
            try:
                register(*args)
            except RuntimeError as error:
                return "forked" in str(error)
        def app(environ, start_response):
            after = environ["wsgi.after"]
            after(tell, "callback")
            if not os.fork():
                ways = [
                    refused(after, bool), refused(after.append, bool),
                    refused(after.insert, 0, bool), refused(after.extend, [bool]),
                    refused(after.__iadd__, [bool]),
                    refused(after.__setitem__, slice(0, 0), [bool]),
                    refused(after_this_response, bool), refused(run_callbacks, after),
                ]
                tell(f"{sum(ways)}, {bool in after}")
                os._exit(0)
            os.wait()
            after(tell, "callback of the parent")
            return answer(environ, start_response)
        get(app).close()
        """,
        "child: 8, False | parent: callback | parent: callback of the parent",
    ),
    "the child serves a request of its own, and forks again": (
        """
        def inner(environ, start_response):
            environ["wsgi.after"](fork, "os._exit")
            environ["wsgi.after"](tell, f"callback {len(environ['wsgi.after'])}")
            return answer(environ, start_response)
        def app(environ, start_response):
            environ["wsgi.after"](tell, "callback")
            if not os.fork():
                AfterResponseMiddleware(inner)(environ, start_response).close()
                os._exit(0)
            os.wait()
            return answer(environ, start_response)
        get(app).close()
        """,
        "child: callback 1 | parent: callback",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_callback_runs_in_one_process(case, tmp_path):
    source, expected = CASES[case]
    assert run_script(WORKER + dedent(source), tmp_path) == expected.split(" | ")


APP = """
import os, sys
from wsgi_after import AfterResponseMiddleware

def note(what):
    with open("events", "a") as events:
        events.write(f"{what} {os.getpid()}\\n")

def fork():
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        sys.exit()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    environ["wsgi.after"](note, f"first {path}")
    if path == "/callback":
        environ["wsgi.after"](fork)
    environ["wsgi.after"](note, f"last {path}")
    if path == "/app":
        fork()
    answer = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]

application = AfterResponseMiddleware(app)
"""


@pytest.mark.servers
def test_a_worker_of_gunicorn_runs_what_its_forked_children_have_copies_of(tmp_path: Path):
    """A child that calls ``sys.exit()`` answers the client and ends, as without the middleware."""
    (tmp_path / "forks.py").write_text(APP)
    events, answers, paths = tmp_path / "events", [], ["/", "/app", "/callback", "/"]
    events.touch()
    with serving("gunicorn --bind 127.0.0.1:8000 forks:application", tmp_path) as port:
        for number, path in enumerate(paths, 1):
            answers.append(ask(port, path))
            wait_until(lambda n=number: events.read_text().count("last") == n, tmp_path / "log")
    assert answers[0] == answers[-1]  # the worker lives on
    worker = answers[0][1]
    expected = [f"{what} {path} {worker}" for path in paths for what in ("first", "last")]
    assert events.read_text().splitlines() == expected
