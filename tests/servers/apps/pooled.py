"""An app with a pool of its own, which has run a job before the server forks its workers.

``/reading`` has a callback that reads the environ when the harness lets it; ``/processes`` one that
says where it runs; ``/blocking`` one that blocks its thread, under gevent too.
"""

import json
import os
import sys

from kinds import beside_about, plain, query_of, say

from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor


def make_pool():
    """Gevent's own pool, if gevent is loaded."""
    if "gevent" in sys.modules:
        from gevent.threadpool import ThreadPoolExecutor

        return ThreadPoolExecutor(4)
    return BoundedThreadPoolExecutor(max_workers=4)


pool = make_pool()
BEFORE = pool.submit(os.getpid).result(10)  # the process that imported this module


def processes(environ, query):
    served_by = os.getpid()

    def tell():
        imported = "imported here" if os.getpid() == BEFORE else "imported before the fork"
        say(query, f"{imported}, runs {'here' if os.getpid() == served_by else 'elsewhere'}")

    return tell


def reading(environ, query):
    def read():
        say(query, "slow")
        say(query, f"reads {environ['QUERY_STRING']} of {environ['PATH_INFO']}")

    return read


def blocking(environ, query):
    def block():
        from gevent.monkey import get_original

        with get_original("socket", "socket")() as connection:
            connection.connect(("127.0.0.1", int(query["control"])))
            connection.sendall(json.dumps({"id": query["id"], "event": "slow"}).encode() + b"\n")
            connection.recv(1)

    return block


def app(environ, start_response):
    query = query_of(environ)
    callback = globals()[environ["PATH_INFO"][1:]]
    environ["wsgi.after"](callback(environ, query))
    environ["wsgi.after"](say, query, "last")
    start_response("200 OK", plain("2"))
    return [b"ok"]


application = beside_about(AfterResponseMiddleware(app, executor=pool))
