"""What several tests of frameworks need: apps, and servers that are started once for all tests."""

from __future__ import annotations

from contextlib import ExitStack

import databases
import django
import mail
import pytest
from conftest import Exchange, make_environ
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.db import connections
from django.test.utils import override_settings
from django.urls import path
from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from wsgi_after.flask import AfterResponse, AfterResponseClient

from .models import Base

settings.configured or settings.configure(SECRET_KEY="x")  # Django 4.2 needs it for errors
django.setup()  # without this, Django warns about code that uses a database


def exchange(app, **environ):
    """A request for ``/``."""
    return Exchange(app, make_environ(PATH_INFO="/", SCRIPT_NAME="", **environ))


def flask_app(name="shop", **options):
    """A Flask app with the extension; its test client closes the responses."""
    app = Flask(name)
    app.secret_key = "secret"
    app.test_client_class = AfterResponseClient
    AfterResponse(app, **options)
    return app


@pytest.fixture
def sessions(tmp_path):
    """Sessions of a database that has a table of rows."""
    engine = create_engine(f"sqlite:///{tmp_path}/rows.db", poolclass=NullPool)
    Base.metadata.create_all(engine)
    return sessionmaker(engine)


@pytest.fixture
def handler():
    """Make Django's WSGI application from a view and settings that apply until the test ends."""
    with ExitStack() as stack:

        def make(view, *middleware, **extra):
            urls = type("Urls", (), {"urlpatterns": [path("", view)], **extra.pop("urls", {})})
            named = {
                "MIDDLEWARE": middleware or ["wsgi_after.django.AfterResponseMiddleware"],
                "ALLOWED_HOSTS": ["*"],
                **extra,
            }
            stack.enter_context(override_settings(ROOT_URLCONF=urls, **named))
            return WSGIHandler()

        yield make


@pytest.fixture
def request_finished_too(events):
    """Record Django's signal ``request_finished`` in the events."""

    def receiver(**kwargs):
        events.append("request_finished")

    request_finished.connect(receiver)
    yield
    request_finished.disconnect(receiver)


@pytest.fixture
def sqlite(tmp_path, monkeypatch):
    """Give Django's project SQLite databases with these names, all with the same options."""

    def make(*names, **options):
        engine = "django.db.backends.sqlite3"
        named = {name: {"ENGINE": engine, "NAME": tmp_path / name, **options} for name in names}
        configured = connections.configure_settings({"default": {}, **named})
        monkeypatch.setitem(vars(connections), "settings", configured)

    forget_connections()
    yield make
    forget_connections()


def forget_connections():
    """Close and delete those of this thread: new ones will follow the current settings."""
    for connection in connections.all(initialized_only=True):
        connection.close()
        del connections[connection.alias]


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server that all tests share: use a table, or a database, of your own."""
    with databases.postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def _mail_server():
    with mail.mail_server() as server:
        yield server


@pytest.fixture
def mail_server(_mail_server):
    """An SMTP server that has received nothing yet in this test."""
    _mail_server.clear()
    return _mail_server
