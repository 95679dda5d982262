"""Clients that read, that read slowly, and that leave at random points; what the app wrote."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from servers.client import Connection
from servers.harness import Place

#: Kinds of response of tests/load/app.py, and how many of a hundred requests ask for each.
KINDS = {
    "sized": 36,
    "stream": 12,
    "redirect": 12,
    "written": 5,
    "file": 5,
    "large": 1,
    "slow": 1,
    "fails_when_called": 5,
    "fails_at_first": 5,
    "fails_in_the_middle": 5,
    "fails_when_closed": 5,
    "fails_after": 7,
    "slow_after": 1,
}
#: For requests that should be in flight at a restart.
SLOW_KINDS = {"slow": 30, "slow_after": 40, "stream": 10, "redirect": 10, "fails_in_the_middle": 10}
MODES = ("closed", "pool")


def new_seed() -> int:
    """The seed of all that is random; ``LOAD_SEED`` repeats a run, except for who comes first."""
    return int(os.environ.get("LOAD_SEED") or random.randrange(1_000_000))


class Client(Connection):
    """A client that may read slowly."""

    pause = 0.0  # seconds, before each piece that it reads

    def receive(self) -> bool:
        time.sleep(self.pause)
        return super().receive()


@dataclass
class Crowd:
    """Some clients, each a thread that keeps its connection if server and response allow it.

    :param requests: how many requests all of them send together.
    :param on_progress: called before each request with how many were sent before.
    """

    where: Place
    seed: int
    requests: int
    kinds: dict[str, int] = field(default_factory=KINDS.copy)
    on_progress: Callable[[int], None] = lambda sent: None
    clients: int = 12
    keep_alive: bool = True  # False: the server closes without notice
    sent: int = 0
    answered: set[str] = field(default_factory=set)
    mixed: list[str] = field(default_factory=list)  # requests that got the response of another
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        """Send all requests; return when the last client is done, or the server has ended."""
        with ThreadPoolExecutor(self.clients) as pool:
            list(pool.map(self._client, range(self.clients)))

    def _client(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        connection = None
        with suppress(ConnectionRefusedError, ConnectionResetError):  # the server has ended
            while self._next():
                if connection is None or not connection.reusable:
                    connection = Client(self.where.port)
                connection = self._send(connection, chance)
        if connection is not None:
            connection.socket.close()

    def _next(self) -> bool:
        with self._lock:
            if self.sent == self.requests:
                return False
            self.on_progress(self.sent)
            self.sent += 1
            return True

    def _send(self, connection: Client, chance: random.Random) -> Client | None:
        """Send one request; return the connection if it can be used for another."""
        mode = chance.choice(MODES)
        [kind] = chance.choices(list(self.kinds), list(self.kinds.values()))
        request = f"{mode}-{kind}-{chance.getrandbits(64):x}"
        target = f"/{mode}/{kind}?{request}"
        client = chance.random()
        connection.received.clear()
        # Some servers take a second to end a response that broke off.
        connection.socket.settimeout(0.1 if kind.startswith("fails") else 20)
        try:
            if client < 0.02:
                head = f"GET {target} HTTP/1.1\r\nHost: localhost".encode()
                connection.socket.sendall(head[: chance.randrange(1, 30)])
                return leave(connection, chance)
            connection.request(target)
            if client < 0.07:
                return leave(connection, chance)
            if client < 0.15:
                connection.socket.recv(chance.choice([1, 100, 10_000]))
                return leave(connection, chance)
            connection.pause = 0.01 if client < 0.5 and kind == "large" else 0
            connection.read_response("GET", lambda: None)
        except (ConnectionResetError, BrokenPipeError, TimeoutError) as error:
            if isinstance(error, TimeoutError) and not kind.startswith("fails"):
                raise
            return leave(connection, chance)
        head = bytes(connection.received.partition(b"\r\n\r\n")[0]).decode()
        if f"X-Request: {request}" in head:
            self.answered.add(request)
        elif "X-Request" in head:
            self.mixed.append(request)
        if connection.reusable and self.keep_alive:
            return connection
        connection.socket.close()
        return None


def leave(connection: Client, chance: random.Random) -> None:
    """Reset the connection, or close it in order, with data that was not read."""
    if chance.random() < 0.5:
        connection.hang_up()
    connection.socket.close()


@dataclass
class Written:
    """What the app wrote: which requests arrived, and whose callbacks ran."""

    arrived: Counter[str]
    ran: Counter[str]
    nested: Counter[str]
    mixed: list[str]

    @classmethod
    def read(cls, path: Path) -> Written:
        lines = [line.split() for line in path.read_text().splitlines()]
        counters = [
            Counter(line[1] for line in lines if line[0] == word)
            for word in ("arrived", "ran", "nested")
        ]
        mixed = [line[1] for line in lines if line[0] == "ran" and line[1] != line[2]]
        return cls(*counters, mixed)

    @property
    def lost(self) -> list[str]:
        return [id for id in self.arrived if id not in self.ran or id not in self.nested]

    @property
    def doubled(self) -> list[str]:
        counters = (self.arrived, self.ran, self.nested)
        return [id for counter in counters for id, number in counter.items() if number > 1]

    @property
    def from_nowhere(self) -> list[str]:
        return [id for id in [*self.ran, *self.nested] if id not in self.arrived]


def wait_until_all_ran(path: Path, seconds: float = 10) -> None:
    """Return when the callbacks of all have run, or nothing was written for some seconds."""
    size, changed = -1, time.monotonic()
    while Written.read(path).lost and time.monotonic() < changed + seconds:
        if path.stat().st_size != size:
            size, changed = path.stat().st_size, time.monotonic()
        time.sleep(0.2)
