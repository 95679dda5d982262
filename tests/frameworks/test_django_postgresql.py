"""Django's connections to a real PostgreSQL: what callbacks find of them, and what is left open."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Exchange, make_environ
from django.db import connection, connections
from django.http import HttpResponse
from servers.harness import wait_until

from wsgi_after import AfterResponseMiddleware
from wsgi_after.django import after_commit, after_response

pytestmark = pytest.mark.servers

NAME = "wsgi_after.django"  # as PostgreSQL lists its clients
POOLED = pytest.param(
    {"CONN_MAX_AGE": 0, "pool": {"min_size": 1, "max_size": 2, "timeout": 5}},
    id="psycopg's pool",
)
KEPT = [pytest.param({"CONN_MAX_AGE": age}, id=f"{age}") for age in (0, 60, None)]


def backend():
    """Which process of PostgreSQL serves the thread's connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


@pytest.fixture
def database(postgresql, monkeypatch):
    """Make PostgreSQL the default database; return who is connected to it by Django."""
    import psycopg  # a free-threaded Python, which collects this, has none

    def connected():
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        with psycopg.connect(postgresql.url()) as other:
            return {pid for (pid,) in other.execute(query, [NAME]).fetchall()}

    def make(CONN_MAX_AGE, pool=None, **more):  # noqa: N803
        options = {"application_name": NAME, **({"pool": pool} if pool else {})}
        default = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": postgresql.dbname,
            "USER": postgresql.user,
            "HOST": postgresql.host,
            "PORT": postgresql.port,
            "CONN_MAX_AGE": CONN_MAX_AGE,
            "OPTIONS": options,
            **more,
        }
        settings = connections.configure_settings({"default": default})
        monkeypatch.setitem(vars(connections), "settings", settings)
        return connected

    forget()
    yield make
    if getattr(connection, "pool", None):
        connection.close_pool()
    forget()


def forget():
    connections.close_all()
    for made in connections.all(initialized_only=True):
        del connections[made.alias]


@pytest.mark.parametrize("age", [*KEPT, POOLED])
@pytest.mark.parametrize("setup", ["entry", "both", "pool"])
def test_callbacks_query_and_leave_no_connection_that_django_would_close(
    handler, database, tmp_path, age, setup
):
    connected, in_view, in_callback = database(**age), [], []
    (tmp_path / "log").touch()

    def view(request):
        in_view.append(backend())
        after_response(request, lambda: in_callback.append(backend()))
        after_commit(request, lambda: in_callback.append(backend()))
        return HttpResponse("hello")

    # Somebody else's connection, which nobody may close.
    with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as executor:
        theirs = other.submit(backend).result()
        app = handler(view)
        if setup != "entry":
            app = AfterResponseMiddleware(app, executor=executor if setup == "pool" else None)
        for _ in range(3):
            Exchange(app, make_environ(PATH_INFO="/", SCRIPT_NAME="")).finish()
        executor.submit(int).result()
        assert other.submit(backend).result() == theirs
        kept = connection.connection is not None
        if "pool" in age:
            assert connection.pool.get_stats()["pool_available"] == 1  # theirs is out
        else:
            open_ones = {theirs, *(in_view[-1:] if kept else [])}
            wait_until(lambda: connected() == open_ones, tmp_path / "log", seconds=10)
        other.submit(connections.close_all).result()
    assert len(in_callback) == 6
    if setup != "pool":
        assert in_callback == [pid for pid in in_view for _ in range(2)]
    elif "pool" not in age:
        assert not {*in_callback} & {*in_view}
    assert kept == (age["CONN_MAX_AGE"] != 0)
