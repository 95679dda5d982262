"""What is started once for all tests of frameworks that need it."""

from __future__ import annotations

from collections.abc import Iterator

import databases
import mail
import pytest


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
