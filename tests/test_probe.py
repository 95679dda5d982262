"""The probe: its application, its verdicts, and the command against real servers."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import Exchange, make_environ, served
from documents import blocks
from servers.descriptions import BY_NAME
from servers.expectations import IN_TIME, expected
from servers.harness import Place, Server, free_port, require, running

from wsgi_after import __main__ as command
from wsgi_after import probe
from wsgi_after.probe import KINDS, MODES, Probe, Row

TOKEN = "0123456789abcdef" * 2
KEEP_ALIVE, CLOSE, OLD = MODES


def ask(kind: str, seconds: float = 0.0, **extra: Any) -> Exchange:
    """Ask the application, without a server."""
    question = f"{kind} {seconds:g} {TOKEN}"
    return Exchange(probe.application, make_environ(HTTP_WSGI_AFTER_PROBE=question, **extra))


# The application.


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What callbacks would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(probe.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize(
    "question",
    [
        "",
        "1",
        f"file 1 {TOKEN}x",
        f"unknown 1 {TOKEN}",
        f"stream -1 {TOKEN}",
        f"stream 1e9 {TOKEN}",
    ],
)
def test_unless_it_is_asked_by_the_command_it_only_says_what_it_is(
    question: str, slept: list[float]
) -> None:
    exchange = Exchange(probe.application, make_environ(HTTP_WSGI_AFTER_PROBE=question))
    [body] = exchange.finish()
    assert b"It does nothing unless it is asked" in body
    assert exchange.started[0][0] == "200 OK"
    assert slept == []


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_of_response_is_followed_by_a_callback_that_sleeps(
    kind: str, slept: list[float]
) -> None:
    exchange = ask(kind, 1.5, SERVER_SOFTWARE="server/1")
    body = b"".join(exchange.finish())
    [(status, headers)] = exchange.started
    found = dict(headers)
    assert status[:3] == {"redirect": "303", "no-content": "204"}.get(kind, "200")
    assert found.get("Content-Length") in (
        [None] if kind in {"no-length", "stream", "no-content"} else [str(len(body))]
    )
    assert found[probe.HEADER] == "server/1"
    assert slept == [1.5]


def test_it_never_sleeps_longer_than_two_seconds(slept: list[float]) -> None:
    ask("stream", 1000).finish()
    ask("stream", 0).finish()
    assert slept == [2.0]


def test_it_tells_when_the_callback_began_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 14.0, 20.0])
    monkeypatch.setattr(probe.time, "perf_counter", clock.__next__)
    monkeypatch.setattr(probe.time, "sleep", lambda seconds: None)
    probe.times.clear()
    exchange = ask("no-content", 2)
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(clock))
    exchange.finish()
    [told] = ask("times").finish()
    assert json.loads(told) == {"began": 1.0, "ended": 4.0}


def test_it_tells_nothing_of_a_callback_it_does_not_know() -> None:
    probe.times.clear()
    assert ask("times").finish() == [b"{}"]


def test_it_remembers_a_bounded_number_of_callbacks(slept: list[float]) -> None:
    for number in range(probe.REMEMBERED + 3):
        probe.sleep(0, 0, str(number))
    assert len(probe.times) == probe.REMEMBERED
    assert "3" in probe.times
    assert "2" not in probe.times


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"SERVER_SOFTWARE": "gunicorn/27"}, "gunicorn/27"),
        ({"uwsgi.version": b"2.0.31"}, "uWSGI 2.0.31"),
        ({"mod_wsgi.version": (4, 9, 4)}, "mod_wsgi 4.9.4"),
        ({"uwsgi.version": "2\r\nX: é"}, "uWSGI 2??X: ?"),
        ({}, "an unknown server"),
    ],
)
def test_it_tells_which_server_it_is(environ: dict[str, Any], told: str) -> None:
    assert probe.about(environ) == [("Wsgi-After-Probe", told)]


# The client.


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve by wsgiref: bodies without a length end when close() has returned."""
    with served(app) as port:
        yield f"http://127.0.0.1:{port}/"


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server of so many connections, each answered with these bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join()


