"""Nothing is lost, doubled or mixed under load, even on servers whose workers restart."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest
from documents import DOCS
from reporting import count
from servers.client import fetch
from servers.descriptions import BY_NAME
from servers.harness import running

from .clients import SLOW_KINDS, Crowd, Written, new_seed, wait_until_all_ran

APP = Path(__file__).with_name("app.py").read_text()
HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
REQUESTS = int(os.environ.get("LOAD_REQUESTS", 20_000 if os.environ.get("CI") else 4_000))
THREADED_REQUESTS = int(os.environ.get("LOAD_REQUESTS", 2_000))

MASTERS = ["gunicorn sync", "gunicorn gthread", "gunicorn gevent", "uWSGI --http-socket"]
MOD_WSGI = ["mod_wsgi daemon", "mod_wsgi embedded"]
SERVERS = [*MASTERS, "waitress", *MOD_WSGI]

#: Servers that use threads, with their options.
THREADED = {
    "gunicorn gthread": ["--workers=1"],
    "granian": ["--blocking-threads=4"],
    "werkzeug": [],
    "waitress": [],
    "cheroot": [],
}


def under_load(name, *options):
    """A server of the harness with this app and more options; two processes if it has a master.

    :param options: for its command line; for Apache, those of WSGIDaemonProcess.
    """
    server = BY_NAME[name]

    def commands(where):
        path = where.write("written", "")
        path.chmod(0o666)  # Apache's workers run as another user
        [command] = server.commands(where)
        where.write("kinds.py", APP)
        command = [str(part) for part in command]
        if name.startswith("gunicorn"):
            command[-1:-1] = ["--workers=2", *options]
        elif name.startswith("uWSGI"):
            command += ["--processes=2", *options]
        elif name == "granian":
            command[-1:-1] = options
        elif options:
            conf = where.directory / "apache.conf"
            conf.write_text(conf.read_text().replace("threads=4", f"threads=4 {' '.join(options)}"))
        return [command]

    return dataclasses.replace(server, commands=commands, places=0)


#: How workers end while they are under load: options of the server, or the signal.
RESTARTS: dict[str, dict[str, list[str] | signal.Signals]] = {
    "max-requests": {
        **{name: ["--max-requests=100"] for name in MASTERS},
        "mod_wsgi daemon": ["maximum-requests=100", "graceful-timeout=15"],
    },
    "reload": {**dict.fromkeys(MASTERS, signal.SIGHUP), **dict.fromkeys(MOD_WSGI, signal.SIGUSR1)},
    "SIGTERM": dict.fromkeys(SERVERS, signal.SIGTERM),
}
#: At SIGTERM these do not promise to let requests finish: uWSGI's --die-on-term kills its workers,
#: waitress ends at once, Apache's "stop" ends its children.
MAY_LOSE = {"uWSGI --http-socket", "waitress", *MOD_WSGI}


def send(what, name, options, requests, signals=None, **of_crowd):
    """Send the requests, and these signals when so many were sent.

    Print the counts, and check what no restart excuses.

    :return: how many arrived, which of them lost callbacks, and the end of the server's log.
    """
    signals = signals or {}
    with running(under_load(name, *options)) as where:
        path = where.directory / "written"

        def on_progress(sent):
            if sent in signals:
                os.kill(where.pid, signals[sent])

        # uWSGI closes each connection without notice.
        of_crowd |= {"keep_alive": not name.startswith("uWSGI"), "on_progress": on_progress}
        crowd = Crowd(where, new_seed(), requests, **of_crowd)
        crowd.run()
        if signal.SIGTERM in signals.values():
            where.processes[0].wait(40)
        else:
            # What a server has not closed waits in a cycle with its error for the collector, which
            # runs less often without the GIL, and then for the next request.
            assert where.about()["gil"] is HAS_GIL, where.log.read_text()[-3000:]
            fetch(where.port, "/closed/sized?closed-sized-last")
            wait_until_all_ran(path)
        written, log = Written.read(path), where.log.read_text(errors="replace")[-3000:]
    mixed = written.mixed + crowd.mixed + written.from_nowhere
    count(
        f"{what}: {name}, seed {crowd.seed}",
        sent=crowd.sent,
        reached_the_app=len(written.arrived),
        lost=len(written.lost),
        doubled=len(written.doubled),
        mixed=len(mixed),
    )
    assert (written.doubled, mixed) == ([], []), log
    assert crowd.answered <= set(written.arrived), log
    return len(written.arrived), written.lost, log


def send_all(what, name, options, requests):
    """Send the requests; nothing may be lost."""
    arrived, lost, log = send(what, name, options, requests)
    # Some clients left before they had sent a whole request, or before a worker took it.
    assert arrived > 0.7 * requests, log
    assert lost == [], log


@pytest.mark.servers
@pytest.mark.parametrize("name", SERVERS)
def test_nothing_is_lost_under_load_with_faults(name):
    send_all("load", name, [], REQUESTS)


@pytest.mark.servers
@pytest.mark.parametrize("name", THREADED)
def test_nothing_is_lost_where_threads_of_one_process_serve(name):
    """Without the GIL where this Python has none: nothing that the server imports enables it."""
    what = "threads" if HAS_GIL else "threads without the GIL"
    send_all(what, name, THREADED[name], THREADED_REQUESTS)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("how", "name"), [(how, name) for how, servers in RESTARTS.items() for name in servers]
)
def test_a_restart_loses_nothing_where_requests_may_finish(how, name):
    by = RESTARTS[how][name]
    options = by if isinstance(by, list) else []
    times = [] if options else [300] if how == "SIGTERM" else [150, 300, 450]
    signals = dict.fromkeys(times, by)
    arrived, lost, log = send(how, name, options, 600, signals, kinds=SLOW_KINDS)
    assert arrived > (200 if how == "SIGTERM" else 400), log
    if how == "SIGTERM" and name in MAY_LOSE:
        # At most what was in flight: one request for each client, and what the pools held.
        assert len(lost) < 100
    else:
        assert lost == [], log


def test_the_page_says_which_servers_may_lose_callbacks_at_a_restart():
    page = (DOCS / "nothing-lost.rst").read_text(encoding="utf-8")
    assert restart_table() in page, restart_table()


def restart_table():
    """The rows of docs/nothing-lost.rst: server, and what each kind of restart loses."""
    rows = []
    for name in SERVERS:
        rows.append(f"   * - {name}")
        for how, servers in RESTARTS.items():
            may_lose = how == "SIGTERM" and name in MAY_LOSE
            cell = ("may lose" if may_lose else "nothing") if name in servers else ""
            rows.append(f"     - {cell}".rstrip())
    return "\n".join(rows)
