"""What a server makes impossible, or nearly: the reason, its source, and the way out. Data."""

from __future__ import annotations

#: Server, what it makes impossible and why, and the way out.
LIMITS = [
    (
        "asgiref, uvicorn",
        "asgiref's WsgiToAsgi drops the iterable and never closes it, so the callbacks run when it "
        "is garbage-collected, with a ResourceWarning; after an exception in the body that may be "
        "much later (asgiref/wsgi.py, run_wsgi_app)",
        "a2wsgi in its place",
    ),
    (
        "twisted",
        "an app whose body raises is never closed: its callbacks run at garbage collection, with a "
        "ResourceWarning (twisted/web/wsgi.py, _WSGIResponse.run)",
        "an app that handles its exceptions, as frameworks do for all but streams",
    ),
    (
        "fastwsgi",
        "it does not release Python's lock while it waits, so a thread of the app's own never runs "
        "between requests",
        "another server, or work that goes to another process",
    ),
    (
        "fastwsgi",
        "it crashes where start_response is called by the first step of a body that is no "
        "generator, and behind a middleware a generator is none (fastwsgi/request.c:518-570)",
        "call start_response before the app returns",
    ),
    (
        "cheroot",
        "an app that raises before it has called start_response, in the first step of its body, is "
        "never closed: its callbacks run at garbage collection (cheroot/wsgi.py:155)",
        "call start_response before the app returns",
    ),
    (
        "tornado",
        "close() comes before the first byte, on the event loop: every callback delays its own "
        "response, and all others (tornado/wsgi.py, WSGIContainer.handle_request)",
        "another server, or callbacks that only hand work on",
    ),
    (
        "bjoern",
        "it has one thread: a callback holds up all other requests",
        "callbacks that only hand work on",
    ),
    (
        "gunicorn sync",
        "it has one thread, so a callback holds up the worker's next request, and counts against "
        "--timeout, which raises SystemExit inside the callback",
        "--threads",
    ),
    (
        "granian",
        "a list without Content-Length, which it would have joined and counted, goes out chunked: "
        "it never closes a real list, so there it must be something else (granian/wsgi.py:59)",
        "an app that sets Content-Length",
    ),
    (
        "mod_wsgi",
        "the headers of an empty response cannot be flushed: Apache drops the flush",
        "callbacks that only hand work on",
    ),
    (
        "uWSGI",
        "it clears the environ after the request and uses it again, so a thread that outlives the "
        "request would read another client's (plugins/python/wsgi_subhandler.c)",
        "take what is needed from the environ before",
    ),
    (
        "hypercorn",
        "it answers 500 to any empty list, with the middleware or without "
        "(hypercorn/app_wrappers.py:119-121)",
        '[b""] in place of []',
    ),
    (
        "nginx",
        "by default it speaks HTTP/1.0 to the server behind it, and keeps a response without "
        "Content-Length until that one closes the connection",
        'proxy_http_version 1.1; proxy_set_header Connection "";',
    ),
]
