"""Faults planted in the package, one at a time: the tests have to find each.

``python -m tests.planted`` copies the checkout, plants a fault there, runs the tests of the core,
and says which test found it. ``-k flush`` takes only the faults that have the word in their
sentence, ``--tests`` other tests.

``planted.txt`` has the faults: each breaks the contract in a way that a change of the core could.
Its lines are those of the code as it is now. Adapt them when it changes; the sentences stay.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import NamedTuple

import wsgi_after

ROOT = Path(__file__).parents[1]
PACKAGE = Path(wsgi_after.__file__).parent
PATIENCE = 600.0  # seconds; a fault that makes a test hang is found

#: The tests of the core: the quick ones, which find most, first.
TESTS = [
    *("tests/test_body.py", "tests/test_callbacks.py", "tests/test_middleware.py"),
    *("tests/test_file_wrapper.py", "tests/test_flush.py", "tests/test_hand_off.py"),
    *("tests/cases", "tests/test_nested.py", "tests/test_security.py", "tests/test_conformance.py"),
    *("tests/test_known_bugs.py", "tests/test_prepare.py", "tests/test_prepare_current.py"),
    *("tests/test_prepare_patterns.py", "tests/test_executor.py", "tests/test_observability.py"),
    *("tests/test_leaks.py", "tests/test_contract.py", "tests/test_lint.py"),
    *("tests/test_testing.py", "tests/test_matrix.py", "tests/test_fuzz.py"),
    *("tests/test_moment.py", "tests/test_around.py", "tests/test_registering.py"),
    "tests/test_free_threading.py",
    *("tests/test_races.py", "tests/test_interruptions.py", "tests/test_model.py"),
]


class Fault(NamedTuple):
    """A fault, and how to plant it.

    :param module: a path in the package, without ``.py``.
    :param old: lines that occur in it once, with any indentation.
    :param new: the lines that replace them.
    """

    sentence: str
    module: str
    old: list[str]
    new: list[str]


def faults() -> Iterator[Fault]:
    """The faults of ``planted.txt``: the sentence and the module, then lines as in a diff."""
    blocks = re.split(r"\n\n+", Path(__file__).with_suffix(".txt").read_text(encoding="utf-8"))
    for first, *lines in map(str.splitlines, blocks):
        if match := re.fullmatch(r"([^#].*) \((\S+)\)", first):
            old, new = ([line[2:] for line in lines if line[0] in kept] for kept in (" -", " +"))
            yield Fault(match[1], match[2], old, new)


def planted(fault: Fault) -> str:
    """The source of the module with the fault in it.

    :raises ValueError: if the old lines do not occur exactly once.
    :raises SyntaxError: if the result does not compile.
    """
    source = (PACKAGE / f"{fault.module}.py").read_text(encoding="utf-8")
    lines, size = source.splitlines(), len(fault.old)
    found = [
        at
        for at in range(len(lines) - size + 1)
        if textwrap.dedent("\n".join(lines[at : at + size])).splitlines() == fault.old
    ]
    if len(found) != 1:
        raise ValueError(f"{fault.sentence} {fault.module} has the old lines {len(found)} times.")
    (at,) = found
    indentation = lines[at].removesuffix(fault.old[0])
    lines[at : at + size] = [indentation + line for line in fault.new]
    source = "\n".join([*lines, ""])
    compile(source, fault.module, "exec")
    return source


def found_by(tests: list[str], fault: Fault | None = None) -> str | None:
    """The first test that fails in a copy of the checkout with this fault."""
    with TemporaryDirectory() as directory:
        copy = Path(directory, "copy")
        copytree(ROOT, copy, ignore=ignore_patterns(".*", "__pycache__", "build", "*.egg-info"))
        if fault is not None:
            module = copy / "wsgi_after" / f"{fault.module}.py"
            module.write_text(planted(fault), encoding="utf-8")
        return first_failure(copy, tests)


def first_failure(checkout: Path, tests: list[str]) -> str | None:
    """The first test that fails there, or how pytest ended otherwise."""
    options = ["-x", "-q", "-m", "not servers", "-p", "no:cacheprovider", "--tb=line", "-rfE"]
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as pytest:
        try:
            output, _ = pytest.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(pytest.pid, signal.SIGKILL)
            return f"a hang of {PATIENCE:.0f} seconds"
    if pytest.returncode == 0:
        return None
    failed = re.search("^(?:FAILED|ERROR) (tests/.*::.*)", output, re.MULTILINE)
    if pytest.returncode in {4, 5}:  # it was called wrongly, or found no tests
        raise RuntimeError(output)
    if failed:
        return failed[1]
    # A test raised KeyboardInterrupt, or the interpreter crashed, or an import failed.
    return f"the end of pytest, with {pytest.returncode}: {output[-500:]}"


def main() -> int:
    """Print a line for each fault; return 1 if one is not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("-k", metavar="WORD", default="", help="faults with this in the sentence")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what pytest is to run")
    options = parser.parse_args()
    chosen = [fault for fault in faults() if options.k.lower() in fault.sentence.lower()]
    for fault in chosen:
        planted(fault)  # fail at once, not after ten minutes
    if failure := found_by(options.tests):
        parser.exit(2, f"Without any fault, there is {failure}\n")
    missed = 0
    for fault in chosen:
        test = found_by(options.tests, fault)
        missed += test is None
        print(f"{fault.sentence}\n    {test or 'NOT FOUND'}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
