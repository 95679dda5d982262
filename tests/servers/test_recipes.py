"""The recipes for servers that have no moment of their own: no client waits on them."""

from __future__ import annotations

import dataclasses
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from documents import DOCS, blocks

from .client import Connection
from .descriptions import BY_NAME, PYTHON, apache_with, mod_wsgi, package
from .expectations import (
    BODY_ERRORS,
    CALLBACKS,
    END_LATE,
    IN_HTTP_1_0,
    IN_TIME,
    KINDS,
    LATE,
    UNCLOSED,
    Expected,
)
from .harness import control, require, running, send
from .measure import (
    ask_in_http_1_0,
    ask_twice,
    attempt,
    check,
    nobody_waits,
    received_bare,
    terminate,
)

pytestmark = pytest.mark.servers
PAGE = blocks("for-a-server.rst")
OTHERS = ["slot_server.py", "without.py", "slots.py", "waitress.patch", "gunicorn.patch"]
WAIT = 10  # seconds to wait for what should take none

#: Recipe → what it needs.
RECIPES = {
    "cheroot_serve.py": ["cheroot"],
    "gevent_serve.py": ["gevent"],
    "eventlet_serve.py": ["eventlet"],
    "eventlet_hooks.py": ["eventlet"],
    "twisted_serve.py": ["Twisted"],
    "a2wsgi_serve.py": ["a2wsgi", "uvicorn"],
    "hypercorn_serve.py": ["hypercorn"],
}
#: Recipes whose clients wait for the end of the connection.
ENDS_LATE = ["eventlet_hooks.py"]


def recipe(name):
    """The server that a recipe starts, with the app of the matrix."""

    def commands(where):
        where.write("slots.py", PAGE["slots.py"])
        shown = PAGE[name].replace("8000", str(where.port)).replace("shop", "kinds")
        # With debug, the default, eventlet's error pages are tracebacks, which name each function.
        if "eventlet" in name:
            shown = shown.rstrip().removesuffix(")") + ", debug=False)"
        return [[PYTHON, where.write(name, shown)]]

    return package(name, commands, *RECIPES[name])


def test_everything_on_the_page_is_run_by_a_test():
    assert sorted(PAGE) == sorted([*OTHERS, *RECIPES])


@pytest.fixture(scope="module", params=RECIPES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def where(name):
    with running(recipe(name)) as place:
        yield place


@pytest.mark.parametrize("kind", KINDS)
def test_no_client_waits_and_callbacks_run_once_in_the_requests_own_thread(where, name, kind):
    timing = UNCLOSED if name == "twisted_serve.py" and kind in BODY_ERRORS else IN_TIME
    received = nobody_waits(where, kind, timing)
    assert kind == "hang_up" or received == received_bare(where, kind)


@pytest.mark.parametrize("kind", IN_HTTP_1_0)
def test_a_response_in_http_1_0_ends_first(where, name, kind):
    waits = name in ENDS_LATE
    assert ask_in_http_1_0(where, kind, 0.5 if waits else WAIT).had == (False, not waits)


def test_the_callbacks_run_in_close_where_the_response_is_closed_in_another_thread(where):
    tried = attempt(where, "thread", "list_with_length", Expected(END_LATE))
    [reports] = tried.reports
    assert tried.timing in {END_LATE, LATE}
    check(reports)


#: Recipes in which the next request on a connection waits, because it runs in the same greenlet.
NEXT_WAITS = ["gevent_serve.py", "eventlet_serve.py", "eventlet_hooks.py"]


def test_the_next_request_on_a_connection_waits_where_the_page_says_so(where, name):
    waits = name in NEXT_WAITS
    assert ask_twice(where, 0.5 if waits else WAIT).had == (False, not waits)


def test_the_callbacks_of_requests_at_the_same_time_run_once_each(where):
    with ThreadPoolExecutor(8) as clients:
        paths = ["wrapped/list_with_length", "wrapped/generator"] * 32
        watches = list(clients.map(partial(send, where, patience=0), paths))
    assert all(watch.done.wait(WAIT) for watch in watches), where.log.read_text()
    assert [watch.events for watch in watches] == [CALLBACKS] * len(paths)


FINISHES = ["twisted_serve.py", "a2wsgi_serve.py", "hypercorn_serve.py"]


def test_a_callback_finishes_after_sigterm_where_the_page_says_so(name):
    with running(recipe(name)) as place:
        assert terminate(place, "wrapped") == ("finishes" if name in FINISHES else "lost")


# Where there is no moment.

EVENTS = """
import kinds
import mod_wsgi

def application(environ, start_response):
    mod_wsgi.request_data()["query"] = kinds.query_of(environ)
    return kinds.application(environ, start_response)

def note(name, **event):
    if name == "request_finished" and "control" in event["request_data"]["query"]:
        kinds.say(event["request_data"]["query"], "slow")

mod_wsgi.subscribe_events(note)
"""


def test_mod_wsgi_publishes_that_a_request_has_finished_before_the_last_chunk():
    def commands(where):
        where.write("events.py", EVENTS)
        group = "WSGIApplicationGroup %{GLOBAL}"
        return [apache_with(where, [group, *mod_wsgi(where, "events.py", daemon=False)])]

    server = dataclasses.replace(BY_NAME["mod_wsgi embedded"], commands=commands)
    with running(server) as where:
        watch = control().watch()
        with Connection(where.port) as client:
            client.request(f"/bare/list_without_length?{watch.query}")
            client.read_response("GET", watch.headers.set)
    assert watch.had == (True, False)


#: Lines of adapters and servers that a page names, by page and file, with what they must contain.
NAMED = {
    ("for-a-server.rst", "tornado/wsgi.py"): {
        178: "close()",
        201: "write_headers",
        202: "connection.finish()",
    },
    ("for-a-server.rst", "granian/wsgi.py"): {64: "return resp.status"},
    ("serverless.rst", "apig_wsgi/__init__.py"): {278: "close()"},
    ("serverless.rst", "serverless_wsgi.py"): dict.fromkeys([247, 303, 351], "Response.from_app"),
}


@pytest.mark.parametrize(("page", "file"), NAMED)
def test_the_lines_that_a_page_names_do_what_it_says(page, file):
    named = NAMED[page, file]
    name = file.split("/")[0].removesuffix(".py")
    found = importlib.util.find_spec(name)
    require([name] if found is None else [])
    lines = Path(found.origin).with_name(file.split("/")[-1]).read_text().splitlines()
    assert f"({file}:{min(named)}" in " ".join((DOCS / page).read_text().split())
    assert [text for line, text in named.items() if text not in lines[line - 1]] == []
