"""The few facts about servers that change what the middleware does. All others are equal."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class Server(NamedTuple):
    """The facts about one server, which is recognised by a key in its environ.

    :param errors: for a server without such a key: the module of the class of its ``wsgi.errors``.
    :param holds_headers: whether it sends the headers of an empty response only when ``close()``
        has returned, or at ``write(b"")``.
    :param closes_elsewhere: whether it closes large files in the thread that serves all sockets.
    :param reuses_environ: whether it clears the environ after a request, for use by the next one.
    """

    name: str
    key: str = ""
    errors: str = ""
    holds_headers: bool = False
    closes_elsewhere: bool = False
    reuses_environ: bool = False


SERVERS = (
    # Headers: core/utils.c:1066 (2.0.31).
    Server("uWSGI", key="uwsgi.version", holds_headers=True, reuses_environ=True),
    # Headers: task.py:164-168 and 489; files: channel.py, _flush_some (3.0.2).
    Server(
        "waitress", key="waitress.client_disconnected", holds_headers=True, closes_elsewhere=True
    ),
    # Headers: _WSGIResponse.run (26.10.0). Twisted sets no SERVER_SOFTWARE.
    Server("twisted", errors="twisted.web.wsgi", holds_headers=True),
)
UNKNOWN = Server("unknown")


def recognise(environ: WSGIEnvironment) -> Server:
    """Return the facts about the server that made ``environ``, or ``UNKNOWN``."""
    # Do not look at the type of start_response: under fastwsgi, that crashes the interpreter.
    errors = type(environ.get("wsgi.errors")).__module__
    for server in SERVERS:
        if server.key in environ or server.errors == errors:
            return server
    return UNKNOWN


def rebound(callbacks: list[Any], environ: WSGIEnvironment) -> WSGIEnvironment:
    """Return a copy of the environ for a job. Callbacks registered with the environ get it, too."""
    copied = environ.copy()
    for index, entry in enumerate(callbacks):
        if isinstance(entry, partial) and entry.args and entry.args[0] is environ:
            callbacks[index] = partial(entry.func, copied, *entry.args[1:], **entry.keywords)
    return copied


def status_and_headers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return status and headers, passed by position or by name. Servers name them differently."""
    named = {**kwargs, **dict(zip(("status", "headers"), args, strict=False))}
    return named.get("status"), named.get("headers", named.get("response_headers"))
