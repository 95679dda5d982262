"""README.rst: it parses, its examples run, and what they print is what it shows."""

from __future__ import annotations

import re
import wsgiref.simple_server
from configparser import ConfigParser

import pytest
from commands import copied_checkout, installs, masked, paste, run
from documents import ROOT, blocks, executed, parse
from docutils import nodes
from servers.descriptions import OURS, SERVERS
from servers.expectations import EMPTY, END_LATE, ERRORS, IN_TIME, LATE, STREAMS, UNFRAMED, expected
from servers.page import family
from werkzeug.test import Client

from wsgi_after import AfterResponseMiddleware

README = (ROOT / "README.rst").read_text(encoding="utf-8")
DOCUMENT = parse("../README.rst")

INSTALL = "python3 -m venv .venv && . .venv/bin/activate && pip install . && python -m wsgi_after"
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"
RUN = "python -m wsgi_after hello:application"


BLOCKS = list(DOCUMENT.findall(nodes.literal_block))
SNIPPETS = blocks("../README.rst")
CONSOLE = "\n".join(block.astext() for block in BLOCKS if "console" in block["classes"])
#: What the console blocks show: command → output.
COMMANDS = dict(re.findall(r"(?ms)^\$ (.*?)$\n?(.*?)(?=^\$ |\Z)", CONSOLE))


# The document.


@pytest.mark.parametrize("name", ["README.rst", "CHANGES.rst"])
def test_it_parses_without_a_warning(name):
    parse(f"../{name}")


def test_it_stays_short():
    assert len(README.splitlines()) < 150


def test_every_file_that_it_names_is_there():
    references = {node["refuri"] for node in DOCUMENT.findall(nodes.reference) if "refuri" in node}
    assert {name for name in references if not (ROOT / name).exists()} == set()


def test_every_example_is_run_by_a_test():
    ours = ["one_line.py", "hello.py", "ways.py"]
    assert [*SNIPPETS] == [*ours, "flask.py", "django.py", "pyramid.py"]
    assert len([block for block in BLOCKS if "python" in block["classes"]]) == len(SNIPPETS)
    assert [*COMMANDS] == [INSTALL, RUN, TEST]


# The commands.


def test_the_example_prints_what_is_shown(tmp_path):
    (tmp_path / "hello.py").write_text(SNIPPETS["hello.py"], encoding="utf-8")
    out = run(RUN, tmp_path)
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


# The Python examples.


def called(app):
    """GET, close the response, and return its text."""
    with Client(app).get("/") as response:
        return response.text


def test_the_one_line(capsys):
    def hello(environ, start_response):
        environ["wsgi.after"](print, "after the response")
        return wsgiref.simple_server.demo_app(environ, start_response)

    one_line = SNIPPETS["one_line.py"]
    names = executed(one_line, AfterResponseMiddleware=AfterResponseMiddleware, application=hello)
    called(names["application"])
    assert capsys.readouterr().out == "after the response\n"


def test_the_four_ways_to_register(capsys):
    called(executed(SNIPPETS["ways.py"])["application"])
    assert capsys.readouterr().out.splitlines() == [
        *("GET 204 No Content", "a plain list", "with arguments"),
        "from code without the environ",
    ]


# The servers.


def test_what_is_said_of_the_servers_that_pip_installs():
    """All families of the page are installed, and what builds those that have no wheel."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    extra = parser["options.extras_require"]["servers"].lower()
    installed = {line.split("=")[0].strip() for line in extra.splitlines()}
    families = {family(server.name).lower().split(".")[0] for server in SERVERS}
    families -= {"wsgi_after"}
    assert families - installed == {"nginx", "mod_wsgi", "wsgiref"}  # Python itself has wsgiref
    script = (ROOT / ".ci" / "install-servers").read_text(encoding="utf-8")
    [packages] = re.findall(r"apt-get install((?:.*\\\n)*.*)", script)
    assert {"nginx", "libapache2-mod-wsgi-py3", "libev-dev", "gcc"} <= set(packages.split())
    assert "-m pip install -q -e '.[servers,queues,bench]'" in script


# The table.


def waiting_for(kind):
    """The servers whose clients wait for the callbacks of such a response."""
    return {family(s.name) for s in SERVERS if expected(s.name, kind).timing in {END_LATE, LATE}}


#: The package's own adapters for servers: by the row of the table, the server of the tests.
ROWS = {
    "gunicorn, GThread": "wsgi_after.gunicorn.GThread",
    "waitress, serve": "wsgi_after.waitress.serve",
}


def test_the_table_of_servers_and_what_the_page_says_below_it_are_what_is_tested():
    says = {IN_TIME: "does not wait", END_LATE: "waits for the end", LATE: "waits for all of it"}
    columns = [["list_with_length"], STREAMS, EMPTY]
    [found] = [table for table in DOCUMENT.findall(nodes.table) if "The client" in table.astext()]
    [_, *rows] = [
        [" ".join(entry.astext().split()) for entry in row.findall(nodes.entry)]
        for row in found.findall(nodes.row)
    ]
    assert [name for name, *_ in rows if name not in ROWS] == [
        *("gunicorn", "uWSGI", "waitress", "mod_wsgi")
    ]
    for name, *cells in rows:
        begin = ROWS.get(name, name)
        for server in [server.name for server in SERVERS if server.name.startswith(begin)]:
            for cell, kinds in zip(cells, columns, strict=True):
                assert {says[expected(server, kind).timing] for kind in kinds} == {cell}, server
    assert waiting_for("list_with_length") == {"tornado"}
    named = {row[0] for row in rows}
    assert waiting_for("empty_list") & named == {"waitress", "mod_wsgi"}
    assert waiting_for("list_without_length") & named == {"mod_wsgi"}
    moment = {server.name for server in SERVERS if "uWSGI" in server.name or server in OURS}
    assert moment >= set(ROWS.values())
    assert {expected(name, kind).timing for name in moment for kind in [*UNFRAMED, *ERRORS]} == {
        IN_TIME
    }
    assert {expected("nginx, gunicorn", kind).timing for kind in UNFRAMED} == {LATE}
    for kind in ERRORS:
        in_time = {s.name for s in SERVERS if expected(s.name, kind).timing == IN_TIME}
        assert in_time <= {"bjoern", "eventlet", *moment}
    others = {"nginx", *(server.name for server in OURS)}
    assert len({family(server.name) for server in SERVERS} - others) == 18
    assert "docs/servers.rst <docs/servers.rst>`_ has 18 servers" in " ".join(README.split())
