"""uWSGI clears an environ and uses it again for the next request: no callback may notice."""

from __future__ import annotations

import pytest

from .control import Watch
from .descriptions import BY_NAME
from .harness import Place, require, running, send

pytestmark = pytest.mark.servers

SERVERS = ["uWSGI --http-socket", "uWSGI --http", "nginx, uWSGI"]


def visit(where: Place, user: str, patience: float) -> Watch:
    """A request whose callbacks report path and cookie, as its environ says then."""
    path = f"inline/own_environ/{user}"
    _, watch = send(where, path, cookie=user, connection="keep-alive", patience=patience)
    return watch


@pytest.mark.parametrize("name", SERVERS)
def test_a_callback_reads_its_own_requests_environ_while_others_are_served(name: str) -> None:
    server = BY_NAME[name]
    require(server.missing())
    with running(server) as where:
        alice = visit(where, "alice", patience=10)
        assert alice.slow.wait(10)
        for _ in range(8):
            bob = visit(where, "bob", patience=0)
            assert bob.done.wait(10)
            assert bob.events == ["slow", "/inline/own_environ/bob user=bob", "last"]
        alice.end.set()
        assert alice.done.wait(10)
    assert alice.events == ["slow", "/inline/own_environ/alice user=alice", "last"]
