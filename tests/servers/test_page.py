"""``docs/servers.rst`` says what is measured; if it does not, write it anew."""

from __future__ import annotations

import pytest

from .page import PATH, measured_page

pytestmark = pytest.mark.servers


def test_the_page_says_what_is_measured() -> None:
    assert PATH.read_text() == measured_page(), "run python -m tests.servers --write"