def test_the_command_shows_a_table_a_verdict_and_advice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    svg = tmp_path / "probe.svg"
    with serving(probe.application) as url:
        arguments = ["probe", url, "--seconds", "0.3", "--http", "1.0", "--svg", str(svg)]
        assert command.main(arguments) == 1
    out = capsys.readouterr().out
    assert out.startswith("Served by WSGIServer/0.2. Callbacks sleep for 0.3 s.\n")
    rows = re.findall(r"(?m)^(.{18})1\.0 close (?: +\d+\.\d){4}  (.+)$", out)
    assert {name.strip(): verdict for name, verdict in rows} == {
        name: "waited" if name == KINDS["stream"] else "did not wait" for name in KINDS.values()
    }
    assert out.endswith(f"{probe.ADVICE['old']}\n")
    assert "\nThe client waits for callbacks with stream, no length (1.0 close).\n" in out
    texts = [element.text for element in ElementTree.parse(svg).iter() if element.text]
    assert {f"{name}, 1.0 close" for name in KINDS.values()} <= set(texts)


def test_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "KINDS", {"head": "HEAD"})
    with serving(probe.application) as url:
        assert command.main(["probe", url, "--seconds", "0.3", "--http", "1.0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    [row] = found.pop("rows")
    assert found == {
        "url": url,
        "server": "WSGIServer/0.2",
        "proxy": None,
        "seconds": 0.3,
        "verdict": "No client waits for callbacks, with any of 1 kinds of request.",
        "advice": [],
        "exit": 0,
    }
    assert 0 < row["headers"] <= row["last_byte"] < row["ended"] - row["began"] + 0.3
    assert (row["kind"], row["http"], row["status"], row["waited"], row["error"]) == (
        *("head", "1.0", 200),
        *(False, None),
    )


def test_a_row_is_shown_as_soon_as_it_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def measure(self: Probe, kind: str, mode: Any) -> Row:
        shown.append(capsys.readouterr().out.splitlines()[-1])
        return Row(kind, *mode, waited=False)

    monkeypatch.setattr(Probe, "measure", measure)
    probe.measured(Probe(probe.split("http://x/"), 1), [CLOSE], quiet=False)
    assert [line.split("1.1 close")[0].strip() for line in shown[1:]] == list(KINDS.values())[:-1]


ANSWER = b"HTTP/1.1 200 OK\r\nWsgi-After-Probe: s\r\nContent-Length: 2\r\n\r\n"
ALIEN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (ALIEN, "what answers, with status 404, is not the application wsgi_after.probe"),
        (b"", "the response broke off: Remote end closed connection without response"),
        (b"SSH-2.0\r\n", "the response broke off: SSH-2.0"),
        (ANSWER + b"x", "the response broke off: IncompleteRead(1 bytes read, 1 more expected)"),
    ],
)
def test_what_is_no_probe_application_ends_the_command_with_a_sentence(
    answer: bytes, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(answer) as url:
        assert command.main(["probe", url]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"wsgi-after: {sentence}")
    assert (captured.err.count("\n"), captured.out) == (1, "")


BAD = [
    *("", "localhost", "ftp://localhost/", "http://", "http://localhost:port/", "http://[::1/"),
    *(
        "http://localhost:0/",
        "http://localhost:99999/",
        "http://localhost/a b",
        "http://localhost/é",
    ),
    "http://localhost/\r\nX: y",
]


def test_what_a_server_says_of_itself_cannot_write_to_the_terminal() -> None:
    with answering(ANSWER.replace(b": s", b": s\x1b[2J") + b"ok") as url:
        asked = Probe(probe.split(url), 1)
        asked.check()
    assert asked.server == "s?[2J"


@pytest.mark.parametrize(
    "told", [b"", b"[]", b"{}", b'{"began": 1}', b'{"began": 1, "ended": "x"}']
)
def test_times_that_are_none_are_not_believed(told: bytes) -> None:
    assert probe.callback_times(told) is None


@pytest.mark.parametrize("url", BAD)
def test_a_bad_url_ends_it_with_a_sentence(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["probe", url]) == 2
    assert capsys.readouterr().err == (
        f"wsgi-after: {url!r} is not a URL such as http://127.0.0.1:8000/.\n"
    )


def test_a_refused_connection_ends_it_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert command.main(["probe", f"http://127.0.0.1:{port}/"]) == 2
    assert capsys.readouterr().err == (
        f"wsgi-after: cannot connect to 127.0.0.1, port {port}: Connection refused.\n"
    )


def test_a_server_without_tls_ends_it_with_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with answering(b"HTTP/1.0 400 Bad Request\r\n\r\n") as url:
        assert command.main(["probe", url.replace("http:", "https:")]) == 2
    assert capsys.readouterr().err.startswith("wsgi-after: no TLS with 127.0.0.1: ")


def test_tls_is_verified_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a socket that is not encrypted in its place: the rest is the same."""
    wrapped: list[str] = []

    class Context:
        def wrap_socket(self, connection: socket.socket, server_hostname: str) -> socket.socket:
            wrapped.append(server_hostname)
            return connection

    monkeypatch.setattr(probe.ssl, "create_default_context", Context)
    with answering(ANSWER + b"ok") as url:
        asked = Probe(probe.split(url.replace("http:", "https:")), 1)
        asked.check()
    assert (asked.server, wrapped) == ("s", ["127.0.0.1"])


def test_interrupted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Probe) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Probe, "check", interrupt)
    assert command.main(["probe", "http://127.0.0.1/"]) == 130
    assert capsys.readouterr().err == "wsgi-after: Interrupted.\n"


@pytest.mark.parametrize("seconds", ["0", "2.1", "nan", "x"])
def test_seconds_out_of_bounds_are_refused(seconds: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        probe.main(["http://127.0.0.1/", "--seconds", seconds])


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert probe.main(["http://127.0.0.1:1/", "--svg", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"wsgi-after: cannot write {tmp_path}: Is a directory.\n"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert probe.main(["http://127.0.0.1:1/", "--svg", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("wsgi-after: --svg needs matplotlib: pip install")


def test_a_kind_that_fails_is_told_and_the_others_are_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a server that answers 500 to responses without a body; and the picture leaves it out."""
    monkeypatch.setattr(probe, "KINDS", {kind: KINDS[kind] for kind in ["head", "redirect"]})

    def app(environ: Any, start_response: Any) -> Any:
        if environ.get("HTTP_WSGI_AFTER_PROBE", "").startswith("redirect"):
            start_response("500 Internal Server Error", [])
            return []
        return probe.application(environ, start_response)

    svg = tmp_path / "probe.svg"
    with serving(app) as url:
        assert probe.main([url, "--seconds", "0.3", "--http=1.0", "--svg", str(svg)]) == 2
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "empty redirect    1.0 close              -        -        -        -  ? what answers, "
        "with status 500, is not the application wsgi_after.probe:application, or something on "
        "the way drops the header Wsgi-After-Probe",
        "",
        "No client waits for callbacks, with any of 1 kinds of request. Not measured: empty "
        "redirect (1.0 close).",
    ]
    assert "empty redirect, 1.0 close" in svg.read_text()


