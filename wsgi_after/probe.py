"""Measure whether clients of a deployment wait for callbacks, with its own server and proxies.

Serve the application of this module as you serve your own, for example with
``gunicorn wsgi_after.probe:application``, and run::

    python -m wsgi_after probe http://127.0.0.1:8000/

The command requests each kind of response twice: without a callback, and with one that sleeps. If
the last byte of the second response comes later by half of that sleep or more, the client waited.

Caution: the application acts only on requests with a header that the command sends and browsers do
not. It then sleeps, for two seconds at most, and tells the name of the server. You can safely leave
it deployed, but there is no reason to.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import ssl
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPResponse, IncompleteRead
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit
from wsgiref.util import FileWrapper

from . import AfterResponseMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HEADER = "Wsgi-After-Probe"  # of the command's requests, and of the answers
LONGEST = 2.0  # seconds that a callback sleeps
SECONDS = 0.5  # that it sleeps by default
TIMEOUT = 20.0  # seconds without a byte
LARGEST = 1_000_000  # bytes that are read of a response
REMEMBERED = 64  # callbacks whose times the application tells afterwards

QUESTION = re.compile(r"(?P<kind>[a-z-]+) (?P<seconds>\d+(\.\d+)?) (?P<token>[0-9a-f]{32})")
BODY = b"x" * 1000
HELP = b"""\
This is the probe of wsgi_after. It does nothing unless it is asked by the command
"python -m wsgi_after probe URL"; then a response is followed by a callback that
sleeps, for at most two seconds. It has no other effect.
"""

# The application.

#: What became of the latest callbacks: token -> seconds since the app was called.
times: OrderedDict[str, dict[str, float]] = OrderedDict()


def probe(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the kind of response that is asked for, and register a callback that sleeps."""
    called = time.perf_counter()
    question = QUESTION.fullmatch(environ.get("HTTP_WSGI_AFTER_PROBE", ""))
    if question is None or question["kind"] not in {*RESPONSES, "times"}:
        start_response("200 OK", [("Content-Type", "text/plain"), length(HELP)])
        return [HELP]
    if question["kind"] == "times":
        return tell(question["token"], environ, start_response)
    seconds = min(float(question["seconds"]), LONGEST)
    if seconds:
        environ["wsgi.after"](sleep, seconds, called, question["token"])
    response = RESPONSES[question["kind"]](environ)
    headers = [*about(environ), ("Cache-Control", "no-store"), *response.headers]
    start_response(response.status, headers)
    return response.body


def sleep(seconds: float, called: float, token: str) -> None:
    """The callback."""
    noted = times[token] = {"began": time.perf_counter() - called}
    while len(times) > REMEMBERED:
        times.popitem(last=False)
    time.sleep(seconds)
    noted["ended"] = time.perf_counter() - called


