"""Fixtures for pytest, which finds them by itself: ``wsgi_after_capture``, ``wsgi_after_strict``.

For all tests of a module, write ``pytestmark = pytest.mark.usefixtures("wsgi_after_strict")``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from . import testing
from .integration import add_let_out

# A test that fails, or is skipped, in a callback has to end there.
add_let_out(pytest.fail.Exception, pytest.skip.Exception, pytest.exit.Exception)


@pytest.fixture
def wsgi_after_capture() -> Iterator[testing.Capture]:
    """Collect the callbacks of the test's requests, without running them: ``testing.capture()``."""
    with testing.capture() as captured:
        yield captured


@pytest.fixture
def wsgi_after_strict() -> Iterator[list[BaseException]]:
    """Make the test fail if a callback fails: ``testing.strict()``."""
    with testing.strict() as failures:
        yield failures


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Raise from the test itself, rather than from the end of the fixture."""
    result = yield
    testing.raise_failures(getattr(item, "funcargs", {}).get("wsgi_after_strict", []))
    return result