def test_of_a_callback_that_nobody_knows_of_the_times_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 1.0, 99.0])
    asked = Probe(probe.split("http://x/"), 1)
    row = Row("head", *CLOSE)
    reply = probe.Exchange(200, "s", "", 0, 0, b"{}")
    monkeypatch.setattr(Probe, "once", lambda *args: reply)
    monkeypatch.setattr(probe.time, "perf_counter", clock.__next__)
    monkeypatch.setattr(probe.time, "sleep", lambda seconds: None)
    asked.ask_times(row, TOKEN, 0)
    assert (row.began, row.ended) == (None, None)


def test_every_kind_has_a_response_and_a_name() -> None:
    assert list(KINDS) == list(probe.RESPONSES)


# Verdict and advice.


def rows(*waited: tuple[str, Any], failed: tuple[Any, ...] = ()) -> list[Row]:
    """All kinds in all modes, of which some waited and some failed."""
    return [
        Row(kind, *mode, waited=None if (kind, mode) in failed else (kind, mode) in waited)
        for kind in KINDS
        for mode in MODES
    ]


VERDICTS: list[tuple[list[Row], int, str, list[str]]] = [
    (rows(), 0, "No client waits for callbacks, with any of 21 kinds of request.", []),
    (
        rows(("stream", OLD), ("head", CLOSE), ("head", OLD)),
        1,
        "The client waits for callbacks with stream, no length (1.0 close), HEAD (1.1 close, 1.0 "
        "close).",
        ["old", "empty"],
    ),
    (
        rows(("no-length", CLOSE), failed=(("file", CLOSE),)),
        1,
        "The client waits for callbacks with no Content-Length (1.1 close). Not measured: file "
        "(1.1 close).",
        ["length"],
    ),
    (
        rows(failed=(("file", CLOSE),)),
        2,
        "No client waits for callbacks, with any of 20 kinds of request. Not measured: file (1.1 "
        "close).",
        [],
    ),
    ([Row("file", *CLOSE)], 2, "Nothing could be measured.", []),
    (
        [Row("file", *CLOSE, waited=True)],
        1,
        "The client waits for callbacks with file (1.1 close).",
        ["other"],
    ),
]


