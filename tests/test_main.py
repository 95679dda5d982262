"""The command: apps in files of their own, the embedded server, a real request."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from threading import Event

import pytest
from commands import PACKAGE_PARENT, environment, masked
from servers.harness import require

from wsgi_after import __main__ as command

TIMELINE = """\
Status 200, 14 bytes. Milliseconds since the request was sent:

 #  request sent
 #  headers received
 #  last byte received
 #  callback began
 #  callback ended

The client did not wait for the callback.
"""

NOT_WRAPPED = """\
hello:app is not wrapped, so this command has put AfterResponseMiddleware around it.
On a server, nothing would run its callbacks: wrap it where it is made.

"""

HELLO = """
def app(environ, start_response):
    environ["wsgi.after"].append(lambda: None)
    start_response("200 OK", [("Content-Length", "14")])
    return [b"Hello, world!\\n"]
"""

#: An app that does this first.
APP = """
def app(environ, start_response):
    {}
    start_response("200 OK", [])
    return [b"ok"]
"""


def run_as_a_script():
    """Like ``python -m``. Not with runpy, which cannot use pytest's loader for its plugins."""
    code = compile(Path(command.__file__).read_text(encoding="utf-8"), command.__file__, "exec")
    exec(code, {"__name__": "__main__", "__package__": "wsgi_after"})


def times(output):
    return {event: float(ms) for ms, event in re.findall(r"(?m)^ +(\d+\.\d)  (.+)$", output)}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write the module ``hello`` into a new current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda source: Path("hello.py").write_text(source, encoding="utf-8")
    sys.modules.pop("hello", None)


@pytest.fixture
def run(files, capsys):
    """Run the command in this process, on an app with this source; return status, out, err."""

    def run(source, *arguments, app="hello:app"):
        files(source)
        status = command.main([app, *arguments])
        return status, *capsys.readouterr()

    return run


