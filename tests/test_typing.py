"""The types that users see, under mypy and pyright."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("typing_checks.py")
CHECKERS = {
    "mypy": ["mypy", "--strict", "--python-version", "3.11", "--no-error-summary"],
    "pyright": ["pyright", "--pythonversion", "3.11", "--pythonpath", sys.executable],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_accepts_what_is_right_and_refuses_the_rest(checker):
    command = [sys.executable, "-m", *CHECKERS[checker], str(CHECKS)]
    finished = subprocess.run(
        command, capture_output=True, text=True, cwd=CHECKS.parent.parent, check=False
    )
    refused = set(re.findall(r"typing_checks\.py:(\d+):.*error", finished.stdout))
    lines = CHECKS.read_text().splitlines()
    expected = {str(n) for n, line in enumerate(lines, 1) if line.endswith("# error")}
    assert refused == expected, finished.stdout + finished.stderr


def test_the_package_says_that_it_has_types():
    import wsgi_after

    assert Path(wsgi_after.__file__).with_name("py.typed").exists()
