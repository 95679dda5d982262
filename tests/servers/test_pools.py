"""Servers that fork, that reuse the environ, that run greenlets."""

from __future__ import annotations

import pytest

from . import descriptions
from .descriptions import BY_NAME, not_on_3_15, package, uwsgi_server
from .harness import running, send

pytestmark = pytest.mark.servers

WAIT = 10  # seconds to wait for what should take none


def gunicorn(*options, app="pooled"):
    needs = ("gunicorn", "gevent") if "--worker-class=gevent" in options else ("gunicorn",)
    commands = descriptions.gunicorn(*options, app=app)
    return package(" ".join(["gunicorn", *options]), commands, *needs)


def uwsgi(*options):
    commands = descriptions.uwsgi("--http-socket", *options, app="pooled")
    return uwsgi_server(" ".join(["uWSGI", *options]), commands)


FORKING = {
    gunicorn("--workers=2", "--threads=2", "--preload"): "imported before the fork",
    gunicorn("--workers=2", "--threads=2"): "imported here",
    uwsgi("--processes=2", "--enable-threads"): "imported before the fork",
    uwsgi("--processes=2", "--enable-threads", "--py-call-osafterfork"): "imported before the fork",
    uwsgi("--processes=2", "--enable-threads", "--lazy-apps"): "imported here",
}


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(server, marks=[not_on_3_15] * ("osafterfork" in server.name))
        for server in FORKING
    ],
    ids=lambda server: server.name,
)
def test_each_worker_has_threads_of_its_own(server):
    """One job has run where the app was imported; the others run where they are submitted."""
    with running(server) as where:
        watches = [send(where, "processes") for _ in range(4)]
        assert all(watch.done.wait(WAIT) for watch in watches), where.log.read_text()[-4000:]
    for watch in watches:
        assert watch.events == [f"{FORKING[server]}, runs here", "last"]


@pytest.mark.parametrize("options", [["--threads=2"], ["--enable-threads", "--processes=2"]])
def test_on_uwsgi_no_callback_reads_another_requests_environ(options):
    """The callback waits until other requests have been served with the same dictionary."""
    with running(uwsgi(*options)) as where:
        first = send(where, "reading")
        assert first.slow.wait(WAIT)
        watches = [first, *(send(where, "reading") for _ in range(3))]
        for watch in watches:
            watch.end.set()
        assert all(watch.done.wait(WAIT) for watch in watches)
    for watch in watches:
        assert watch.events == ["slow", f"reads {watch.query} of /reading", "last"]


@pytest.mark.parametrize("name", ["uWSGI --http-socket", "uWSGI --http", "nginx, uWSGI"])
def test_in_close_a_callback_reads_its_own_environ_while_others_are_served(name):
    def visit(patience):
        return send(where, "wrapped/own_environ", connection="keep-alive", patience=patience)

    with running(BY_NAME[name]) as where:
        watches = [visit(patience=10)]
        assert watches[0].slow.wait(WAIT)
        watches += [visit(patience=0) for _ in range(8)]
        assert all(watch.done.wait(WAIT) for watch in watches[1:])
        watches[0].end.set()
        assert watches[0].done.wait(WAIT)
    for watch in watches:
        assert watch.events == ["slow", f"reads {watch.query} of /wrapped/own_environ", "last"]


# gevent


@pytest.mark.parametrize(
    ("app", "waits", "meanwhile"),
    [
        ("pooled", "blocking", "processes"),
        ("kinds", "wrapped/list_with_length", "wrapped/list_with_length"),
    ],
)
def test_under_gevent_a_callback_that_waits_lets_other_requests_end(app, waits, meanwhile):
    """In ``close()``; and in gevent's own pool, even if it blocks the thread that it runs in."""
    with running(gunicorn("--worker-class=gevent", app=app)) as where:
        first = send(where, waits)
        assert first.slow.wait(WAIT)
        other = send(where, meanwhile)
        other.end.set()
        assert other.done.wait(WAIT)
        assert not first.done.is_set()
        first.end.set()
        assert first.done.wait(WAIT)
    assert first.events[-2:] == ["slow", "last"]
