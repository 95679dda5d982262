"""Measure one server: each kind of response, with the middleware and without."""

from __future__ import annotations

import os
import re
import signal
import sys
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlencode

from .client import Connection
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
    expected_by_default,
)
from .harness import SIZES, Place, control, require, running


@dataclass(frozen=True)
class Measured:
    """One cell of the matrix.

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

    cells: dict[str, Measured]
    sigterm: str  # what became of a callback that still had 2 seconds to go
    version: str  # of the server, and what is in front of it
    python: str  # 3.x, of the tests


#: What is expected of a cell, by mode: always in ``close()``, and where the middleware decides.
EXPECTED = {"inline": expected, "default": expected_by_default}
#: Where the callback runs that SIGTERM meets: where it is always in a pool, by default too.
SIGTERM = {"inline": "inline", "default": "pool"}


def measured(name: str, mode: str = "inline") -> Measurements:
    """What was measured on a server, which is started at the first call; later ones repeat it.

    :raises RuntimeError: if it could not be measured, which is not tried again.
    """
    require(BY_NAME[name].missing())
    found = _measured_once(name, mode)
    if isinstance(found, RuntimeError):
        raise found
    return found


@cache
def _measured_once(name: str, mode: str) -> Measurements | RuntimeError:
    """Start the server, measure every kind, see what SIGTERM does, and stop it."""
    server = BY_NAME[name]
    cells: dict[str, Cell] = {}
    try:
        with running(server) as where:
            for kind in KINDS:
                cells[kind] = measure(where, mode, kind, EXPECTED[mode](name, kind))
            mod_wsgi = where.about()["mod_wsgi"]
            sigterm = terminate(where, SIGTERM[mode])
    except Exception as error:
        return RuntimeError(f"{name}, {mode}, after {list(cells)}: {error!r}")
    version = server.version() + (f", mod_wsgi {mod_wsgi}" if mod_wsgi else "")
    python = "{}.{}".format(*sys.version_info)
    # Only now: what a server runs at its end, such as finalizers, has run.
    found = {kind: cell.measured() for kind, cell in cells.items()}
    return Measurements(found, sigterm, version, python)


@dataclass
class Cell:
    """One cell, while its server runs."""

    watches: list[Watch]
    timing: str
    bare: bytes
    wire: bytes

    def measured(self) -> Measured:
        """What is known of it when the server has ended."""
        reported = [
            [event for event in watch.events if event in CALLBACKS] for watch in self.watches
        ]
        wire = self.bare if self.wire == self.bare else self.wire  # 20 MB of a large file, once
        return Measured(self.timing, tuple(reported), self.bare, wire)


def measure(where: Place, mode: str, kind: str, expected: Expected) -> Cell:
    """Measure one kind of response; a client that seems to wait is given a second, longer try.

    That it had the response before the callback ended is proven by seeing it once. That it did not
    have it might be a busy machine's fault.
    """
    _, bare = Exchange(where, "bare", kind, expected).run()
    watches, wire = Exchange(where, mode, kind, expected).run()
    timing = timing_of(where, watches[0])
    if expected.timing == IN_TIME != timing:
        watches, wire = Exchange(where, mode, kind, expected, patience=5).run()
        timing = timing_of(where, watches[0])
    return Cell(watches, timing, bare, wire)


@dataclass
class Exchange:
    """One connection, with one request of this kind on it, or two; then one to the bare app.

    The last one shows whether anything stood on the wire behind the response. A connection that the
    server closes, or says it will, gets no further request.
    """

    where: Place
    mode: str
    kind: str
    expected: Expected
    patience: float = PATIENCE

    def run(self) -> tuple[list[Watch], bytes]:
        """What the app reported of each request, and every byte that came."""
        watches: list[Watch] = []
        with Connection(self.where.port) as connection:
            if self.expected.timing == SILENT:
                connection.socket.settimeout(2)
            while connection.reusable and len(watches) < (2 if self.kind == "two_requests" else 1):
                before = len(connection.received)
                watch = self._send(connection)
                if watches and len(connection.received) == before and not watch.events:
                    break  # the server had closed without a word: it is no second request
                watches.append(watch)
            if connection.reusable:
                connection.request("/bare/list_with_length?id=0&control=0", connection="close")
            if connection.open:
                connection.read_to_end()
        return watches, normalise(bytes(connection.received))

    def _send(self, connection: Connection) -> Watch:
        """Send a request, read its response, and wait until its callbacks have run."""
        method = "HEAD" if self.kind == "head" else "GET"
        key, watch = control().watch(self.patience)
        query = {"control": control().port, "id": key}
        if self.kind in SIZES:
            query["file"] = str(self.where.file(self.kind))
        target = f"/{self.mode}/{self.kind}?{urlencode(query)}"
        connection.request(target, method, self.expected.connection)
        if self.kind == "hang_up":
            assert watch.mid_body.wait(10), "the app never came to the middle of its body"
            connection.read_a_part(b"first chunk", 0.2)
            connection.hang_up()
            watch.gone.set()
        else:
            self._read(connection, method, watch)
        if self.mode != "bare" and (watch.events or connection.received):
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


def timing_of(where: Place, watch: Watch) -> str:
    """Who waited for whom; garbage is collected if nothing else made the callbacks run."""
    if not watch.events:
        where.about()
        assert watch.done.wait(5), "the callbacks did not run, not even at garbage collection"
        return UNCLOSED
    if watch.gone.is_set():
        return GONE
    if not watch.end.is_set():
        return SILENT
    assert watch.had is not None
    return {(True, True): IN_TIME, (True, False): END_LATE, (False, False): LATE}[watch.had]


def normalise(wire: bytes) -> bytes:
    """Everything that was received, but for the time of day."""
    return re.sub(rb"(?im)^(date|last-modified|expires): [^\r]*", rb"\1: then", wire)


def terminate(where: Place, mode: str) -> str:
    """Send SIGTERM while a callback runs that needs 2 seconds more; what becomes of it."""
    key, watch = control().watch(patience=2)
    with Connection(where.port) as connection:
        query = urlencode({"control": control().port, "id": key})
        connection.request(f"/{mode}/list_with_length?{query}")
        if not watch.slow.wait(10):
            assert mode == "pool", "the callback did not run"
            return "does not run"
        os.kill(where.pid, signal.SIGTERM)
        return "finishes" if watch.done.wait(3) else "lost"
