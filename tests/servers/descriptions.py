"""How each server is started: as its documentation says, and little more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import pytest

from .harness import Place, Server, find, free_port

Commands = list[Sequence[str | Path]]
PYTHON = sys.executable
APACHE_MODULES = Path("/usr/lib/apache2/modules")
MOD_WSGI = APACHE_MODULES / "mod_wsgi.so"


def versions(*names: str) -> Callable[[], str]:
    """The installed versions of some distributions."""
    return lambda: ", ".join(f"{name} {installed(name)}" for name in names)


def nginx_version() -> str:
    """The upstream version, which Debian keeps for a release."""
    found = subprocess.run([find("nginx") or "nginx", "-v"], capture_output=True, text=True)
    return "nginx " + re.findall(r"nginx/([\d.]+)", found.stderr)[0]


def with_nginx(*names: str) -> Callable[[], str]:
    return lambda: f"{nginx_version()}, {versions(*names)()}"


def module(*command: str) -> Callable[[Place], Commands]:
    """``python -m ...``, with ``{port}`` filled in."""
    return lambda where: [[PYTHON, "-m", *(part.format(port=where.port) for part in command)]]


def gunicorn(*options: str, app: str = "kinds") -> Callable[[Place], Commands]:
    return module("gunicorn", "--bind=127.0.0.1:{port}", *options, f"{app}:application")


def script(name: str) -> Callable[[Place], Commands]:
    """A server that is started by a few lines of Python, in ``apps/serve.py``."""
    return lambda where: [[PYTHON, where.directory / "serve.py", name, str(where.port)]]


THREADS = ("--enable-threads", "--threads=4")
#: uWSGI, and its plugins. PyPI's has them built in; Debian's runs Debian's Python.
PYPI_UWSGI = ("uwsgi",)
DEBIAN_UWSGI = ("/usr/bin/uwsgi-core", "--plugins=python3,http,ugreen,gevent_python3")


def uwsgi_command(
    listen: str, *options: str, app: str = "kinds", build: Sequence[str] = PYPI_UWSGI
) -> list[str]:
    always = ("--master", "--die-on-term", "--need-app", f"--wsgi-file={app}.py")
    return [find(build[0]) or build[0], *build[1:], *always, *options, listen]


def uwsgi(option: str, *options: str, **more: Any) -> Callable[[Place], Commands]:
    return lambda where: [uwsgi_command(f"{option}=127.0.0.1:{where.port}", *options, **more)]


def nginx(where: Place, location: str) -> list[str]:
    """Nginx that passes everything on, as ``location`` says."""
    listen = f"listen 127.0.0.1:{where.port};"
    return nginx_with(where, f"server {{ {listen} location / {{ {location} }} }}")


def nginx_with(where: Place, server: str) -> list[str]:
    """Nginx in one process."""
    temporary = "".join(
        f"{name}_temp_path {where.directory}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = where.write(
        "nginx.conf",
        f"""
        daemon off; master_process off; pid {where.directory}/nginx.pid; error_log stderr;
        events {{}}
        http {{
            access_log off; {temporary}
            {server}
        }}
        """,
    )
    return [find("nginx") or "nginx", "-e", "stderr", "-c", str(path)]


def nginx_uwsgi(*options: str, **more: Any) -> Callable[[Place], Commands]:
    parameters = "".join(
        f"uwsgi_param {name} ${variable};"
        for name, variable in {
            "QUERY_STRING": "query_string",
            "REQUEST_METHOD": "request_method",
            "PATH_INFO": "document_uri",
            "SERVER_PROTOCOL": "server_protocol",
            "SERVER_NAME": "server_name",
            "SERVER_PORT": "server_port",
        }.items()
    )

    def commands(where: Place) -> Commands:
        port = free_port()
        front = nginx(where, f"uwsgi_pass 127.0.0.1:{port}; {parameters}")
        return [uwsgi_command(f"--socket=127.0.0.1:{port}", *options, **more), front]

    return commands


def nginx_gunicorn(settings: str) -> Callable[[Place], Commands]:
    def commands(where: Place) -> Commands:
        port = free_port()
        options = (f"--bind=127.0.0.1:{port}", "--threads=4", "kinds:application")
        front = nginx(where, f"proxy_pass http://127.0.0.1:{port}; {settings}")
        return [[PYTHON, "-m", "gunicorn", *options], front]

    return commands


def apache(daemon: bool) -> Callable[[Place], Commands]:
    """Apache with one child process, or with one process of mod_wsgi's own."""
    group = "WSGIApplicationGroup %{GLOBAL}"
    return lambda where: [apache_with(where, [group, *mod_wsgi(where, "kinds.py", daemon)])]


