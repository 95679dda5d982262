"""Servers that fork, that use the environ again, that are told to end, that run greenlets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from . import descriptions
from .control import Watch
from .descriptions import BY_NAME, package, uwsgi_server
from .harness import Place, Server, require, running, send
from .measure import measured

pytestmark = pytest.mark.servers

WAIT = 10  # seconds, for what takes none


def gunicorn(*options: str, app: str = "pooled") -> Server:
    needs = ("gunicorn", "gevent") if "--worker-class=gevent" in options else ("gunicorn",)
    commands = descriptions.gunicorn(*options, app=app)
    return package(" ".join(["gunicorn", *options]), commands, *needs)


def uwsgi(*options: str) -> Server:
    commands = descriptions.uwsgi("--http-socket", *options, app="pooled")
    return uwsgi_server(" ".join(["uWSGI", *options]), commands)


@contextlib.contextmanager
def started(server: Server) -> Iterator[Place]:
    require(server.missing())
    with running(server) as where:
        yield where


FORKING = {
    gunicorn("--workers=2", "--threads=2", "--preload"): "imported before the fork",
    gunicorn("--workers=2", "--threads=2"): "imported here",
    uwsgi("--processes=2", "--enable-threads"): "imported before the fork",
    uwsgi("--processes=2", "--enable-threads", "--py-call-osafterfork"): "imported before the fork",
    uwsgi("--processes=2", "--enable-threads", "--lazy-apps"): "imported here",
}


@pytest.mark.parametrize("server", FORKING, ids=lambda server: server.name)
def test_each_worker_has_threads_of_its_own(server: Server) -> None:
    """One job has run where the app was imported; more run where they are submitted."""
    with started(server) as where:
        watches = [send(where, "processes") for _ in range(4)]
        assert all(watch.done.wait(WAIT) for watch in watches), where.log.read_text()[-4000:]
    for watch in watches:
        assert watch.events == [f"{FORKING[server]}, runs here", "last"]


@pytest.mark.parametrize("options", [["--threads=2"], ["--enable-threads", "--processes=2"]])
def test_on_uwsgi_no_callback_reads_another_requests_environ(options: list[str]) -> None:
    """It waits until others have been served from the very dictionary."""
    with started(uwsgi(*options)) as where:
        first = send(where, "reading")
        assert first.slow.wait(WAIT)
        watches = [first, *(send(where, "reading") for _ in range(3))]
        for watch in watches:
            watch.end.set()
        assert all(watch.done.wait(WAIT) for watch in watches)
    for watch in watches:
        assert watch.events == ["slow", f"reads {watch.query} of /reading", "last"]


@pytest.mark.parametrize("name", ["gunicorn sync", "gunicorn gthread"])
def test_at_sigterm_gunicorn_lets_what_runs_in_close_finish(name: str) -> None:
    assert measured(name).sigterm == "finishes"


@pytest.mark.parametrize("name", ["uWSGI --http-socket", "uWSGI --http", "nginx, uWSGI"])
def test_in_close_a_callback_reads_its_own_environ_while_others_are_served(name: str) -> None:
    def visit(patience: float) -> Watch:
        return send(where, "wrapped/own_environ", connection="keep-alive", patience=patience)

    with started(BY_NAME[name]) as where:
        watches = [visit(patience=10)]
        assert watches[0].slow.wait(WAIT)
        watches += [visit(patience=0) for _ in range(8)]
        assert all(watch.done.wait(WAIT) for watch in watches[1:])
        watches[0].end.set()
        assert watches[0].done.wait(WAIT)
    for watch in watches:
        assert watch.events == ["slow", f"reads {watch.query} of /wrapped/own_environ", "last"]


# gevent


def test_gevents_own_threads_do_not_block_the_greenlets() -> None:
    """There is one worker, and its callback blocks the thread that it runs in."""
    with started(gunicorn("--worker-class=gevent")) as where:
        blocked = send(where, "blocking")
        assert blocked.slow.wait(WAIT)
        other = send(where, "processes")
        assert other.done.wait(WAIT)
        assert not blocked.done.is_set()
        blocked.end.set()
        assert blocked.done.wait(WAIT)
    assert blocked.events == ["slow", "last"]


def test_under_gevent_a_callback_that_waits_in_close_lets_other_greenlets_run() -> None:
    with started(gunicorn("--worker-class=gevent", app="kinds")) as where:
        waits = send(where, "wrapped/list_with_length")
        assert waits.slow.wait(WAIT)
        other = send(where, "wrapped/list_with_length")
        other.end.set()
        assert other.done.wait(WAIT)
        assert not waits.done.is_set()
        waits.end.set()
        assert waits.done.wait(WAIT)
    assert waits.events == other.events == ["first", "slow", "last"]
