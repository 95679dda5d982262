"""The pages on gunicorn, uWSGI, mod_wsgi and nginx: who waits on a server as they start it."""

from __future__ import annotations

import dataclasses
import shlex

import pytest
from documents import blocks

from .descriptions import BY_NAME, THREADS, apache_with, nginx_with, uwsgi_command
from .expectations import CALLBACKS, expected
from .harness import find, free_port, running
from .measure import attempt

GUNICORN, UWSGI = blocks("gunicorn.rst"), blocks("uwsgi.rst")
MOD_WSGI, NGINX = blocks("mod_wsgi.rst"), blocks("nginx.rst")
KINDS = ["list_with_length", "generator", "redirect", "head"]


def ours(text, where, behind=0):
    """What a page shows, changed to the app of the tests, its directory, and free ports."""
    ports = text.replace("8000", str(where.port)).replace("8001", str(behind))
    return ports.replace("/srv/shop", str(where.directory)).replace("shop", "kinds")


def start(page, where):
    """The command of a page, with the configuration that it names."""
    program, *options, name = shlex.split(page["start"].removeprefix("$ "))
    return [find(program) or program, *options, where.write(name, ours(page[name], where))]


def behind_nginx(name, where, command, port):
    block = ours(NGINX[name], where, behind=port)
    # Debian's path: the page's is relative to the directory of the main configuration.
    return [command, nginx_with(where, block.replace("uwsgi_params;", "/etc/nginx/uwsgi_params;"))]


def nginx_gunicorn(where):
    port = free_port()
    options = (f"--bind=127.0.0.1:{port}", "--threads=4", "kinds:application")
    return behind_nginx("gunicorn.conf", where, [find("gunicorn") or "gunicorn", *options], port)


def nginx_uwsgi(where):
    port = free_port()
    command = uwsgi_command(f"--socket=127.0.0.1:{port}", *THREADS)
    return behind_nginx("uwsgi.conf", where, [*command], port)


def mod_wsgi(where):
    """Without the virtual environment: Debian's Python 3 has all that the tests' app needs."""
    shown = MOD_WSGI["shop.conf"].replace(" python-home=/srv/shop/.venv", "")
    return [apache_with(where, ours(shown, where).splitlines())]


SHOWN = {
    "gunicorn gthread": lambda where: [start(GUNICORN, where)],
    "uWSGI --http": lambda where: [start(UWSGI, where)],
    "mod_wsgi daemon": mod_wsgi,
    "nginx HTTP/1.1, gunicorn": nginx_gunicorn,
    "nginx, uWSGI": nginx_uwsgi,
}

PLACES = {"uWSGI --http": 8, "nginx, uWSGI": 4}  # threads, in all processes


def test_everything_on_the_pages_is_run_by_a_test():
    assert [*GUNICORN, *UWSGI, *MOD_WSGI, *NGINX] == [
        *("gunicorn.conf.py", "start", "after", "uwsgi.ini", "start", "shop.conf"),
        *("gunicorn.conf", "uwsgi.conf"),
    ]


@pytest.mark.servers
@pytest.mark.parametrize("name", SHOWN)
def test_who_waits_on_a_server_that_is_started_as_shown(name):
    """The same clients as when the tests start it in their own way."""
    shown = dataclasses.replace(BY_NAME[name], commands=SHOWN[name], places=PLACES.get(name, 0))
    with running(shown) as where:
        found = {kind: attempt(where, "wrapped", kind, expected(name, kind)) for kind in KINDS}
    for kind, tried in found.items():
        assert tried.timing == expected(name, kind).timing, kind
        assert [watch.events for watch in tried.watches] == [CALLBACKS] * len(tried.watches)