@pytest.mark.parametrize(("measured", "code", "verdict", "keys"), VERDICTS)
def test_verdict_advice_and_exit_code(
    measured: list[Row], code: int, verdict: str, keys: list[str]
) -> None:
    assert probe.verdict(measured) == verdict
    assert probe.advice(measured, "") == [probe.ADVICE[key] for key in keys]
    assert probe.exit_code(measured) == code


def test_behind_a_proxy_the_advice_is_to_speak_http_1_1_to_the_server() -> None:
    measured = rows(("stream", KEEP_ALIVE))
    assert probe.advice(measured, "nginx") == [probe.ADVICE["proxy"], probe.ADVICE["length"]]


@pytest.mark.parametrize(
    ("server", "header", "via", "proxy"),
    [
        ("gunicorn/27.0.1", "gunicorn", "", ""),
        ("gunicorn/27.0.1", "nginx/1.22.1", "", "nginx/1.22.1"),
        ("uWSGI 2.0.31", "", "1.1 varnish", "Via 1.1 varnish"),
        ("waitress", "cloudflare", "1.1 x", "cloudflare, Via 1.1 x"),
    ],
)
def test_what_answered_besides_the_server(server: str, header: str, via: str, proxy: str) -> None:
    assert probe.proxies(server, header, via) == proxy


# Real servers.

#: The probe's kinds → those of the matrix of servers.
SAME = {
    "content-length": "list_with_length",
    "no-length": "list_without_length",
    "stream": "generator",
    "redirect": "redirect",
    "no-content": "no_content",
    "head": "head",
    "file": "small_file",
}

APP = """
import json
from wsgi_after.probe import application as probe

def application(environ, start_response):
    if environ["PATH_INFO"] != "/bare/about":    # what tells that the server is ready
        return probe(environ, start_response)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"{}"]
"""


@contextmanager
def asking(server: Server) -> Iterator[Probe]:
    """Run a server of the matrix, with the probe's application in place of its own."""

    def commands(where: Place) -> Any:
        where.write("kinds.py", APP)
        return server.commands(where)

    require(server.missing())
    with running(replace(server, commands=commands)) as where:
        yield Probe(probe.split(f"http://127.0.0.1:{where.port}/"), 0.5)


ASKED = ("gunicorn", "nginx", "uWSGI", "waitress")


@pytest.mark.servers
@pytest.mark.parametrize("name", [name for name in BY_NAME if name.startswith(ASKED)])
def test_the_verdicts_are_those_of_the_matrix_of_servers(name: str) -> None:
    """With HTTP/1.1 and keep-alive, as there."""
    with asking(BY_NAME[name]) as asked:
        asked.check()
        found = {row.kind: row.waited for row in asked.rows([KEEP_ALIVE])}
    assert found == {kind: expected(name, same).timing != IN_TIME for kind, same in SAME.items()}
    *proxies, server = name.split(", ")
    assert asked.server.startswith(server.split()[0])
    assert asked.proxy.split("/")[0] == " ".join(proxies).split(" ")[0]


# The page.


def test_the_page_shows_what_the_command_prints() -> None:
    shown = blocks("probe.rst")
    assert list(shown) == ["probe.console", "probe.out"]
    assert [line.split()[0] for line in shown["probe.console"].splitlines()] == ["$", "$"]
    out = shown["probe.out"]
    assert re.findall(r"(?m)^(.{18})1\.\d \S+ +(?: *\d+\.\d){4}  .*wait", out) == [
        f"{name:<18}" for name in KINDS.values() for _ in MODES
    ]
    measured = rows(("no-length", OLD), ("stream", OLD))
    told = [probe.verdict(measured), *probe.advice(measured, "")]
    assert out.rpartition("\n\n")[2].split() == " ".join(told).split()


@pytest.mark.servers
def test_the_command_prints_the_page_s_output_for_gunicorn() -> None:
    with asking(BY_NAME["gunicorn gthread"]) as asked:
        finished = subprocess.run(
            [sys.executable, "-m", "wsgi_after", "probe", asked.url.geturl()],
            capture_output=True,
            text=True,
            check=False,
        )

    def masked(out: str) -> list[str]:
        return re.sub(r" +\d+\.\d(?= +\d+\.\d|  )", " #", re.sub(r"n/[\d.]*\d", "n", out)).split()

    assert finished.returncode == 1
    assert masked(finished.stdout) == masked(blocks("probe.rst")["probe.out"])
