"""The probe: its application, its verdicts, and the command against real servers."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from wsgiref.simple_server import software_version
from xml.etree import ElementTree

import pytest
from conftest import Exchange, make_environ, served
from documents import blocks
from servers.descriptions import BY_NAME
from servers.expectations import IN_TIME, expected
from servers.harness import free_port, require, running

from wsgi_after import __main__ as command
from wsgi_after import probe
from wsgi_after.probe import KINDS, MODES, Probe, Row

SERVER = software_version.split()[0]  # wsgiref's, which serves these
TOKEN = "0123456789abcdef" * 2
KEEP_ALIVE, CLOSE, OLD = MODES


def ask(kind, seconds=0.0, **extra):
    """Ask the application, without a server."""
    question = f"{kind} {seconds:g} {TOKEN}"
    return Exchange(probe.application, make_environ(HTTP_WSGI_AFTER_PROBE=question, **extra))


# The application.


@pytest.fixture
def slept(monkeypatch):
    """How many seconds callbacks would have slept."""
    slept = []
    monkeypatch.setattr(probe.time, "sleep", slept.append)
    return slept


NONSENSE = ["", "1", *(f"{kind} {TOKEN}" for kind in ("unknown 1", "stream -1", "stream 1e9"))]


@pytest.mark.parametrize("question", [*NONSENSE, f"file 1 {TOKEN}x"])
def test_unless_it_is_asked_by_the_command_it_only_says_what_it_is(question, slept):
    exchange = Exchange(probe.application, make_environ(HTTP_WSGI_AFTER_PROBE=question))
    assert b"It does nothing unless it is asked" in b"".join(exchange.finish())
    assert (exchange.started[0][0], slept) == ("200 OK", [])


@pytest.mark.parametrize("kind", [*KINDS])
def test_each_kind_of_response_is_followed_by_a_callback_that_sleeps(kind, slept):
    exchange = ask(kind, 1.5, SERVER_SOFTWARE="server/1")
    body = b"".join(exchange.finish())
    [(status, headers)] = exchange.started
    has_no_length = kind in {"no-length", "stream", "no-content"}
    assert status[:3] == {"redirect": "303", "no-content": "204"}.get(kind, "200")
    assert dict(headers).get("Content-Length") == (None if has_no_length else str(len(body)))
    assert (dict(headers)[probe.HEADER], slept) == ("server/1", [1.5])


def test_it_never_sleeps_longer_than_two_seconds(slept):
    ask("stream", 1000).finish()
    ask("stream", 0).finish()
    assert slept == [2.0]


def test_it_tells_when_a_callback_began_and_ended_if_it_knows(slept, monkeypatch):
    probe.times.clear()
    assert ask("times").finish() == [b"{}"]
    monkeypatch.setattr(probe.time, "perf_counter", iter([10.0, 11.0, 14.0, 20.0]).__next__)
    ask("no-content", 2).finish()
    assert json.loads(ask("times").finish()[0]) == {"began": 1.0, "ended": 4.0}


def test_it_remembers_a_bounded_number_of_callbacks(slept):
    for number in range(probe.REMEMBERED + 3):
        probe.sleep(0, 0, str(number))
    assert [*probe.times] == [str(number + 3) for number in range(probe.REMEMBERED)]


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
def test_it_tells_which_server_it_is(environ, told):
    assert probe.about(environ) == [("Wsgi-After-Probe", told)]


# The client, with the app on wsgiref: bodies without a length end when close() has returned.

URL = "http://127.0.0.1:{}/"


@contextmanager
def answering(answer):
    """A server that answers one connection with these bytes."""

    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        pool.submit(serve)
        yield URL.format(listener.getsockname()[1])


def test_the_command_shows_a_table_a_verdict_and_advice(capsys, tmp_path):
    svg = tmp_path / "probe.svg"
    with served(probe.application) as port:
        options = ["--seconds", "0.3", "--http", "1.0", "--svg", str(svg)]
        assert command.main(["probe", URL.format(port), *options]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"Served by {SERVER}. Callbacks sleep for 0.3 s.\n")
    rows = re.findall(r"(?m)^(.{18})1\.0 close (?: +\d+\.\d){4}  (.+)$", out)
    assert {name.strip(): verdict for name, verdict in rows} == {
        name: "waited" if name == KINDS["stream"] else "did not wait" for name in KINDS.values()
    }
    assert out.endswith(f"{probe.ADVICE['old']}\n")
    assert "\nThe client waits for callbacks with stream, no length (1.0 close).\n" in out
    texts = [element.text for element in ElementTree.parse(svg).iter() if element.text]
    assert {f"{name}, 1.0 close" for name in KINDS.values()} <= set(texts)


def test_json(capsys, monkeypatch):
    monkeypatch.setattr(probe, "KINDS", {"head": "HEAD"})
    with served(probe.application) as port:
        url = URL.format(port)
        assert command.main(["probe", url, "--seconds", "0.3", "--http", "1.0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    [row] = found.pop("rows")
    assert found == {
        "url": url,
        "server": SERVER,
        "proxy": None,
        "seconds": 0.3,
        "advice": [],
        "exit": 0,
        "verdict": "No client waits for callbacks, with any of 1 kinds of request.",
    }
    assert 0 < row["headers"] <= row["last_byte"] < row["ended"] - row["began"] + 0.3
    asked = {"kind": "head", "http": "1.0", "status": 200}
    assert row == row | asked | {"waited": False, "error": None}


def test_a_row_is_shown_as_soon_as_it_is_measured(capsys, monkeypatch):
    shown = []

    def measure(self, kind, mode):
        shown.append(capsys.readouterr().out.splitlines()[-1])
        return Row(kind, *mode, waited=False)

    monkeypatch.setattr(Probe, "measure", measure)
    probe.measured(Probe(probe.split("http://x/"), 1), [CLOSE], quiet=False)
    assert [line.split("1.1 close")[0].strip() for line in shown[1:]] == list(KINDS.values())[:-1]


@pytest.fixture
def refused(capsys):
    """Run the command, which ends before it measures; return the sentence that says why."""

    def refused(*arguments):
        assert command.main(["probe", *arguments]) == 2
        captured = capsys.readouterr()
        program, sentence = captured.err.split(": ", 1)
        assert (program, sentence.count("\n"), captured.out) == ("wsgi-after", 1, "")
        return sentence.rstrip()

    return refused


ANSWER = b"HTTP/1.1 200 OK\r\nWsgi-After-Probe: s\r\nContent-Length: 2\r\n\r\n"
ALIEN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    ("scheme", "answer", "sentence"),
    [
        ("http", ALIEN, "the response, with status 404, is not from wsgi_after.probe:application"),
        ("http", b"", "the response broke off: Remote end closed connection without response"),
        ("http", b"SSH-2.0\r\n", "the response broke off: SSH-2.0"),
        ("http", ANSWER + b"x", "the response broke off: IncompleteRead(1 bytes read, 1 more exp"),
        ("https", b"HTTP/1.0 400 Bad Request\r\n\r\n", "TLS with 127.0.0.1 failed: "),
    ],
)
def test_what_is_no_probe_application_ends_the_command(scheme, answer, sentence, refused):
    with answering(answer) as url:
        assert refused(url.replace("http", scheme)).startswith(sentence)


LOCALHOST = [":port/", ":0/", ":99999/", "/a b", "/é", "/\r\nX: y"]
BAD = ["", "localhost", "ftp://localhost/", "http://", "http://[::1/"]


@pytest.mark.parametrize("url", [*BAD, *("http://localhost" + end for end in LOCALHOST)])
def test_a_bad_url_ends_the_command(url, refused):
    assert refused(url) == f"{url!r} is not a URL such as http://127.0.0.1:8000/."


def test_without_a_connection_or_a_picture_nothing_is_measured(refused, monkeypatch, tmp_path):
    port = free_port()
    url = URL.format(port)
    assert refused(url) == f"cannot connect to 127.0.0.1, port {port}: Connection refused."
    assert refused(url, "--svg", str(tmp_path)) == f"cannot write {tmp_path}: Is a directory."
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refused(url, "--svg", str(tmp_path)).startswith("--svg needs matplotlib: pip install")


def checked(answer, scheme="http"):
    """A probe whose server has answered its first question with this."""
    with answering(answer) as url:
        asked = Probe(probe.split(url.replace("http", scheme)), 1)
        asked.check()
    return asked


def test_what_a_server_says_of_itself_cannot_write_to_the_terminal():
    assert checked(ANSWER.replace(b": s", b": s\x1b[2J") + b"ok").server == "s?[2J"


TOLD = [b"", b"[]", b"{}", b'{"began": 1}', b'{"began": 1, "ended": "x"}']


@pytest.mark.parametrize("told", TOLD)
def test_times_that_are_none_are_not_believed(told):
    assert probe.callback_times(told) is None


def test_tls_is_verified_for_the_host(monkeypatch):
    """Here, a socket without encryption stands in for TLS: the rest is the same."""
    wrapped = []

    class Context:
        def wrap_socket(self, connection, server_hostname):
            wrapped.append(server_hostname)
            return connection

    monkeypatch.setattr(probe.ssl, "create_default_context", Context)
    assert (checked(ANSWER + b"ok", "https").server, wrapped) == ("s", ["127.0.0.1"])


def test_interrupted(capsys, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Probe, "check", interrupt)
    assert command.main(["probe", "http://127.0.0.1/"]) == 130
    assert capsys.readouterr().err == "wsgi-after: Interrupted.\n"


@pytest.mark.parametrize("seconds", ["0", "2.1", "nan", "x"])
def test_seconds_out_of_bounds_are_refused(seconds):
    with pytest.raises(SystemExit, match="2"):
        probe.main(["http://127.0.0.1/", "--seconds", seconds])


def test_a_kind_that_fails_is_told_and_the_others_are_measured(capsys, monkeypatch, tmp_path):
    """The server answers 500 to the redirect; in the picture, its lane stays empty."""
    monkeypatch.setattr(probe, "KINDS", {kind: KINDS[kind] for kind in ["head", "redirect"]})

    def app(environ, start_response):
        if environ.get("HTTP_WSGI_AFTER_PROBE", "").startswith("redirect"):
            start_response("500 Internal Server Error", [])
            return []
        return probe.application(environ, start_response)

    svg = tmp_path / "probe.svg"
    with served(app) as port:
        arguments = [URL.format(port), "--seconds", "0.3", "--http=1.0", "--svg", str(svg)]
        assert probe.main(arguments) == 2
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "empty redirect    1.0 close              -        -        -        -  ? the response, "
        "with status 500, is not from wsgi_after.probe:application, or a proxy drops the header "
        "Wsgi-After-Probe",
        "",
        "No client waits for callbacks, with any of 1 kinds of request. Not measured: empty "
        "redirect (1.0 close).",
    ]
    assert "empty redirect, 1.0 close" in svg.read_text()


def test_of_a_callback_that_nobody_knows_of_the_times_are_left_out(monkeypatch):
    row = Row("head", *CLOSE)
    monkeypatch.setattr(Probe, "once", lambda *args: probe.Exchange(200, "s", "", 0, 0, b"{}"))
    monkeypatch.setattr(probe.time, "perf_counter", iter([0.0, 1.0, 99.0]).__next__)
    monkeypatch.setattr(probe.time, "sleep", lambda seconds: None)
    Probe(probe.split("http://x/"), 1).ask_times(row, TOKEN, 0)
    assert (row.began, row.ended) == (None, None)


# Verdict and advice.


def rows(*waited, failed=()):
    """A row for each kind in each mode: those in ``waited`` waited, those in ``failed`` failed."""
    return [
        Row(kind, *mode, waited=None if (kind, mode) in failed else (kind, mode) in waited)
        for kind in KINDS
        for mode in MODES
    ]


SOME = "The client waits for callbacks with "
NOBODY = "No client waits for callbacks, with any of {} kinds of request."
FILE = "Not measured: file (1.1 close)."
UNKNOWN = (("file", CLOSE),)

VERDICTS = [
    (rows(), "", 0, NOBODY.format(21), []),
    (
        *(rows(("stream", OLD), ("head", CLOSE), ("head", OLD)), "", 1),
        f"{SOME}stream, no length (1.0 close), HEAD (1.1 close, 1.0 close).",
        ["old", "empty"],
    ),
    (
        *(rows(("no-length", CLOSE), failed=UNKNOWN), "", 1),
        f"{SOME}no Content-Length (1.1 close). {FILE}",
        ["length"],
    ),
    (
        *(rows(("stream", KEEP_ALIVE)), "nginx", 1),
        f"{SOME}stream, no length (1.1 keep-alive).",
        ["proxy", "length"],  # let it speak HTTP/1.1 to the server
    ),
    (rows(failed=UNKNOWN), "", 2, f"{NOBODY.format(20)} {FILE}", []),
    ([Row("file", *CLOSE)], "", 2, "Nothing could be measured.", []),
    ([Row("file", *CLOSE, waited=True)], "", 1, f"{SOME}file (1.1 close).", ["other"]),
]


def test_on_uwsgi_it_says_why_a_client_waits():
    assert probe.advice(rows(("stream", CLOSE)), "", "uWSGI 2.0.31")[0] == probe.ADVICE["uwsgi"]
    assert probe.advice(rows(), "", "uWSGI 2.0.31") == []


@pytest.mark.parametrize(("measured", "proxy", "code", "verdict", "keys"), VERDICTS)
def test_verdict_advice_and_exit_code(measured, proxy, code, verdict, keys):
    assert probe.verdict(measured) == verdict
    assert probe.advice(measured, proxy) == [probe.ADVICE[key] for key in keys]
    assert probe.exit_code(measured) == code


@pytest.mark.parametrize(
    ("server", "header", "via", "proxy"),
    [
        ("gunicorn/27.0.1", "gunicorn", "", ""),
        ("gunicorn/27.0.1", "nginx/1.22.1", "", "nginx/1.22.1"),
        ("uWSGI 2.0.31", "", "1.1 varnish", "Via 1.1 varnish"),
        ("waitress", "cloudflare", "1.1 x", "cloudflare, Via 1.1 x"),
    ],
)
def test_what_answered_besides_the_server(server, header, via, proxy):
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
import json, os, threading, time
from wsgi_after.probe import application as probe

def application(environ, start_response):
    if environ["PATH_INFO"] != "/bare/about":    # what tells that the server is ready
        return probe(environ, start_response)
    if environ.get("QUERY_STRING"):    # that all threads have served
        time.sleep(0.05)
    body = json.dumps({"place": [os.getpid(), threading.get_ident()]}).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@contextmanager
def asking(server):
    """Run a server of the matrix, with the probe's application in place of its own."""

    def commands(where):
        where.write("kinds.py", APP)
        return server.commands(where)

    require(server.missing())
    with running(replace(server, commands=commands)) as where:
        yield Probe(probe.split(f"http://127.0.0.1:{where.port}/"), 0.5)


