"""Each kind of response on each server: exactly once, the same bytes, and who waits for whom."""

from __future__ import annotations

import pytest

from .descriptions import SERVERS
from .expectations import (
    CALLBACKS,
    DEVIATIONS,
    IMPOSSIBLE,
    IN_TIME,
    KINDS,
    ORDINARY,
    RECHUNKED,
    REFRAMED,
    expected,
    expected_by_default,
)
from .measure import EXPECTED, measured

pytestmark = pytest.mark.servers

every_cell = pytest.mark.parametrize("kind", KINDS)
every_mode = pytest.mark.parametrize("mode", EXPECTED)
every_server = pytest.mark.parametrize("server", [server.name for server in SERVERS])


@every_mode
@every_cell
@every_server
def test_the_callbacks_run_once_in_order(server: str, kind: str, mode: str) -> None:
    callbacks = measured(server, mode).cells[kind].callbacks
    assert callbacks == (CALLBACKS,) * len(callbacks)


@every_mode
@every_cell
@every_server
def test_the_client_receives_what_the_bare_app_sends(server: str, kind: str, mode: str) -> None:
    cell = measured(server, mode).cells[kind]
    if kind in REFRAMED.get(server, ([], ""))[0]:
        assert without_framing(cell.wire) == without_framing(cell.bare)
    elif server in RECHUNKED:
        assert joined(cell.wire) == joined(cell.bare)
    else:
        assert cell.wire == cell.bare


@every_cell
@every_server
def test_the_client_waits_for_a_callback_just_where_it_is_expected(server: str, kind: str) -> None:
    assert measured(server).cells[kind].timing == expected(server, kind).timing


@every_cell
@every_server
def test_by_default_no_client_waits_where_that_is_possible(server: str, kind: str) -> None:
    timing = measured(server, "default").cells[kind].timing
    assert timing == expected_by_default(server, kind).timing


def test_each_cell_that_is_impossible_has_its_reason() -> None:
    for server, cells in IMPOSSIBLE.items():
        for kinds, reason in cells:
            assert server in {server.name for server in SERVERS}
            assert reason
            assert IN_TIME not in {expected_by_default(server, kind).timing for kind in kinds}


def unchunked(rest: bytes) -> tuple[bytes, bytes]:
    """The body that stands in chunks at the start of ``rest``, and what follows it."""
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return body, rest[2:]
        body, rest = body + rest[:length], rest[length + 2 :]
    return body + b" (cut off)", b""


def joined(wire: bytes) -> tuple[bytes, bytes, bytes]:
    """The first response's headers and its body, out of its chunks if it has any, and the rest."""
    head, _, rest = wire.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        return head, *unchunked(rest)
    return head, b"", rest


def without_framing(wire: bytes) -> tuple[list[bytes], bytes]:
    """The same, without the headers that say how long the body is."""
    head, body, rest = joined(wire)
    framing = (b"content-length:", b"transfer-encoding:")
    headers = [line for line in head.split(b"\r\n") if not line.lower().startswith(framing)]
    return headers, body + rest


def test_what_is_ignored_of_the_framing_is_not_more_than_that() -> None:
    chunked = b"A\r\nTransfer-Encoding: chunked\r\nX: 1\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\nnext"
    framed = b"A\r\nX: 1\r\nContent-Length: 3\r\n\r\nabcnext"
    cut_off = chunked[: chunked.index(b"0\r\n\r\n")]
    assert without_framing(chunked) == without_framing(framed) == ([b"A", b"X: 1"], b"abcnext")
    assert without_framing(cut_off) == ([b"A", b"X: 1"], b"abc (cut off)")
    assert joined(framed) == (framed.partition(b"\r\n\r\n")[0], b"", b"abcnext")


def test_every_deviation_deviates_and_names_its_reason() -> None:
    for server, deviations in DEVIATIONS.items():
        for kinds, timing, reason in deviations:
            assert server in {server.name for server in SERVERS}
            assert reason
            assert not [kind for kind in kinds if ORDINARY[kind] == timing]
