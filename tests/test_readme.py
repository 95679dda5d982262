"""README.rst: it parses, its examples run, and what they print is what it shows."""

from __future__ import annotations

import re
import socket
from http.client import HTTPConnection

import pytest
from commands import ask, copied_checkout, installs, masked, paste, run, serving
from conftest import Exchange
from documents import ROOT, executed, parse
from docutils import nodes
from servers.descriptions import SERVERS
from servers.expectations import EMPTY, END_LATE, ERRORS, IN_TIME, LATE, STREAMS, UNFRAMED, expected
from servers.harness import wait_until
from servers.page import family
from werkzeug.test import Client

from wsgi_after import AfterResponseMiddleware

README = (ROOT / "README.rst").read_text(encoding="utf-8")
DOCUMENT = parse("../README.rst")

INSTALL = "python3 -m venv .venv && . .venv/bin/activate && pip install . && python -m wsgi_after"
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"
RUN = "python -m wsgi_after hello:application"


BLOCKS = list(DOCUMENT.findall(nodes.literal_block))
SNIPPETS = {name: block.astext() for block in BLOCKS for name in block["names"]}
CONSOLE = "\n".join(block.astext() for block in BLOCKS if "console" in block["classes"])
#: What the console blocks show: command → output.
COMMANDS = dict(re.findall(r"(?ms)^\$ (.*?)$\n?(.*?)(?=^\$ |\Z)", CONSOLE))


# The document.


@pytest.mark.parametrize("name", ["README.rst", "CHANGES.rst"])
def test_it_parses_without_a_warning(name):
    parse(f"../{name}")


def test_it_stays_short():
    assert len(README.splitlines()) < 300


def test_every_file_that_it_names_is_there():
    references = {node["refuri"] for node in DOCUMENT.findall(nodes.reference) if "refuri" in node}
    images = {node["uri"] for node in DOCUMENT.findall(nodes.image)}
    assert images
    named = {*references, *images, ".ci/run", "tests/test_readme.py"}
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_example_is_run_by_a_test():
    assert [*SNIPPETS] == [
        *("hello.py", "ways.py", "ways.out", "flask_app.py", "shop/wsgi.py", "shop/urls.py"),
        *("pyramid_app.py", "success.py", "cookie.py"),
    ]
    assert len([block for block in BLOCKS if "python" in block["classes"]]) == len(SNIPPETS) - 1
    # Those that install something, but the first, are left to whoever reads the page.
    assert [command.split()[0] for command in COMMANDS if not command.startswith("pip ")] == [
        *("python3", "python", "gunicorn", "django-admin", "uwsgi", "waitress-serve"),
        *("gunicorn", "uwsgi", "python3"),
    ]


# The commands.


@pytest.fixture
def hello(tmp_path):
    """A directory with the first example."""
    (tmp_path / "hello.py").write_text(SNIPPETS["hello.py"], encoding="utf-8")
    return tmp_path


def test_the_example_prints_what_is_shown(hello):
    out = run(RUN, hello)
    assert masked(out).strip() == masked(COMMANDS[RUN]).strip()
    assert "The client did not wait for the callback." in out


def test_the_tests_are_run_in_ci_by_the_command_that_is_shown():
    assert TEST in COMMANDS
    assert TEST in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@installs
def test_the_command_that_installs_and_runs_the_demo(tmp_path):
    out = paste(INSTALL, copied_checkout(tmp_path))
    assert INSTALL in COMMANDS
    assert out.strip().endswith("The client did not wait for the callback.")


@pytest.mark.parametrize("program", ["gunicorn", pytest.param("uwsgi", marks=pytest.mark.servers)])
def test_a_client_does_not_wait_on_a_server_that_is_started_as_shown(hello, program):
    """The callback is replaced: it connects to the test, and waits for a word from there."""
    [command] = [line for line in COMMANDS if line.startswith(program) and "hello" in line]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        wait = f"__import__('socket').create_connection({address}).recv(1)"
        source = SNIPPETS["hello.py"].replace("time.sleep(0.5)", wait)
        (hello / "hello.py").write_text(source, encoding="utf-8")
        listener.settimeout(30)
        with serving(command, hello) as port:
            client = HTTPConnection("127.0.0.1", port, timeout=30)
            client.request("GET", "/")
            assert client.getresponse().read() == b"Hello\n"
            callback, _ = listener.accept()
            client.close()
            callback.close()


# The Python examples.


def test_the_four_ways_to_register(capsys):
    Client(executed(SNIPPETS["ways.py"])["application"]).get("/").close()
    assert capsys.readouterr().out.strip() == SNIPPETS["ways.out"]


