"""Measure one server: each kind of response, with the middleware and without."""

from __future__ import annotations

import os
import re
import signal
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from .client import WAIT, Connection
from .control import PATIENCE, Watch
from .descriptions import BY_NAME
from .expectations import (
    CALLBACKS,
    END_LATE,
    GONE,
    IN_TIME,
    KINDS,
    LATE,
    SILENT,
    UNCLOSED,
    Expected,
    expected,
    freed_by_a_pool,
)
from .harness import Place, control, require, running


@dataclass(frozen=True)
class Tried:
    """What was seen of one kind of response in one mode of the app.

    :param timing: what the client waited for while a callback ran; empty for the bare app.
    :param wire: every byte that the client received, except dates.
    :param watches: the requests: two where a connection takes two, or after a second try.
    """

    timing: str
    wire: bytes
    watches: list[Watch]

    @property
    def reports(self) -> list[list[dict[str, Any]]]:
        """What the callbacks of each request reported, in order."""
        return [
            [report for report in watch.reports if report["event"] in CALLBACKS]
            for watch in self.watches
        ]


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured on one server, which was started once, and has ended."""

    cells: dict[str, dict[str, Tried]]  # by kind and mode
    not_cleared: set[str]  # ids of requests whose thread-local another request found
    sigterm: str  # what became of a callback in close() that needed 2 more seconds
    version: str  # of the server, and what is in front of it
    python: str  # 3.x, of the tests


def measured(name: str) -> Measurements:
    """What was measured on a server. The first call starts it; later calls return the same.

    :raises RuntimeError: if it could not be measured, which is not tried again.
    """
    require(BY_NAME[name].missing())
    found = _measured_once(name)
    if isinstance(found, RuntimeError):
        raise found
    return found


@cache
def _measured_once(name: str) -> Measurements | RuntimeError:
    """Start the server, measure every kind, see what SIGTERM does, and stop it."""
    server = BY_NAME[name]
    cells: dict[str, dict[str, Tried]] = {}
    try:
        with running(server) as where:
            for kind in KINDS:
                modes = ["bare", "closed", "wrapped", *["pool"] * freed_by_a_pool(name, kind)]
                cells[kind] = {
                    mode: attempt(where, mode, kind, expected(name, kind)) for mode in modes
                }
            about = where.about()
            sigterm = terminate(where, "wrapped")
    except Exception as error:
        return RuntimeError(f"{name}, after {list(cells)}: {error!r}")
    version = server.version() + (f", mod_wsgi {about['mod_wsgi']}" if about["mod_wsgi"] else "")
    python = "{}.{}".format(*sys.version_info)
    return Measurements(cells, set(about["not_cleared"]), sigterm, version, python)


@cache
def sigterm_in_a_pool(name: str) -> str:
    """What becomes of a callback in a pool that needs 2 more seconds at SIGTERM."""
    with running(BY_NAME[name]) as where:
        return terminate(where, "pool")


def attempt(where: Place, mode: str, kind: str, expected: Expected) -> Tried:
    """Try one kind of response; if the client seems to wait, try a second time, for longer.

    One observation proves that the client had the response before the callback ended. If the client
    did not have it, a busy machine may be the reason.
    """
    if mode in {"bare", "closed"}:
        return Exchange(where, mode, kind, expected, patience=0).run()
    tried = Exchange(where, mode, kind, expected).run()
    if tried.timing == IN_TIME or (expected.timing != IN_TIME and mode != "pool"):
        return tried
    again = Exchange(where, mode, kind, expected, patience=5).run()
    return Tried(again.timing, again.wire, tried.watches + again.watches)


def nobody_waits(
    where: Place, kind: str, timing: str = IN_TIME, *, elsewhere: bool = False
) -> bytes:
    """Assert that no client waits, and that callbacks run once, in the thread of the app's call.

    :param elsewhere: whether they may run in another thread.
    :return: what the client received.
    """
    timing = GONE if kind == "hang_up" else timing
    tried = attempt(where, "wrapped", kind, Expected(timing))
    assert (kind, tried.timing) == (kind, timing), where.log.read_text()[-3000:]
    for reports in tried.reports:
        check(reports, elsewhere=elsewhere or timing == UNCLOSED)
    return tried.wire


def check(reports: list[dict[str, Any]], *, elsewhere: bool = False) -> None:
    """Assert that the callbacks of a request ran once, in the thread of the app's call."""
    assert [report["event"] for report in reports] == CALLBACKS
    here = [report["here"][:3] for report in reports]
    assert elsewhere or here == [report["called"][:3] for report in reports]


def received_bare(where: Place, kind: str) -> bytes:
    """What a client of the bare app receives."""
    return attempt(where, "bare", kind, Expected(IN_TIME)).wire


