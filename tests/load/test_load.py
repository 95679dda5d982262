"""Nothing is lost, doubled or mixed under load, on servers whose workers restart, too."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
from conftest import count
from servers.descriptions import BY_NAME
from servers.harness import Place, Server, require, running

from .clients import Crowd, Written, new_seed, wait_until_all_ran

pytestmark = pytest.mark.servers

APP = Path(__file__).with_name("app.py").read_text()
REQUESTS = int(os.environ.get("LOAD_REQUESTS", 20_000))


def under_load(name: str, *options: str) -> Server:
    """A server of the harness with this app, two processes where it has any, and more options.

    :param options: of its command line; of Apache, those of WSGIDaemonProcess.
    """
    server = BY_NAME[name]

    def commands(where: Place) -> list[list[str]]:
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


@pytest.mark.parametrize("name", SERVERS)
def test_nothing_is_lost_under_load_with_faults(name: str) -> None:
    server = under_load(name)
    require(server.missing())
    seed = new_seed()
    with running(server) as where:
        crowd = Crowd(where, seed, REQUESTS, keep_alive=not name.startswith("uWSGI"))
        crowd.run()
        wait_until_all_ran(where.directory / "written")
        written = Written.read(where.directory / "written")
        log = where.log.read_text(errors="replace")[-3000:]
    count(
        f"load: {name}, seed {seed}",
        sent=crowd.sent,
        reached_the_app=len(written.arrived),
        lost=len(written.lost),
        doubled=len(written.doubled),
        mixed=len(written.mixed + crowd.mixed + written.from_nowhere),
    )
    assert crowd.sent == REQUESTS
    assert len(written.arrived) > 0.8 * REQUESTS, log
    assert not written.lost, log
    assert not written.doubled
    assert not written.mixed + crowd.mixed + written.from_nowhere
    assert crowd.answered <= set(written.arrived)


#: What ends the workers of each server while it is under load: options, and the signal.
RESTARTS = {
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
