"""uWSGI's own moment: callbacks run when the connection is closed, and none is lost."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain

import pytest
from documents import parse

from wsgi_after import probe

from .client import Connection, fetch
from .descriptions import DEBIAN_UWSGI, PYPI_UWSGI, nginx_uwsgi, not_on_3_15, uwsgi, uwsgi_command
from .expectations import CALLBACKS, IN_HTTP_1_0, KINDS
from .harness import Server, control, find, require, running, wait_until
from .measure import ask_in_http_1_0, nobody_waits
from .tables import table

pytestmark = [pytest.mark.servers, not_on_3_15]

WAIT = 20  # seconds to wait for what should take none
TWO = ("--processes=2",)
#: Options, and in how many places requests are served. All greenlets of a thread are one place.
MODES = {
    "one process": ((), 1),
    "processes": (TWO, 2),
    "threads": (("--enable-threads", "--threads=4"), 4),
    "lazy-apps": ((*TWO, "--lazy-apps"), 2),
    "gevent": (("--gevent=20",), 1),
    "ugreen": (("--async=20", "--ugreen"), 1),
}
#: What clients talk to.
FRONTS = {
    "--http-socket": partial(uwsgi, "--http-socket"),
    "--http": partial(uwsgi, "--http"),
    "nginx": nginx_uwsgi,
}
BUILDS = {"PyPI's": PYPI_UWSGI, "Debian's": DEBIAN_UWSGI}


def server(mode, *options, app="kinds", source=None, front="--http-socket", build="PyPI's"):
    """A uWSGI in a mode, with the app of the matrix or another one."""
    more, places = MODES[mode]
    start = FRONTS[front](*more, *options, app=app, build=BUILDS[build])

    def commands(where):
        if source is not None:
            where.write(f"{app}.py", source)
        return start(where)

    programs = (BUILDS[build][0], *(["nginx"] if front == "nginx" else []))
    return Server(mode, commands, str, programs=programs, places=places, killed=True)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("mode", MODES)
def test_no_client_waits_in_any_mode(mode, front, build):
    """Whatever the response, error pages included. tests/servers/test_who_waits.py has more."""
    with running(server(mode, front=front, build=build)) as where:
        for kind in KINDS:
            if kind != "two_requests":  # only --http keeps a connection: that is in the matrix
                nobody_waits(where, kind)
        had = {kind: ask_in_http_1_0(where, kind, WAIT).had for kind in IN_HTTP_1_0}
    assert had == dict.fromkeys(IN_HTTP_1_0, (False, True))


def test_debians_version_is_the_one_that_the_page_names():
    require([name for name in DEBIAN_UWSGI[:1] if not find(name)])
    command = [DEBIAN_UWSGI[0], "--version"]
    version = subprocess.check_output(command, text=True).strip().removesuffix("-debian")
    assert f"Debian's {version}" in " ".join(parse("uwsgi.rst").astext().split())


# Whose request it is


#: What called a callback: uWSGI's hook, or close().
CALLER = """
import os
import sys
import kinds
import uwsgi
from wsgi_after import AfterResponseMiddleware

def caller():
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "hook":
        frame = frame.f_back
    return "close" if frame is None else "hook"
"""

COUNTS = (
    CALLER
    + """
def app(environ, start_response):
    path = environ["PATH_INFO"]
    def callback():
        line = f"{path} {environ.get('PATH_INFO')} {environ.get('QUERY_STRING')} {caller()}\\n"
        os.write(2, line.encode())
    environ["wsgi.after"].append(callback)
    body = [b"x" * 10]
    start_response("200 OK", [])
    return iter(body) if path.endswith("0") else body

wrapped = AfterResponseMiddleware(app)
application = kinds.beside_about(wrapped)

@wrapped.after_response
def app_wide(environ):
    line = f"wide {environ['PATH_INFO']} {environ['QUERY_STRING']} {caller()}\\n"
    os.write(2, line.encode())