def ask_in_http_1_0(where: Place, kind: str, seconds: float) -> Watch:
    """Ask once, in HTTP/1.0; return when the last callback has ended.

    :param seconds: how long a callback waits for the client to have the response.
    """
    watch = control().watch(seconds)
    with Connection(where.port) as client:
        client.socket.sendall(f"GET /wrapped/{kind}?{watch.query} HTTP/1.0\r\n\r\n".encode())
        client.read_to_end()
    watch.end.set()
    assert watch.done.wait(WAIT), where.log.read_text()
    check(watch.reports)
    return watch


def ask_twice(where: Place, seconds: float) -> Watch:
    """Send two requests on one connection, the first with a callback.

    :param seconds: how long the callback waits for the end of the second response.
    """
    watch = control().watch(seconds)
    with Connection(where.port) as client:
        for path in (f"wrapped/list_with_length?{watch.query}", "bare/list_with_length"):
            client.request(f"/{path}")
            client.read_response("GET", lambda: None)
        watch.end.set()
        assert watch.done.wait(WAIT), where.log.read_text()
    assert client.received.count(b"hello list") == 2
    return watch


@dataclass
class Exchange:
    """One connection, with one request of this kind on it, or two; then one to the bare app.

    The last one shows whether anything came after the response. A connection that the server
    closes, or says it will close, gets no further request.
    """

    where: Place
    mode: str
    kind: str
    expected: Expected
    patience: float = PATIENCE

    def run(self) -> Tried:
        """Send the requests, and read everything that comes."""
        watches: list[Watch] = []
        with Connection(self.where.port) as connection:
            if self.expected.timing == SILENT:
                connection.socket.settimeout(2)
            while connection.reusable and len(watches) < (2 if self.kind == "two_requests" else 1):
                before = len(connection.received)
                watch = self._send(connection)
                if watches and len(connection.received) == before and not watch.events:
                    break  # the server had closed without notice: not a second request
                watches.append(watch)
            if connection.reusable:
                connection.request("/bare/list_with_length", connection="close")
            if connection.open:
                connection.read_to_end()
        timing = "" if self.mode == "bare" else timing_of(self.where, watches[0])
        return Tried(timing, normalise(bytes(connection.received)), watches)

    def _send(self, connection: Connection) -> Watch:
        """Send a request, read its response, and wait until its callbacks have run."""
        method = "HEAD" if self.kind == "head" else "GET"
        watch = control().watch(self.patience)
        target = f"/{self.mode}/{self.kind}?{watch.query}"
        connection.request(target, method, self.expected.connection)
        if self.kind == "hang_up":
            assert watch.mid_body.wait(10), "the app never came to the middle of its body"
            connection.read_a_part(b"first chunk", 0.2)
            connection.hang_up()
            watch.gone.set()
        else:
            self._read(connection, method, watch)
        if self.mode != "bare":
            watch.done.wait(0.5 if self.expected.timing == UNCLOSED else 5)
        return watch

    def _read(self, connection: Connection, method: str, watch: Watch) -> None:
        try:
            connection.read_response(method, watch.headers.set)
        except TimeoutError:
            if connection.received:
                raise
            connection.open = False
        else:
            watch.end.set()
            if not connection.reusable:  # a server may linger until the client closes its end, too
                connection.read_to_end()
                connection.socket.close()


def timing_of(where: Place, watch: Watch) -> str:
    """What the client waited for; collect garbage if nothing else made the callbacks run."""
    if not watch.events:
        where.about("wrapped")  # a request through the middleware runs what was collected
        assert watch.done.wait(5), "the callbacks did not run, not even at garbage collection"
        return UNCLOSED
    if watch.gone.is_set():
        return GONE
    if not watch.end.is_set():
        return SILENT
    assert watch.had is not None
    headers, end = watch.had
    if end:  # maybe without headers: uWSGI answers some exceptions like this
        return IN_TIME
    return END_LATE if headers else LATE


def normalise(wire: bytes) -> bytes:
    """Everything that was received, except the time of day."""
    return re.sub(rb"(?im)^(date|last-modified|expires): [^\r]*", rb"\1: then", wire)


def terminate(where: Place, mode: str) -> str:
    """Send SIGTERM while a callback runs that needs 2 more seconds; return what becomes of it."""
    watch = control().watch(patience=2)
    with Connection(where.port) as connection:
        connection.request(f"/{mode}/list_with_length?{watch.query}")
        if not watch.slow.wait(10):
            assert mode == "pool", "the callback did not run"
            return "does not run"
        os.kill(where.pid, signal.SIGTERM)
        return "finishes" if watch.done.wait(3) else "lost"
