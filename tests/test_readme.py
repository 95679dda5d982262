"""README.rst: it parses, its examples run, and what they print is what it shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import django.test
import flask
import pytest
from commands import environment, serving
from conftest import make_environ
from django.conf import settings
from django.core.signals import request_finished
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from docutils import nodes
from docutils.core import publish_doctree
from werkzeug.test import Client
from werkzeug.wrappers import Response

import wsgi_after

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.rst").read_text(encoding="utf-8")

INSTALL = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python -m wsgi_after"
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"
RUN = ".venv/bin/python -m wsgi_after hello:application"


def parse(text: str) -> nodes.document:
    """The document; a warning is an error."""
    settings = {"halt_level": 2, "report_level": 5, "syntax_highlight": "none"}
    return publish_doctree(text, settings_overrides=settings)


def blocks(language: str) -> list[nodes.literal_block]:
    return [
        block
        for block in parse(README).findall(nodes.literal_block)
        if language in block["classes"]
    ]


def snippet(name: str) -> str:
    [found] = [
        block for block in parse(README).findall(nodes.literal_block) if name in block["names"]
    ]
    return found.astext()


def commands() -> dict[str, str]:
    """What the console blocks show: command → output."""
    shown = "\n".join(block.astext() for block in blocks("console"))
    parts = re.split(r"(?m)^\$ (.*)\n?", shown)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def table(first_header: str) -> list[list[str]]:
    """The rows, cell by cell, of the table whose first header is that."""
    for found in parse(README).findall(nodes.table):
        header, *rows = (
            [" ".join(entry.astext().split()) for entry in row.findall(nodes.entry)]
            for row in found.findall(nodes.row)
        )
        if header[0] == first_header:
            return rows
    raise AssertionError(f"README.rst has no table of {first_header!r}")


# The document.


@pytest.mark.parametrize("name", ["README.rst", "CHANGES.rst"])
def test_it_parses_without_a_warning(name: str) -> None:
    parse((ROOT / name).read_text(encoding="utf-8"))


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 350


def test_every_file_that_it_names_is_there() -> None:
    references = {
        node["refuri"] for node in parse(README).findall(nodes.reference) if "refuri" in node
    }
    named = {*references, ".ci/run", "tests/test_readme.py"}
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_contract_has_eleven_rules() -> None:
    [rules] = list(parse(README).findall(nodes.enumerated_list))
    assert len(rules) == 11


def test_every_example_is_run_by_a_test() -> None:
    """Those on changing the response by ``test_prepare_examples.py``, the others here."""
    elsewhere = [
        block
        for section in parse(README).findall(nodes.section)
        if "changing the response" in section["names"]
        for block in section.findall(nodes.literal_block)
    ]
    assert {tuple(block["classes"]) for block in elsewhere} <= {("code", "python")}
    assert len(blocks("python")) == 5 + len(elsewhere)
    names = [
        name for block in parse(README).findall(nodes.literal_block) for name in block["names"]
    ]
    assert names == [
        *("hello.py", "ways.py", "ways.out", "flask_app.py", "django_wsgi.py", "pyramid_app.py")
    ]
    assert [command.split()[0] for command in commands()] == [
        *("python3", ".venv/bin/python", "gunicorn", "uwsgi", "python3")
    ]


def test_what_a_callback_can_know_is_what_there_is() -> None:
    known = [row[0] for row in table("Attribute")]
    properties = [
        name for name, value in vars(wsgi_after.CallbackList).items() if isinstance(value, property)
    ]
    assert known == properties


# The commands.


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    """A directory with the first example."""
    (tmp_path / "hello.py").write_text(snippet("hello.py"), encoding="utf-8")
    return tmp_path


def masked(output: str) -> str:
    return re.sub(r"(?m)^ +\d+\.\d(?=  \w)", " #", output).strip()


def test_the_example_prints_what_is_shown(hello: Path) -> None:
    argv = [sys.executable, *shlex.split(RUN)[1:]]
    out = subprocess.check_output(argv, cwd=hello, env=environment(), text=True)
    assert masked(out) == masked(commands()[RUN])
    assert "The client did not wait for the callback." in out


def test_the_tests_are_run_in_ci_by_the_command_that_is_shown() -> None:
    assert TEST in commands()
    assert TEST in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.skipif("CI" not in os.environ, reason="it installs from the package index: only in CI")
@pytest.mark.skipif(
    not (ROOT / "wsgi_after").is_dir(), reason="the package is not beside its tests"
)
def test_the_command_that_installs_and_runs_the_demo(tmp_path: Path) -> None:
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    checkout = shutil.copytree(ROOT, tmp_path / "checkout", ignore=left_out)
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    out = subprocess.check_output(
        INSTALL, shell=True, cwd=checkout, env={**without, "PATH": path}, text=True
    )
    assert INSTALL in commands()
    assert masked(out).endswith("The client did not wait for the callback.")


@pytest.mark.parametrize("program", ["gunicorn", pytest.param("uwsgi", marks=pytest.mark.servers)])
def test_a_client_does_not_wait_on_a_server_that_is_started_as_shown(
    hello: Path, program: str
) -> None:
    """The callback is replaced: it connects to the test, and waits for a word from there."""
    [command] = [command for command in commands() if command.startswith(program)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        wait = f"__import__('socket').create_connection({address}).recv(1)"
        source = snippet("hello.py").replace("time.sleep(0.5)", wait)
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


def test_the_four_ways_to_register(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {}
    exec(snippet("ways.py"), namespace)
    Client(namespace["application"]).get("/").close()
    assert capsys.readouterr().out.strip() == snippet("ways.out")


VIEW = """
def index(request):
    after_this_response(print, "after the response")
    request.environ["wsgi.after"].append(lambda: print("and this"))
