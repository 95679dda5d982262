"""Sub-interpreters, as mod_wsgi makes one for each app: requests there end as everywhere.

On real Apache: ``tests/servers/test_interpreters.py``.
"""

from __future__ import annotations

import re
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
def happens(kind):
    """Run a function of ``sub_interpreter.py`` in an interpreter of this kind: all that it prints."""

    def happens(name: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, SCRIPT, kind, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return re.sub(
            r"(?m)^.*: (ResourceWarning): .*\n(  .*\n)?", r"\1\n", done.stdout
        ).splitlines()

    return happens


def test_callbacks_run_in_close_in_the_thread_of_the_request(happens):
    assert happens("ordinary") == [*RESPONSE, *END]


def test_a_callback_that_raises_is_logged_and_the_others_run(happens):
    logged = """logged: ERROR ValueError("invalid literal for int() with base 10: 'one'")"""
    assert happens("error_in_callback") == [*BODY, "close()", logged, *CALLBACKS, "served", *END]


def test_the_callbacks_of_an_app_that_raises_run_before_the_server_knows(happens):
    assert happens("error_in_app") == [
        *("200 OK []", *CALLBACKS, "raised: on purpose", "served"),
        *END,
    ]


def test_the_callbacks_of_a_body_that_raises_run_in_close(happens):
    assert happens("error_in_body") == [
        *("200 OK []", "hello", "close()", *CALLBACKS, "raised: on purpose", "served"),
        *END,
    ]


def test_after_this_response_finds_the_request(happens):
    assert happens("without_the_environ") == [
        *(*BODY, "close()", *CALLBACKS, "registered by a callback", "served"),
        *END,
    ]


def test_werkzeug_can_be_imported_to_prepare_a_response(happens):
    _, *rest = RESPONSE
    assert happens("prepared") == ["200 OK [('X-Prepared', 'yes')]", *rest, *END]


def test_a_pool_takes_the_callbacks_where_threads_are_allowed(happens, kind):
    elsewhere = ["callback after 200 OK, elsewhere", "second callback"]
    found = happens("pool")
    if kind == "isolated" and sys.version_info < (3, 12):
        assert found == [*BODY, "close()", "logged: WARNING", *CALLBACKS, "served", *END]
    else:
        assert [event for event in found if event not in elsewhere] == [
            *(*BODY, "close()", "served"),
            *END,
        ]
        assert [event for event in found if event in elsewhere] == elsewhere


def test_the_callbacks_of_a_response_that_is_dropped_unclosed_run_at_once(happens):
    assert happens("dropped") == [
        "200 OK []",
        "dropped",
        "ResourceWarning",
        *CALLBACKS,
        "later",
        *END,
    ]


def test_those_of_a_response_that_the_cycle_collector_finds_run_at_the_next_request(happens):
    assert happens("collected") == [
        *("200 OK []", "collected", "ResourceWarning", *CALLBACKS),
        *RESPONSE,
        *END,
    ]


@pytest.mark.parametrize("name", ["collected_last", "never_collected"])
def test_without_a_next_request_they_run_where_the_interpreter_ends(happens, name):
    """Whether the cycle collector finds the response before, or not until then."""
    ends, ended = END
    assert happens(name) == ["200 OK []", ends, "ResourceWarning", *CALLBACKS, ended]
