"""docs/django.rst and its example project, under real servers, with real databases and mail."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from commands import ask, ask_all, ask_json, run, serving
from documents import DOCS, blocks
from mail import MailServer
from servers.harness import wait_until

PAGE = blocks("django.rst")
FILES = {name: text for name, text in PAGE.items() if name.endswith(".py")}
COMMANDS = {name: text.removeprefix("$ ") for name, text in PAGE.items() if name not in FILES}


# The page.


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with the files of the page."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_everything_on_the_page_is_run_by_a_test() -> None:
    assert list(FILES) == [
        *("settings.py", "urls.py", "wsgi.py", "orders.py", "language.py", "test_orders.py"),
        *("both.py", "test_both.py"),
    ]
    assert list(COMMANDS) == [
        *("install", "runserver", "test", "migrate", "gunicorn", "uwsgi", "curl")
    ]
    assert COMMANDS["install"] == "pip install wsgi-after django"  # as the tests' extra does


def test_the_page_leads_to_a_mail(project: Path, mail_server: MailServer) -> None:
    settings = FILES["settings.py"].replace("8025", str(mail_server.port))
    (project / "settings.py").write_text(settings, encoding="utf-8")
    with serving(COMMANDS["runserver"], project) as port:
        query = urlencode({"email": "alice@example.com"})
        assert ask(port, f"/order?{query}") == (200, "Thank you.\n")
        [mail] = mail_server.wait()
    assert (mail["To"], mail["Subject"]) == ("alice@example.com", "Your order")


def test_the_tests_of_the_page_pass(project: Path) -> None:
    assert "Ran 6 tests" in run(COMMANDS["test"], project)


REQUEST = """
from werkzeug.test import Client
from wsgi import application
import django.core.mail
django.core.mail.outbox = []
from django.test.utils import override_settings
with override_settings(EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend"):
    response = Client(application).get("/order?email=alice@example.com", "http://127.0.0.1/")
    print(response.get_data(as_text=True), len(django.core.mail.outbox))
    response.close()
    print(len(django.core.mail.outbox))
"""


def test_the_wrapped_application_of_the_page_works(project: Path) -> None:
    (project / "request.py").write_text(REQUEST, encoding="utf-8")
    lines = run("python request.py", project).split()
    assert lines == ["Thank", "you.", "0", "1"]


# The example project.


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy of the example project."""
    left_out = shutil.ignore_patterns("__pycache__", "*.sqlite3")
    return shutil.copytree(DOCS / "examples" / "django", tmp_path / "django", ignore=left_out)


@pytest.mark.parametrize("server", ["gunicorn", pytest.param("uwsgi", marks=pytest.mark.servers)])
def test_the_example_runs_by_the_commands_of_the_page(
    example: Path, mail_server: MailServer, server: str
) -> None:
    run(COMMANDS["migrate"], example)
    request, thanks = COMMANDS["curl"].split("\n", 1)
    _, _, body, url = shlex.split(request)
    path = url.removeprefix("http://127.0.0.1:8000")
    with serving(COMMANDS[server], example, EMAIL_PORT=mail_server.port) as port:
        assert ask(port, path, body) == (201, thanks + "\n")
        [mail] = mail_server.wait()
        assert (mail["To"], mail.get_content().strip()) == ("alice@example.com", "We have order 1.")
        mailed = {"orders": [{"id": 1, "email": "alice@example.com", "mailed": True}]}
        wait_until(lambda: ask_json(port, "/orders") == mailed, example / "log")


# Real databases. Each request leaves a callback that writes a row.

REQUESTS = 1000
THREADS = 4  # of gunicorn, and of the client

URLS = """
from django.http import HttpResponse
from django.urls import path
from shop.models import Order
from wsgi_after.django import after_response

def index(request, number):
    after_response(request, Order.objects.create, email=f"{number}@example.com")
    return HttpResponse("hello")

urlpatterns = [path("<int:number>", index)]
"""
SETTINGS = """
from shop.settings import *
ROOT_URLCONF = "load.urls"
DATABASES = {{"default": {{**{database!r}, "CONN_MAX_AGE": {age!r}}}}}
"""
ALONE = "from shop.wsgi import application\n"
WRAPPED = """
from wsgi_after import AfterResponseMiddleware
from shop.wsgi import application
application = AfterResponseMiddleware(application)
"""
# It refuses none: those would run in Django's own threads, which may keep connections.
POOL = """
from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor
from shop.wsgi import application
pool = BoundedThreadPoolExecutor(max_pending=1000)
application = AfterResponseMiddleware(application, executor=pool)
"""


@contextmanager
def loaded(
    example: Path, wsgi: str, database: dict[str, Any], age: int | None, requests: int
) -> Iterator[Path]:
    """The project under gunicorn, which has answered that many requests; yields its log."""
    files = {"settings": SETTINGS.format(database=database, age=age), "urls": URLS, "wsgi": wsgi}
    (example / "load").mkdir()
    for name, text in files.items():
        (example / "load" / f"{name}.py").write_text(text, encoding="utf-8")
    extra = {"DJANGO_SETTINGS_MODULE": "load.settings"}
    run(f"{COMMANDS['migrate']} --verbosity 0", example, **extra)
    command = f"gunicorn --bind 127.0.0.1:8000 --threads {THREADS} load.wsgi"
    with serving(command, example, **extra) as port:
        paths = [f"/{number}" for number in range(requests)]
        assert ask_all(port, paths, THREADS) == {(200, "hello")}
        yield example / "log"


EXPECTED = {f"{number}@example.com" for number in range(REQUESTS)}


@pytest.mark.servers  # for the time that it takes: SQLite has its writers wait for the disk
def test_a_thousand_callbacks_write_to_sqlite(example: Path) -> None:
    import sqlite3

    name = str(example / "load.sqlite3")
    database = {
        "ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": {"timeout": 60}
    }  # fmt: skip
    with closing(sqlite3.connect(name)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # one wait for the disk a row, not three
    with (
        closing(sqlite3.connect(name)) as connection,
        loaded(example, ALONE, database, 0, REQUESTS) as log,
    ):

        def rows() -> list[str]:
            return [email for (email,) in connection.execute("SELECT email FROM shop_order")]

        wait_until(lambda: len(rows()) >= REQUESTS, log)
        assert (len(rows()), set(rows())) == (REQUESTS, EXPECTED)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("wsgi", "age", "left"),
    [
        (ALONE, 0, 0),
        (WRAPPED, 0, 0),
        (POOL, 0, 0),
        (POOL, None, 0),  # the requests themselves do not use the database
        (ALONE, None, THREADS),  # Django keeps one for each thread of the server
        (WRAPPED, 60, THREADS),
    ],
    ids=["alone", "wrapped", "pool", "pool, kept", "alone, kept", "wrapped, kept"],
)
def test_a_thousand_callbacks_write_to_postgresql(
    example: Path, postgresql: Any, wsgi: str, age: int | None, left: int
) -> None:
    import psycopg

    name = f"shop_{example.parent.name}".lower().replace("-", "_")
    with psycopg.connect(postgresql.url(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "HOST": postgresql.host,
        "PORT": postgresql.port,
        "USER": postgresql.user,
    }
    requests = 100 if left else REQUESTS
    with (
        loaded(example, wsgi, database, age, requests) as log,
        psycopg.connect(postgresql.url(), dbname=name, autocommit=True) as connection,
    ):

        def ask_for(query: str) -> list[Any]:
            return [value for (value,) in connection.execute(query).fetchall()]

        def open_connections() -> int:
            [count] = ask_for(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            )
            return int(count) - 1  # this one

        wait_until(lambda: len(ask_for("SELECT email FROM shop_order")) >= requests, log)
        rows = ask_for("SELECT email FROM shop_order")
        assert (len(rows), set(rows)) == (
            requests,
            {f"{number}@example.com" for number in range(requests)},
        )
        # The last row may be there a moment before the end of its callback.
        wait_until(lambda: open_connections() <= left, log)
        assert (open_connections() > 0) == (left > 0)
