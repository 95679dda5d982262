"""Adapters for AWS Lambda: callbacks run before the handler returns."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import io
import json
import os
import signal
import sys
import threading
from contextlib import nullcontext
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from types import SimpleNamespace

import pytest
from documents import blocks, executed

from wsgi_after import AfterResponseMiddleware

from .descriptions import BY_NAME, module
from .expectations import BODY_ERRORS, CALLBACKS, LATE, Expected
from .harness import control, end, prepared, require, running, start
from .measure import attempt

pytestmark = pytest.mark.servers
PAGE = blocks("serverless.rst")
WAIT = 20  # seconds to wait for what takes one at most
MODULES = ["apig_wsgi", "serverless_wsgi", "awslambdaric"]

#: How each adapter is used, for any app. ``SHOWN``: what the page shows.
LAMBDA_HANDLERS = {
    "apig-wsgi": "from apig_wsgi import make_lambda_handler as made",
    "serverless-wsgi": "from functools import partial\n"
    "from serverless_wsgi import handle_request\n"
    "made = partial(partial, handle_request)",
}


SHOWN = {"apig-wsgi": "apig.py", "closed": "closed.py"}


def handler(adapter, app):
    return executed(LAMBDA_HANDLERS[adapter])["made"](app)


@pytest.fixture(autouse=True)
def installed():
    require([name for name in MODULES if importlib.util.find_spec(name) is None])


# The kinds of response.


class ClassIterator:
    def __init__(self):
        self.chunks = [b"one, ", b"two"]

    def __iter__(self):
        return self

    def __next__(self):
        if not self.chunks:
            raise StopIteration
        return self.chunks.pop(0)


def failing(chunks):
    yield from [b"chunk"] * chunks
    raise OSError("on purpose")


BODIES = {
    "list": lambda: [b"one, ", b"two"],
    "tuple": lambda: (b"one, ", b"two"),
    "generator": lambda: (chunk for chunk in (b"one, ", b"two")),
    "class_iterator": ClassIterator,
    "file": partial(io.BytesIO, b"one\ntwo\n"),
    "empty_list": list,
    "write": list,
    "head": list,
    "redirect": list,
    "no_content": list,
    "not_modified": list,
    "error_before_return": list,
    "error_in_first_chunk": partial(failing, 0),
    "error_in_mid_body": partial(failing, 1),
}
STATUS = {"redirect": "302 Found", "no_content": "204 No Content", "not_modified": "304 Not Mod"}


@pytest.fixture
def app(events):
    def app(environ, start_response):
        kind = environ["PATH_INFO"].strip("/")
        if "wsgi.after" in environ:
            thread = threading.get_ident()
            for number in (1, 2):
                environ["wsgi.after"](note, kind, number, thread)
        if kind == "error_before_return":
            raise OSError("on purpose")
        headers = [("Content-Type", "text/plain"), ("Location", "/elsewhere")]
        write = start_response(STATUS.get(kind, "200 OK"), headers)
        if kind == "write":
            write(b"written")
        return BODIES[kind]()

    def note(kind, number, thread):
        events.append((kind, number) if threading.get_ident() == thread else "another thread")

    return app


# The events.


def first_format(kind):
    headers = {"Host": "shop.example"}
    method = "HEAD" if kind == "head" else "GET"
    request = {"httpMethod": method, "path": f"/{kind}", "headers": headers}
    return {"version": "1.0", "requestContext": {}, "body": None, **request}


def second_format(kind):
    method = "HEAD" if kind == "head" else "GET"
    http = {"method": method, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"}
    request = {"rawPath": f"/{kind}", "rawQueryString": "", "headers": {"host": "shop.example"}}
    return {"version": "2.0", "requestContext": {"http": http}, **request}


def load_balancer(kind):
    event = {**first_format(kind), "requestContext": {"elb": {}}, "body": ""}
    del event["version"]
    return event


def outcome(call, event):
    try:
        return call(event, None)
    except OSError as error:
        return repr(error)


@pytest.mark.parametrize("event", [first_format, second_format, load_balancer])
@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("adapter", ["apig-wsgi", "serverless-wsgi", "closed"])
def test_callbacks_run_before_the_handler_returns(adapter, kind, event, app, events, monkeypatch):
    application = AfterResponseMiddleware(app)
    monkeypatch.setitem(sys.modules, "shop", SimpleNamespace(application=application))
    bare = outcome(handler(adapter.replace("closed", "serverless-wsgi"), app), event(kind))
    never_closed = adapter == "serverless-wsgi" and kind != "error_before_return"
    later = never_closed and kind in BODY_ERRORS
    warned = pytest.warns(ResourceWarning) if never_closed and not later else nullcontext()
    if adapter in SHOWN:
        lambda_handler = executed(PAGE[SHOWN[adapter]])["lambda_handler"]
    else:
        lambda_handler = handler(adapter, application)
    with warned:
        wrapped = outcome(lambda_handler, event(kind))
    ran = [(kind, 1), (kind, 2)]
    assert (wrapped, events) == (bare, [] if later else ran)
    if later:
        gc.collect()
        with pytest.warns(ResourceWarning):
            outcome(lambda_handler, event("error_before_return"))
        assert events[:2] == ran


def test_everything_on_the_page_is_run_by_a_test():
    assert [*PAGE] == [*SHOWN.values()]


# Lambda's own runtime, against its API.

HANDLERS = """
import kinds
from apig_wsgi import make_lambda_handler
lambda_handler = make_lambda_handler(kinds.application)
"""


class RuntimeApi(BaseHTTPRequestHandler):
    """What Lambda offers to a runtime: the next event, and where its response goes."""

    def do_GET(self):
        self.answer(200, json.dumps(self.server.events.get()).encode())

    def do_POST(self):
        response = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.responses.put(response)
        self.answer(202, b"{}")

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")  # without it, the runtime crashes
        self.send_header("Lambda-Runtime-Aws-Request-Id", "1")
        self.send_header("Lambda-Runtime-Deadline-Ms", "9999999999999")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Be quiet."""


