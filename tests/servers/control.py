"""What the app reports to the harness, and when it may go on.

A callback reports over a connection of its own, and waits for the answer. The harness records what
the client has by then, and only then answers, so the order is proven, not timed.
"""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

#: How many seconds a slow callback waits for a client to have its response: far longer than that
#: takes if the server sends the response first.
PATIENCE = 0.5


@dataclass
class Watch:
    """One request: what its client has, and what its app has reported."""

    query: str  # tells the app whom to report to, and as which request
    patience: float = PATIENCE
    headers: threading.Event = field(default_factory=threading.Event)
    end: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)  # the client has hung up
    mid_body: threading.Event = field(default_factory=threading.Event)
    slow: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)  # the last callback
    events: list[str] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)  # for each event, where it was
    had: tuple[bool, bool] | None = None  # headers and end, before the slow callback ended


class Control:
    """Listens for the app's reports, each in a thread of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._watches: dict[str, Watch] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def watch(self, patience: float = PATIENCE) -> Watch:
        """Watch a new request."""
        key = str(len(self._watches))
        watch = self._watches[key] = Watch(f"control={self.port}&id={key}", patience)
        return watch

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            report = json.loads(connection.makefile().readline())
            watch, event = self._watches[report["id"]], report["event"]
            watch.events.append(event)
            watch.reports.append(report)
            if event == "in mid-body":
                watch.mid_body.set()
                watch.gone.wait(10)
            elif event == "slow":
                watch.slow.set()
                if not watch.gone.is_set():
                    watch.end.wait(watch.patience)
                watch.had = (watch.headers.is_set(), watch.end.is_set())
            try:
                connection.sendall(b".")
            except OSError:
                watch.events.append(f"{event}: killed")
            if event == "last":
                watch.done.set()