# The servers that the page names, on which each framework is served as it shows.
SERVED = {
    "gunicorn": ["flask_app.py"],
    "uwsgi": ["shop/wsgi.py", "shop/urls.py"],
    "waitress-serve": ["pyramid_app.py"],
}


@pytest.mark.parametrize(
    "program", ["gunicorn", pytest.param("uwsgi", marks=pytest.mark.servers), "waitress-serve"]
)
@pytest.mark.parametrize("way", ["after_this_response(", 'request.environ["wsgi.after"]('])
def test_a_framework_runs_its_callback_on_the_server_that_is_shown(tmp_path, program, way):
    """In both ways that a view has; the examples show the first."""
    [command] = [line for line in COMMANDS if line.startswith(program) and "hello" not in line]
    if program == "uwsgi":
        [start] = [line for line in COMMANDS if line.startswith("django-admin")]
        run(start, tmp_path)
    for name in SERVED[program]:
        source = SNIPPETS[name].replace("after_this_response(", way)
        (tmp_path / name).write_text(source.replace("import Flask", "import Flask, request"))
    with serving(command, tmp_path) as port:
        assert ask(port, "/") == (200, "Hello\n")
        log = tmp_path / "log"
        wait_until(lambda: "after the response" in log.read_text(), log)


def test_a_callback_that_looks_at_the_response(capsys):
    order = executed(SNIPPETS["success.py"])["order"]

    def refused(environ, start_response):
        return order(environ, lambda status, headers: start_response("409 Conflict", headers))

    for app in (order, refused):
        Exchange(AfterResponseMiddleware(app)).finish()
    assert capsys.readouterr().out == "a receipt for ada@example.com\n"


def test_a_library_that_sets_a_cookie():
    remember_language = executed(SNIPPETS["cookie.py"])["remember_language"]

    def app(environ, start_response):
        remember_language("de")
        start_response("204 No Content", [])
        return []

    exchange = Exchange(AfterResponseMiddleware(app))
    assert exchange.started == [("204 No Content", [("Set-Cookie", "lang=de; Path=/")])]
    exchange.finish()


# The table.


def waiting_for(kind):
    """The servers whose clients wait for the callbacks of such a response."""
    return {family(s.name) for s in SERVERS if expected(s.name, kind).timing in {END_LATE, LATE}}


#: What the package brings for a server, and the module of its tests.
OURS = {"gunicorn, GThread": "test_gunicorn_moment", "waitress, serve": "test_waitress_moment"}


def test_the_table_of_servers_and_what_the_page_says_below_it_are_what_is_tested():
    says = {IN_TIME: "does not wait", END_LATE: "waits for the end", LATE: "waits for all of it"}
    columns = [["list_with_length"], STREAMS, EMPTY]
    [_, *rows] = [
        [" ".join(entry.astext().split()) for entry in row.findall(nodes.entry)]
        for found in DOCUMENT.findall(nodes.table)
        for row in found.findall(nodes.row)
        if " ".join(found.astext().split()).startswith("The client of")
    ]
    assert [row[0] for row in rows if row[0] not in OURS] == [
        *("gunicorn", "uWSGI", "waitress", "mod_wsgi")
    ]
    assert {row[0]: row[1:] for row in rows if row[0] in OURS} == {
        name: ["does not wait"] * 3 for name in OURS
    }
    for name, module in OURS.items():  # where each kind of response is tried, error pages too
        source = (ROOT / "tests" / "servers" / f"{module}.py").read_text(encoding="utf-8")
        assert "for kind in KINDS" in source or '("kind", KINDS)' in source, name
    for name, *cells in rows:
        for server in [server.name for server in SERVERS if server.name.startswith(name)]:
            for cell, kinds in zip(cells, columns, strict=True):
                assert {says[expected(server, kind).timing] for kind in kinds} == {cell}, server
    assert waiting_for("list_with_length") == {"tornado"}
    named = {row[0] for row in rows}
    assert waiting_for("empty_list") & named == {"waitress", "mod_wsgi"}
    assert waiting_for("list_without_length") & named == {"mod_wsgi"}
    uwsgi = {server.name for server in SERVERS if "uWSGI" in server.name}
    assert {expected(name, kind).timing for name in uwsgi for kind in [*UNFRAMED, *ERRORS]} == {
        IN_TIME
    }
    assert {expected("nginx, gunicorn", kind).timing for kind in UNFRAMED} == {LATE}
    for kind in ERRORS:
        in_time = {s.name for s in SERVERS if expected(s.name, kind).timing == IN_TIME}
        assert in_time <= {"bjoern", "eventlet", *uwsgi}
    assert len({family(server.name) for server in SERVERS} - {"nginx"}) == 18
    assert "docs/servers.rst <docs/servers.rst>`_ has 18 servers" in README