def in_process_of_its_own(*argv, cwd, **extra):
    done = subprocess.run(
        argv, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


PYTHON_M = (sys.executable, "-m", "wsgi_after")


# Every way to start it.


def test_without_arguments_it_shows_a_demo():
    status, out, err = in_process_of_its_own(*PYTHON_M, cwd=PACKAGE_PARENT)
    assert (status, masked(out), err) == (0, TIMELINE, "")
    ms = times(out)
    assert ms["request sent"] == 0
    assert ms["headers received"] <= ms["last byte received"] < ms["callback ended"]
    assert ms["callback ended"] - ms["callback began"] >= 499.9  # it sleeps for 500


def test_the_demo_in_this_process(capsys):
    assert command.main([]) == 0
    assert masked(capsys.readouterr().out) == TIMELINE


@pytest.mark.parametrize("installed", [False, True])
def test_it_finds_an_app_in_the_current_directory(tmp_path, files, installed):
    files(HELLO)
    argv = PYTHON_M
    if installed:
        scripts = Path(sysconfig.get_path("scripts"))
        argv = [path for path in scripts.glob("wsgi-after*") if path.suffix in ("", ".exe")]
        require([] if argv else ["wsgi-after"])
    path = "" if installed else PACKAGE_PARENT
    status, out, err = in_process_of_its_own(
        *argv, "hello:app", "/path", cwd=tmp_path, PYTHONPATH=path
    )
    assert (status, masked(out), err) == (0, NOT_WRAPPED + TIMELINE, "")


def test_a_failure_in_a_process_of_its_own_is_one_line_and_no_traceback(tmp_path, files):
    files("def app(environ, start_response): raise ValueError('no')")
    told = f"wsgi-after: hello:app raised ValueError: no ({tmp_path / 'hello.py'}, line 1).\n"
    assert in_process_of_its_own(*PYTHON_M, "hello:app", cwd=tmp_path) == (1, "", told)


def test_the_module_run_as_a_script_exits_with_the_status_of_main(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wsgi-after", "nonsense"])
    monkeypatch.delitem(sys.modules, "wsgi_after.__main__")
    with pytest.raises(SystemExit) as exit_:
        run_as_a_script()
    assert exit_.value.code == 1
    assert "'nonsense' is not of the form MODULE:APP" in capsys.readouterr().err


def test_without_werkzeug_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "werkzeug.serving", None)
    monkeypatch.delitem(sys.modules, "wsgi_after.__main__")
    with pytest.raises(SystemExit, match=r"^wsgi-after: The command needs werkzeug"):
        run_as_a_script()


# What it reports.

WRAPPED = """
from wsgi_after import AfterResponseMiddleware
app = AfterResponseMiddleware(app)
ran = []
app.after_response(lambda environ: ran.append(environ["PATH_INFO"]))
"""

NESTED = APP.format("(after := environ['wsgi.after'])(after, after, int)")
CANCELS = APP.format("environ['wsgi.after'](environ['wsgi.after'].clear)")
RESPONDS = """
def app(environ, start_response):
    environ["wsgi.after"].append(print)
    {}
"""
RESPONSES = {
    "start_response('200 OK', []); return (b'ab' for _ in range(3))": "Status 200, 6 bytes.",
    "start_response('204 No Content', []); return []": "Status 204, 0 bytes.",
    "start_response('302 Found', [('Location', '/')]); return []": "Status 302, 0 bytes.",
    "start_response('500 Oh', []); return [b'x' * 200_000]": "Status 500, 200000 bytes.",
    "start_response('200 OK', [])(b'written'); return []": "Status 200, 7 bytes.",
}


@pytest.mark.parametrize(
    ("source", "reported", "callbacks"),
    [
        (NESTED, "3 callbacks began", "3 callbacks"),
        (CANCELS, "callback ended", "callback"),
        (HELLO + WRAPPED, "Status 200", "2 callbacks"),
        *((RESPONDS.format(line), told, "callback") for line, told in RESPONSES.items()),
    ],
)
def test_it_tells_of_the_response_and_how_many_callbacks_no_client_waited_for(
    source, reported, callbacks, run
):
    """Callbacks that a callback registers count, and those of an app that is already wrapped."""
    status, out, err = run(source)
    assert (status, err, reported in out) == (0, "", True)
    assert out.endswith(f"The client did not wait for the {callbacks}.\n")
    assert getattr(sys.modules["hello"], "ran", ["/"]) == ["/"]


@pytest.mark.parametrize(
    "line", ["pass", "environ['wsgi.after'].clear()", "del environ['wsgi.after']"]
)
def test_no_callback(run, line):
    status, out, err = run(APP.format(line))
    events = ["request sent", "headers received", "last byte received"]
    assert (status, list(times(out)), err) == (0, events, "")
    assert out.endswith("\nThe app registered no callback, or cancelled what there was.\n")


def test_a_client_that_waits_because_the_app_runs_its_callbacks_itself(run):
    runs = "(after := environ['wsgi.after']).append(int); run_callbacks(after)"
    _, out, _ = run(f"from wsgi_after import run_callbacks\n{APP.format(runs)}")
    assert out.endswith("The client waited for the callback.\n")
    ms = times(out)
    assert ms["callback ended"] <= ms["headers received"] <= ms["last byte received"]
    # The time for which the server was held up, to see whether the client waits, does not count.
    assert ms["last byte received"] - ms["callback ended"] < command.HOLD * 1000


def test_a_callback_that_fails_is_logged_and_the_timeline_complete(run, caplog):
    status, out, err = run(HELLO.replace("lambda: None", "lambda: 1 / 0"))
    assert (status, masked(out), err) == (0, NOT_WRAPPED + TIMELINE, "")
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a/b?c=d&e", ("/a/b", "c=d&e")),
        ("relative", ("/relative", "")),
        ("/blank here", ("/blank here", "")),
        ("/%7Euser", ("/~user", "")),
        ("/é", ("/é".encode().decode("latin-1"), "")),
        # A byte on the command line that is not UTF-8.
        ("/\udcff", ("/\ufffd".encode().decode("latin-1"), "")),
    ],
)
def test_the_path(run, path, asked):
    note = "asked.append((environ['PATH_INFO'], environ['QUERY_STRING']))"
    status, _, err = run(f"asked = []\n{APP.format(note)}", path)
    assert (status, err, sys.modules["hello"].asked) == (0, "", [asked])


