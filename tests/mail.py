"""A real SMTP server in this process, for tests of callbacks that send a mail."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from threading import Condition
from typing import Any

from aiosmtpd.controller import Controller
from servers.harness import free_port


class MailServer:
    """The mails that an SMTP server on 127.0.0.1 has received."""

    def __init__(self, port: int) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.messages: list[EmailMessage] = []
        self._arrived = Condition()

    def wait(self, count: int = 1, seconds: float = 30) -> list[EmailMessage]:
        """The messages, once there are ``count`` of them; fails if that takes too long."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.messages) >= count, seconds), (
                f"{len(self.messages)} of {count} messages have arrived"
            )
            return list(self.messages)

    def clear(self) -> None:
        """Forget what was received."""
        with self._arrived:
            self.messages.clear()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """Receive a mail; aiosmtpd calls this in its own thread."""
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        with self._arrived:
            self.messages.append(message)
            self._arrived.notify_all()
        return "250 OK"


@contextmanager
def mail_server() -> Iterator[MailServer]:
    """An SMTP server, until the end of the block."""
    server = MailServer(free_port())
    controller = Controller(server, hostname=server.host, port=server.port)
    controller.start()
    try:
        yield server
    finally:
        controller.stop()