"""
DJANGO_URLS = (
    "from django.http import HttpResponse\nfrom django.urls import path\n"
    f"from wsgi_after import after_this_response\n{VIEW}"
    "    return HttpResponse('Hello\\n')\n"
    "urlpatterns = [path('', index)]\n"
)
PYRAMID_VIEWS = (
    "from pyramid.response import Response\nfrom pyramid.view import view_config\n"
    f"from wsgi_after import after_this_response\n"
    f"@view_config(route_name='index'){VIEW}"
    "    return Response('Hello\\n')\n"
)
SETTINGS = "SECRET_KEY = 'x'\nROOT_URLCONF = 'urls'\nALLOWED_HOSTS = ['*']\n"

REQUEST = """
from importlib import import_module
import sys
from werkzeug.test import Client
module = import_module(sys.argv[1])
response = Client(getattr(module, sys.argv[2])).get("/")
print(response.get_data(as_text=True).strip())
response.close()
"""


@pytest.mark.parametrize(
    ("name", "app", "files", "more"),
    [
        ("flask_app.py", "app", {}, []),
        (
            "django_wsgi.py",
            "application",
            {"urls.py": DJANGO_URLS, "settings.py": SETTINGS},
            ["and this"],
        ),
        ("pyramid_app.py", "application", {"views.py": PYRAMID_VIEWS}, ["and this"]),
    ],
    ids=["flask", "django", "pyramid"],
)
def test_a_framework(
    tmp_path: Path, name: str, app: str, files: dict[str, str], more: list[str]
) -> None:
    for file, text in {name: snippet(name), **files}.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    argv = [sys.executable, "-c", REQUEST, name.removesuffix(".py"), app]
    env = environment(DJANGO_SETTINGS_MODULE="settings")
    out = subprocess.check_output(argv, cwd=tmp_path, env=env, text=True)
    assert out.splitlines() == ["Hello", "after the response", *more]


def test_the_test_client_of_django_bypasses_the_middleware() -> None:
    present: list[bool] = []

    def view(request: Any) -> HttpResponse:
        present.append("wsgi.after" in request.environ)
        return HttpResponse("hello")

    settings.configured or settings.configure()
    with override_settings(ROOT_URLCONF=(path("", view),), ALLOWED_HOSTS=["*"]):
        django.test.Client().get("/")
    assert present == [False]


# The tables.


def test_the_table_of_servers_is_what_the_servers_are_tested_for() -> None:
    from servers.expectations import END_LATE, IN_TIME, LATE, STREAMS
    from servers.expectations import expected_by_default as expected

    says = {IN_TIME: "does not wait", END_LATE: "waits for the end", LATE: "waits for all of it"}
    columns = [
        ["list_with_length"],
        STREAMS,
        ["redirect", "no_content", "not_modified", "head"],
    ]
    tested = {
        "gunicorn sync, gthread": ["gunicorn sync", "gunicorn gthread"],
        "uWSGI": ["uWSGI --http", "uWSGI --http-socket"],
        "waitress": ["waitress"],
    }
    assert expected("uWSGI --http", "list_without_length").timing == END_LATE
    assert expected("uWSGI --http", "empty_list").timing == END_LATE
    for row in table("The client of"):
        for cell, kinds in zip(row[1:], columns, strict=True):
            for server in tested.pop(row[0]) if kinds is columns[-1] else tested[row[0]]:
                assert {says[expected(server, kind).timing] for kind in kinds} == {cell}, server
    assert tested == {}


# The other ways, and when they run what they are given.


def serve(app: Any, events: list[str]) -> None:
    """Serve one request, noting when headers and body go out, and when the body is closed."""

    def start_response(*args: Any) -> None:
        events.append("headers")

    body = app(make_environ(PATH_INFO="/"), start_response)
    events.extend("body" for _ in body)
    events.append("close")
    getattr(body, "close", lambda: None)()


def test_flask_runs_its_functions_before_the_headers_and_before_the_body(
    events: list[str],
) -> None:
    app = flask.Flask(__name__)
    app.after_request(lambda response: events.append("after_request") or response)
    app.teardown_request(lambda error: events.append("teardown_request"))
    app.add_url_rule("/", view_func=lambda: "hello")
    serve(app, events)
    assert events == ["after_request", "headers", "teardown_request", "body", "close"]


@pytest.mark.filterwarnings("ignore:.*pkg_resources")  # Pyramid imports it
def test_pyramid_runs_its_callbacks_before_any_byte(events: list[str]) -> None:
    import pyramid.config
    import pyramid.response

    def view(request: Any) -> Any:
        request.add_response_callback(lambda request, response: events.append("response"))
        request.add_finished_callback(lambda request: events.append("finished"))
        return pyramid.response.Response("hello")

    with pyramid.config.Configurator() as config:
        config.add_route("index", "/")
        config.add_view(view, route_name="index")
        serve(config.make_wsgi_app(), events)
    assert events == ["response", "finished", "headers", "body", "close"]


def test_werkzeug_runs_them_on_close_and_loses_the_rest_when_one_raises(events: list[str]) -> None:
    response = Response("hello")
    response.call_on_close(lambda: events.append("first"))
    response.call_on_close(lambda: 1 / 0)
    response.call_on_close(lambda: events.append("lost"))
    with pytest.raises(ZeroDivisionError):
        serve(response, events)
    assert events == ["headers", "body", "close", "first"]


def test_django_sends_its_signal_on_close_and_loses_the_rest_when_one_raises(
    events: list[str],
) -> None:
    receivers = [lambda **kwargs: events.append("first"), lambda **kwargs: 1 / 0]
    receivers.append(lambda **kwargs: events.append("lost"))
    for receiver in receivers:
        request_finished.connect(receiver)
    settings.configured or settings.configure()
    response = HttpResponse("hello")
    with pytest.raises(ZeroDivisionError):
        serve(lambda *args: response, events)
    for receiver in receivers:
        request_finished.disconnect(receiver)
    assert events == ["body", "close", "first"]
