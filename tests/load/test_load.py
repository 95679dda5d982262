"""Nothing is lost, doubled or mixed under load, on servers whose workers restart, too."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
from conftest import count
from documents import DOCS
from servers.descriptions import BY_NAME
from servers.harness import running

from .clients import SLOW_KINDS, Crowd, Written, new_seed, wait_until_all_ran

PAGE = DOCS / "nothing-lost.rst"
APP = Path(__file__).with_name("app.py").read_text()
REQUESTS = int(os.environ.get("LOAD_REQUESTS", 20_000))


def under_load(name, *options):
    """A server of the harness with this app, two processes where it has any, and more options.

    :param options: of its command line; of Apache, those of WSGIDaemonProcess.
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
        elif options:
            conf = where.directory / "apache.conf"
            conf.write_text(conf.read_text().replace("threads=4", f"threads=4 {' '.join(options)}"))
        return [command]

    return dataclasses.replace(server, commands=commands)


SERVERS = [
    "gunicorn sync",
    "gunicorn gthread",
    "gunicorn gevent",
    "uWSGI --http-socket",
    "waitress",
    "mod_wsgi daemon",
    "mod_wsgi embedded",
]


#: How workers end while they are under load: options of the server, or the signal.
RESTARTS: dict[str, dict[str, list[str] | signal.Signals]] = {
    "max-requests": {
        "gunicorn sync": ["--max-requests=100"],
        "gunicorn gthread": ["--max-requests=100"],
        "gunicorn gevent": ["--max-requests=100"],
        "uWSGI --http-socket": ["--max-requests=100"],
        "mod_wsgi daemon": ["maximum-requests=100", "graceful-timeout=15"],
    },
    "reload": {
        "gunicorn sync": signal.SIGHUP,
        "gunicorn gthread": signal.SIGHUP,
        "gunicorn gevent": signal.SIGHUP,
        "uWSGI --http-socket": signal.SIGHUP,
        "mod_wsgi daemon": signal.SIGUSR1,
        "mod_wsgi embedded": signal.SIGUSR1,
    },
    "SIGTERM": dict.fromkeys(SERVERS, signal.SIGTERM),
}
#: At SIGTERM these do not promise to let requests finish: uWSGI's --die-on-term kills its workers,
#: waitress ends at once, Apache's "stop" ends its children.
MAY_LOSE = {"uWSGI --http-socket", "waitress", "mod_wsgi daemon", "mod_wsgi embedded"}


@dataclasses.dataclass
class Outcome:
    """What clients sent and saw, and what the app wrote, of one run."""

    what: str
    crowd: Crowd
    written: Written
    log: str

    def told(self):
        """Have the counts printed; check what no restart excuses."""
        mixed = self.written.mixed + self.crowd.mixed + self.written.from_nowhere
        count(
            f"{self.what}, seed {self.crowd.seed}",
            sent=self.crowd.sent,
            reached_the_app=len(self.written.arrived),
            lost=len(self.written.lost),
            doubled=len(self.written.doubled),
            mixed=len(mixed),
        )
        assert (self.written.doubled, mixed) == ([], []), self.log
        assert self.crowd.answered <= set(self.written.arrived), self.log
        return self


def under_load_with(what, server, requests, signals=None, **options):
    """Send the requests, and these signals when so many were sent; what came of it."""
    signals = signals or {}
    with running(server) as where:
        path = where.directory / "written"

        def on_progress(sent):
            if sent in signals:
                os.kill(where.pid, signals[sent])

        # uWSGI closes each connection without having said so.
        keep_alive = not server.name.startswith("uWSGI")
        crowd = Crowd(
            *(where, new_seed(), requests),
            on_progress=on_progress,
            keep_alive=keep_alive,
            **options,
        )
        crowd.run()
        if signal.SIGTERM in signals.values():
            where.processes[0].wait(40)
        else:
            wait_until_all_ran(path)
        return Outcome(
            what, crowd, Written.read(path), where.log.read_text(errors="replace")[-3000:]
        )


@pytest.mark.servers
@pytest.mark.parametrize("name", SERVERS)
def test_nothing_is_lost_under_load_with_faults(name):
    found = under_load_with(f"load: {name}", under_load(name), REQUESTS).told()
    assert found.crowd.sent == REQUESTS
    # Some clients left before they had said what they want, or before a worker took them.
    assert len(found.written.arrived) > 0.7 * REQUESTS, found.log
    assert found.written.lost == [], found.log


@pytest.mark.servers
@pytest.mark.parametrize(
    ("how", "name"), [(how, name) for how, servers in RESTARTS.items() for name in servers]
)
def test_a_restart_loses_nothing_where_requests_may_finish(how, name):
    by = RESTARTS[how][name]
    options = by if isinstance(by, list) else []
    times = [] if options else [300] if how == "SIGTERM" else [150, 300, 450]
    found = under_load_with(
        f"{how}: {name}",
        under_load(name, *options),
        600,
        dict.fromkeys(times, by),
        kinds=SLOW_KINDS,
    ).told()
    assert len(found.written.arrived) > (200 if how == "SIGTERM" else 400), found.log
    if how == "SIGTERM" and name in MAY_LOSE:
        # No more than what was under way: one request a client, and what their pools held.
        assert len(found.written.lost) < 100
    else:
        assert found.written.lost == [], found.log


def test_the_page_says_which_servers_may_lose_callbacks_at_a_restart():
    assert restart_table() in PAGE.read_text(encoding="utf-8"), restart_table()


def restart_table():
    """The rows of docs/nothing-lost.rst: server, and what each kind of restart loses."""
    rows = []
    for name in SERVERS:
        cells = [
            ""
            if name not in servers
            else "may lose"
            if how == "SIGTERM" and name in MAY_LOSE
            else "nothing"
            for how, servers in RESTARTS.items()
        ]
        rows.append("\n".join([f"   * - {name}", *(f"     - {cell}".rstrip() for cell in cells)]))
    return "\n".join(rows)
