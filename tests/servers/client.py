"""A client on a raw socket: it sees every byte, and knows where a response ends."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

WAIT = 20.0  # seconds to wait for a response that does not come


class Connection:
    """One connection; ``received`` is every byte that came."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
        self.received = bytearray()
        self.open = True  # as far as is known
        self.reusable = True  # according to the last response

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()

    def request(self, target: str, method: str = "GET", connection: str = "keep-alive") -> None:
        """Send a request; if the server has hung up meanwhile, reading shows that."""
        self.reusable = False
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", f"Connection: {connection}"]
        try:
            self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        except (BrokenPipeError, ConnectionResetError):
            self.open = False

    def receive(self) -> bool:
        """Receive what has come, and return whether the connection is still open."""
        try:
            data = self.socket.recv(1 << 20) if self.open else b""
        except ConnectionResetError:  # a server that closes before it reads our request
            data = b""
        self.received += data
        self.open = bool(data)
        return self.open

    def read_response(self, method: str, headers_seen: Callable[[], None]) -> None:
        """Read one response to its end by HTTP; without a length, to the end of the connection.

        :param headers_seen: called when the headers are complete.
        :raises TimeoutError: if nothing came for 20 seconds.
        """
        start = len(self.received)
        while (end := self.received.find(b"\r\n\r\n", start)) < 0:
            if not self.receive():
                return
        headers_seen()
        head = bytes(self.received[start:end])
        body = end + 4
        closes = re.search(rb"(?im)^connection: *close", head)
        stays = head.startswith(b"HTTP/1.1") or re.search(rb"(?im)^connection: *keep-alive", head)
        self.reusable = bool(stays and not closes)
        length = re.search(rb"(?im)^content-length: *(\d+)", head)
        if method == "HEAD" or head[9:12] in {b"204", b"304"}:
            return
        if re.search(rb"(?im)^transfer-encoding: *chunked", head):
            self._read_chunks(body)
        elif length:
            self._read_until(body + int(length[1]))
        else:
            self.read_to_end()

    def _read_until(self, length: int) -> bool:
        while len(self.received) < length:
            if not self.receive():
                return False
        return True

    def _read_chunks(self, position: int) -> None:
        size = -1
        while size:
            while (end := self.received.find(b"\r\n", position)) < 0:
                if not self.receive():
                    return
            size = int(self.received[position:end], 16)
            position = end + 2 + size + 2
            if not self._read_until(position):
                return

    def read_to_end(self) -> None:
        while self.receive():
            pass

    def read_a_part(self, part: bytes, seconds: float) -> None:
        """Read until ``part`` has come, or nothing comes for ``seconds``."""
        self.socket.settimeout(seconds)
        with suppress(TimeoutError):
            while part not in self.received and self.receive():
                pass

    def hang_up(self) -> None:
        """Reset the connection, like a client that leaves in mid-response."""
        self.open = self.reusable = False
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def fetch(port: int, path: str) -> bytes:
    """GET a path on a new connection; return every byte that came."""
    with Connection(port) as connection:
        connection.request(path, connection="close")
        connection.read_to_end()
    return bytes(connection.received)
