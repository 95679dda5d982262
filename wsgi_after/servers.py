"""The one table of what is special about a server, and how a request shows which one it is.

A server that is not here, or is not recognised, gets nothing special. The tests start each of them,
and ``docs/servers.rst`` says what they measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


# What tells a client where a response ends, as far as servers differ in when that is sent.
SIZED = "its Content-Length"
EMPTY = "its headers, because it has no body"
CHUNKED = "the last chunk, because it has no Content-Length"
CONNECTION = "the end of the connection, because it has no Content-Length"
ERROR = "what the server makes of an exception of the app"


class Server(NamedTuple):
    """The facts about one server.

    :param key: recognised by this key in its environ; or
    :param errors: by the module that the class of its ``wsgi.errors`` is defined in, where there is
        no ``SERVER_SOFTWARE``; or
    :param module: by the module that its ``start_response`` is defined in.
    :param holds_headers: it keeps the headers of a response with an empty body until ``close()``
        has returned, and lets go of them for ``write(b"")``.
    :param closes_files_elsewhere: a file that it cannot send at once is closed by the thread that
        does the I/O of all connections.
    :param late: the responses whose end it sends only after ``close()`` has returned, whatever is
        done there.
    :param runs_threads: threads run in its workers, between requests too.
    :param reuses_environ: it clears the environ after the request, and uses it for the next one.
    """

    name: str
    key: str = ""
    errors: str = ""
    module: str = ""
    holds_headers: bool = False
    closes_files_elsewhere: bool = False
    late: frozenset[str] = frozenset()
    runs_threads: bool = True
    reuses_environ: bool = False


# PEP 3333 has a server call close() in a "finally": before it answers an exception, and before it
# closes the connection.
_USUAL = frozenset({ERROR, CONNECTION})
_STREAMS = frozenset({*_USUAL, CHUNKED})

SERVERS = (
    Server(
        "uWSGI",
        key="uwsgi.version",
        holds_headers=True,  # core/utils.c:1066 (2.0.31)
        late=_STREAMS,  # plugins/python/wsgi_subhandler.c:363, core/utils.c:1105 (2.0.31)
        runs_threads=False,  # not without --enable-threads before 2.0.31, and it does not tell
        reuses_environ=True,
    ),
    Server(
        "mod_wsgi",
        key="mod_wsgi.version",
        late=_STREAMS | {EMPTY},  # EOS comes after the handler (4.9.4)
    ),
    Server(
        "waitress",
        key="waitress.client_disconnected",
        holds_headers=True,  # task.py:164-168 and 489 (3.0.2)
        closes_files_elsewhere=True,  # channel.py, _flush_some (3.0.2)
        late=_STREAMS,  # task.py:164-168 (3.0.2)
    ),
    Server(
        "twisted",
        errors="twisted.web.wsgi",
        holds_headers=True,  # web/wsgi.py, _WSGIResponse.run (26.10.0)
        late=_STREAMS,
    ),
    Server("gunicorn", module="gunicorn.http.wsgi", late=_USUAL),  # http/wsgi.py:435-442 (27.0.1)
    # It ends each response without Content-Length by closing the connection, as Django's does.
    Server("wsgiref", module="wsgiref.handlers", late=_STREAMS),  # handlers.py:181-196
    Server("werkzeug", module="werkzeug.serving", late=_USUAL),  # serving.py:341-371 (3.1.9)
    Server("cheroot", module="cheroot.wsgi", late=_STREAMS),  # server.py:1110-1114 (11.1.2)
    Server("gevent", module="gevent.pywsgi", late=_USUAL),
    Server("eventlet", module="eventlet.wsgi", late=_USUAL),
    Server("a2wsgi", module="a2wsgi.wsgi", late=_USUAL),
    # It answers 500 to an empty list, after close() (app_wrappers.py:119-121).
    Server("hypercorn", module="hypercorn.app_wrappers", late=_STREAMS | {EMPTY}),
    Server("granian", module="granian.wsgi", late=_STREAMS),  # src/wsgi/io.rs:63-89 (2.8.7)
    # It calls close() before it sends the first byte, on the thread of the event loop.
    Server("tornado", module="tornado.wsgi", late=_STREAMS | {SIZED, EMPTY}),
)
UNKNOWN = Server("unknown")

# Where recognise() looks.
_BY_KEY = {server.key: server for server in SERVERS if server.key}
_UWSGI, _MOD_WSGI, _WAITRESS = _BY_KEY
_BY_ERRORS = {server.errors: server for server in SERVERS if server.errors}
_BY_MODULE: dict[str | None, Server] = {
    server.module: server for server in SERVERS if server.module
}


def recognise(environ: WSGIEnvironment, start_response: StartResponse | None = None) -> Server:
    """The server that made ``environ``, or ``UNKNOWN``.

    :param start_response: the server's, without which only those are recognised that show in the
        environ.
    """
    # Not by its type: under fastwsgi, to look at that crashes the interpreter.
    found = _BY_MODULE.get(getattr(start_response, "__module__", None))
    if found is not None:
        return found
    if _UWSGI in environ or _MOD_WSGI in environ or _WAITRESS in environ:  # a loop takes 70 ns more
        return next(_BY_KEY[key] for key in _BY_KEY if key in environ)
    if "SERVER_SOFTWARE" in environ:  # a look of 20 ns that spares one of 130
        return UNKNOWN
    return _BY_ERRORS.get(type(environ.get("wsgi.errors")).__module__, UNKNOWN)
