"""In a sub-interpreter, which mod_wsgi makes for each app, requests end as they do everywhere.

On real Apache: ``tests/servers/test_mod_wsgi.py``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sub_interpreter.py")

BODY = ["200 OK []", "hello", "world"]
CALLBACKS = ["callback after 200 OK, in its thread", "second callback"]
RESPONSE = [*BODY, "close()", *CALLBACKS, "served"]
END = ["the interpreter ends", "the interpreter has ended"]


@pytest.fixture(params=["legacy", "isolated"])
def kind(request):
    """Of a sub-interpreter."""
    return request.param


@pytest.fixture
def events_of(kind):
    """Run a function of ``sub_interpreter.py`` in an interpreter of this kind; what it prints."""

    def events_of(name):
        done = subprocess.run(
            [sys.executable, SCRIPT, kind, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    return events_of


def test_callbacks_run_in_close_in_the_thread_of_the_request(events_of):
    assert events_of("ordinary") == [*RESPONSE, *END]


def test_a_callback_that_raises_is_logged_and_the_others_run(events_of):
    logged = """logged: ERROR ValueError("invalid literal for int() with base 10: 'one'")"""
    assert events_of("error_in_callback") == [
        *(*BODY, "close()", logged, *CALLBACKS, "served"),
        *END,
    ]


def test_the_callbacks_of_an_app_that_raises_run_before_the_server_knows(events_of):
    assert events_of("error_in_app") == [
        *("200 OK []", *CALLBACKS, "raised: on purpose", "served"),
        *END,
    ]


def test_the_callbacks_of_a_body_that_raises_run_in_close(events_of):
    assert events_of("error_in_body") == [
        *("200 OK []", "hello", "close()", *CALLBACKS, "raised: on purpose", "served"),
        *END,
    ]


def test_after_this_response_finds_the_request(events_of):
    assert events_of("without_the_environ") == [
        *(*BODY, "close()", *CALLBACKS, "registered by a callback", "served"),
        *END,
    ]


def test_werkzeug_can_be_imported_to_prepare_a_response(events_of):
    _, *rest = RESPONSE
    assert events_of("prepared") == ["200 OK [('X-Prepared', 'yes')]", *rest, *END]


def test_a_pool_takes_the_callbacks_where_threads_are_allowed(events_of, kind):
    if kind == "isolated" and sys.version_info < (3, 12):
        end = ["logged: WARNING", *CALLBACKS]
    else:
        end = ["callback after 200 OK, elsewhere", "second callback"]
    assert events_of("pool") == ["200 OK []", *end, *END]


def test_the_callbacks_of_an_unclosed_response_run_where_it_is_dropped(events_of):
    assert events_of("dropped") == [
        *("200 OK []", "dropped", "warned: ResourceWarning", *CALLBACKS, "later"),
        *END,
    ]


def test_those_of_one_that_the_cycle_collector_finds_run_at_the_next_request(events_of):
    assert events_of("collected") == [
        *("200 OK []", "collected", "warned: ResourceWarning", *CALLBACKS),
        *RESPONSE,
        *END,
    ]


@pytest.mark.parametrize("name", ["collected_last", "never_collected"])
def test_without_a_next_request_they_run_where_the_interpreter_ends(events_of, name):
    """Whether or not the cycle collector has found the response before."""
    ends, ended = END
    assert events_of(name) == ["200 OK []", ends, "warned: ResourceWarning", *CALLBACKS, ended]