"""
)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("mode", MODES)
def test_of_2000_requests_at_once_each_runs_once_in_the_hook_and_sees_itself(mode, build):
    def ask(number):
        fetch(where.port, f"/r{number}?q{number}")

    with running(server(mode, app="other", source=COUNTS, build=build)) as where:
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(ask, range(2000)))
        lines = re.compile(r"^(?:wide )?/r\d+ .*$", re.MULTILINE)
        wait_until(lambda: len(lines.findall(where.log.read_text())) >= 4000, where.log)
        found = Counter(lines.findall(where.log.read_text()))
    wanted = [[f"/r{n} /r{n} q{n} hook", f"wide /r{n} q{n} hook"] for n in range(2000)]
    assert found == Counter(chain.from_iterable(wanted))


# Where uWSGI does not call the hook, callbacks run in close()


def where_it_runs(where, path="/"):
    """Send a request; return what calls its callback."""
    so_far = where.log.read_text().count("called by ")
    fetch(where.port, path)

    def found():
        return re.findall(r"^called by (\w+)$", where.log.read_text(), re.MULTILINE)[so_far:]

    wait_until(found, where.log)
    [place] = found()
    return place


def tells(before="", after=""):
    """The source of an app whose callback tells what calls it, with lines around the middleware."""
    return f"""{CALLER}
def app(environ, start_response):
    environ["wsgi.after"](lambda: os.write(2, f"called by {{caller()}}\\n".encode()))
    start_response("200 OK", [("Content-Length", "0")])
    return []

def theirs():
    os.write(2, b"theirs\\n")

{before}
application = kinds.beside_about(AfterResponseMiddleware(app))
{after}
"""


@pytest.mark.parametrize(
    ("source", "place", "theirs"),
    [
        (tells(), "hook", False),
        (tells(before="uwsgi.after_req_hook = theirs"), "hook", True),
        (tells(after="uwsgi.after_req_hook = theirs"), "close", True),
    ],
    ids=["ours", "chained", "replaced"],
)
def test_a_hook_that_is_there_is_called_and_one_over_ours_is_noticed(source, place, theirs):
    with running(server("one process", app="other", source=source)) as where:
        assert where_it_runs(where) == place
        assert ("theirs" in where.log.read_text()) is theirs


def test_without_greenlets_asynchronous_requests_use_close():
    running_one = server("one process", "--async=4", app="other", source=tells())
    with running(running_one) as where:
        assert where_it_runs(where) == "close"


def mounted(*options, second):
    """Two apps, of which the second has an interpreter of its own, unless an option forbids it."""
    mounts = ("--manage-script-name", "--mount=/=other.py", "--mount=/second=second.py")

    def commands(where):
        where.write("other.py", tells())
        where.write("second.py", second)
        listen = f"--http-socket=127.0.0.1:{where.port}"
        command = uwsgi_command(listen, *options, *mounts)
        return [[part for part in command if not part.startswith("--wsgi-file")]]

    return Server("mount", commands, str, programs=PYPI_UWSGI, killed=True)


IMPORT = "--import=wsgi_after.uwsgi"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), ["close", "close"] * 2),
        ((IMPORT,), ["hook", "close"] * 2),
        (("--single-interpreter", IMPORT), ["hook", "hook"] * 2),
    ],
)
def test_mounted_apps_need_one_interpreter_and_an_import(options, found):
    with running(mounted(*options, second=tells())) as where:
        where.about()
        assert [where_it_runs(where, path) for path in ("/", "/second/") * 2] == found


def test_the_probe_names_mount_as_the_cause_that_the_client_of_a_second_app_waits(capsys):
    with running(mounted(IMPORT, second="from wsgi_after.probe import application")) as where:
        url = f"http://127.0.0.1:{where.port}/second"
        code = probe.main(["--seconds", "0.2", "--http", "1.1", url])
    out = " ".join(capsys.readouterr().out.split())
    assert (code, probe.ADVICE["uwsgi"] in out) == (1, True)


def test_a_worker_that_is_reloaded_at_an_exception_loses_nothing():
    """The worker ends before uWSGI would call the hook."""
    options = ("--reload-on-exception",)
    with running(server("one process", *options)) as where:
        watches = [control().watch(0) for _ in range(3)]
        for watch in watches:
            with suppress(OSError), Connection(where.port) as client:
                client.request(f"/wrapped/error_before_return?{watch.query}", connection="close")
                client.read_to_end()
            assert watch.done.wait(WAIT), where.log.read_text()
    assert [watch.events for watch in watches] == [CALLBACKS] * 3


# What ends a worker


ENDINGS = """
import os, time
import kinds
import uwsgi
from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor

