"""Callbacks clean the thread of their request: the next request there finds nothing of it.

They clean a thread-local tenant, a context variable, a session of SQLAlchemy that an error spoiled,
and Django's language, after each kind of response of each framework, on a server with one thread.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from commands import ask_json, environment, serving
from servers.client import fetch

COMMANDS = {
    "gunicorn": "gunicorn --bind 127.0.0.1:8000 -k gthread --threads 1 thread_apps:application",
    "waitress": "waitress-serve --listen=127.0.0.1:8000 --threads=1 thread_apps:application",
    "uWSGI": "uwsgi --http 127.0.0.1:8000 --master --die-on-term --module thread_apps:application",
}
SERVERS = ["gunicorn", "waitress", pytest.param("uWSGI", marks=pytest.mark.servers)]
FRAMEWORKS = [
    *("bottle", "cherrypy", "django", "django, wrapped", "falcon", "flask", "pyramid", "webob")
]
KINDS = ["stream", "error_in_the_stream", "error", "redirect", "empty"]
CLEAN = {"tenant": None, "request_id": None, "session": "usable", "language": "en-us", "moved": []}


@pytest.fixture(scope="module", params=SERVERS)
def port(request, tmp_path_factory):
    """A server with all the apps."""
    directory = tmp_path_factory.mktemp("clean_thread")
    shutil.copy(Path(__file__).with_name("thread_apps.py"), directory)
    with serving(COMMANDS[request.param], directory) as port:
        yield port


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_next_request_of_the_thread_finds_it_clean(port, framework):
    found = {}
    for kind in KINDS:
        fetch(port, quote(f"/{framework}/{kind}"))
        found[kind] = ask_json(port, "/state")
    assert found == dict.fromkeys(KINDS, CLEAN)


def output(script, framework):
    """Call the app in the main thread of a new process; return the lines that it prints."""
    command = [sys.executable, "-c", IN_A_POOL + script, framework]
    directory = Path(__file__).parent
    return subprocess.check_output(
        command, cwd=directory, env=environment(), text=True
    ).splitlines()


IN_A_POOL = """
import sys
from thread_apps import application
from werkzeug.test import Client
from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor

pool = BoundedThreadPoolExecutor()
in_a_pool = AfterResponseMiddleware(application, executor=pool)
"""

LEFT = """
Client(in_a_pool).get(f"/{sys.argv[1]}/stream", buffered=True)
pool.shutdown()
print(Client(application).get("/state").text)
"""


@pytest.mark.parametrize("framework", ["django", "flask", "pyramid"])
def test_what_a_callback_in_a_pool_cannot_clean_is_what_the_pages_say(framework):
    [state] = output(LEFT, framework)
    assert json.loads(state) == {
        "tenant": "stream",
        "request_id": "stream",
        "session": "broken",
        "language": "es" if framework == "django" else "en-us",
        "moved": ["stream"],
    }


FORK = """
for each in (application, in_a_pool):
    Client(each).get(f"/{sys.argv[1]}/fork").close()
pool.shutdown()
"""


@pytest.mark.parametrize("framework", ["django", "flask", "pyramid"])
def test_a_child_that_a_view_forked_leaves_as_it_meant_to(framework):
    """It runs none of the callbacks, and what it raises is not replaced by another error."""
    assert output(FORK, framework) == ["child 7", "cleaned"] * 2
