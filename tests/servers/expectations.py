"""What is expected of each cell of the matrix, server × kind of response: data, with its sources.

A file and a line in a reason are those of the version that ``docs/servers.rst`` names.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Whether the client had its headers, and its last byte, before a slow callback ended.
IN_TIME = "in time"  # both
END_LATE = "end late"  # the headers
LATE = "late"  # neither
SILENT = "no response"  # there was none, with the bare app neither
GONE = "gone"  # it has hung up
UNCLOSED = "unclosed"  # nobody called close(): the callbacks ran at garbage collection

#: What each callback of a request reports, once each.
CALLBACKS = ["first", "slow", "last"]

STREAMS = ["tuple", "generator", "class_iterator"]  # without Content-Length, in several chunks
EMPTY = ["redirect", "no_content", "not_modified", "head"]

#: Where the server adds nothing of its own: sends what it is given at once, then calls close().
ORDINARY = {
    "list_with_length": IN_TIME,
    "list_without_length": IN_TIME,
    "tuple": IN_TIME,
    "generator": IN_TIME,
    "class_iterator": IN_TIME,
    "empty_list": IN_TIME,
    "redirect": IN_TIME,
    "no_content": IN_TIME,
    "not_modified": IN_TIME,
    "head": IN_TIME,
    "small_file": IN_TIME,
    "large_file": IN_TIME,
    "write": IN_TIME,
    # Nothing was returned that the server could close: the callbacks run, then it hears of the
    # exception.
    "error_before_return": LATE,
    # PEP 3333 has the server close the iterable in a "finally": before it answers the exception.
    "error_in_first_chunk": LATE,
    "error_in_mid_body": END_LATE,
    "hang_up": GONE,
    "two_requests": IN_TIME,
}
KINDS = list(ORDINARY)


@dataclass(frozen=True)
class Expected:
    """One cell.

    :param timing: see above.
    :param reason: why it is not the ordinary one, with the source.
    :param connection: what the client asks for.
    """

    timing: str
    reason: str = ""
    connection: str = "keep-alive"


UNFRAMED = ["list_without_length", "empty_list", *STREAMS]  # without Content-Length

_UWSGI = [
    (
        UNFRAMED,
        END_LATE,
        "the connection's end is the body's end, and uWSGI closes it after close() "
        "(plugins/python/wsgi_subhandler.c:363, core/utils.c:1105)",
    ),
]
_NGINX = [
    (
        [*UNFRAMED, "error_in_mid_body"],
        LATE,
        "nginx speaks HTTP/1.0 to the server, so that the connection's end is the body's end, and "
        "keeps what it has until then (proxy_http_version and proxy_buffering of "
        "ngx_http_proxy_module)",
    ),
]
_MOD_WSGI = [
    (
        [*STREAMS, "list_without_length"],
        END_LATE,
        "Apache writes the last chunk when the handler, close() included, has returned "
        "(mod_wsgi.c, wsgi_execute_script)",
    ),
    (
        ["empty_list", *EMPTY],
        LATE,
        "mod_wsgi has nothing to send before the handler has returned, and Apache drops a flush "
        "(mod_wsgi.c, wsgi_execute_script)",
    ),
]
_NO_WRITE = "has no write(), so the app raises TypeError"

#: Server → (kinds, timing, reason), where the server has a reason of its own.
DEVIATIONS: dict[str, list[tuple[list[str], str, str]]] = {
    "nginx, gunicorn": _NGINX,
    "uWSGI --http-socket": _UWSGI,
    "uWSGI --http": _UWSGI,
    "nginx, uWSGI": [
        (
            [*UNFRAMED, "error_in_mid_body"],
            LATE,
            "the connection's end is the body's end, which uWSGI closes after close(), and nginx "
            "keeps what it has until then (uwsgi_buffering of ngx_http_uwsgi_module)",
        )
    ],
    "mod_wsgi embedded": _MOD_WSGI,
    "mod_wsgi daemon": _MOD_WSGI,
    "waitress": [
        (
            ["empty_list", *STREAMS],
            END_LATE,
            "the chunk terminator comes after close() (waitress/task.py:164-168, 298-303)",
        ),
    ],
    "cheroot": [
        (
            UNFRAMED,
            END_LATE,
            "the chunk terminator comes after close() (cheroot/server.py:1110-1114)",
        ),
        (
            ["error_in_first_chunk"],
            END_LATE,
            "cheroot sends the headers of the response all the same, before close() "
            "(cheroot/wsgi.py:155)",
        ),
    ],
    "eventlet": [
        (
            ["error_in_first_chunk", "error_in_mid_body"],
            IN_TIME,
            "eventlet sends its error page before it calls close() (eventlet/wsgi.py:690-730)",
        ),
    ],
    "granian": [
        (UNFRAMED, END_LATE, "the chunk terminator comes after close() (src/wsgi/io.rs:63-89)"),
        (["error_in_first_chunk"], END_LATE, "granian has sent the headers (src/wsgi/io.rs:63-89)"),
        (["write"], LATE, f"granian {_NO_WRITE} (granian/wsgi.py:18)"),
    ],
    "bjoern": [
        (
            ["error_in_first_chunk", "error_in_mid_body"],
            IN_TIME,
            "bjoern closes the socket before the iterable (bjoern/request.c:53)",
        ),
        (["write"], LATE, f"bjoern {_NO_WRITE} (bjoern/wsgi.c)"),
    ],
    "fastwsgi": [
        (
            ["no_content", "not_modified", "head"],
            LATE,
            "fastwsgi calls close() before it sends a response that has no body "
            "(fastwsgi/request.c:637, 698)",
        ),
        (
            ["error_in_mid_body"],
            LATE,
            "fastwsgi collects the body before it sends anything (fastwsgi/request.c:823)",
        ),
        (["write"], LATE, f"fastwsgi {_NO_WRITE} (fastwsgi/start_response.c)"),
    ],
    "twisted": [
        (
            UNFRAMED,
            END_LATE,
            "the chunk terminator comes after close() (twisted/web/wsgi.py, _WSGIResponse.run)",
        ),
        (
            ["error_in_first_chunk", "error_in_mid_body"],
            UNCLOSED,
            "twisted does not call close() when the body raises "
            "(twisted/web/wsgi.py, _WSGIResponse.run)",
        ),
    ],
    "hypercorn": [
        (
            [*STREAMS, "list_without_length"],
            END_LATE,
            "the chunk terminator comes after close() (hypercorn/app_wrappers.py:83-84, 119-121)",
        ),
        (
            ["empty_list", *EMPTY, "write"],
            LATE,
            "hypercorn answers 500 to any empty list, and to write() "
            "(hypercorn/app_wrappers.py:119-121)",
        ),
    ],
    "a2wsgi, uvicorn": [
        (
            ["error_in_first_chunk"],
            END_LATE,
            "a2wsgi has sent the headers by then (a2wsgi/wsgi.py)",
        ),
    ],
    "asgiref, uvicorn": [
        (
            [*STREAMS, "list_without_length"],
            END_LATE,
            "asgiref drops the iterable, which runs the callbacks, before it ends the response "
            "(asgiref/wsgi.py, run_wsgi_app)",
        ),
        (
            ["empty_list", *EMPTY, "write"],
            LATE,
            "asgiref sends headers with the first chunk, or after it has dropped the iterable; it "
            "has no write() (asgiref/wsgi.py, run_wsgi_app)",
        ),
        (
            ["error_in_first_chunk", "error_in_mid_body"],
            UNCLOSED,
            "asgiref never calls close(), and the traceback keeps the iterable "
            "(asgiref/wsgi.py, run_wsgi_app)",
        ),
    ],
    "tornado": [
        (
            [
                *("list_with_length", "two_requests", "small_file", "large_file", "write"),
                *UNFRAMED,
                *EMPTY,
            ],
            LATE,
            "tornado collects the body and calls close() before it sends the first byte "
            "(tornado/wsgi.py, WSGIContainer.handle_request)",
        ),
        (
            ["error_before_return", "error_in_first_chunk", "error_in_mid_body"],
            SILENT,
            "tornado logs the exception and answers nothing "
            "(tornado/wsgi.py, WSGIContainer.__call__)",
        ),
    ],
    "wsgiref": [
        (
            STREAMS,
            END_LATE,
            "the connection's end is the body's end, and comes after close() "
            "(wsgiref/handlers.py:181-196)",
        ),
    ],
    "Django runserver": [
        (
            STREAMS,
            END_LATE,
            "without a length runserver closes the connection, and that after close() "
            "(django/core/servers/basehttp.py, wsgiref/handlers.py:181-196)",
        ),
    ],
}

#: Server → (kinds, reason) where the middleware changes bytes: the framing of the body, no more.
REFRAMED = {
    "granian": (
        ["list_with_length", "two_requests", "list_without_length", "empty_list", "redirect"],
        "granian joins a real list and sets its Content-Length, but never closes it; behind the "
        "middleware it is no list (granian/wsgi.py:59)",
    ),
}

#: Servers where the chunks on the wire are those of a process in between, which joins what has
#: arrived by then: with the bare app, too, one response is not always cut like the next.
RECHUNKED = {
    "mod_wsgi daemon": "Apache reads from the daemon process (mod_wsgi.c, wsgi_execute_remote)",
    "nginx, gunicorn": "nginx reads from gunicorn (ngx_http_proxy_module)",
    "nginx keep-alive, gunicorn": "nginx reads from gunicorn (ngx_http_proxy_module)",
    "nginx, uWSGI": "nginx reads from uWSGI (ngx_http_uwsgi_module)",
    "uWSGI --http": "the http router reads from the workers (plugins/http/http.c)",
}

#: Servers that do not answer a second request on a connection reliably, with the bare app neither.
ONE_REQUEST = {
    "asgiref, uvicorn": "asgiref answers 500 to a request that arrives while the one before is "
    "ending: CurrentThreadExecutor already quit (asgiref/sync.py, current_thread_executor.py:114)",
}


_ON_UWSGI = [
    (
        [*UNFRAMED, "error_in_mid_body"],
        "the connection's end is the body's end; nothing is handed over by default, because uWSGI "
        "reuses the environ, and some versions run no threads unless told to",
    ),
    (
        ["error_before_return", "error_in_first_chunk"],
        "uWSGI answers an exception after close(), and nothing is handed over by default",
    ),
]
_NOT_KNOWN = "shows itself in nothing that it passes to the app, so it is an unknown server"

#: Server → (kinds, reason): where a client waits even by default.
IMPOSSIBLE: dict[str, list[tuple[list[str], str]]] = {
    "uWSGI --http-socket": _ON_UWSGI,
    "uWSGI --http": _ON_UWSGI,
    "nginx, uWSGI": _ON_UWSGI,
    "bjoern": [(["error_before_return", "write"], f"bjoern {_NOT_KNOWN}")],
    "fastwsgi": [
        (
            ["no_content", "not_modified", "head"],
            "fastwsgi does not release Python's lock, so that no thread runs between requests",
        ),
        (
            ["error_before_return", "error_in_first_chunk", "error_in_mid_body", "write"],
            "fastwsgi answers an exception after close(), and runs no threads",
        ),
    ],
    "asgiref, uvicorn": [
        (
            [*STREAMS, "list_without_length", "empty_list", *EMPTY, "write"],
            "asgiref never calls close(): the callbacks run in a finalizer, which starts no thread",
        ),
        (["error_before_return"], f"asgiref {_NOT_KNOWN}"),
    ],
}


def expected_by_default(server: str, kind: str) -> Expected:
    """What is expected of one cell where the middleware was told nothing: no client waits."""
    inline = expected(server, kind)
    for kinds, reason in IMPOSSIBLE.get(server, []):
        if kind in kinds:
            return Expected(inline.timing, reason, inline.connection)
    if inline.timing in {GONE, SILENT, UNCLOSED}:
        return inline
    return Expected(IN_TIME, connection=inline.connection)


def expected(server: str, kind: str) -> Expected:
    """What is expected of one cell."""
    connection = "close" if server in ONE_REQUEST else "keep-alive"
    for kinds, timing, reason in DEVIATIONS.get(server, []):
        if kind in kinds:
            return Expected(timing, reason, connection)
    return Expected(ORDINARY[kind], connection=connection)
