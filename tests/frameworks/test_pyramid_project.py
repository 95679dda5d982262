"""docs/pyramid.rst and its example project, under real servers, with real databases and mail."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import ask, ask_all, ask_json, serving
from conftest import Exchange, make_environ
from databases import PostgreSQL
from documents import DOCS, blocks, executed
from mail import MailServer
from paste.deploy import loadapp
from servers.harness import free_port, wait_until

PAGE = blocks("pyramid.rst")
FILES = {name: text for name, text in PAGE.items() if name.endswith((".py", ".ini"))}
COMMANDS = {name: text.removeprefix("$ ") for name, text in PAGE.items() if name not in FILES}


# The page.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the files of the page, which can be imported."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("app", "pools", "rows"):
        sys.modules.pop(name, None)


def test_everything_on_the_page_is_run_by_a_test() -> None:
    assert list(FILES) == [
        *("app.py", "rows.py", "pools.py", "setting.ini", "filter.ini", "test_app.py")
    ]
    assert list(COMMANDS) == [*("install", "serve", "needs", "gunicorn", "uwsgi", "curl")]
    assert COMMANDS["install"] == "pip install wsgi-after pyramid"  # as the tests' extra does


def test_the_page_leads_to_a_mail(project: Path, mail_server: MailServer) -> None:
    port = free_port()
    source = FILES["app.py"].replace("8025", str(mail_server.port)).replace("8000", str(port))
    (project / "app.py").write_text(source, encoding="utf-8")
    with serving(COMMANDS["serve"], project, port) as port:
        assert ask(port, "/order?email=alice@example.com") == (200, "Thank you.\n")
        [mail] = mail_server.wait()
    assert (mail["To"], mail["Subject"]) == ("alice@example.com", "Your order")


@pytest.mark.parametrize("name", ["setting.ini", "filter.ini"])
def test_the_ini_files_of_the_page_put_callbacks_into_the_pool(
    project: Path, mail_server: MailServer, name: str
) -> None:
    ini = project / name
    ini.write_text(FILES[name].replace("8025", str(mail_server.port)))
    application = loadapp(f"config:{ini}")
    environ = make_environ(PATH_INFO="/order", QUERY_STRING="email=alice@example.com")
    assert Exchange(application, environ).finish() == [b"Thank you.\n"]
    with sys.modules["pools"].pool as pool:
        assert pool.drain(30)
    assert [mail["To"] for mail in mail_server.messages] == ["alice@example.com"]


def test_the_test_of_the_page_passes(project: Path) -> None:
    executed(FILES["test_app.py"])["test_an_order_sends_a_mail"]()


# The example project.


@pytest.mark.parametrize("server", ["gunicorn", pytest.param("uwsgi", marks=pytest.mark.servers)])
def test_the_example_runs_by_the_commands_of_the_page(
    tmp_path: Path, mail_server: MailServer, server: str
) -> None:
    left_out = shutil.ignore_patterns("__pycache__", "*.sqlite3")
    example = shutil.copytree(DOCS / "examples" / "pyramid", tmp_path / "shop", ignore=left_out)
    ini = example / "shop.ini"
    ini.write_text(ini.read_text().replace("8025", str(mail_server.port)))
    request, thanks = COMMANDS["curl"].split("\n", 1)
    _, _, body, url = shlex.split(request)
    path = url.removeprefix("http://127.0.0.1:8000")
    with serving(COMMANDS[server], example) as port:
        assert ask(port, path, body) == (201, thanks + "\n")
        [mail] = mail_server.wait()
        assert (mail["To"], mail.get_content().strip()) == ("alice@example.com", "We have order 1.")
        mailed = {"orders": [{"id": 1, "email": "alice@example.com", "mailed": True}]}
        wait_until(lambda: ask_json(port, "/orders") == mailed, example / "log")


# Real databases. Each request leaves a callback that writes a row.

REQUESTS = 1000

SERVED = """
import os
import sqlalchemy
from sqlalchemy import event
from rows import Row, main

settings = {"sqlalchemy.url": os.environ["TEST_DATABASE"]}
rows = main({}, **settings, **{"tm.manager_hook": "pyramid_tm.explicit_manager"})
engine = rows.registry["sessions"].kw["bind"]

if engine.dialect.name == "sqlite":
    @event.listens_for(engine, "connect")
    def nothing_is_to_survive(connection, record):
        connection.execute("PRAGMA busy_timeout = 60000")  # milliseconds
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = WAL")
    engine.dispose()  # of the connection that made the table

def application(environ, start_response):
    if environ["PATH_INFO"] != "/pool":
        return rows(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(engine.pool.checkedout()).encode()]
"""

GUNICORN = "gunicorn --bind 127.0.0.1:8000 --worker-class gthread --threads 4 served:application"


def test_with_sqlite_a_thousand_callbacks_write_a_thousand_rows(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_thousand_rows(project, f"sqlite:///{project}/rows.sqlite3", monkeypatch)


@pytest.mark.servers
def test_with_postgresql_a_thousand_callbacks_write_a_thousand_rows(
    project: Path, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_thousand_rows(project, postgresql.url("postgresql+psycopg"), monkeypatch)


def a_thousand_rows(project: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are there, and no connection stays checked out of the pool, which has four."""
    from sqlalchemy import create_engine, text

    (project / "served.py").write_text(SERVED)
    monkeypatch.setenv("TEST_DATABASE", url)
    engine = create_engine(url)
    with serving(GUNICORN, project) as port, closing_pool(engine), engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")

        def paths() -> list[str]:
            return list(connection.scalars(text("SELECT path FROM pyramid_rows")))

        sent = [f"/{number}" for number in range(REQUESTS)]
        answers = ask_all(port, sent)
        assert {(status, text.lstrip("0123456789")) for status, text in answers} == {
            (200, " rows so far\n")
        }
        log = project / "log"
        wait_until(lambda: len(paths()) == REQUESTS, log)
        assert sorted(paths()) == sorted(sent)
        wait_until(lambda: ask(port, "/pool") == (200, "0"), log)
        assert "Traceback" not in log.read_text()


@contextmanager
def closing_pool(engine: Any) -> Iterator[None]:
    try:
        yield
    finally:
        engine.dispose()