def app(environ, start_response):
    way = environ["PATH_INFO"][1:]
    def callback():
        os.write(2, f"begins {way}\\n".encode())
        time.sleep(2.5)
        os.write(2, f"ends {way}\\n".encode())
    environ["wsgi.after"].append(callback)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

pool = BoundedThreadPoolExecutor(max_workers=2)
ways = {
    "/hook": AfterResponseMiddleware(app),
    "/close": AfterResponseMiddleware(app, moment=False),
    "/pool": AfterResponseMiddleware(app, executor=pool),
}

def at_exit():
    os.write(2, b"atexit\\n")
    pool.drain(10)

uwsgi.atexit = at_exit

@kinds.beside_about
def application(environ, start_response):
    return ways[environ["PATH_INFO"]](environ, start_response)
"""
WAYS = {"close": "in close()", "hook": "in the hook", "pool": "in a pool"}
GRACEFUL = ("--hook-master-start=unix_signal:15 gracefully_kill_them_all",)
HARAKIRI = ("--harakiri=1",)
#: What ends a worker: options, and the signal to the master. In the order of the page's table.
ENDS = {
    "SIGTERM, with die-on-term": ((), "SIGTERM"),
    "SIGTERM, with hook-master-start": (GRACEFUL, "SIGTERM"),
    "SIGHUP": ((), "SIGHUP"),
    "max-requests": (("--max-requests=2", "--min-worker-lifetime=0"), None),
    "harakiri": (HARAKIRI, None),
    "harakiri, with harakiri-no-arh": ((*HARAKIRI, "--harakiri-no-arh"), None),
}
#: What the page says: by what ends the worker, and where the callback runs.
OUTCOMES = table("uwsgi.rst", "in the hook")


def begin(where, way):
    """Send a request; return while its callback is running."""
    with Connection(where.port) as client:
        client.request(f"/{way}", connection="close")
        client.read_response("GET", lambda: None)
    wait_until(lambda: f"begins {way}" in where.log.read_text(), where.log)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ENDS)
def test_what_becomes_of_a_callback_when_its_worker_ends(end, way):
    options, sign = ENDS[end]
    more = ("--enable-threads", "--py-call-osafterfork", *options)
    one = server("one process", *more, app="other", source=ENDINGS)
    with running(dataclasses.replace(one, places=0 if end == "max-requests" else 1)) as where:
        worker = where.about()["place"][0]
        if end == "max-requests":  # begin after the first of two requests
            while (new := where.about()["place"][0]) == worker:
                pass
            worker = new
        begin(where, way)
        if sign is not None:
            os.kill(where.pid, getattr(signal, sign))
        if sign == "SIGTERM":
            where.processes[0].wait(WAIT)
        with suppress(AssertionError):
            wait_until(lambda: f"ends {way}" in where.log.read_text(), where.log, seconds=4)
        log = where.log.read_text()
        is_lost = f"ends {way}" not in log
        if end in {"SIGHUP", "max-requests"} or (is_lost and "harakiri" in end):  # has ended
            wait_until(lambda: where.about()["place"][0] != worker, where.log, seconds=20)
    assert [*OUTCOMES] == [*ENDS]
    assert ("is lost" if is_lost else "finishes") == OUTCOMES[end][WAYS[way]]
    if sign == "SIGTERM":  # with die-on-term, a busy worker does not reach atexit
        assert ("atexit" in log) is (way == "pool" or options == GRACEFUL)


@pytest.mark.parametrize("mode", MODES)
def test_at_a_graceful_sigterm_the_hook_finishes_in_each_mode_but_with_async(mode):
    options = ("--enable-threads", "--py-call-osafterfork", *GRACEFUL)
    with running(server(mode, *options, app="other", source=ENDINGS)) as where:
        begin(where, "hook")
        os.kill(where.pid, signal.SIGTERM)
        where.processes[0].wait(WAIT)
        assert ("ends hook" in where.log.read_text()) is (mode != "ugreen")
