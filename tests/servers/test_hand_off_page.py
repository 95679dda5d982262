"""docs/hand-off.rst: it parses, and its examples do on real servers what it says."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Exchange, make_environ
from docutils import nodes
from docutils.core import publish_doctree

from .descriptions import BY_NAME, PYTHON
from .harness import Place, Server, find, require, running
from .measure import measured
from .test_executor import gunicorn, send

PAGE = Path(__file__).parents[2] / "docs" / "hand-off.rst"


def parse() -> nodes.document:
    """The page; a warning is an error."""
    settings = {"halt_level": 2, "report_level": 5, "syntax_highlight": "none"}
    return publish_doctree(PAGE.read_text(encoding="utf-8"), settings_overrides=settings)


def snippets() -> dict[str, str]:
    found = parse().findall(nodes.literal_block)
    return {block["names"][0]: block.astext() for block in found if block["names"]}


def test_its_examples_are_those_that_are_tested() -> None:
    assert list(snippets()) == [
        *("pool.py", "gunicorn.conf.py", "on_uwsgi.py", "on_waitress.py"),
        *("rq_executor.py", "dask_executor.py"),  # by test_queues.py
    ]


@pytest.mark.servers
@pytest.mark.parametrize("name", [name for name in BY_NAME if not name.startswith("nginx")])
def test_its_table_says_what_becomes_of_a_job_at_sigterm(name: str) -> None:
    [table] = parse().findall(nodes.table)
    rows = [
        [entry.astext() for entry in row.findall(nodes.entry)]
        for row in list(table.findall(nodes.row))[1:]
    ]
    [fate] = [fate for server, fate, _ in rows if name.lower().startswith(server.lower())]
    assert measured(name, "default").sigterm in fate


def test_the_pool_runs_the_callback(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    exec(snippets()["pool.py"], namespace)
    assert Exchange(namespace["application"], make_environ()).finish() == [b"Hello\n"]
    assert namespace["pool"].drain(10)
    assert capsys.readouterr().out == "after the response\n"


# Each server is started as the page shows, with the app of test_executor.py in place of its own.
POOL = "from pooled import application, pool\n"


def on_gunicorn(where: Place) -> list[list[str]]:
    where.write("gunicorn.conf.py", snippets()["gunicorn.conf.py"])
    return gunicorn("--threads=2", app="pool").commands(where)  # type: ignore[return-value]


def on_uwsgi(where: Place) -> list[list[str]]:
    where.write("on_uwsgi.py", snippets()["on_uwsgi.py"])
    listen = f"--http-socket=127.0.0.1:{where.port}"
    options = ["--master", "--die-on-term", "--enable-threads", "--lazy-apps", "--need-app"]
    return [[find("uwsgi") or "uwsgi", *options, listen, "--wsgi-file=on_uwsgi.py"]]


def on_waitress(where: Place) -> list[list[str]]:
    source = snippets()["on_waitress.py"].replace("8000", str(where.port))
    return [[PYTHON, str(where.write("on_waitress.py", source))]]


@pytest.mark.servers
@pytest.mark.parametrize(
    ("name", "commands"),
    [("gunicorn", on_gunicorn), ("uwsgi", on_uwsgi), ("waitress", on_waitress)],
)
def test_at_sigterm_the_pool_is_drained(name: str, commands: Any) -> None:
    server = Server(name, lambda where: where.write("pool.py", POOL) and commands(where), str)
    require([] if find(name) or find_spec(name) else [name])
    with running(server) as where:
        _, watch = send(where, "reading")
        assert watch.slow.wait(10)
        os.kill(where.pid, signal.SIGTERM)
        watch.end.set()
        where.processes[0].wait(20)
        assert watch.events[0] == "slow"
        assert watch.events[-1] == "last", watch.events
        assert "All callbacks finished: True" in where.log.read_text()
