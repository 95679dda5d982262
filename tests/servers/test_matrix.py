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
    callbacks = measured(server).cells[mode, kind].callbacks
    assert callbacks == (CALLBACKS,) * len(callbacks)


@every_mode
@every_cell
@every_server
def test_the_client_receives_what_the_bare_app_sends(server: str, kind: str, mode: str) -> None:
    cell = measured(server).cells[mode, kind]
    assert cell.wire == cell.bare


@every_cell
@every_server
def test_the_client_waits_for_a_callback_just_where_it_is_expected(server: str, kind: str) -> None:
    assert measured(server).cells["inline", kind].timing == expected(server, kind).timing


@every_cell
@every_server
def test_by_default_no_client_waits_where_that_is_possible(server: str, kind: str) -> None:
    timing = measured(server).cells["default", kind].timing
    assert timing == expected_by_default(server, kind).timing


def test_each_cell_that_is_impossible_has_its_reason() -> None:
    for server, cells in IMPOSSIBLE.items():
        for kinds, reason in cells:
            assert reason
            assert IN_TIME not in {expected_by_default(server, kind).timing for kind in kinds}


def test_every_deviation_deviates_and_names_its_reason() -> None:
    for server, deviations in DEVIATIONS.items():
        for kinds, timing, reason in deviations:
            assert server in {server.name for server in SERVERS}
            assert reason
            assert not [kind for kind in kinds if ORDINARY[kind] == timing]
