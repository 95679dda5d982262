"""uWSGI clears an environ and uses it again for the next request: no callback may notice."""

from __future__ import annotations

import pytest

from .client import Connection
from .control import Watch
from .descriptions import BY_NAME
from .harness import Place, control, require, running

pytestmark = pytest.mark.servers

SERVERS = ["uWSGI --http-socket", "uWSGI --http", "nginx, uWSGI"]


def visit(where: Place, user: str, watch: Watch, key: str) -> None:
    """A request whose callbacks report path and cookie, as its environ says then."""
    with Connection(where.port) as connection:
        target = f"/inline/own_environ/{user}?control={control().port}&id={key}"
        connection.request(target, cookie=user)
        connection.read_response("GET", watch.headers.set)


@pytest.mark.parametrize("name", SERVERS)
def test_a_callback_reads_its_own_requests_environ_while_others_are_served(name: str) -> None:
    server = BY_NAME[name]
    require(server.missing())
    with running(server) as where:
        alice_key, alice = control().watch(patience=10)
        visit(where, "alice", alice, alice_key)
        assert alice.slow.wait(10)
        for _ in range(8):
            bob_key, bob = control().watch(patience=0)
            visit(where, "bob", bob, bob_key)
            assert bob.done.wait(10)
            assert bob.events == ["slow", "/inline/own_environ/bob user=bob", "last"]
        alice.end.set()
        assert alice.done.wait(10)
    assert alice.events == ["slow", "/inline/own_environ/alice user=alice", "last"]
