"""In a sub-interpreter, which mod_wsgi makes for each app, requests end as they do elsewhere.

``tests/servers/test_mod_wsgi.py`` tests this on real Apache.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sub_interpreter.py")

BODY = ["200 OK []", "hello", "world"]
CALLBACKS = ["callback after 200 OK, in its thread", "second callback"]
IN_CLOSE = ["close()", *CALLBACKS]
RESPONSE = [*BODY, *IN_CLOSE, "served"]
DROPPED = ["warned: ResourceWarning", *CALLBACKS]
FAILED = """logged: ERROR ValueError("invalid literal for int() with base 10: 'one'")"""

#: For each name in ``sub_interpreter.py``: what happens before the interpreter ends.
EVENTS = {
    "ordinary": RESPONSE,
    "error_in_callback": [*BODY, "close()", FAILED, *CALLBACKS, "served"],
    "without_the_environ": [*BODY, *IN_CLOSE, "registered by a callback", "served"],
    "prepared": ["200 OK [('X-Prepared', 'yes')]", *RESPONSE[1:]],
    "pool": ["200 OK []", "callback after 200 OK, elsewhere", "second callback"],
    "dropped": ["200 OK []", "dropped", *DROPPED, "later"],
    "collected": ["200 OK []", "collected", *DROPPED, *RESPONSE],
}
NO_THREADS = ["200 OK []", "logged: WARNING", *CALLBACKS]


KINDS = ["legacy", "isolated", *["concurrent"] * (sys.version_info >= (3, 14))]


@pytest.fixture(params=KINDS)
def kind(request):
    """The kind of a sub-interpreter."""
    return request.param


def events_of(kind, name, number=1):
    """Run the function of this name in ``number`` interpreters of this kind; return the output."""
    done = subprocess.run(
        [sys.executable, SCRIPT, kind, name, str(number)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", EVENTS)
def test_requests_end_as_in_the_main_interpreter(name, kind):
    expected = EVENTS[name]
    if (name, kind) == ("pool", "isolated") and sys.version_info < (3, 12):
        expected = NO_THREADS
    assert events_of(kind, name) == [
        *expected,
        *("the interpreter ends", "the interpreter has ended"),
    ]


@pytest.mark.parametrize("name", ["collected_last", "never_collected"])
def test_without_a_next_request_they_run_where_the_interpreter_ends(name, kind):
    """Whether or not the cycle collector has already found the response."""
    assert events_of(kind, name) == [
        *("200 OK []", "the interpreter ends", *DROPPED, "the interpreter has ended")
    ]


def test_interpreters_serve_at_the_same_time(kind):
    """Those with a GIL of their own run on two cores."""
    assert events_of(kind, "many", 4) == [
        *["each of 1,000 callbacks ran once: True"] * 4,
        *["the interpreter ends", "the interpreter has ended"] * 4,
    ]
