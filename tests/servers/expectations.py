"""What is expected of each cell of the matrix, server × kind of response: data, with its sources.

Files and lines in a reason are those of the version that ``docs/servers.rst`` names.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What a client waits for while a callback runs in close().
IN_TIME = "no"  # nothing: it has the whole response
END_LATE = "end"  # the end of the response: it has the headers
LATE = "all"  # the whole response, headers included
SILENT = "none"  # there is no response, not even with the bare app
GONE = "gone"  # the client has hung up
UNCLOSED = "unclosed"  # nobody called close(): the callbacks ran at garbage collection

#: What each callback of a request reports, once each.
CALLBACKS = ["first", "slow", "last"]

STREAMS = ["tuple", "generator", "class_iterator"]  # without Content-Length, in several chunks
BODILESS = ["no_content", "not_modified", "head"]
EMPTY = ["redirect", *BODILESS]
UNFRAMED = ["list_without_length", "empty_list", *STREAMS]  # without Content-Length
FRAMED = ["list_with_length", "two_requests", "small_file", "large_file"]
BODY_ERRORS = ["error_in_first_chunk", "error_in_mid_body"]
ERRORS = ["error_before_return", *BODY_ERRORS]

#: What is expected of a server that sends at once what it is given, then calls close().
ORDINARY = {
    **dict.fromkeys([*FRAMED, *UNFRAMED, *EMPTY, "write"], IN_TIME),
    # There is nothing to close: the callbacks run before the server sees the exception.
    "error_before_return": LATE,
    # PEP 3333 has the server close the iterable in a "finally": before it answers the exception.
    "error_in_first_chunk": LATE,
    "error_in_mid_body": END_LATE,
    "hang_up": GONE,
}
KINDS = list(ORDINARY)
#: Kinds whose end the client waits for in HTTP/1.0, if a server closes the connection late.
IN_HTTP_1_0 = ["list_without_length", "generator", "error_before_return"]


@dataclass(frozen=True)
class Expected:
    """One cell.

    :param timing: see above.
    :param reason: why the timing is not the ordinary one, with the source.
    :param connection: what the client asks for.
    """

    timing: str
    reason: str = ""
    connection: str = "keep-alive"


_UWSGI = [
    (
        ERRORS,
        IN_TIME,
        "uWSGI calls ``uwsgi.after_req_hook``, in which the callbacks run, when it has closed the "
        "connection (core/utils.c, uwsgi_close_request)",
    )
]
_OURS = [
    (
        ERRORS,
        IN_TIME,
        "the callbacks run when the response is out, error pages included: see the page on the "
        "server",
    )
]
_MOD_WSGI = [
    (
        [*STREAMS, "list_without_length"],
        END_LATE,
        "Apache writes the last chunk when the handler has returned, and mod_wsgi calls "
        "``close()`` in the handler (mod_wsgi.c, wsgi_execute_script)",
    ),
    (
        ["empty_list", *EMPTY],
        LATE,
        "mod_wsgi sends the headers of an empty response when the handler has returned, and Apache "
        "ignores a flush (mod_wsgi.c, wsgi_execute_script)",
    ),
]
_LAST_CHUNK = "sends the last chunk after ``close()``"
_NO_WRITE = "has no ``write()``, so the app raises TypeError"

#: Server → (kinds, timing, reason), where the server deviates from ``ORDINARY``.
DEVIATIONS: dict[str, list[tuple[list[str], str, str]]] = {
    "nginx, gunicorn": [
        (
            [*UNFRAMED, "error_in_mid_body"],
            LATE,
            "nginx asks gunicorn in HTTP/1.0, so that gunicorn ends the body by closing the "
            "connection, after ``close()``; nginx buffers the response until then "
            "(proxy_http_version and proxy_buffering of ngx_http_proxy_module)",
        )
    ],
    "uWSGI --http-socket": _UWSGI,
    "uWSGI --http": _UWSGI,
    "nginx, uWSGI": _UWSGI,
    "wsgi_after.gunicorn.Sync": _OURS,
    "wsgi_after.gunicorn.GThread": _OURS,
    "wsgi_after.gunicorn.Gevent": _OURS,
    "wsgi_after.waitress.serve": _OURS,
    "mod_wsgi embedded": _MOD_WSGI,
    "mod_wsgi daemon": _MOD_WSGI,
    "waitress": [
        (
            ["empty_list", *STREAMS],
            END_LATE,
            f"waitress {_LAST_CHUNK} (waitress/task.py:164-168, 298-303)",
        )
    ],
    "cheroot": [
        (UNFRAMED, END_LATE, f"cheroot {_LAST_CHUNK} (cheroot/server.py:1110-1114)"),
        (
            ["error_in_first_chunk"],
            END_LATE,
            "cheroot still sends the headers of the response, before ``close()`` "
            "(cheroot/wsgi.py:155)",
        ),
    ],
    "eventlet": [
        (
            BODY_ERRORS,
            IN_TIME,
            "eventlet sends its error page before it calls ``close()`` (eventlet/wsgi.py:690-730)",
        )
    ],
    "granian": [
        (UNFRAMED, END_LATE, f"granian {_LAST_CHUNK} (src/wsgi/io.rs:63-89)"),
        (
            ["error_in_first_chunk"],
            END_LATE,
            "granian has already sent the headers (src/wsgi/io.rs:63-89)",
        ),
        (["write"], LATE, f"granian {_NO_WRITE} (granian/wsgi.py:18)"),
    ],
    "bjoern": [
        (
            BODY_ERRORS,
            IN_TIME,
            "bjoern closes the socket before it closes the iterable (bjoern/request.c:53)",
        ),
        (["write"], LATE, f"bjoern {_NO_WRITE} (bjoern/wsgi.c)"),
    ],
    "fastwsgi": [
        (
            BODILESS,
            LATE,
            "fastwsgi calls ``close()`` before it sends a response that has no body "
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
        (UNFRAMED, END_LATE, f"Twisted {_LAST_CHUNK} (twisted/web/wsgi.py, _WSGIResponse.run)"),
        (
            BODY_ERRORS,
            UNCLOSED,
            "Twisted does not call ``close()`` when the body raises "
            "(twisted/web/wsgi.py, _WSGIResponse.run)",
        ),
    ],
    "hypercorn": [
        (
            [*STREAMS, "list_without_length"],
            END_LATE,
            f"hypercorn {_LAST_CHUNK} (hypercorn/app_wrappers.py:83-84, 119-121)",
        ),
        (
            ["empty_list", *EMPTY, "write"],
            LATE,
            "hypercorn answers 500 to any empty list and to ``write()``, with the middleware or "
            'without. Return ``[b""]`` instead of ``[]`` (hypercorn/app_wrappers.py:119-121)',
        ),
    ],
    "a2wsgi, uvicorn": [
        (["error_in_first_chunk"], END_LATE, "a2wsgi has already sent the headers (a2wsgi/wsgi.py)")
    ],
    "asgiref, uvicorn": [
        (
            [*STREAMS, "list_without_length"],
            END_LATE,
            "WsgiToAsgi drops the iterable, which runs the callbacks, before it ends the response "
            "(asgiref/wsgi.py, run_wsgi_app)",
        ),
        (
            ["empty_list", *EMPTY, "write"],
            LATE,
            "WsgiToAsgi sends the headers of an empty response after it has dropped the iterable, "
            "and it has no ``write()`` (asgiref/wsgi.py, run_wsgi_app)",
        ),
        (
            BODY_ERRORS,
            UNCLOSED,
            "the traceback keeps the iterable until it is collected "
            "(asgiref/wsgi.py, run_wsgi_app)",
        ),
    ],
    "tornado": [
        (
            [*FRAMED, "write", *UNFRAMED, *EMPTY],
            LATE,
            "tornado collects the body and calls ``close()`` before it sends the first byte "
            "(tornado/wsgi.py, WSGIContainer.handle_request)",
        ),
        (
            ERRORS,
            SILENT,
            "tornado logs the exception and answers nothing, with the middleware or without "
            "(tornado/wsgi.py, WSGIContainer.__call__)",
        ),
    ],
    "wsgiref": [
        (
            STREAMS,
            END_LATE,
            "wsgiref ends the body by closing the connection, after ``close()`` "
            "(wsgiref/handlers.py:181-196)",
        )
    ],
    "Django runserver": [
        (
            STREAMS,
            END_LATE,
            "runserver ends the body by closing the connection, after ``close()`` "
            "(django/core/servers/basehttp.py, wsgiref/handlers.py:181-196)",
        )
    ],
}

_LARGE_FILES = (
    ["large_file"],
    "waitress closes a large file, which it cannot send at once, in the thread that serves all "
    "sockets. Those callbacks run in a new thread that ends with them (waitress/channel.py, "
    "_flush_some)",
)

#: Server → (kinds, reason) where the callbacks do not run in the thread that calls close().
ELSEWHERE = dict.fromkeys(["waitress", "wsgi_after.waitress.serve"], _LARGE_FILES)

#: Server → reason why its clients wait even with executor=.
NOT_FREED = {
    "asgiref, uvicorn": "``executor=`` does not help. WsgiToAsgi never calls ``close()``, so the "
    "callbacks run when the iterable is garbage-collected, with a ResourceWarning. Use a2wsgi "
    "instead (asgiref/wsgi.py, run_wsgi_app)",
    "fastwsgi": "``executor=`` does not help. fastwsgi holds Python's lock while it waits for a "
    "request, so no thread runs between requests. Use another server",
}

#: Other surprises, and what to do about them, by the first word of the server's name.
ADVICE = {
    "gunicorn": [
        "A sync worker has one thread, so a callback holds up its next request and counts against "
        "``--timeout``, which raises SystemExit inside the callback. Use ``--threads``"
    ],
    "nginx": [
        "In front of gunicorn, set ``proxy_http_version 1.1;`` and "
        '``proxy_set_header Connection "";``'
    ],
    "uWSGI": [
        "The first request of each thread runs its callbacks in ``close()``, as all requests do "
        "where uWSGI does not call the hook: :doc:`uwsgi`",
        "uWSGI clears the environ after the request and reuses it for the next one. A thread that "
        "you start yourself must not read it (plugins/python/wsgi_subhandler.c)",
    ],
    "cheroot": [
        "cheroot does not call ``close()`` if the body raises before the app has called "
        "``start_response``. Call it before the app returns (cheroot/wsgi.py:155)"
    ],
    "granian": [
        "granian joins a list and sets its Content-Length, but never closes it. The middleware "
        "returns another type, so such a list goes out in chunks, unless the app sets "
        "Content-Length (granian/wsgi.py:59)"
    ],
    "bjoern": ["bjoern has one thread: a callback holds up all other requests"],
    "fastwsgi": [
        "fastwsgi crashes if the body is not a generator and calls ``start_response`` in its first "
        "step, and behind a middleware it is never a generator. Call it before the app returns "
        "(fastwsgi/request.c:518-570)"
    ],
    "tornado": ["tornado runs the app on its event loop: a callback holds up all other requests"],
}

#: Server → kinds where the middleware changes bytes: only the framing of the body, as ADVICE says.
REFRAMED = {
    "granian": [
        *("list_with_length", "two_requests", "list_without_length", "empty_list", "redirect")
    ]
}

#: Servers where a process in between joins the chunks that it has by then: even with the bare app,
#: one response is not always cut like the next.
RECHUNKED = {
    "mod_wsgi daemon": "Apache reads from the daemon process (mod_wsgi.c, wsgi_execute_remote)",
    "nginx, gunicorn": "nginx reads from gunicorn (ngx_http_proxy_module)",
    "nginx HTTP/1.1, gunicorn": "nginx reads from gunicorn (ngx_http_proxy_module)",
    "nginx, uWSGI": "nginx reads from uWSGI (ngx_http_uwsgi_module)",
    "uWSGI --http": "the http router reads from the workers (plugins/http/http.c)",
}

#: Servers that do not reliably answer a second request on a connection, even with the bare app.
ONE_REQUEST = {
    "asgiref, uvicorn": "asgiref answers 500 to a request that arrives while the one before is "
    "ending: CurrentThreadExecutor already quit (asgiref/sync.py, current_thread_executor.py:114)"
}


def expected(server: str, kind: str) -> Expected:
    """What is expected of one cell."""
    connection = "close" if server in ONE_REQUEST else "keep-alive"
    for kinds, timing, reason in DEVIATIONS.get(server, []):
        if kind in kinds:
            return Expected(timing, reason, connection)
    return Expected(ORDINARY[kind], connection=connection)


def runs_elsewhere(server: str, kind: str) -> bool:
    """Whether the callbacks may run in another thread than the app."""
    return kind in ELSEWHERE.get(server, ([],))[0] or expected(server, kind).timing == UNCLOSED


def freed_by_a_pool(server: str, kind: str) -> bool:
    """Whether the client waits for close(), and would not wait for a pool."""
    return server not in NOT_FREED and expected(server, kind).timing in {END_LATE, LATE}
