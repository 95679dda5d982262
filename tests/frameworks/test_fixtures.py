"""The servers that the tests of frameworks share: they start, and they receive."""

from __future__ import annotations

from email.message import EmailMessage
from smtplib import SMTP

import psycopg
import pytest
from databases import PostgreSQL
from mail import MailServer


@pytest.mark.servers
def test_postgresql_takes_connections(postgresql: PostgreSQL) -> None:
    with psycopg.connect(postgresql.url()) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_the_mail_server_receives_a_message(mail_server: MailServer) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.com", "Hello"
    message.set_content("Grüße")
    with SMTP(mail_server.host, mail_server.port) as smtp:
        smtp.send_message(message)
    [received] = mail_server.wait()
    assert (received["Subject"], received.get_content().strip()) == ("Hello", "Grüße")


def test_each_test_finds_the_mail_server_empty(mail_server: MailServer) -> None:
    assert mail_server.messages == []
