"""A file still goes out in each server's fast way, if it has one, and its callbacks run once."""

from __future__ import annotations

import re

import pytest

from .client import Connection, fetch
from .descriptions import BY_NAME
from .expectations import CALLBACKS
from .harness import SIZES, control, find, require, running

pytestmark = pytest.mark.servers

SENDFILE = [
    "gunicorn sync",
    "gunicorn gthread",
    "uWSGI --http-socket",
    "mod_wsgi embedded",
    "mod_wsgi daemon",
    "bjoern",
]


def bytes_sent(log):
    """How many bytes ``sendfile`` sent, according to ``strace``."""
    return sum(int(n) for n in re.findall(r"(?m)\bsendfile\b.*= (\d+)$", log.read_text()))


@pytest.mark.parametrize("name", SENDFILE)
def test_the_whole_file_goes_by_sendfile_and_the_callbacks_run_once(name, tmp_path):
    require([] if find("strace") else ["strace"])
    log = tmp_path / "strace"
    strace = ["strace", "-f", "-e", "trace=sendfile", "-o", str(log)]
    with running(BY_NAME[name], before=strace) as where:
        watch = control().watch()
        body = fetch(where.port, f"/wrapped/large_file?{watch.query}").partition(b"\r\n\r\n")[2]
        assert body == (where.directory / "large_file.bin").read_bytes()
        assert watch.done.wait(10)
    assert watch.events == CALLBACKS
    assert bytes_sent(log) == SIZES["large_file"]


def test_waitress_reads_as_much_as_it_can_send_and_a_slow_callback_stalls_nobody_else():
    """Not block by block, as it reads a body that it does not recognise as a file."""
    with running(BY_NAME["waitress"]) as where:
        watch = control().watch(patience=10)
        with Connection(where.port) as connection:
            connection.request(f"/wrapped/large_file?{watch.query}")
            connection.read_response("GET", watch.headers.set)
            assert watch.slow.wait(10)
            sizes = where.about()["reads"]  # another connection is served
            assert watch.had is None  # while the callback runs
            watch.end.set()
            assert watch.done.wait(10)
    assert watch.events == CALLBACKS
    assert sizes
    assert 65536 not in sizes
