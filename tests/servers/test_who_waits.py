"""Each kind of response on each server: where and how often callbacks run, and who waits."""

from __future__ import annotations

from typing import Any

import pytest

from .descriptions import SERVERS
from .expectations import (
    CALLBACKS,
    DEVIATIONS,
    ELSEWHERE,
    IN_TIME,
    KINDS,
    ORDINARY,
    RECHUNKED,
    REFRAMED,
    expected,
    freed_by_a_pool,
    runs_elsewhere,
)
from .measure import measured
from .page import PATH, measured_page

pytestmark = pytest.mark.servers

NAMES = [server.name for server in SERVERS]
every_cell = pytest.mark.parametrize(
    ("server", "kind"), [(name, kind) for name in NAMES for kind in KINDS]
)
GREENLETS = {"gunicorn gevent", "wsgi_after.gunicorn.Gevent", "gevent.pywsgi", "eventlet"}


@every_cell
def test_the_callbacks_run_once_in_order(server, kind):
    for mode, tried in measured(server).cells[kind].items():
        events = [[report["event"] for report in reports] for reports in tried.reports]
        assert events == [[] if mode == "bare" else CALLBACKS] * len(tried.watches), mode


@every_cell
def test_the_client_receives_what_the_bare_app_sends(server, kind):
    tried = measured(server).cells[kind]
    seen_as: Any = bytes
    if kind in REFRAMED.get(server, []):
        seen_as = without_framing
    elif server in RECHUNKED:
        seen_as = joined
    for mode in tried.keys() & {"wrapped", "pool"}:
        assert seen_as(tried[mode].wire) == seen_as(tried["bare"].wire), mode


def callbacks(server, kind):
    """The reports of the callbacks that ran without a pool."""
    cell = measured(server).cells[kind]
    return [
        report for mode in ("closed", "wrapped") for found in cell[mode].reports for report in found
    ]


@every_cell
def test_the_callbacks_run_where_the_server_calls_close(server, kind):
    """In its thread and greenlet; a context variable that ``close()`` set is still set there.

    The exception is a server that closes a file in the thread that serves all sockets. If it could
    send the whole file before that, it closes the file where the app was called.
    """
    found = [report for report in callbacks(server, kind) if "closed" in report]
    assert found or kind in {"error_before_return", "write"}  # not every server has a write()
    elsewhere = kind in ELSEWHERE.get(server, ([],))[0]
    same = [r["here"] == [*r["closed"][:3], f"closed {r['id']}"] for r in found]
    assert same == [not elsewhere or r["closed"][:3] == r["called"][:3] for r in found]


@every_cell
def test_that_is_where_the_app_was_called(server, kind):
    """In the thread, the greenlet and the context of the request."""
    found = callbacks(server, kind)
    same = [r.get("closed", r["here"]) == r["called"] for r in found]
    assert all(same) or runs_elsewhere(server, kind)
    assert {r["here"][2] is not None for r in found} == {server in GREENLETS}


@every_cell
def test_the_next_request_of_a_thread_finds_what_a_callback_cleared(server, kind):
    ids = {report["id"] for report in callbacks(server, kind)}
    assert runs_elsewhere(server, kind) or not ids & measured(server).not_cleared


@every_cell
def test_the_client_waits_for_a_callback_just_where_it_is_expected(server, kind):
    assert measured(server).cells[kind]["wrapped"].timing == expected(server, kind).timing


@pytest.mark.parametrize(
    ("server", "kind"),
    [(name, kind) for name in NAMES for kind in KINDS if freed_by_a_pool(name, kind)],
)
def test_with_a_pool_that_client_does_not_wait(server, kind):
    assert measured(server).cells[kind]["pool"].timing == IN_TIME


def test_the_page_says_what_is_measured():
    assert PATH.read_text() == measured_page(), "run python -m tests.servers --write"


def unchunked(rest):
    """The chunked body at the start of ``rest``, with its chunks joined, and what follows it."""
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return body, rest[2:]
        body, rest = body + rest[:length], rest[length + 2 :]
    return body + b" (cut off)", b""


def joined(wire):
    """The first response's headers, its body if that was chunked, joined, and the rest."""
    head, _, rest = wire.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        return head, *unchunked(rest)
    return head, b"", rest


def without_framing(wire):
    """The same without the headers that say how long the body is."""
    head, body, rest = joined(wire)
    framing = (b"content-length:", b"transfer-encoding:")
    headers = [line for line in head.split(b"\r\n") if not line.lower().startswith(framing)]
    return headers, body + rest


def test_every_deviation_deviates_and_names_its_reason():
    assert DEVIATIONS.keys() <= set(NAMES)
    for deviations in DEVIATIONS.values():
        for kinds, timing, reason in deviations:
            assert reason
            assert not [kind for kind in kinds if ORDINARY[kind] == timing]
