"""The pages of Django, Flask and Pyramid, and their example projects: servers, databases, mail."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import ask, ask_all, ask_json, copied_checkout, installs, paste, run, serving
from conftest import Exchange, make_environ
from documents import DOCS, blocks, executed
from paste.deploy import loadapp
from servers.harness import free_port, wait_until

PAGES = {
    "django": blocks("django.rst"),
    "flask": blocks("flask.rst"),
    "pyramid": blocks("pyramid.rst"),
}
RUN = {
    "django": [
        *("install", "settings.py", "urls.py", "runserver", "order", "entry.py", "wsgi.py"),
        *("orders.py", "language.py", "test_orders.py", "test", "both.py", "test_both.py"),
        *("migrate", "gunicorn", "uwsgi", "curl"),
    ],
    "flask": [
        *("install", "shop.py", "run", "order", "factory.py", "factory_used.py"),
        "download.py",  # by tests/test_other_packages.py
        *("orders.py", "tags.py", "test_orders.py"),  # tags.py: test_cells.py
        *("gunicorn", "uwsgi", "curl"),
    ],
    "pyramid": [
        *("install", "app.py", "serve", "order", "rows.py", "tags.py", "pools.py"),
        *("setting.ini", "filter.ini"),
        *("test_app.py", "needs", "gunicorn", "uwsgi", "curl"),
    ],
}
SERVERS = pytest.mark.parametrize(
    "server", ["gunicorn", pytest.param("uwsgi", marks=pytest.mark.servers)]
)


def command(page, name):
    """The command that a block shows after its prompt."""
    return re.findall(r"(?m)^\$ (.*)", PAGES[page][name])[0]


def curl(page, name):
    """Path and form of the request that a block shows, and the answer."""
    program, *data, url = shlex.split(command(page, name))
    path = url.removeprefix("http://127.0.0.1:8000")
    assert (program, path[0]) == ("curl", "/")
    return path, data[1] if data else None, PAGES[page][name].partition("\n")[2] + "\n"


# The pages.


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Make a directory with the importable files of a page, and put these ports into them."""

    def files(page, **ports):
        for name, text in PAGES[page].items():
            if name.endswith((".py", ".ini")):
                text = re.sub(
                    "8000|8025", lambda found: str(ports.get(f"port_{found[0]}", found[0])), text
                )
                (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    yield files
    for name in ("app", "pools", "rows"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("page", PAGES)
def test_everything_on_the_page_is_run_by_a_test(page):
    assert list(PAGES[page]) == RUN[page]
    as_the_extra_does = f"pip install ../wsgi_after {page}"
    assert command(page, "install") == as_the_extra_does


@pytest.mark.parametrize(
    ("page", "name", "options", "text"),
    [
        ("django", "runserver", "", "Thank you."),
        ("flask", "run", "", None),
        ("flask", "run", " --debug --no-reload", None),
        ("pyramid", "serve", "", "Thank you."),
    ],
)
def test_the_page_leads_to_a_mail(files, mail_server, page, name, options, text):
    path, form, answer = curl(page, "order")
    port = free_port()
    where = files(page, port_8025=mail_server.port, port_8000=port)
    shown = command(page, name) + options
    with serving(shown, where, port, FLASK_SMTP_PORT=mail_server.port):
        assert ask(port, path, form) == (200, answer)
        [mail] = mail_server.wait()
    assert (mail["To"], mail["Subject"]) == ("ada@example.com", "Your order")
    expected = text or f"Thank you for your order at 127.0.0.1:{port}"
    assert mail.get_content().rstrip() == expected


def test_the_tests_of_the_pages_pass(files):
    assert "Ran 6 tests" in run(command("django", "test"), files("django"))
    pytest_ = "python -m pytest -q -p no:cacheprovider test_orders.py"
    assert "2 passed" in run(pytest_, files("flask"), PYTEST_ADDOPTS="")
    files("pyramid")
    executed(PAGES["pyramid"]["test_app.py"])["test_an_order_sends_a_mail"]()


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


def test_the_wrapped_application_of_djangos_page_works(files):
    project = files("django")
    (project / "request.py").write_text(REQUEST, encoding="utf-8")
    lines = run("python request.py", project).split()
    assert lines == ["Thank", "you.", "0", "1"]


def test_the_factory_on_flasks_page(files):
    run("python -W error factory_used.py", files("flask"))


@pytest.mark.servers
@installs
def test_what_flasks_page_installs_is_enough(tmp_path):
    checkout = copied_checkout(tmp_path)
    (checkout / "shop.py").write_text(PAGES["flask"]["shop.py"], encoding="utf-8")
    routes = command("flask", "run").partition(" run")[0] + " routes"
    install = command("flask", "install").replace("../wsgi_after", ".")
    out = paste(f"python3 -m venv .venv && . .venv/bin/activate && {install} && {routes}", checkout)
    assert re.search(r"order +POST +/orders", out)


@pytest.mark.parametrize("name", ["setting.ini", "filter.ini"])
def test_the_ini_files_of_pyramids_page_put_callbacks_into_the_pool(files, mail_server, name):
    ini = files("pyramid", port_8025=mail_server.port) / name
    environ = make_environ(PATH_INFO="/order", QUERY_STRING="email=alice@example.com")
    assert Exchange(loadapp(f"config:{ini}"), environ).finish() == [b"Thank you.\n"]
    with sys.modules["pools"].pool as pool:
        assert pool.drain(30)
    assert [mail["To"] for mail in mail_server.messages] == ["alice@example.com"]


# The example projects.


@pytest.fixture
def example(tmp_path):
    """Make a copy of an example project."""
    left_out = shutil.ignore_patterns("__pycache__", "*.sqlite3", "instance")
    return lambda name: shutil.copytree(DOCS / "examples" / name, tmp_path / name, ignore=left_out)


ORDER = {"id": 1, "email": "alice@example.com", "mailed": True}


@SERVERS
@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("django", "/orders", {"orders": [ORDER]}),
        ("flask", "/orders/1", {"mailed": True}),
        ("pyramid", "/orders", {"orders": [ORDER]}),
    ],
)
def test_the_example_runs_by_the_commands_of_the_page(
    example, mail_server, name, path, expected, server
):
    project = example(name)
    if name == "django":
        run(command(name, "migrate"), project)
    if name == "pyramid":
        ini = project / "shop.ini"
        ini.write_text(ini.read_text().replace("8025", str(mail_server.port)))
    target, form, thanks = curl(name, "curl")
    ports = dict.fromkeys(["EMAIL_PORT", "FLASK_SMTP_PORT"], mail_server.port)
    with serving(command(name, server), project, **ports) as port:
        assert ask(port, target, form) == (201, thanks)
        [mail] = mail_server.wait()
        wait_until(lambda: ask_json(port, path) == expected, project / "log")
    assert mail["To"] == "alice@example.com"
    assert "order 1" in f"{mail['Subject']} {mail.get_content()}"
    if name == "flask":
        assert "POST /orders: 201 CREATED" in (project / "log").read_text()