@pytest.fixture
def api():
    with ThreadingHTTPServer(("127.0.0.1", 0), RuntimeApi) as server:
        server.daemon_threads = True
        server.events, server.responses = Queue(), Queue()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def function(api):
    """The process that runs the function."""
    with prepared() as where:
        where.write("function.py", HANDLERS)
        environment = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{api.server_port}",
            "PYTHONPATH": str(where.directory),
        }
        command = [sys.executable, "-m", "awslambdaric", "function.lambda_handler"]
        with (where.directory / "log").open("wb") as log:
            process = start(command, where.directory, log, env=environment)
            yield process
            process.send_signal(signal.SIGCONT)
            end(process)


def event_of(mode, watch):
    query = dict(part.split("=") for part in watch.query.split("&"))
    return {**first_format(f"{mode}/list_with_length"), "queryStringParameters": query}


def test_lambda_has_the_response_after_the_callbacks(api, function):
    watch = control().watch()
    api.events.put(event_of("wrapped", watch))
    response = api.responses.get(timeout=WAIT)
    assert (response["body"], watch.events, watch.had) == ("hello list", CALLBACKS, (False, False))


def test_a_job_of_an_executor_is_frozen_until_the_next_event(api, function):
    watch = control().watch(patience=WAIT)
    api.events.put(event_of("pool", watch))
    response = api.responses.get(timeout=WAIT)
    assert watch.slow.wait(WAIT)
    function.send_signal(signal.SIGSTOP)  # as Lambda does
    os.waitid(os.P_PID, function.pid, os.WSTOPPED | os.WNOWAIT)
    watch.end.set()
    done = watch.done.wait(0.5)
    function.send_signal(signal.SIGCONT)
    api.events.put(event_of("bare", watch))
    assert watch.done.wait(WAIT)
    assert (response["body"], done, watch.events) == ("hello list", False, CALLBACKS)


def test_closed_has_the_client_of_a_server_wait():
    """Without it, nobody waits on gunicorn for such a response."""

    def commands(where):
        where.write("shown.py", PAGE["closed.py"].replace("shop", "kinds"))
        return module("gunicorn", "--bind=127.0.0.1:{port}", "--threads=4", "shown:closed")(where)

    with running(dataclasses.replace(BY_NAME["gunicorn gthread"], commands=commands)) as where:
        tried = attempt(where, "wrapped", "generator", Expected(LATE))
        logged = where.log.read_text().count("Clients wait for callbacks")
    assert (tried.timing, tried.watches[0].events, logged) == (LATE, CALLBACKS, 1)
