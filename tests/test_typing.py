"""The types that users see, under mypy and pyright."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, TESTS, blocks

import wsgi_after

CHECKS = TESTS / "typing_checks.py"
CHECKERS = {
    "mypy": ["mypy", "--strict", "--python-version", "3.11", "--no-error-summary"],
    "pyright": ["pyright", "--pythonversion", "3.11", "--pythonpath", sys.executable],
}


def checked(checker, *paths):
    """Run the checker on these files; return the finished process."""
    command = [sys.executable, "-m", *CHECKERS[checker], *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_type_checker_accepts_what_is_right_and_refuses_the_rest(checker):
    finished = checked(checker, CHECKS)
    refused = set(re.findall(r"typing_checks\.py:(\d+):.*error", finished.stdout))
    lines = CHECKS.read_text().splitlines()
    expected = {str(n) for n, line in enumerate(lines, 1) if line.endswith("# error")}
    assert refused == expected, finished.stdout + finished.stderr


def test_the_package_says_that_it_has_types():
    assert Path(wsgi_after.__file__).with_name("py.typed").exists()


#: The signatures of these examples, as a strict checker wants them.
SIGNATURES = {
    "app(environ, start_response)": (
        "app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]"
    ),
    "send_mail()": "send_mail() -> None",
    "log(environ)": "log(environ: WSGIEnvironment) -> None",
    "index()": "index() -> str",
}
HEAD = """# pyright: strict, reportUnusedFunction=false
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment
print(Iterable, StartResponse, WSGIEnvironment)
"""


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_first_examples_pass_under_strict_once_they_have_signatures(checker, tmp_path):
    examples = blocks("../README.rst") | blocks("wrap.rst")
    paths = []
    for name in ("hello.py", "ways.py", "flask_app.py"):
        code = examples[name]
        for plain, typed in SIGNATURES.items():
            code = code.replace(f"def {plain}:", f"def {typed}:")
        paths.append(tmp_path / name)
        # Flask documents that its wsgi_app is assigned to; mypy refuses that for any method.
        flask = "# mypy: disable-error-code=method-assign\n" if name == "flask_app.py" else ""
        paths[-1].write_text(HEAD + flask + code)
    finished = checked(checker, *paths)
    assert finished.returncode == 0, finished.stdout + finished.stderr