# Real databases. Each request leaves a callback that writes a row.

REQUESTS = 1000
THREADS = 4  # of gunicorn, and of the client
GUNICORN = f"gunicorn --bind 127.0.0.1:8000 --worker-class gthread --threads {THREADS} "

SERVED = """
import json
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
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = WAL")
    engine.dispose()  # of the connection that made the table

def state():
    with engine.connect() as connection:
        paths = connection.scalars(sqlalchemy.text("SELECT path FROM pyramid_rows")).all()
    numbers = sorted(int(path.rpartition("/")[2]) for path in paths)
    return {"numbers": numbers, "checked_out": engine.pool.checkedout()}

def app(environ, start_response):
    if environ["PATH_INFO"] != "/state":
        return rows(environ, start_response)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(state()).encode()]
"""


@pytest.mark.parametrize(
    ("page", "database", "fail"),
    [
        # SQLite takes seconds for 1000 transactions
        pytest.param("flask", "sqlite", REQUESTS // 10, marks=pytest.mark.servers),
        pytest.param("flask", "postgresql", REQUESTS // 10, marks=pytest.mark.servers),
        ("pyramid", "sqlite", 0),
        pytest.param("pyramid", "postgresql", 0, marks=pytest.mark.servers),
    ],
)
def test_a_thousand_callbacks_write_rows(files, request, page, database, fail):
    """SQLAlchemy's pool has fewer connections; in Flask, some callbacks fail after they write."""
    project = files(page)
    shutil.copy(Path(__file__).with_name("flask_rows.py"), project)
    (project / "pyramid_rows.py").write_text(SERVED)
    url = f"sqlite:///{project / 'rows.sqlite3'}?timeout=60"
    if database == "postgresql":
        url = request.getfixturevalue("postgresql").url("postgresql+psycopg")
    extra = {"FLASK_SQLALCHEMY_DATABASE_URI": url, "TEST_DATABASE": url}
    with serving(f"{GUNICORN} {page}_rows:app", project, **extra) as port:
        answers = ask_all(port, [f"/add/{number}" for number in range(REQUESTS)])
        assert {status for status, _ in answers} == {200}
        all_there = {"numbers": list(range(REQUESTS)), "checked_out": 0}
        wait_until(lambda: ask_json(port, "/state") == all_there, project / "log")
    assert (project / "log").read_text().count("Traceback") == fail


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
# This pool refuses no job: a refused one would run in Django's own thread, which may keep its
# connection.
POOL = """
from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor
from shop.wsgi import application
pool = BoundedThreadPoolExecutor(max_pending=1000)
application = AfterResponseMiddleware(application, executor=pool)
"""


@contextmanager
def database_of(server, directory):
    """A new database, as in Django's settings, and a connection to it."""
    import psycopg

    name = f"shop_{directory.name}".lower().replace("-", "_")
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    with psycopg.connect(server.url(), dbname=name, autocommit=True) as connection:
        found = {"NAME": name, "HOST": server.host, "PORT": server.port, "USER": server.user}
        yield {"ENGINE": "django.db.backends.postgresql", **found}, connection


@pytest.mark.servers
@pytest.mark.parametrize(
    ("pooled", "wsgi", "age", "left"),
    [
        (False, ALONE, 0, 0),
        (False, WRAPPED, 0, 0),
        (False, POOL, 0, 0),
        (False, POOL, None, 0),  # the requests themselves do not use the database
        (False, ALONE, None, THREADS),  # Django keeps one for each thread of the server
        (False, WRAPPED, 60, THREADS),
        (True, ALONE, 0, THREADS),  # Django's pool keeps them, at most one for each
        (True, WRAPPED, 0, THREADS),
        (True, POOL, 0, THREADS),
    ],
    ids=[
        *("alone", "wrapped", "pool", "pool, kept", "alone, kept", "wrapped, kept"),
        *("psycopg's pool, alone", "psycopg's pool, wrapped", "psycopg's pool, pool"),
    ],
)
def test_a_thousand_callbacks_of_django_write_rows(
    example, postgresql, tmp_path, pooled, wsgi, age, left
):
    project = example("django")
    (project / "load").mkdir()
    requests = 100 if left else REQUESTS
    paths = [f"/{number}" for number in range(requests)]
    extra = {"DJANGO_SETTINGS_MODULE": "load.settings"}
    with database_of(postgresql, tmp_path) as (settings, connection):
        if pooled:  # a connection that is not given back is missed at once
            settings["OPTIONS"] = {"pool": {"min_size": 1, "max_size": THREADS, "timeout": 20}}
        text = SETTINGS.format(database=settings, age=age)
        for name, source in {"settings": text, "urls": URLS, "wsgi": wsgi}.items():
            (project / "load" / f"{name}.py").write_text(source, encoding="utf-8")
        run(f"{command('django', 'migrate')} --verbosity 0", project, **extra)

        def ask_for(query):
            return [value for (value,) in connection.execute(query).fetchall()]

        def open_connections():
            [count] = ask_for(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            )
            return int(count) - 1  # this one

        with serving(f"{GUNICORN} load.wsgi", project, **extra) as port:
            assert ask_all(port, paths, THREADS) == {(200, "hello")}
            log = project / "log"
            emails = "SELECT email FROM shop_order"
            wait_until(lambda: len(ask_for(emails)) >= requests, log)
            assert sorted(ask_for(emails)) == sorted(f"{path[1:]}@example.com" for path in paths)
            # The last row may be there a moment before the end of its callback.
            wait_until(lambda: open_connections() <= left, log)
            assert (open_connections() > 0) == (left > 0)
