"""The few facts about servers that change what is done. Others get nothing special."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class Server(NamedTuple):
    """The facts about one server, which shows itself by a key in its environ.

    :param errors: where there is no key: the module of the class of its ``wsgi.errors``.
    :param holds_headers: of an empty response, until ``close()`` has returned, or ``write(b"")``.
    :param closes_elsewhere: it closes large files in the thread that serves all connections.
    :param reuses_environ: it clears the environ after the request, and uses it for the next one.
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
    # Headers: _WSGIResponse.run (26.10.0). It sets no SERVER_SOFTWARE.
    Server("twisted", errors="twisted.web.wsgi", holds_headers=True),
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


def rebound(callbacks: list[Any], environ: WSGIEnvironment) -> WSGIEnvironment:
    """A copy of the environ, for a job; what is registered with the environ gets it, too."""
    copied = environ.copy()
    for index, entry in enumerate(callbacks):
        if isinstance(entry, partial) and entry.args and entry.args[0] is environ:
            callbacks[index] = partial(entry.func, copied, *entry.args[1:], **entry.keywords)
    return copied


def status_and_headers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The status and the headers, however an app passed them: servers differ in their names."""
    named = {**kwargs, **dict(zip(("status", "headers"), args, strict=False))}
    return named.get("status"), named.get("headers", named.get("response_headers"))
