"""Measure one server: each kind of response, with the middleware and without."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlencode

from .client import Connection
from .control import PATIENCE, Watch
from .descriptions import BY_NAME
from .expectations import (
    END_LATE,
    GONE,
    IN_TIME,
    KINDS,
    LATE,
    Expected,
    expected,
    expected_by_default,
)
from .harness import SIZES, Place, control, require, running

#: By mode: always in close(), and what is left out.
EXPECTED = {"inline": expected, "default": expected_by_default}


@dataclass(frozen=True)
class Measured:
    """One cell of the matrix: a kind of response, with callbacks inline or by default.

    :param timing: whether the client had its headers and its last byte before a slow callback
        ended.
    :param callbacks: what each request's callbacks reported, in order, to the end of the server.
    :param bare: every byte that a client of the bare app received, dates aside.
    :param wire: every byte that a client of the app in the middleware received.
    """

    timing: str
    callbacks: tuple[list[str], ...]
    bare: bytes
    wire: bytes


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured on one server, which was started once for it."""

    cells: dict[tuple[str, str], Measured]  # by mode and kind
    sigterm: str  # what became of a callback in close() that still had 2 seconds to go


@cache
def measured(name: str) -> Measurements:
    """Start the server, measure every kind, see what SIGTERM does, and stop it."""
    server = BY_NAME[name]
    require(server.missing())
    with running(server) as where:
        measured = {
            (mode, kind): measure(where, mode, kind, EXPECTED[mode](name, kind))
            for kind in KINDS
            for mode in EXPECTED
        }
        sigterm = terminate(where, "inline")
    # Only now: what a server runs at its end, such as finalizers, has run.
    cells = {
        cell: Measured(timing(watches[0]), events_of(watches), bare, wire)
        for cell, (watches, bare, wire) in measured.items()
    }
    return Measurements(cells, sigterm)


def measure(
    where: Place, mode: str, kind: str, expected: Expected
) -> tuple[list[Watch], bytes, bytes]:
    """Measure one kind of response; a client that seems to wait is given a second, longer try.

    That it had the response before the callback ended is proven by seeing it once. That it did not
    have it might be a busy machine's fault.
    """
    _, bare = exchange(where, "bare", kind)
    watches, wire = exchange(where, mode, kind)
    if expected.timing == IN_TIME != timing(watches[0]):
        watches, wire = exchange(where, mode, kind, patience=5)
    return watches, bare, wire


def exchange(
    where: Place, mode: str, kind: str, patience: float = PATIENCE
) -> tuple[list[Watch], bytes]:
    """One connection, with one request of this kind on it, or two; then one to the bare app.

    The last one shows whether anything stood on the wire behind the response. A connection that the
    server closes, or says it will, gets no further request.
    """
    watches: list[Watch] = []
    with Connection(where.port) as connection:
        while connection.reusable and len(watches) < (2 if kind == "two_requests" else 1):
            before = len(connection.received)
            watch = send(where, connection, mode, kind, patience)
            if watches and len(connection.received) == before and not watch.events:
                break  # the server had closed without a word: it is no second request
            watches.append(watch)
        if connection.reusable and kind != "hang_up":
            connection.request("/bare/list_with_length?id=0&control=0", connection="close")
        if kind != "hang_up":
            connection.read_to_end()
    return watches, normalise(bytes(connection.received))


def send(where: Place, connection: Connection, mode: str, kind: str, patience: float) -> Watch:
    """Send a request, read its response, and wait until its callbacks have run."""
    method = "HEAD" if kind == "head" else "GET"
    key, watch = control().watch(patience)
    query = {"control": control().port, "id": key}
    if kind in SIZES:
        query["file"] = str(where.file(kind))
    connection.request(f"/{mode}/{kind}?{urlencode(query)}", method)
    if kind == "hang_up":
        assert watch.mid_body.wait(10), "the app never came to the middle of its body"
        connection.read_a_part(b"first chunk", 0.2)
        connection.hang_up()
        watch.gone.set()
    else:
        connection.read_response(method, watch.headers.set)
        watch.end.set()
    if mode != "bare" and (watch.events or connection.received):
        watch.done.wait(5)
    return watch


def normalise(wire: bytes) -> bytes:
    """Everything that was received, but for the time of day."""
    return re.sub(rb"(?im)^(date|last-modified|expires): [^\r]*", rb"\1: then", wire)


def timing(watch: Watch) -> str:
    if watch.gone.is_set():
        return GONE
    assert watch.had is not None, f"no slow callback ran: {watch.events}"
    return {(True, True): IN_TIME, (True, False): END_LATE, (False, False): LATE}[watch.had]


def events_of(watches: list[Watch]) -> tuple[list[str], ...]:
    return tuple([event for event in watch.events if event != "in mid-body"] for watch in watches)


def terminate(where: Place, mode: str) -> str:
    """Send SIGTERM while a callback runs that needs 2 seconds more; what becomes of it.

    :param mode: ``"inline"`` for one in ``close()``, ``"pool"`` for one in a pool of threads.
    """
    key, watch = control().watch(patience=2)
    with Connection(where.port) as connection:
        query = urlencode({"control": control().port, "id": key})
        connection.request(f"/{mode}/list_with_length?{query}")
        assert watch.slow.wait(10), "the callback did not run"
        os.kill(where.pid, signal.SIGTERM)
        return "finishes" if watch.done.wait(3) else "lost"
