"""Detect slowdowns of the middleware: ratios of instruction counts against committed bounds."""

import copy
import os
import shutil

import pytest
from servers.harness import require

from benchmarks import instructions

KNOWN = {"counted on": "another Python", "list": {"of the recipe": 0.6, "of the bare app": 3.0}}
FIGURES = {"workloads": {"list": {"bare": 1000, "of the recipe": 0.6, "of the bare app": 3.0}}}


@pytest.mark.servers  # once: it takes most of a minute
def test_a_request_takes_no_more_instructions_than_the_bounds_say():
    known = instructions.bounds()
    if known is None:
        pytest.skip(f"Python {instructions.minor()} has no bounds")
    require([] if shutil.which("valgrind") else ["valgrind"])
    if known["counted on"] != instructions.counted_on() and not os.environ.get("CI"):
        pytest.skip(f"the bounds were counted on {known['counted on']}")
    assert instructions.check() == ""


@pytest.mark.parametrize(("factor", "lines"), [(1.03, 1), (1.01, 0), (0.96, 0), (0.9, 1), (1.1, 1)])
def test_what_is_dearer_is_told_and_what_is_cheaper_by_far(factor, lines):
    """The failure says what to do."""
    figures = copy.deepcopy(FIGURES)
    figures["workloads"]["list"]["of the recipe"] *= factor
    broken = instructions.broken(figures, KNOWN)
    assert len(broken) == lines
    if factor == 1.1:
        told = instructions.advice(broken, KNOWN)
        assert "list: 0.6600 of the recipe, where it was 0.6000 (+10.0%" in told
        assert "python -m benchmarks.instructions --update" in told
