"""Serve with waitress, and run callbacks when the response is out: no client waits for them.

In Python, or in a file of PasteDeploy::

    wsgi_after.waitress.serve(application, listen="127.0.0.1:8000")

    [server:main]
    use = egg:wsgi-after#waitress
    listen = 127.0.0.1:8000
"""

from __future__ import annotations

import logging
import signal
import threading
from functools import partial
from typing import Any

import waitress
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher, WSGITask

from .integration import request_line
from .moment import KEY, Slot

__all__ = ["serve", "serve_paste"]

logger = logging.getLogger("wsgi_after")

LOST = (
    "waitress has ended while %s or its callbacks were running. If the process exits now, they are "
    "lost. They had graceful_timeout=%s seconds to finish, or less if a second SIGTERM came. Raise "
    "graceful_timeout, or hand long work to a queue."
)


class Task(WSGITask):  # type: ignore[misc]
    """Has the slot of its request in the environ."""

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ[KEY] = self.channel.slot
        running = self.channel.server.task_dispatcher.running
        running[self.channel.slot] = request_line(environ)
        return environ


class Channel(HTTPChannel):  # type: ignore[misc]
    """Runs the slot of a request when its response is out, and the next one may begin."""

    task_class = Task

    def service(self) -> None:
        # The next request of the connection begins before the slot of this one has run.
        slot = self.slot = Slot()
        try:
            super().service()
        finally:
            try:
                slot.run()
            finally:
                self.server.task_dispatcher.running.pop(slot, None)


class Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """Gives running requests and callbacks some seconds at the end."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self.running: dict[Slot, str] = {}  # until the callbacks have ended; the request's line

    def shutdown(self, cancel_pending: bool = True, timeout: float | None = None) -> object:
        return super().shutdown(cancel_pending, self._seconds if timeout is None else timeout)


def create(
    application: Any, dispatcher: Dispatcher, sockets_open: dict[int, Any], **options: Any
) -> Any:
    """Waitress's server, or servers, with channels that have slots.

    :param sockets_open: empty; all that are open are put there.
    """
    server = create_server(application, map=sockets_open, _dispatcher=dispatcher, **options)
    dispatcher.set_thread_count(server.adj.threads)
    for each in sockets_open.values():
        if isinstance(each, BaseWSGIServer):
            each.channel_class = Channel
    return server


def serve(app: Any, *, graceful_timeout: float = 30, **options: Any) -> None:
    """Serve an app as ``waitress.serve`` does, and run the callbacks when a response is out.

    SIGTERM ends the server as SIGINT does: requests and callbacks that have begun may finish. A
    second SIGTERM ends it at once. Callbacks that are lost, because of that or because their time
    is over, are logged. If SIGTERM has a handler, or this is not the main thread, SIGTERM is left
    as it is.

    :param graceful_timeout: how many seconds requests and callbacks have to finish.
    :param options: the options of ``waitress.serve``.
    """
    sockets: dict[int, Any] = {}
    dispatcher = Dispatcher(float(graceful_timeout))
    server = partial(create, dispatcher=dispatcher, sockets_open=sockets)
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        waitress.serve(app, _server=server, **options)
    finally:
        wasyncore.close_all(sockets)
        logger.disabled = False  # dictConfig() disables each logger that it does not name
        for label in dispatcher.running.copy().values():
            logger.error(LOST, label, graceful_timeout)
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave(number: int, frame: object) -> None:
    """End the loop of waitress, which then shuts down its threads."""
    raise SystemExit(0)


def serve_paste(app: Any, global_conf: object, **options: Any) -> int:
    """Serve an app from a file of PasteDeploy: ``use = egg:wsgi-after#waitress``.

    :param options: the options of waitress's own runner, and ``graceful_timeout``.
    """
    serve(app, **options)
    return 0
