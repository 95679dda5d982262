"""What several tests of frameworks need: apps of Django, and what is started once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import databases
import django
import mail
import pytest
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.test.utils import override_settings
from django.urls import path

settings.configured or settings.configure(SECRET_KEY="x")  # which Django 4.2 wants for errors
django.setup()  # or it warns of what uses a database


@pytest.fixture
def handler() -> Iterator[Callable[..., WSGIHandler]]:
    """Make Django's WSGI application of a view and its settings, in force to the test's end."""
    with ExitStack() as stack:

        def make(view: Callable[..., Any], *middleware: str, **extra: Any) -> WSGIHandler:
            urls = type("Urls", (), {"urlpatterns": [path("", view)], **extra.pop("urls", {})})
            named = {
                "MIDDLEWARE": middleware or ["wsgi_after.django.AfterResponseMiddleware"],
                "ALLOWED_HOSTS": ["*"],
                **extra,
            }
            stack.enter_context(override_settings(ROOT_URLCONF=urls, **named))
            return WSGIHandler()

        yield make


@pytest.fixture(scope="session")
def postgresql() -> Iterator[databases.PostgreSQL]:
    """A PostgreSQL, shared by all tests: take a table, or a database, of your own."""
    with databases.postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def _mail_server() -> Iterator[mail.MailServer]:
    with mail.mail_server() as server:
        yield server


@pytest.fixture
def mail_server(_mail_server: mail.MailServer) -> mail.MailServer:
    """An SMTP server that has received nothing yet in this test."""
    _mail_server.clear()
    return _mail_server
