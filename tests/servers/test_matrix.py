"""Each kind of response on each server: exactly once, the same bytes, and who waits for whom."""

from __future__ import annotations

import pytest

from .descriptions import SERVERS
from .expectations import CALLBACKS, DEVIATIONS, KINDS, ORDINARY, expected
from .measure import measured

pytestmark = pytest.mark.servers

every_cell = pytest.mark.parametrize("kind", KINDS)
every_server = pytest.mark.parametrize("server", [server.name for server in SERVERS])


@every_cell
@every_server
def test_the_callbacks_run_once_in_order(server: str, kind: str) -> None:
    callbacks = measured(server).cells[kind].callbacks
    assert callbacks == (CALLBACKS,) * len(callbacks)


@every_cell
@every_server
def test_the_client_receives_what_the_bare_app_sends(server: str, kind: str) -> None:
    cell = measured(server).cells[kind]
    assert cell.wire == cell.bare


@every_cell
@every_server
def test_the_client_waits_for_a_callback_just_where_it_is_expected(server: str, kind: str) -> None:
    assert measured(server).cells[kind].timing == expected(server, kind).timing


def test_every_deviation_deviates_and_names_its_reason() -> None:
    for server, deviations in DEVIATIONS.items():
        for kinds, timing, reason in deviations:
            assert server in {server.name for server in SERVERS}
            assert reason
            assert not [kind for kind in kinds if ORDINARY[kind] == timing]