ASKS = """
from http.client import HTTPConnection
asked = []
def ask(port):
    client = HTTPConnection("127.0.0.1", port)
    client.request("GET", "/again")
    client.getresponse().read()
    client.close()
def app(environ, start_response):
    asked.append(environ["PATH_INFO"])
    if len(asked) == 1:
        environ["wsgi.after"](ask, int(environ["SERVER_PORT"]))
    environ["wsgi.after"].append(lambda: None)
    start_response("200 OK", [])
    return [b"ok"]
"""


def test_a_request_of_somebody_else_does_not_count(run):
    """Here, a callback sends it."""
    _, out, _ = run(ASKS)
    assert sys.modules["hello"].asked == ["/", "/again"]
    assert out.endswith("The client did not wait for the 2 callbacks.\n")


def test_the_port_can_be_chosen_and_is_free_again_afterwards(run):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    note = "asked.append((environ['SERVER_NAME'], environ['SERVER_PORT']))"
    for _ in range(2):
        assert run(f"asked = []\n{APP.format(note)}", "--port", str(port))[0] == 0
    assert sys.modules["hello"].asked == [("127.0.0.1", str(port))] * 2


# What can go wrong: one sentence, status 1.


def fails(outcome, pattern):
    status, out, err = outcome
    assert (status, out) == (1, "")
    assert re.fullmatch(f"wsgi-after: {pattern}\n", err), err


FACTORIES = """
class Shop:
    def __init__(self, *, status="200 OK"):
        self.status = status

    def __call__(self, environ, start_response):
        start_response(self.status, [])
        return []

def create_app(code=200, *, text="OK"):
    return Shop(status=f"{code} {text}")

class factories:
    make = create_app

def passes_on(*args):
    return Shop()(*args)

def needs_one(code): pass
def fails(): raise ValueError("no settings")
def exits(): raise SystemExit(3)
def forgets(): create_app()
"""

MALFORMED = "is not of the form MODULE:APP, such as hello:application for the object .*"
NO_NAMES = ["", "hello", "hello:", ":app", "a:b:c", "hello.:app", "hello:app(x)", ".x:y"]
MISSING = "neither in the current directory nor installed"
PLACE = r"\(.*hello\.py, line \d+\)"

#: For each name that is not an app's: the error message.
NAMES = {
    **{name: f"{re.escape(repr(name))} {MALFORMED}" for name in [*NO_NAMES, "http://host/"]},
    "absent:app": f"There is no module absent, {MISSING}",
    "absent.wsgi:app": f"There is no module absent, {MISSING}",
    "hello:app()": r"hello:app\(\) raised TypeError: app\(\) missing 2 .*",
    "email.absent:app": f"There is no module email.absent, {MISSING}",
    "hello:main": "The module hello has no attribute main",
    "hello:app.x": "The module hello has no attribute app.x",
    "hello:HELLO": "hello:HELLO is not a WSGI application: str is not callable",
    "hello:fails": f"hello:fails raised ValueError: no settings {PLACE}",
    "hello:exits()": rf"hello:exits\(\) raised SystemExit: 3 {PLACE}",
    "hello:needs_one()": r"hello:needs_one\(\) raised TypeError: .* \(.*\)",
    "hello:forgets": "hello:forgets is not a WSGI application: NoneType is not callable",
    "hello:absent()": "The module hello has no attribute absent",
    "hello:create_app(code)": f"'hello:create_app\\(code\\)' {MALFORMED}",
    "hello:create_app()()": f"'hello:create_app.*' {MALFORMED}",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_app_s(run, name):
    fails(run(f"{HELLO}{FACTORIES}\nHELLO = ''", app=name), rf"{NAMES[name]}\.")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hello.py:app", "hello:app"),
        ("hello.py", "hello:application"),
        ("./hello.py:app", "hello:app"),
        ("src/hello.py:app", "src.hello:app"),
        ("src/hello:app", "src.hello:app"),
    ],
)
def test_the_name_of_a_file_is_answered_with_that_of_the_module(run, name, meant):
    fails(run(HELLO, app=name), rf".*: did you mean {re.escape(meant)}\?")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import absent", r"ModuleNotFoundError: No module named 'absent' \(.*hello.py, line 1\)"),
        ("import hello.x", r"ModuleNotFoundError: .* \(.*hello.py, line 1\)"),
        ("raise ImportError", r"ImportError \(.*hello.py, line 1\)"),
        ("\n1 / 0", r"ZeroDivisionError: division by zero \(.*hello.py, line 2\)"),
        ("raise AttributeError('two\\n lines')", r"AttributeError: two lines \(.*, line 1\)"),
        ("import sys; sys.exit(3)", r"SystemExit: 3 \(.*hello.py, line 1\)"),
        ("def", r"SyntaxError: .* \(hello.py, line 1\)"),
        ("class Odd(Exception): __str__ = 3\nraise Odd", r"Odd: <no text: .*> \(.*, line 2\)"),
    ],
)
def test_a_module_that_fails_to_import(run, source, error):
    fails(run(source), rf"hello failed to import: {error}\.")


