"""``docs/known-bugs.rst`` is what tests/test_known_bugs.py says, and leaves no bug out."""

from __future__ import annotations

from documents import parse
from known_bugs import PATH, bugs, page


def test_the_page_is_what_the_tests_say():
    assert PATH.read_text() == page(), "run python -m tests.known_bugs --write"


def test_each_of_the_bugs_has_a_test():
    assert {number for number, *_ in bugs()} == set(range(1, 16))


def test_the_page_is_well_formed():
    parse(PATH.name)
