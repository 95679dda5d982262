"""docs/hand-off.rst: it parses, and its examples do on real servers what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from importlib.util import find_spec
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from conftest import Exchange, hello, registers
from documents import blocks, executed

from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor

from .descriptions import BY_NAME, PYTHON, gunicorn, uwsgi
from .harness import Server, find, require, running, send
from .measure import sigterm_in_a_pool
from .tables import table

PAGE = blocks("hand-off.rst")


def test_its_examples_are_those_that_are_tested():
    assert list(PAGE) == [
        *("one_line.py", "pool.py", "gunicorn.conf.py", "on_uwsgi.py", "on_waitress.py"),
        *("celery.py", "rq.py"),
        *("rq_executor.py", "dask_executor.py"),  # by test_queues.py
    ]


def test_a_callback_fills_a_queue(events):
    """test_queues.py uses real queues."""
    task, queue = SimpleNamespace(delay=events.append), SimpleNamespace(enqueue=apply)

    def app(environ, start_response):
        names = {"environ": environ, "task": task, "queue": queue, "send_mail": events.append}
        for name in ("celery.py", "rq.py"):
            executed(PAGE[name], **names, user_id=name)
        assert events == []
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app)).finish()
    assert events == ["celery.py", "rq.py"]


def apply(fn, *args):
    fn(*args)


@pytest.mark.servers
@pytest.mark.parametrize("name", [name for name in BY_NAME if not name.startswith("nginx")])
def test_its_table_says_what_becomes_of_a_job_at_sigterm(name):
    column = "a job in a pool at SIGTERM"
    rows = table("hand-off.rst", column)
    [row] = [row for server, row in rows.items() if name.lower().startswith(server.lower())]
    assert sigterm_in_a_pool(name) in row[column]


def test_the_pool_runs_the_callback(capsys):
    page = executed(PAGE["pool.py"])
    assert Exchange(page["application"]).finish() == [b"Hello\n"]
    assert page["pool"].drain(10)
    assert capsys.readouterr().out == "after the response\n"


def test_one_line_gives_the_callbacks_to_a_pool(events):
    with BoundedThreadPoolExecutor() as pool:
        names = {
            "app": registers(lambda: events.append(threading.current_thread().name)).app,
            "AfterResponseMiddleware": AfterResponseMiddleware,
            "BoundedThreadPoolExecutor": lambda: pool,
        }
        Exchange(executed(PAGE["one_line.py"], **names)["application"]).finish()
    assert [name.split("_")[:2] for name in events] == [["wsgi", "after"]]


# What a pool costs.


@pytest.mark.parametrize(("executor", "left"), [(None, []), (BoundedThreadPoolExecutor, ["ada"])])
def test_a_callback_clears_a_thread_local_of_its_request_but_not_from_a_pool(executor, left):
    local = threading.local()
    pool = executor and executor()

    def app(environ, start_response):
        local.users = ["ada"]
        environ["wsgi.after"].append(lambda: vars(local).setdefault("users", []).clear())
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app, executor=pool)).finish()
    if pool:
        pool.shutdown()
    assert local.users == left


FORKING = """
from socketserver import ForkingMixIn
from threading import Event
from wsgiref.simple_server import WSGIServer, make_server
from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor

def app(environ, start_response):
    pool.submit(Event().wait)    # the job of another request
    environ["wsgi.after"].append(lambda: print(environ["PATH_INFO"], flush=True))
    start_response("200 OK", [("Content-Length", "0")])
    return []

pool = BoundedThreadPoolExecutor(max_workers=1)
in_close, in_pool = AfterResponseMiddleware(app), AfterResponseMiddleware(app, executor=pool)

def application(environ, start_response):
    return (in_pool if environ["PATH_INFO"] == "/pool" else in_close)(environ, start_response)

class Server(ForkingMixIn, WSGIServer):
    pass

with make_server("127.0.0.1", 0, application, Server) as server:
    print(server.server_port, flush=True)
    server.handle_request()
    server.handle_request()
"""


def test_a_server_that_forks_for_each_request_loses_the_jobs_of_a_pool():
    with subprocess.Popen(
        [PYTHON, "-c", FORKING], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout
        port = int(server.stdout.readline())
        for path in ("/close", "/pool"):
            urlopen(f"http://127.0.0.1:{port}{path}", timeout=30).close()
        assert server.stdout.read() == "/close\n"


# Each server is started as the page shows, with the app of test_pools.py in place of its own.
POOL = "from pooled import application, pool\n"


def on_gunicorn(where):
    where.write("gunicorn.conf.py", PAGE["gunicorn.conf.py"])
    return gunicorn("--threads=2", app="pool")(where)


def on_uwsgi(where):
    where.write("on_uwsgi.py", PAGE["on_uwsgi.py"])
    options = ("--enable-threads", "--lazy-apps")
    return uwsgi("--http-socket", *options, app="on_uwsgi")(where)


def on_waitress(where):
    source = PAGE["on_waitress.py"].replace("8000", str(where.port))
    return [[PYTHON, str(where.write("on_waitress.py", source))]]


@pytest.mark.servers
@pytest.mark.parametrize(
    ("name", "commands"),
    [("gunicorn", on_gunicorn), ("uwsgi", on_uwsgi), ("waitress", on_waitress)],
)
def test_at_sigterm_the_pool_is_drained(name, commands):
    server = Server(name, lambda where: where.write("pool.py", POOL) and commands(where), str)
    require([] if find(name) or find_spec(name) else [name])
    with running(server) as where:
        watch = send(where, "reading")
        assert watch.slow.wait(10)
        os.kill(where.pid, signal.SIGTERM)
        watch.end.set()
        where.processes[0].wait(20)
        assert watch.events[0] == "slow"
        assert watch.events[-1] == "last", watch.events
        assert "All callbacks finished" in where.log.read_text()


@pytest.mark.servers
def test_a_worker_of_gunicorn_that_is_recycled_drains_its_pool_however_long_that_takes():
    """Its job takes longer than the timeout: without the heartbeat, gunicorn would kill it."""

    def commands(where):
        where.write("pool.py", POOL)
        where.write("gunicorn.conf.py", PAGE["gunicorn.conf.py"])
        return gunicorn("--threads=2", "--max-requests=1", "--timeout=3", app="pool")(where)

    require([] if find("gunicorn") else ["gunicorn"])
    with running(Server("gunicorn", commands, str)) as where:
        watch = send(where, "reading")
        assert watch.slow.wait(10)
        assert not watch.done.wait(6)  # seconds
        watch.end.set()
        assert watch.done.wait(10), where.log.read_text()
        assert "WORKER TIMEOUT" not in where.log.read_text()