RAISES = """\
def interrupt():
    raise KeyboardInterrupt
def failing():
    yield b"ab"
    1 / 0
class Failing(list):
    def close(self):
        1 / 0
def app(environ, start_response):
    environ["wsgi.after"].append(lambda: None)
    {}
"""


@pytest.mark.parametrize(
    ("respond", "error"),
    [
        ("raise ValueError('no')", r"ValueError: no \(.*hello.py, line 11\)"),
        ("raise SystemExit", r"SystemExit \(.*hello.py, line 11\)"),
        ("raise ConnectionRefusedError('db')", r"ConnectionRefusedError: db \(.*, line 11\)"),
        ("start_response('200 OK', []); 1 / 0", r"ZeroDivisionError: .* \(.*, line 11\)"),
        ("start_response('200 OK', []); return failing()", r"ZeroDivisionError: .*, line 5\)"),
        ("start_response('200 OK', [('Content-Length', '2')]); return failing()", r"Zero.*"),
        ("start_response('200 OK', []); return Failing()", r"ZeroDivisionError: .*, line 8\)"),
        ("return [b'']", r"AssertionError: write\(\) before start_response .*"),
        ("start_response('200 OK', []); return 3", r"TypeError: .*"),
        (
            "environ['wsgi.after'](interrupt); start_response('200 OK', []); return []",
            r"KeyboardInterrupt \(.*hello.py, line 2\)",
        ),
    ],
)
def test_an_app_that_raises(run, respond, error):
    """Or a callback that raises an interrupt."""
    fails(run(RAISES.format(respond)), rf"hello:app raised {error}\.")


def test_a_response_that_is_shorter_than_its_content_length(run):
    pattern = r"The response of hello:app broke off: IncompleteRead\(.* 6 more expected\)\."
    fails(run(HELLO.replace('"14"', '"20"')), pattern)


def test_a_port_in_use(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        fails(run(HELLO, "--port", port), rf"Cannot serve on port {port}: .*already in use.*\.")


LATE = "hello:app did not complete its response"


@pytest.mark.parametrize(
    ("line", "pattern"),
    [
        ("gate.wait()", LATE),
        ("start_response('200 OK', [])(b'some'); gate.wait()", LATE),
        ("start_response('200 OK', []); return iter(lambda: b'%d' % gate.wait(0.05), b'1')", LATE),
        ("environ['wsgi.after'](gate.wait)", "The client had the response, but the callbacks .*"),
    ],
    ids=["nothing", "not all", "a stream without end", "a callback"],
)
def test_what_does_not_end(run, monkeypatch, line, pattern):
    gate = Event()
    monkeypatch.setitem(sys.modules, "gate", gate)
    outcome = run(f"import gate\n{APP.format(line)}", "--timeout", "0.3")
    gate.set()
    fails(outcome, rf"{pattern} within 0\.3 s\..*")


def test_the_time_is_up_just_when_all_has_been_read():
    expired = Event()
    with socket.socket() as not_connected:
        command.expire(not_connected, expired)
    assert expired.is_set()


def test_interrupted(run):
    assert run("raise KeyboardInterrupt") == (130, "", "wsgi-after: Interrupted.\n")


# Arguments.


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--port", port] for port in ("http", "-1", "65536")),
        *(["--timeout", seconds] for seconds in ("soon", "0", "nan", "inf", "3601")),
        ["--nonsense"],
        ["hello:app", "/", "one too many"],
    ],
)
def test_arguments_that_are_not_understood(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments)
    assert exit_.value.code == 2
    assert "wsgi-after: error: " in capsys.readouterr().err


