"""The few facts about servers that change what is done, and how a request shows its server.

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
    :param errors: by the module that the class of its ``wsgi.errors`` is defined in.
    :param holds_headers: it keeps the headers of a response with an empty body until ``close()``
        has returned, and sends them at ``write(b"")``.
    :param closes_files_elsewhere: a file that it cannot send at once is closed by the thread that
        does the I/O of all connections.
    :param reuses_environ: it clears the environ after the request, and uses it for the next one.
    """

    name: str
    key: str = ""
    errors: str = ""
    holds_headers: bool = False
    closes_files_elsewhere: bool = False
    reuses_environ: bool = False


SERVERS = (
    Server(
        "uWSGI",
        key="uwsgi.version",
        holds_headers=True,  # core/utils.c:1066 (2.0.31)
        reuses_environ=True,
    ),
    Server(
        "waitress",
        key="waitress.client_disconnected",
        holds_headers=True,  # task.py:164-168 and 489 (3.0.2)
        closes_files_elsewhere=True,  # channel.py, _flush_some (3.0.2)
    ),
    # It sets no SERVER_SOFTWARE.
    Server("twisted", errors="twisted.web.wsgi", holds_headers=True),  # _WSGIResponse.run (26.10.0)
)
UNKNOWN = Server("unknown")


def recognise(environ: WSGIEnvironment) -> Server:
    """The server that made ``environ``, or ``UNKNOWN``."""
    # Not by the type of start_response: to look at that crashes the interpreter under fastwsgi.
    errors = type(environ.get("wsgi.errors")).__module__
    for server in SERVERS:
        if server.key in environ or server.errors == errors:
            return server
    return UNKNOWN
