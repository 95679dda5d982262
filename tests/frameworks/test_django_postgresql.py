"""Django's connections to a real PostgreSQL: which are left open, in each set-up of the page."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import pytest
from commands import ask, ask_json, environment, serving
from servers.harness import wait_until
from servers.tables import table

pytestmark = pytest.mark.servers

GUNICORN = "gunicorn --bind 127.0.0.1:8000 --threads {} django_connections:application"
WITH_MOMENT = GUNICORN.replace("gunicorn ", "gunicorn -k wsgi_after.gunicorn.GThread ", 1)
UWSGI = (
    "uwsgi --http 127.0.0.1:8000 --master --die-on-term --enable-threads --threads {} "
    "--module django_connections:application"
)
SERVERS = [
    pytest.param("entry", GUNICORN, False, id="entry"),
    pytest.param("wsgi.py alone", GUNICORN, True, id="wsgi.py alone"),
    pytest.param("both", GUNICORN, True, id="both"),
    pytest.param("moment", WITH_MOMENT, False, id="moment of gunicorn"),
    pytest.param("moment", WITH_MOMENT, True, id="moment of gunicorn, wrapped"),
    pytest.param("moment", UWSGI, False, id="moment of uWSGI"),
    pytest.param("moment", UWSGI, True, id="moment of uWSGI, wrapped"),
    pytest.param("pool", GUNICORN, True, id="pool"),
]
#: By kind of request, how many of its callbacks query.
RAN = {
    "both query": 2,
    "callbacks query": 2,
    "a callback fails": 2,
    "the only callback fails": 1,
    "an error in the view": 1,
    "errors in both": 1,
}
ONLY_CALLBACKS = {"callbacks query", "the only callback fails"}


#: The table of the page: for each set-up, how many connections are left, by database.
CELLS = {
    set_up: {database: ["none", "one"].index(left) for database, left in row.items()}
    for set_up, row in table("django.rst", "psycopg's pool").items()
}


@pytest.fixture
def directory(tmp_path):
    for name in "django_connections", "django_connections_tests":
        shutil.copy(Path(__file__).with_name(f"{name}.py"), tmp_path)
    return tmp_path


def connected(postgresql, name):
    """The backends that are connected under this name."""
    import psycopg  # here: a free-threaded Python collects this file, but has no psycopg

    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    with psycopg.connect(postgresql.url()) as other:
        return {pid for (pid,) in other.execute(query, [name]).fetchall()}


def query(port, path="/", **arguments):
    status, text = ask(port, f"{path}?{urlencode(arguments)}")
    assert status == 200, text
    return text


@pytest.mark.parametrize(("set_up", "command", "wrapped"), SERVERS)
def test_each_cell_is_what_a_thread_leaves_open(postgresql, directory, set_up, command, wrapped):
    """A view and a callback use other connections meanwhile: no callback closes those."""
    # One thread is left to serve the requests: it has ended them when it answers for /state.
    threads = 2 if set_up == "pool" else 3
    variables = {"SET_UP": set_up, "POSTGRESQL_PORT": postgresql.port}
    variables |= {"WRAPPED": "yes"} if wrapped else {}
    found, theirs = {}, []
    with (
        serving(command.format(threads), directory, **variables) as port,
        ThreadPoolExecutor(2) as holders,
    ):
        for alias in CELLS[set_up]:
            for who in "view", "callback":
                holders.submit(query, port, "/hold", alias=alias, who=who)
                wait_until(partial(is_held, port, who), directory / "log", seconds=30)
            left = partial(left_open, postgresql, directory, port, set_up, alias)
            found[alias] = {kind: left(kind) for kind in RAN}
            ask_json(port, "/release")
            for who in "view", "callback":
                wait_until(partial(is_released, port, who), directory / "log", seconds=30)
            theirs += ask_json(port, "/state")["held"].values()
    expected = {alias: dict.fromkeys(RAN, count) for alias, count in CELLS[set_up].items()}
    if set_up == "pool":  # where the callbacks do not run in the thread of the request
        for counts in expected.values():
            counts.update(dict.fromkeys(ONLY_CALLBACKS, 0))
    assert found == expected
    assert [before for before, _ in theirs] == [after for _, after in theirs]


def is_held(port, who):
    """Whether the view, or the callback, uses its connection now."""
    pair = ask_json(port, "/state")["held"].get(who)
    return pair is not None and pair[1] is None


def is_released(port, who):
    return ask_json(port, "/state")["held"][who][1] is not None


def left_open(postgresql, directory, port, set_up, alias, kind):
    """How many connections of their thread five requests leave open. Two others are in use."""
    before = ask_json(port, "/forget")
    used = [pid for _ in range(5) for pid in json.loads(query(port, alias=alias, kind=kind)) if pid]
    state = ask_json(port, "/state")
    ran = state["ran"][len(before["ran"]) :]
    held = {pid for pid, _ in state["held"].values()}
    assert (len(ran), state["in the pool"]) == (5 * RAN[kind], {})
    assert not held & {*used, *ran}
    if kind == "both query" and alias != "psycopg's pool":
        another = set_up == "pool" or (set_up == "wsgi.py alone" and alias == "0")
        assert {*used}.isdisjoint(ran) if another else {*used} == {*ran}
    kept = {pid for name, pid in state["here"].items() if name == alias}

    def agrees():
        now = connected(postgresql, f"{set_up}, {alias}")
        if alias != "psycopg's pool":
            return now == held | kept
        # The pool may be opening one more, and keeps unused connections.
        in_use = ask_json(port, "/state")["out"]
        return held | kept <= now and in_use == len(held | kept) and len(now) <= 4

    wait_until(agrees, directory / "log", seconds=10)
    return len(kept)


def test_each_cell_is_what_the_test_client_leaves_open(postgresql, directory):
    """A test's transaction goes on, whatever the view and its callbacks do."""
    variables = {"SET_UP": "test client", "POSTGRESQL_PORT": postgresql.port}
    command = [sys.executable, "django_connections_tests.py"]
    ended = subprocess.run(
        command, cwd=directory, env=environment(**variables), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    row = CELLS["test client"]
    expected = {alias: dict.fromkeys(RAN, count) for alias, count in row.items()}
    assert json.loads(ended.stdout.splitlines()[-1]) == {"outside": expected, "inside": expected}


def test_the_page_has_each_set_up():
    assert {*CELLS} == {*(each.values[0] for each in SERVERS), "test client"}
