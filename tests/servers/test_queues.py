"""Beyond one machine: callbacks that fill a queue, and queues that run callbacks."""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from commands import PACKAGE_PARENT, environment, run
from conftest import Exchange, hello, make_environ
from documents import ROOT, TESTS, blocks, executed

from wsgi_after import AfterResponseMiddleware

from .harness import APPS, end, find, free_port, listens, require, start, wait_until

PAGE = blocks("hand-off.rst")

pytestmark = [pytest.mark.servers, pytest.mark.usefixtures("throttles")]


@pytest.fixture
def redis(tmp_path, monkeypatch):
    require([name for name in ("rq", "celery", "redis") if find_spec(name) is None])
    require([] if find("redis-server") else ["redis-server"])
    port, log = free_port(), tmp_path / "redis.log"
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with log.open("wb") as output:
        process = start([str(find("redis-server")), *options], tmp_path, output)
    try:
        wait_until(lambda: listens(port), log, process)
        url = f"redis://127.0.0.1:{port}/0"
        monkeypatch.setenv("TEST_REDIS", url)
        yield SimpleNamespace(url=url, kill=partial(end, process))
    finally:
        end(process)


@pytest.fixture
def tasks(redis, monkeypatch):
    """The module that this process and the workers share."""
    monkeypatch.syspath_prepend(APPS)
    yield importlib.import_module("tasks")
    del sys.modules["tasks"]


def serve(register, **options):
    """Serve a request whose app calls ``register`` with its list; return what the client gets."""

    def app(environ, start_response):
        register(environ["wsgi.after"])
        return hello(environ, start_response)

    return Exchange(AfterResponseMiddleware(app, **options)).finish()


#: Where a new process finds what the functions here import.
PYTHONPATH = os.pathsep.join(map(str, [APPS, PACKAGE_PARENT, TESTS, ROOT]))


def levels(caplog):
    return [record.levelno for record in caplog.records if record.name == "wsgi_after"]


# RQ


@pytest.fixture
def executor(queue):
    """The executor of the page."""
    return executed(PAGE["rq_executor.py"])["RQExecutor"](queue)


@pytest.fixture
def queue(redis):
    from redis import Redis as Client
    from rq import Queue

    with Client.from_url(redis.url) as client:
        yield Queue(connection=client)


def test_a_worker_of_rq_runs_jobs_and_callbacks(queue, executor, redis, tasks, tmp_path, caplog):
    path = tmp_path / "written"

    def register(after):
        after(tasks.write, str(path), "first")
        after(tasks.write)  # fails; the others still run
        after(tasks.write, str(path), "last")

    enqueue = queue.enqueue, tasks.write, str(path), "enqueued"
    assert serve(lambda after: after(*enqueue)) == [b"hello"]
    assert serve(register, executor=executor) == [b"hello"]
    assert (levels(caplog), path.exists()) == ([], False)
    worker = f"python -m rq.cli worker --burst --url {redis.url}"
    run(worker, TESTS, PYTHONPATH=PYTHONPATH)
    assert path.read_text() == "enqueued\nfirst\nlast\n"


def test_app_wide_callbacks_cannot_be_pickled_and_run_in_close(queue, executor, caplog):
    """They hold the environ, which holds the server's own objects, and the list."""
    application = AfterResponseMiddleware(hello, executor=executor)
    application.after_response(remember)
    environ = make_environ(**{"wsgi.errors": sys.__stderr__})  # as servers have it
    assert Exchange(application, environ).finish() == [b"hello"]
    assert (remembered, levels(caplog)) == (["/path"], [logging.WARNING])
    assert queue.count == 0


remembered: list[str] = []


def remember(environ):
    remembered.append(environ["PATH_INFO"])


def test_queues_without_their_broker_cost_no_response(
    queue, executor, redis, tasks, tmp_path, caplog
):
    path = tmp_path / "written"
    task = tasks.write, str(path), "here"
    ways = [(tasks.celery.tasks["tasks.write"].delay, "path", "text"), (queue.enqueue, *task)]
    for levels_then in ([], [logging.ERROR] * 2):
        assert [serve(lambda after, way=way: after(*way)) for way in ways] == [[b"hello"]] * 2
        assert levels(caplog) == levels_then
        redis.kill()
    caplog.clear()
    assert serve(lambda after: after(*task), executor=executor) == [b"hello"]
    assert levels(caplog) == [logging.WARNING]
    assert path.read_text() == "here\n"


# Celery


def test_a_callback_delays_a_task_of_celery(tasks, tmp_path):
    path, log = tmp_path / "written", tmp_path / "log"
    delay = tasks.celery.tasks["tasks.write"].delay
    assert serve(lambda after: after(delay, str(path), "by Celery")) == [b"hello"]
    assert not path.exists()
    command = [sys.executable, *["-m", "celery", "-A", "tasks:celery", "worker", "--pool=solo"]]
    with log.open("wb") as output:
        env = environment(PYTHONPATH=PYTHONPATH)
        process = start(
            [*command, "--without-gossip", "--without-mingle"], tmp_path, output, env=env
        )
    try:
        wait_until(lambda: path.exists() and path.read_text() == "by Celery\n", log)
    finally:
        end(process)


# Dask


DASK = """
import logging, os, sys, time
from dask.distributed import LocalCluster
from dask_executor import make_executor
from tests.servers.test_queues import serve
import tasks

def main(path):
    logging.basicConfig(format="%(name)s %(levelname)s")
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster:
        executor = make_executor(cluster)
        for _ in range(2):  # requests that look the same
            serve(lambda after: after(tasks.write_pid, path, "by Dask"), executor=executor)
        executor.shutdown()
        executor = make_executor(cluster)
        cannot = []
        serve(lambda after: after(cannot.append, sys.stdin), executor=executor)
        serve(lambda after: after(time.sleep, 60), executor=executor)
    serve(lambda after: after(tasks.write_pid, path, "in close()"), executor=executor)
    print(len(cannot), os.getpid())

if __name__ == "__main__":
    main(sys.argv[1])
"""


def test_the_processes_of_dask_run_the_callbacks(tmp_path):
    """Two requests; one that cannot be pickled; one that runs as the cluster ends; one after."""
    require([] if find_spec("distributed") else ["distributed"])
    (tmp_path / "script.py").write_text(DASK)
    (tmp_path / "dask_executor.py").write_text(PAGE["dask_executor.py"])
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "written"],
        env=environment(PYTHONPATH=PYTHONPATH),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    cannot, pid = done.stdout.split()
    *by_dask, last = (tmp_path / "written").read_text().splitlines()
    assert (cannot, len(by_dask), last) == ("1", 2, f"in close() {pid}")
    assert f"by Dask {pid}" not in by_dask
    assert re.findall(r"(?m)^wsgi_after (\w+)$", done.stderr) == ["WARNING", "ERROR"]
