"""What is expected of each cell of the matrix, server × kind of response: data, with its sources.

A file and a line in a reason are those of the version that ``docs/servers.rst`` names.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Whether the client had its headers, and its last byte, before a slow callback ended.
IN_TIME = "in time"  # both
END_LATE = "end late"  # the headers
LATE = "late"  # neither
GONE = "gone"  # it has hung up

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
    """

    timing: str
    reason: str = ""


#: Server → (kinds, timing, reason), where the server has a reason of its own.
DEVIATIONS: dict[str, list[tuple[list[str], str, str]]] = {
    "uWSGI": [
        (
            ["list_without_length", "empty_list", *STREAMS],
            END_LATE,
            "the connection's end is the body's end, and uWSGI closes it after close() "
            "(plugins/python/wsgi_subhandler.c:363, core/utils.c:1105)",
        ),
    ],
    "waitress": [
        (
            ["empty_list", *STREAMS],
            END_LATE,
            "the chunk terminator comes after close() (task.py:164-168, 298-303)",
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
}
DEVIATIONS["uWSGI --http-socket"] = DEVIATIONS["uWSGI --http"] = DEVIATIONS.pop("uWSGI")


#: Server → (kinds, reason): where a client waits even by default.
IMPOSSIBLE: dict[str, list[tuple[list[str], str]]] = {
    "uWSGI": [
        (
            ["list_without_length", "empty_list", *STREAMS, "error_in_mid_body"],
            "the connection's end is the body's end; nothing is handed over by default, because "
            "uWSGI reuses the environ, and some versions run no threads unless told to",
        ),
        (
            ["error_before_return", "error_in_first_chunk"],
            "uWSGI answers an exception after close(), and nothing is handed over by default",
        ),
    ],
}
IMPOSSIBLE["uWSGI --http-socket"] = IMPOSSIBLE["uWSGI --http"] = IMPOSSIBLE.pop("uWSGI")


def expected_by_default(server: str, kind: str) -> Expected:
    """What is expected of one cell where the middleware was told nothing: no client waits."""
    for kinds, reason in IMPOSSIBLE.get(server, []):
        if kind in kinds:
            return Expected(expected(server, kind).timing, reason)
    return Expected(GONE if ORDINARY[kind] == GONE else IN_TIME)


def expected(server: str, kind: str) -> Expected:
    """What is expected of one cell."""
    for kinds, timing, reason in DEVIATIONS.get(server, []):
        if kind in kinds:
            return Expected(timing, reason)
    return Expected(ORDINARY[kind])
