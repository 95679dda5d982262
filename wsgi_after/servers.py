"""The one table of what is special about a server, and how a request shows which one it is.

A server that is not here, or is not recognised, gets nothing special. The tests start each of them,
and ``docs/servers.rst`` says what they measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class Server(NamedTuple):
    """The facts about one server.

    :param key: recognised by this key in its environ; or
    :param errors: by the module that the class of its ``wsgi.errors`` is defined in, where there is
        no ``SERVER_SOFTWARE``.
    :param holds_headers: it keeps the headers of a response with an empty body until ``close()``
        has returned, and lets go of them for ``write(b"")``.
    :param closes_files_elsewhere: a file that it cannot send at once is closed by the thread that
        does the I/O of all connections.
    """

    name: str
    key: str = ""
    errors: str = ""
    holds_headers: bool = False
    closes_files_elsewhere: bool = False


SERVERS = (
    Server(
        "uWSGI",
        key="uwsgi.version",
        holds_headers=True,  # core/utils.c:1066 (2.0.31)
    ),
    Server(
        "waitress",
        key="waitress.client_disconnected",
        holds_headers=True,  # task.py:164-168 and 489 (3.0.2)
        closes_files_elsewhere=True,  # channel.py, _flush_some (3.0.2)
    ),
    Server(
        "twisted",
        errors="twisted.web.wsgi",
        holds_headers=True,  # web/wsgi.py, _WSGIResponse.run (26.10.0)
    ),
)
UNKNOWN = Server("unknown")

# Looked through for each request that has callbacks.
_BY_KEY = {server.key: server for server in SERVERS if server.key}
_BY_ERRORS = {server.errors: server for server in SERVERS if server.errors}


def recognise(environ: WSGIEnvironment) -> Server:
    """The server that made ``environ``, or ``UNKNOWN``."""
    for key in _BY_KEY:
        if key in environ:
            return _BY_KEY[key]
    if "SERVER_SOFTWARE" in environ:  # a look of 20 ns that spares one of 130
        return UNKNOWN
    return _BY_ERRORS.get(type(environ.get("wsgi.errors")).__module__, UNKNOWN)