def mod_wsgi(where: Place, script: str, daemon: bool) -> list[str]:
    """The settings with which mod_wsgi runs a script."""
    directory = where.directory
    own_process = [
        f"WSGIDaemonProcess kinds processes=1 threads=4 python-path={directory}",
        "WSGIProcessGroup kinds",
    ]
    return [
        "WSGIEnableSendfile On",
        f"WSGIScriptAlias / {directory}/{script}",
        f"<Directory {directory}>\nRequire all granted\n</Directory>",
        *(own_process if daemon else [f"WSGIPythonPath {directory}"]),
    ]


def apache_with(
    where: Place, settings: Sequence[str], mod_wsgi: str | Path = MOD_WSGI
) -> Sequence[str | Path]:
    """Apache with one child process."""
    directory = where.directory
    modules = ("mpm_event", "authz_core")
    lines = [
        f"ServerRoot {directory}",
        f"DefaultRuntimeDir {directory}",
        f"PidFile {directory}/apache.pid",
        f"ErrorLog {where.log}",
        "ServerName localhost",
        f"Listen 127.0.0.1:{where.port}",
        *(f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so" for name in modules),
        f"LoadModule wsgi_module {mod_wsgi}",
        *("StartServers 1", "ServerLimit 1", "ThreadsPerChild 8", "MaxRequestWorkers 8"),
        *("EnableSendfile On", f"WSGISocketPrefix {directory}/wsgi"),
        # Seconds until Apache ends a response that broke off, the bare app's too. The default is 5.
        "KeepAliveTimeout 1",
        *settings,
    ]
    if os.geteuid() == 0:
        lines += ["User www-data", "Group www-data"]
    path = where.write("apache.conf", "\n".join([*lines, ""]))
    return [find("apache2") or "apache2", "-f", path, "-D", "FOREGROUND"]


def apache_version() -> str:
    found = subprocess.run([find("apache2") or "apache2", "-v"], capture_output=True, text=True)
    return "Apache " + re.findall(r"Apache/(\d+\.\d+)", found.stdout)[0]


A2WSGI = module("uvicorn", "--host=127.0.0.1", "--port={port}", "a2wsgi_app:application")
ASGIREF = module("uvicorn", "--host=127.0.0.1", "--port={port}", "asgiref_app:application")
CHEROOT = module("cheroot", "--bind=127.0.0.1:{port}", "kinds:application")
GRANIAN = module(
    "granian", "--interface=wsgi", "--host=127.0.0.1", "--port={port}", "kinds:application"
)
HYPERCORN = module("hypercorn", "--bind=127.0.0.1:{port}", "wsgi:kinds:application")
RUNSERVER = module(
    "django", "runserver", "--noreload", "--settings=django_settings", "127.0.0.1:{port}"
)
TWISTED = module(
    "twisted", "web", "--listen=tcp:{port}:interface=127.0.0.1", "--wsgi=kinds.application"
)
WAITRESS = module("waitress", "--listen=127.0.0.1:{port}", "kinds:application")
KEEP_ALIVE = 'proxy_http_version 1.1; proxy_set_header Connection "";'
APACHE = ("apache2", str(MOD_WSGI))


def package(name: str, commands: Callable[[Place], Commands], *distributions: str) -> Server:
    """A server that is one or several Python packages, each with a module of the same name."""
    modules = tuple(distribution.lower() for distribution in distributions)
    return Server(name, commands, versions(*distributions), modules=modules)


#: For modes in which uWSGI forks behind Python's back.
not_on_3_15 = pytest.mark.skipif(
    sys.version_info >= (3, 15), reason="uWSGI 2.0.31 crashes on Python 3.15, in PyMutex_Unlock"
)


def uwsgi_server(name: str, commands: Callable[[Place], Commands], places: int = 0) -> Server:
    """``places`` matters because the first request of a thread differs: see wsgi_after/uwsgi.py."""
    return Server(name, commands, versions("uWSGI"), programs=("uwsgi",), places=places)


def ours(worker: str, *options: str) -> Callable[[Place], Commands]:
    return gunicorn(f"--worker-class=wsgi_after.gunicorn.{worker}", *options)


#: The servers with the moment that this package adds to them.
OURS = [
    package("wsgi_after.gunicorn.Sync", ours("Sync"), "gunicorn"),
    package("wsgi_after.gunicorn.GThread", ours("GThread", "--threads=4"), "gunicorn"),
    package("wsgi_after.gunicorn.Gevent", ours("Gevent"), "gunicorn", "gevent"),
    package("wsgi_after.waitress.serve", script("waitress"), "waitress"),
]
SERVERS = [
    package("gunicorn sync", gunicorn(), "gunicorn"),
    package("gunicorn gthread", gunicorn("--threads=4"), "gunicorn"),
    package("gunicorn gevent", gunicorn("--worker-class=gevent"), "gunicorn", "gevent"),
    Server(
        "nginx, gunicorn",
        nginx_gunicorn(""),
        with_nginx("gunicorn"),
        modules=("gunicorn",),
        programs=("nginx",),
    ),
    Server(
        "nginx HTTP/1.1, gunicorn",
        nginx_gunicorn(KEEP_ALIVE),
        with_nginx("gunicorn"),
        modules=("gunicorn",),
        programs=("nginx",),
    ),
    uwsgi_server("uWSGI --http-socket", uwsgi("--http-socket", *THREADS), places=4),
    uwsgi_server("uWSGI --http", uwsgi("--http", *THREADS), places=4),
    Server(
        "nginx, uWSGI",
        nginx_uwsgi(*THREADS),
        with_nginx("uWSGI"),
        programs=("nginx", "uwsgi"),
        places=4,
    ),
    Server("mod_wsgi embedded", apache(daemon=False), apache_version, programs=APACHE),
    Server("mod_wsgi daemon", apache(daemon=True), apache_version, programs=APACHE),
    package("waitress", WAITRESS, "waitress"),
    package("cheroot", CHEROOT, "cheroot"),
    package("gevent.pywsgi", script("gevent"), "gevent"),
    package("eventlet", script("eventlet"), "eventlet"),
    package("granian", GRANIAN, "granian"),
    package("bjoern", script("bjoern"), "bjoern"),
    package("fastwsgi", script("fastwsgi"), "fastwsgi"),
    package("tornado", script("tornado"), "tornado"),
    package("twisted", TWISTED, "Twisted"),
    package("hypercorn", HYPERCORN, "hypercorn"),
    package("a2wsgi, uvicorn", A2WSGI, "a2wsgi", "uvicorn"),
    package("asgiref, uvicorn", ASGIREF, "asgiref", "uvicorn"),
    Server("wsgiref", script("wsgiref"), str),
    package("werkzeug", script("werkzeug"), "Werkzeug"),
    package("Django runserver", RUNSERVER, "Django"),
    *OURS,
]
BY_NAME = {server.name: server for server in SERVERS}
