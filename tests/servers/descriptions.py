"""How each server is started: as its documentation says, and nothing more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed
from pathlib import Path

from .harness import Place, Server, find

Commands = list[Sequence[str | Path]]
PYTHON = sys.executable


def versions(*names: str) -> Callable[[], str]:
    """The installed versions of some distributions."""
    return lambda: ", ".join(f"{name} {installed(name)}" for name in names)


def gunicorn(*options: str) -> Callable[[Place], Commands]:
    def commands(where: Place) -> Commands:
        bind = f"--bind=127.0.0.1:{where.port}"
        return [[PYTHON, "-m", "gunicorn", bind, *options, "kinds:application"]]

    return commands


def uwsgi_command(*listen: str) -> list[str]:
    return [
        find("uwsgi") or "uwsgi",
        *("--master", "--die-on-term", "--need-app", "--enable-threads", "--threads=4"),
        *("--wsgi-file=kinds.py", "--callable=application"),
        *listen,
    ]


def uwsgi(option: str) -> Callable[[Place], Commands]:
    return lambda where: [uwsgi_command(f"{option}=127.0.0.1:{where.port}")]


def waitress(where: Place) -> Commands:
    listen = f"--listen=127.0.0.1:{where.port}"
    return [[PYTHON, "-m", "waitress", listen, "kinds:application"]]


def script(name: str) -> Callable[[Place], Commands]:
    """A server that is started by a few lines of Python, in ``apps/serve.py``."""
    return lambda where: [[PYTHON, where.directory / "serve.py", name, str(where.port)]]


SERVERS = [
    Server("gunicorn sync", gunicorn(), ("gunicorn",), versions("gunicorn")),
    Server("gunicorn gthread", gunicorn("--threads=4"), ("gunicorn",), versions("gunicorn")),
    Server("uWSGI --http-socket", uwsgi("--http-socket"), ("uwsgi",), versions("uWSGI")),
    Server("uWSGI --http", uwsgi("--http"), ("uwsgi",), versions("uWSGI")),
    Server("waitress", waitress, ("waitress",), versions("waitress")),
    Server("wsgiref", script("wsgiref"), (), lambda: "Python 3.11"),
    Server("werkzeug", script("werkzeug"), ("werkzeug",), versions("Werkzeug")),
]
BY_NAME = {server.name: server for server in SERVERS}