def test_the_help_explains_every_argument_its_default_and_the_exit_status(capsys):
    with pytest.raises(SystemExit) as exit_:
        command.main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    actions = command.parser()._actions
    named = [(action.option_strings or [action.metavar])[-1] for action in actions]
    said = ["default: /", "default: a free one", "default: 30", "3600", "exit status:"]
    assert [action for action in actions if not action.help] == []
    assert [word for word in [*named, *said] if word not in out] == []
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("create_app", 200),
        ("create_app()", 200),
        ("create_app(404)", 404),
        ("create_app(404, text='Gone')", 404),
        ("factories.make(404)", 404),
        ("Shop", 200),
        ("passes_on", 200),
    ],
)
def test_an_app_may_be_made_by_a_factory(run, name, status):
    _, out, _ = run(FACTORIES, app=f"hello:{name}")
    assert f"Status {status}, 0 bytes." in out


# Whether the app is wrapped.

IN_FLASK = """
from flask import Flask
from wsgi_after.flask import AfterResponse
app = Flask(__name__)
AfterResponse(app)
"""

IN_PYRAMID = """
from pyramid.config import Configurator
with Configurator() as config:
    config.include("wsgi_after.pyramid")
    app = config.make_wsgi_app()
"""

IN_DJANGO = """
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
urlpatterns = []
settings.configured or settings.configure(SECRET_KEY="x")
settings.ALLOWED_HOSTS = ["*"]
settings.ROOT_URLCONF = __name__
settings.MIDDLEWARE = ["wsgi_after.django.AfterResponseMiddleware"]
app = WSGIHandler()
"""

LINTED = """
from wsgi_after.lint import LintMiddleware
app = LintMiddleware(app)
"""


@pytest.mark.parametrize(
    ("source", "wrapped"),
    [
        (HELLO + LINTED, False),
        (HELLO + WRAPPED, True),
        (HELLO + LINTED + WRAPPED + LINTED, True),
        (IN_FLASK, True),
        (IN_PYRAMID, True),
        (IN_DJANGO, True),
    ],
)
def test_it_says_if_the_app_is_not_wrapped(files, tmp_path, source, wrapped):
    files(source)
    _, out, _ = in_process_of_its_own(*PYTHON_M, "hello:app", cwd=tmp_path)
    assert out.startswith("Status " if wrapped else f"{NOT_WRAPPED}Status ")


# The timeline.


def test_no_callback_begins_before_the_last_byte_is_received_if_the_client_does_not_wait(run):
    """The client's thread reads the last byte late: when the interpreter lets it run."""
    source = HELLO.replace("lambda: None", "lambda: sum(range(100_000))")
    for _ in range(20):
        ms = times(run(source)[1])
        assert ms["last byte received"] <= ms["callback began"] <= ms["callback ended"]


RUNS_IN_ITS_STREAM = """
from wsgi_after import run_callbacks
def app(environ, start_response):
    after = environ["wsgi.after"]
    after.append(lambda: None)
    start_response("200 OK", [])
    yield b"first"
    run_callbacks(after)
    yield b"last"
"""


def test_the_events_of_a_client_that_waits_are_in_order_of_time(run):
    """This client waits: a stream without a length ends with the connection."""
    _, out, _ = run(RUNS_IN_ITS_STREAM)
    ms = times(out)
    assert list(ms) == [
        *("request sent", "headers received", "callback began"),
        *("callback ended", "last byte received"),
    ]
    assert list(ms.values()) == sorted(ms.values())
    assert out.endswith("The client waited for the callback.\n")
