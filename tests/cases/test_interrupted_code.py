"""Rule 7: a response that the collector drops does not harm the code that it interrupts.

Also what happens if the last reference is dropped there: see ``docs/nothing-lost.rst``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment
from databases import postgresql
from reporting import count

from . import run_python, run_script

#: Responses whose callback does something and then fails, which is logged with a traceback.
BEGIN = """
import ast, faulthandler, gc, importlib, io, json, logging.handlers, os, queue, re, sqlite3, sys
from concurrent.futures import ThreadPoolExecutor
from wsgi_after import AfterResponseMiddleware

logging.getLogger().addHandler(logging.StreamHandler(io.StringIO()))
callbacks, errors = [], []

def use():
    pass

def fail():
    callbacks.append(1)
    try:
        use()
    except BaseException as error:
        errors.append(repr(error))
    raise ValueError("on purpose")

def app(environ, start_response):
    environ["wsgi.after"].append(fail)
    start_response("200 OK", [])
    return [b"chunk"]

def get():
    return AfterResponseMiddleware(app)({"PATH_INFO": "/"}, lambda *args: print)
"""

#: Run ``USE`` once for each call and each return in it, and drop a response at that point.
DROPS = """
how, seconds = sys.argv[1:]
SETUP

def use():
    USE

def drop():
    if how == "collected":
        gc.collect()
    else:
        kept.clear()

def profile(frame, event, arg):
    global left
    left -= 1
    if left == 0:
        sys.setprofile(None)
        drop()

kept, moments, left = [], 0, 0
use()
gc.disable()
faulthandler.dump_traceback_later(int(seconds), exit=True, file=open("blocked", "w"))
while left <= 0:
    moments += 1
    left = moments
    kept = [get()]
    if how == "collected":
        kept.append(kept)
        kept = None
    sys.setprofile(profile)
    try:
        use()
    except BaseException as error:
        errors.append(repr(error))
    sys.setprofile(None)
kept = None
gc.collect()
get().close()
print(moments > 5, len(callbacks) - moments, *set(errors))
sys.stdout.flush()
os._exit(0)    # the pool's threads, and the callbacks of those, are of no interest
"""

#: By what is interrupted: the code that prepares it, and the interrupted code itself.
USES = {
    "ast.parse": ("", "ast.parse('x = [f(a, b)[1:2] for a in c]')"),
    "logging": ("log = logging.getLogger('other')", "log.error('noise')"),
    "logging into a queue": (
        "log, fifo = logging.getLogger(), queue.Queue()\n"
        "log.addHandler(logging.handlers.QueueHandler(fifo))",
        "log.error('noise')",
    ),
    "ThreadPoolExecutor.submit": ("pool = ThreadPoolExecutor(1)", "pool.submit(int)"),
    "queue.Queue.put": ("fifo = queue.Queue()", "fifo.put(1)"),
    "an import": (
        "open('module.py', 'w').write('import json')",
        "sys.modules.pop('module', None); importlib.import_module('module')",
    ),
    "re.compile": ("", "re.purge(); re.compile('(a|b)*[c-f]{2,3}(?P<x>y)')"),
    "json": ("", "json.loads(json.dumps({'a': [1, 2]}, indent=1))"),
    "a statement of sqlite3": (
        "connection = sqlite3.connect(':memory:')\n"
        "connection.create_function('python', 1, lambda value: value)\n"
        "cursor = connection.cursor()\n"
        "cursor.execute('create table t (a)')",
        "cursor.execute('insert into t values (python(1))')",
    ),
}

#: Code that cannot be entered twice. If the last reference is dropped in it, a callback that runs
#: the same code fails, crashes Python, or blocks its thread for good, depending on the version of
#: Python.
LIMITS = {
    "logging into a queue": ["blocked"],
    "ThreadPoolExecutor.submit": ["blocked"],
    "queue.Queue.put": ["blocked"],
    "an import": ["blocked", "RuntimeError('cannot release un-acquired lock')"],
    "a statement of sqlite3": [
        "ProgrammingError('Recursive use of cursors not allowed.')",
        "crashed",
    ],
}


def dropped(how: str, use: tuple[str, str], directory: Path, seconds: int = 30) -> str:
    """Drop responses at each moment; return whether each callback ran once, and what was raised.

    :param seconds: after this time, the process counts as blocked for good.
    """
    source = BEGIN + DROPS.replace("SETUP", use[0]).replace("USE", use[1])
    done = run_python(source, directory, how, str(seconds))
    return "crashed" if done.returncode < 0 else done.stdout.strip() or "blocked"


#: What is printed if all is well: some moments were tried, and each callback ran once. The 1 is the
#: callback of the last response, which closes the others.
WELL = "True 1"


@pytest.mark.parametrize("use", USES)
def test_what_is_collected_while_something_runs_does_not_harm_it(use, tmp_path):
    assert dropped("collected", USES[use], tmp_path) == WELL


@pytest.mark.parametrize("use", USES)
def test_what_is_dropped_by_its_last_reference_harms_only_what_cannot_be_entered_twice(
    use, tmp_path
):
    expected = LIMITS.get(use, [WELL])
    outcome = dropped("by the last reference", USES[use], tmp_path, patience(expected))
    assert outcome.removeprefix(f"{WELL} ") in expected


def patience(expected):
    """How many seconds to wait: few, where blocking is expected."""
    return 2 if "blocked" in expected else 30


PSYCOPG = (
    "import psycopg\nconnection = psycopg.connect({url!r}, autocommit=True)",
    "connection.execute('select 1')",
)


@pytest.mark.servers
@pytest.mark.parametrize(
    ("how", "expected"), [("collected", WELL), ("by the last reference", "blocked")]
)
def test_what_is_dropped_while_psycopg_waits_for_postgresql(how, expected, tmp_path):
    with postgresql() as database:
        setup = PSYCOPG[0].format(url=database.url())
        assert dropped(how, (setup, PSYCOPG[1]), tmp_path, patience(expected)) == expected


PARSE = """
source = "x = [" + "f(a, b)[1:2]," * 60 + "]"
survived = 0
for number in range(300):
    gc.disable()
    gc.collect()
    cycle = [get()]
    cycle.append(cycle)
    cycle = None
    gc.set_threshold(2 + number)
    gc.enable()
    try:
        ast.parse(source)
        survived += 1
    except SystemError:
        pass
    gc.disable()
    gc.set_threshold(700)