ASKED = ("gunicorn", "nginx", "uWSGI", "waitress")


@pytest.mark.servers
@pytest.mark.parametrize("name", [name for name in BY_NAME if name.startswith(ASKED)])
def test_the_verdicts_are_those_of_the_matrix_of_servers(name):
    """With HTTP/1.1 and keep-alive, like the matrix."""
    with asking(BY_NAME[name]) as asked:
        asked.check()
        found = {row.kind: row.waited for row in asked.rows([KEEP_ALIVE])}
    assert found == {kind: expected(name, same).timing != IN_TIME for kind, same in SAME.items()}
    *proxies, server = name.split(", ")
    assert asked.server.startswith(server.split()[0])
    assert asked.proxy.split("/")[0] == " ".join(proxies).split(" ")[0]


# The page.


def test_the_page_shows_what_the_command_prints():
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
def test_the_command_prints_the_page_s_output_for_gunicorn():
    with asking(BY_NAME["gunicorn gthread"]) as asked:
        probing = [sys.executable, "-m", "wsgi_after", "probe", asked.url.geturl()]
        finished = subprocess.run(probing, stdout=subprocess.PIPE, text=True, check=False)

    def masked(out):
        return re.sub(r" +\d+\.\d(?= +\d+\.\d|  )", " #", re.sub(r"n/[\d.]*\d", "n", out)).split()

    assert finished.returncode == 1
    assert masked(finished.stdout) == masked(blocks("probe.rst")["probe.out"])
