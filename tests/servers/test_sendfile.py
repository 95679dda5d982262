"""A file still goes out the fast way of each server that has one, and its callbacks run once."""

from __future__ import annotations

import io
import re
import wsgiref.handlers
import wsgiref.util
from pathlib import Path
from typing import Any

import pytest

from wsgi_after import AfterResponseMiddleware

from .client import Connection
from .control import Watch
from .descriptions import BY_NAME
from .expectations import CALLBACKS
from .harness import SIZES, Place, control, find, require, running

pytestmark = pytest.mark.servers

SENDFILE = [
    "gunicorn sync",
    "gunicorn gthread",
    "uWSGI --http-socket",
    "mod_wsgi embedded",
    "mod_wsgi daemon",
    "bjoern",
]


def fetch(where: Place, mode: str) -> tuple[Watch, bytes]:
    """One request for the large file, and the body of its response."""
    watch = control().watch()
    with Connection(where.port) as connection:
        connection.request(f"/{mode}/large_file?{watch.query}", connection="close")
        connection.read_response("GET", watch.headers.set)
        watch.end.set()
        if mode == "wrapped":
            assert watch.done.wait(10)
        connection.read_to_end()
    return watch, bytes(connection.received.partition(b"\r\n\r\n")[2])


def bytes_sent(log: Path) -> int:
    """How many bytes ``sendfile`` sent, by what ``strace`` says."""
    return sum(int(n) for n in re.findall(r"(?m)\bsendfile\b.*= (\d+)$", log.read_text()))


@pytest.mark.parametrize("name", SENDFILE)
def test_the_whole_file_goes_by_sendfile_and_the_callbacks_run_once(
    name: str, tmp_path: Path
) -> None:
    server = BY_NAME[name]
    require([*server.missing(), *([] if find("strace") else ["strace"])])
    log = tmp_path / "strace"
    strace = ["strace", "-f", "-e", "trace=sendfile", "-o", str(log)]
    with running(server, before=strace) as where:
        watch, body = fetch(where, "wrapped")
        assert body == (where.directory / "large_file.bin").read_bytes()
    assert watch.events == CALLBACKS
    assert bytes_sent(log) == SIZES["large_file"]


def reads(where: Place, mode: str) -> set[int]:
    """The sizes in which a server reads the file."""
    fetch(where, mode)
    sizes: list[int] = where.about()["reads"]
    return set(sizes)


@pytest.mark.parametrize("mode", ["bare", "wrapped"])
def test_waitress_reads_as_much_as_it_can_send(mode: str) -> None:
    """Not block by block, which is what it does with a body that it does not know as a file."""
    server = BY_NAME["waitress"]
    require(server.missing())
    with running(server) as where:
        found = reads(where, mode)
    assert found
    assert 65536 not in found


def test_on_waitress_a_slow_callback_after_a_large_file_stalls_nobody_else() -> None:
    server = BY_NAME["waitress"]
    require(server.missing())
    with running(server) as where:
        watch = control().watch(patience=10)
        with Connection(where.port) as connection:
            connection.request(f"/wrapped/large_file?{watch.query}")
            connection.read_response("GET", watch.headers.set)
            assert watch.slow.wait(10)
            where.about()  # another connection is served
            assert watch.had is None  # while the callback runs
            watch.end.set()
            assert watch.done.wait(10)
    assert watch.events == CALLBACKS


class Handler(wsgiref.handlers.SimpleHandler):
    """A handler of wsgiref that can send a file, which is what ``sendfile`` is there for."""

    sent = b""

    def sendfile(self) -> bool:
        file: Any = self.result
        self.send_headers()
        self.sent = file.filelike.read()
        return True


def test_wsgiref_sends_the_file_itself() -> None:
    events = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.after"].append(lambda: events.append("callback"))
        start_response("200 OK", [("Content-Length", "7")])
        return environ["wsgi.file_wrapper"](io.BytesIO(b"content"))

    environ: dict[str, Any] = {}
    wsgiref.util.setup_testing_defaults(environ)
    handler = Handler(io.BytesIO(), io.BytesIO(), io.StringIO(), environ)
    handler.run(AfterResponseMiddleware(app))
    assert handler.sent == b"content"
    assert events == ["callback"]