def tell(token: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """When that callback ran; nothing if another process knows."""
    body = json.dumps(dict(times.get(token, {}))).encode()
    headers = [*about(environ), ("Content-Type", "application/json"), length(body)]
    start_response("200 OK", headers)
    return [body]


def about(environ: WSGIEnvironment) -> list[tuple[str, str]]:
    """The header that says which server it is."""
    names = {"uWSGI": "uwsgi.version", "mod_wsgi": "mod_wsgi.version"}
    found = [f"{name} {text(environ[key])}" for name, key in names.items() if key in environ] or [
        str(environ.get("SERVER_SOFTWARE") or "an unknown server")
    ]
    return [(HEADER, printable(found[0]))]


def text(version: object) -> str:
    """A version, which some servers have as bytes, others as a tuple."""
    if isinstance(version, tuple):
        return ".".join(map(str, version))
    return version.decode("latin-1") if isinstance(version, bytes) else str(version)


class Response(NamedTuple):
    status: str
    headers: list[tuple[str, str]]
    body: Iterable[bytes]


def length(body: bytes) -> tuple[str, str]:
    return ("Content-Length", str(len(body)))


PLAIN = ("Content-Type", "text/plain")


def with_length(environ: WSGIEnvironment) -> Response:
    return Response("200 OK", [PLAIN, length(BODY)], [BODY])


def without_length(environ: WSGIEnvironment) -> Response:
    return Response("200 OK", [PLAIN], [BODY])


def stream(environ: WSGIEnvironment) -> Response:
    return Response("200 OK", [PLAIN], (BODY for _ in range(3)))


def redirect(environ: WSGIEnvironment) -> Response:
    return Response("303 See Other", [("Location", "/"), length(b"")], [])


def no_content(environ: WSGIEnvironment) -> Response:
    return Response("204 No Content", [], [])


def file(environ: WSGIEnvironment) -> Response:
    """This very file."""
    path = Path(__file__)
    headers = [PLAIN, ("Content-Length", str(path.stat().st_size))]
    wrapper = environ.get("wsgi.file_wrapper", FileWrapper)
    return Response("200 OK", headers, wrapper(path.open("rb")))


#: Kind → what makes the response; the order is that of the table.
RESPONSES: dict[str, Callable[[WSGIEnvironment], Response]] = {
    "content-length": with_length,
    "no-length": without_length,
    "stream": stream,
    "redirect": redirect,
    "no-content": no_content,
    "head": with_length,
    "file": file,
}

application = AfterResponseMiddleware(probe)

# The command.

KINDS = {
    "content-length": "Content-Length",
    "no-length": "no Content-Length",
    "stream": "stream, no length",
    "redirect": "empty redirect",
    "no-content": "204",
    "head": "HEAD",
    "file": "file",
}


class Mode(NamedTuple):
    """How a connection is used."""

    http: str
    connection: str


MODES = [Mode("1.1", "keep-alive"), Mode("1.1", "close"), Mode("1.0", "close")]


class ProbeError(Exception):
    """Why something cannot be measured, in a sentence."""


@dataclass
class Row:
    """One request with a callback that sleeps. Times are seconds since the request was sent."""

    kind: str
    http: str
    connection: str
    status: int | None = None
    headers: float | None = None
    last_byte: float | None = None
    began: float | None = None
    ended: float | None = None
    waited: bool | None = None
    error: str | None = None

    def line(self) -> str:
        """The row of the table."""
        times = (self.headers, self.last_byte, self.began, self.ended)
        cells = "".join(f"{'-' if t is None else format(t * 1000, '.1f'):>9}" for t in times)
        verdict = {True: "waited", False: "did not wait", None: f"? {self.error}"}[self.waited]
        return f"{KINDS[self.kind]:<18}{self.http} {self.connection:<11}{cells}  {verdict}"


class Exchange(NamedTuple):
    """A response, and when it came, in seconds since the request was sent."""

    status: int
    server: str  # as the application sees it
    proxy: str  # what else answered, as far as it says so
    headers: float
    last_byte: float
    body: bytes


@dataclass
class Probe:
    """A deployment that is asked.

    :param url: where the application is.
    :param seconds: that callbacks sleep.
    """

    url: SplitResult
    seconds: float
    server: str = ""
    proxy: str = ""

    def connect(self) -> socket.socket:
        host = self.url.hostname or ""
        port = self.url.port or {"http": 80, "https": 443}[self.url.scheme]
        try:
            connection = socket.create_connection((host, port), TIMEOUT)
        except OSError as error:
            raise ProbeError(f"cannot connect to {host}, port {port}: {reason(error)}") from None
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection if self.url.scheme == "http" else encrypted(connection, host)

    def ask(
        self, connection: socket.socket, kind: str, mode: Mode, seconds: float, token: str
    ) -> Exchange:
        """Send one request, read its response to where HTTP says that it ends."""
        method = "HEAD" if kind == "head" else "GET"
        target = f"{self.url.path or '/'}{'?' if self.url.query else ''}{self.url.query}"
        request = (
            f"{method} {target} HTTP/{mode.http}\r\nHost: {self.url.netloc.rpartition('@')[2]}\r\n"
            f"Connection: {mode.connection}\r\n{HEADER}: {kind} {seconds:g} {token}\r\n\r\n"
        )
        try:
            sent = time.perf_counter()
            connection.sendall(request.encode("ascii"))
            response = HTTPResponse(connection, method=method)
            response.begin()
            headers = time.perf_counter() - sent
            server = response.getheader(HEADER)
            if server is None:  # whatever it is, it may be endless
                raise ProbeError(
                    f"the response, with status {response.status}, is not from "
                    "wsgi_after.probe:application, or a proxy drops the header "
                    f"{HEADER}"
                )
            body = response.read(LARGEST)
            if response.length:
                raise IncompleteRead(body, response.length)
            last_byte = time.perf_counter() - sent
        except (OSError, HTTPException) as error:
            raise ProbeError(f"the response broke off: {reason(error)}") from None
        proxy = proxies(server, response.getheader("Server", ""), response.getheader("Via", ""))
        return Exchange(
            response.status, printable(server), printable(proxy), headers, last_byte, body
        )

    def once(self, kind: str, mode: Mode, seconds: float, token: str) -> Exchange:
        """The same, on a connection of its own."""
        with self.connect() as connection:
            return self.ask(connection, kind, mode, seconds, token)

    def check(self) -> None:
        """See that it is our application that answers, and what serves it."""
        found = self.once("content-length", MODES[1], 0, new_token())
        self.server, self.proxy = found.server, found.proxy

    def rows(self, modes: Sequence[Mode]) -> Iterator[Row]:
        """Measure kind after kind."""
        for kind in KINDS:
            for mode in modes:
                yield self.measure(kind, mode)

    def measure(self, kind: str, mode: Mode) -> Row:
        row = Row(kind, *mode)
        token = new_token()
        try:
            bare = self.once(kind, mode, 0, token)
            slow = self.once(kind, mode, self.seconds, token)
            row.status = slow.status
            row.headers, row.last_byte = slow.headers, slow.last_byte
            row.waited = slow.last_byte - bare.last_byte >= self.seconds / 2
            self.ask_times(row, token, bare.headers / 2)
        except ProbeError as error:
            row.error = str(error)
        return row

    def ask_times(self, row: Row, token: str, way: float) -> None:
        """Ask when the callback ran, until it has ended; also lets the next row begin at rest.

        Of several processes only one knows, and any may answer.

        :param way: seconds from the client to the application.
        """
        deadline = time.perf_counter() + self.seconds + 2
        while time.perf_counter() < deadline:
            found = callback_times(self.once("times", MODES[1], 0, token).body)
            if found:
                row.began, row.ended = found[0] + way, found[1] + way
                return
            time.sleep(0.02)


def encrypted(connection: socket.socket, host: str) -> socket.socket:
    try:
        return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    except OSError as error:
        connection.close()
        raise ProbeError(f"TLS with {host} failed: {reason(error)}") from None


def callback_times(told: bytes) -> tuple[float, float] | None:
    """When the callback began and ended, if that was told."""
    try:
        found = json.loads(told)
        return float(found["began"]), float(found["ended"])
    except (ValueError, TypeError, KeyError):
        return None


def new_token() -> str:
    return uuid.uuid4().hex


def reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(" ".join(str(told).split()))


def printable(text: str) -> str:
    """ASCII without control characters, which would do what they like to a terminal."""
    return re.sub(r"[^ -~]", "?", text)


def proxies(server: str, header: str, via: str) -> str:
    """What stands before the server, by the headers Server and Via."""
    known = server.lower().replace("/", " ").partition(" ")[0]
    parts = [] if not header or known in header.lower() else [header]
    return ", ".join([*parts, *([f"Via {via}"] if via else [])])


def verdict(rows: Sequence[Row]) -> str:
    """Who waits, in a sentence."""
    failed = [row for row in rows if row.waited is None]
    waited = [row for row in rows if row.waited]
    measured = len(rows) - len(failed)
    if not measured:
        return "Nothing could be measured."
    if not waited:
        sentence = f"No client waits for callbacks, with any of {measured} kinds of request."
    else:
        sentence = f"The client waits for callbacks with {summary(waited)}."
    return sentence + (f" Not measured: {summary(failed)}." if failed else "")


def summary(rows: Sequence[Row]) -> str:
    """Such as "stream (1.0 close, 1.1 close), HEAD (1.1 keep-alive)"."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(KINDS[row.kind], []).append(f"{row.http} {row.connection}")
    return ", ".join(f"{kind} ({', '.join(modes)})" for kind, modes in kinds.items())


HAND_OVER = "executor= frees the client, and moves the callbacks to another thread."
ADVICE = {
    "uwsgi": (
        "These callbacks ran in close(), and not in uWSGI's hook, where no client waits for them. "
        "In the first request of each thread this is normal. Else the usual cause is mount: set "
        "single-interpreter = true and import = wsgi_after.uwsgi. Another is a hook of the app's "
        "own that replaced it."
    ),
    "proxy": (
        "Let the proxy speak HTTP/1.1 to the server, in nginx: proxy_http_version 1.1; "
        'proxy_set_header Connection ""; with HTTP/1.0 it waits for the end of the connection.'
    ),
    "length": "Set Content-Length where the length is known: the client then knows the body's end.",
    "old": (
        "Without Content-Length, an HTTP/1.0 body ends with the connection, after close(). "
        + HAND_OVER
    ),
    "empty": (
        "This server holds back responses without a body until close() has returned. "
        + HAND_OVER
        + " A queue frees it, too: after(task.delay, user_id)."
    ),
    "other": (
        "This server holds back the end of such responses until close() has returned. "
        + HAND_OVER
        + " A queue frees it, too: after(task.delay, user_id)."
    ),
}


def advice(rows: Sequence[Row], proxy: str, server: str = "") -> list[str]:
    """What can be done about it."""
    waited = [row for row in rows if row.waited]
    without = [row for row in waited if row.kind in {"no-length", "stream"}]
    new = [row for row in without if row.http == "1.1"]
    empty = [row for row in waited if row.kind in {"redirect", "no-content", "head"}]
    found = {
        "uwsgi": bool(waited) and server.startswith("uWSGI"),
        "proxy": bool(new and proxy),
        "length": bool(new),
        "old": bool(without) and not new,
        "empty": bool(empty),
        "other": len(without) + len(empty) < len(waited),
    }
    return [ADVICE[key] for key, given in found.items() if given]


def exit_code(rows: Sequence[Row]) -> int:
    """0: nobody waits; 1: somebody does; 2: of some it is not known."""
    if any(row.waited for row in rows):
        return 1
    return 2 if any(row.waited is None for row in rows) else 0


EPILOG = """\
At URL, the application wsgi_after.probe:application must be served by the stack
to be measured, for example by: gunicorn wsgi_after.probe:application

exit status:
  0  no client waits for callbacks
  1  some do
  2  it could not be measured: a sentence says why
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, by default those of the process; return its exit status.

    :raises SystemExit: from argparse, after ``--help`` or arguments it does not understand.
    """
    options = parser().parse_args(arguments)
    try:
        asked = Probe(split(options.url), options.seconds)
        draw = drawing(options.svg) if options.svg else None
        asked.check()
        modes = [mode for mode in MODES if options.http in (None, mode.http)]
        rows = measured(asked, modes, quiet=options.json)
        if draw:
            draw(rows, asked)
    except ProbeError as error:
        print(f"wsgi-after: {error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("wsgi-after: Interrupted.", file=sys.stderr)
        return 130  # what shells report for SIGINT
    if options.json:
        print(json.dumps(document(options.url, asked, rows), indent=2))
    return exit_code(rows)


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="wsgi-after probe",
        description="Ask a deployment whether its clients wait for callbacks.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000/")
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=SECONDS,
        help=f"how long callbacks sleep, at most {LONGEST:g} (default: {SECONDS:g})",
    )
    parser.add_argument(
        "--http", choices=["1.0", "1.1"], help="use only this version of HTTP (default: both)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    parser.add_argument(
        "--svg", metavar="FILE", help="draw a timeline, too: needs wsgi-after[probe]"
    )
    return parser


def seconds(argument: str) -> float:
    number = float(argument)
    if not 0.05 <= number <= LONGEST:
        raise argparse.ArgumentTypeError(f"{argument} is not between 0.05 and {LONGEST:g}")
    return number


def split(url: str) -> SplitResult:
    """The parts of a URL.

    :raises ProbeError: if it is none that can be asked.
    """
    with suppress(ValueError):
        parts = urlsplit(url)
        if (
            parts.scheme in {"http", "https"}
            and parts.hostname
            and parts.port != 0  # raises ValueError if it is no number
            and re.fullmatch(r"[!-~]+", url)
        ):
            return parts
    raise ProbeError(f"{url!r} is not a URL such as http://127.0.0.1:8000/")


def measured(asked: Probe, modes: Sequence[Mode], quiet: bool) -> list[Row]:
    """Measure all, and print each row as soon as it is there."""
    say: Callable[[str], object] = (lambda line: None) if quiet else show
    behind = f", behind {asked.proxy}" if asked.proxy else ""
    say(f"Served by {asked.server}{behind}. Callbacks sleep for {asked.seconds:g} s.")
    say("Milliseconds since the request was sent:\n")
    say(f"{'response':<18}{'HTTP':<15}{'headers':>9}{'last byte':>10}{'began':>8}{'ended':>9}")
    rows = []
    for row in asked.rows(modes):
        rows.append(row)
        say(row.line())
    say("\n" + "\n".join([verdict(rows), *advice(rows, asked.proxy, asked.server)]))
    return rows


def show(line: str) -> None:
    print(line, flush=True)


def document(url: str, asked: Probe, rows: Sequence[Row]) -> dict[str, Any]:
    """What --json prints; times in seconds."""
    return {
        "url": url,
        "server": asked.server,
        "proxy": asked.proxy or None,
        "seconds": asked.seconds,
        "rows": [asdict(row) for row in rows],
        "verdict": verdict(rows),
        "advice": advice(rows, asked.proxy, asked.server),
        "exit": exit_code(rows),
    }


def drawing(path: str) -> Callable[[Sequence[Row], Probe], None]:
    """What draws the rows into a file, which is opened now: not after a minute of measuring."""
    try:
        matplotlib, figure = import_module("matplotlib"), import_module("matplotlib.figure")
    except ImportError:
        raise ProbeError("--svg needs matplotlib: pip install matplotlib") from None
    try:
        target = open(path, "wb")  # noqa: SIM115 -- closed by draw()
    except OSError as error:
        raise ProbeError(f"cannot write {path}: {reason(error)}") from None

    def draw(rows: Sequence[Row], asked: Probe) -> None:
        with target, matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
            picture = timeline(figure.Figure(layout="constrained"), rows, asked)
            picture.savefig(target, format="svg")

    return draw


def timeline(figure: Any, rows: Sequence[Row], asked: Probe) -> Any:
    """A lane for each row: when headers and last byte came, and when the callback ran."""
    figure.set_size_inches(9, 1.5 + 0.3 * len(rows))
    axes = figure.add_subplot()
    callback, waiting, not_waiting = "#cccccc", "#d55e00", "#0072b2"
    for lane, row in enumerate(rows):
        if row.began is not None and row.ended is not None:
            axes.barh(lane, row.ended - row.began, left=row.began, color=callback)
        if row.headers is not None and row.last_byte is not None:
            color = waiting if row.waited else not_waiting
            axes.plot([0, row.last_byte], [lane, lane], color=color)
            axes.plot(row.headers, lane, "|", color=color, markersize=12)
            axes.plot(row.last_byte, lane, "o", color=color)
    axes.set_yticks(
        range(len(rows)), [f"{KINDS[row.kind]}, {row.http} {row.connection}" for row in rows]
    )
    axes.invert_yaxis()
    axes.set_xlabel(
        "seconds since the request was sent; grey: the callback; |: headers; ●: last byte"
    )
    behind = f", behind {asked.proxy}" if asked.proxy else ""
    axes.set_title(f"{asked.server}{behind}: blue does not wait, orange waits")
    return figure