gc.collect()
get().close()
print(survived)
print(len(callbacks))
"""


def test_300_of_300_parses_survive_a_collection(tmp_path):
    """On CPython 3.11, parsing in a finalizer breaks the parser that it interrupts."""
    survived, ran = map(int, run_script(BEGIN + PARSE, tmp_path))
    count("ast.parse, interrupted", tried=300, survived=survived, callbacks_run=ran - 1)
    assert (survived, ran) == (300, 301)


#: Like the fixtures of pytest-flask: a context stays pushed, and no response is ever closed.
SUITE = """
import pytest
from flask import Flask
from wsgi_after.flask import AfterResponse, after_this_response

def fail():
    raise ValueError("on purpose")

@pytest.fixture
def app():
    app = Flask(__name__)
    AfterResponse(app)

    @app.get("/")
    def index():
        after_this_response(fail)
        return "hello"

    return app

CLIENT

@pytest.mark.parametrize("number", range(20))
def test_index(client, number):
    response = client.get("/")
    assert response.status_code == 200
    assert number % 2    # pytest parses this file, to show what failed
"""

CLIENT = """
@pytest.fixture
def client(app):
    with app.test_request_context():
        yield app.test_client()
"""

#: Enough source that a collection begins while it is parsed.
TABLE = "".join(f"    ({n}, 'name {n}', [f(a)[1:2] for a in range({n})]),\n" for n in range(300))


@pytest.mark.parametrize("plugin", ["", "pytest_flask"])
def test_five_runs_of_a_suite_with_a_client_that_never_closes_end_as_they_should(plugin, tmp_path):
    if plugin:
        pytest.importorskip(plugin)
    source = SUITE.replace("CLIENT", "" if plugin else CLIENT)
    (tmp_path / "test_shop.py").write_text(f"{source}\nTABLE = lambda f: [\n{TABLE}]\n")
    # Django's plugin also has a fixture "client".
    without = ["no:cacheprovider", "no:django", *["no:flask"] * (not plugin)]
    command = ["pytest", "-q", "--tb=long", *(word for name in without for word in ("-p", name))]
    ends = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
        counts = done.stdout.strip().splitlines()[-1].partition(" in ")[0]
        ends.append((done.returncode, counts, "INTERNALERROR" in done.stdout))
    assert ends == [(1, "10 failed, 10 passed", False)] * 5
