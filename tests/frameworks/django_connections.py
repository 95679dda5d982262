"""An app for a server: its views and callbacks use four databases, in the set-up ``$SET_UP``.

All four are one PostgreSQL database, under four application names. They differ in CONN_MAX_AGE, and
the last has psycopg's pool.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from functools import partial
from threading import Event

import django
from django.conf import settings

SET_UP = os.environ["SET_UP"]
ENTRY = [] if SET_UP == "wsgi.py alone" else ["wsgi_after.django.AfterResponseMiddleware"]


def database(name, age, **options):
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": os.environ["POSTGRESQL_PORT"],
        "CONN_MAX_AGE": age,
        "TEST": {"DEPENDENCIES": []},  # otherwise each would depend on the default one
        "OPTIONS": {"application_name": f"{SET_UP}, {name}", **options},
    }


POOL = {"min_size": 0, "max_size": 4, "timeout": 10}
DATABASES = {
    "0": database("0", 0),
    "60": database("60", 60),
    "None": database("None", None),
    "psycopg's pool": database("psycopg's pool", 0, pool=POOL),
}
settings.configure(
    SECRET_KEY="x",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=ENTRY,
    DATABASES={"default": {}, **DATABASES},
    LOGGING={
        "version": 1,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "loggers": {"django.request": {"handlers": ["stderr"]}},
    },
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import ProgrammingError, connections, transaction  # noqa: E402
from django.http import HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

from wsgi_after import AfterResponseMiddleware  # noqa: E402
from wsgi_after.django import after_response  # noqa: E402
from wsgi_after.executor import BoundedThreadPoolExecutor  # noqa: E402

held = {}  # backends before and after, by who holds the connection
release = Event()
ran = []  # backends of callbacks


def backend(alias):
    """The PostgreSQL process that serves this thread."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def query(alias):
    ran.append(backend(alias))


def fail(alias):
    with transaction.atomic(using=alias):
        query(alias)
        raise ValueError("on purpose")


def err(alias):
    """Have the database report an error, and go on, as a view may."""
    try:
        with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute("SELECT nothing")
    except ProgrammingError:
        return


#: What a view does, and what its callbacks do, by kind of request.
KINDS = {
    "both query": ([backend], [query, query]),
    "callbacks query": ([], [query, query]),
    "a callback fails": ([backend], [query, fail]),
    "the only callback fails": ([], [fail]),
    "an error in the view": ([err], [query]),
    "errors in both": ([err], [err, query]),
}


def view(request):
    """Respond with the backends that it used."""
    alias = request.GET["alias"]
    before, after = KINDS[request.GET["kind"]]
    used = [fn(alias) for fn in before]
    with transaction.atomic(using=alias) if before else nullcontext():
        for fn in after:
            register = partial(after_response, request, fn, alias)
            transaction.on_commit(register, using=alias) if before else register()
    return JsonResponse(used, safe=False)


def hold(alias, who):
    """Use a connection, in a transaction, until ``release`` is set."""
    with transaction.atomic(using=alias):
        held[who] = [backend(alias), None]
        release.wait(20)
        held[who][1] = backend(alias)


def holder(request):
    alias, who = request.GET["alias"], request.GET["who"]
    release.clear()
    if who == "view":
        hold(alias, who)
    else:
        after_response(request, hold, alias, who)
    return HttpResponse("held")


urlpatterns = [path("", view), path("hold", holder)]
executor = BoundedThreadPoolExecutor(max_workers=2) if SET_UP == "pool" else None
project = get_wsgi_application()
if "WRAPPED" in os.environ:
    project = AfterResponseMiddleware(project, executor=executor)


def application(environ, start_response):
    """The project, and paths that Django must not see: it would close connections for them."""
    if environ["PATH_INFO"] == "/release":
        release.set()
    elif environ["PATH_INFO"] == "/forget":
        connections.close_all()
    elif environ["PATH_INFO"] != "/state":
        return project(environ, start_response)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(state()).encode()]


def state():
    """What this thread, and one of the pool, still have open after their last requests."""
    return {
        "held": held,
        "ran": ran,
        "here": opened(),
        "in the pool": executor.submit(opened).result() if executor else {},
        "out": out(),
    }


def out():
    """How many connections of psycopg's pool are in use."""
    stats = connections["psycopg's pool"].pool.get_stats()
    return stats.get("pool_size", 0) - stats.get("pool_available", 0)


def opened():
    """The backends of this thread's connections, by database."""
    return {
        each.alias: each.connection.info.backend_pid
        for each in connections.all(initialized_only=True)
        if each.connection is not None
    }
