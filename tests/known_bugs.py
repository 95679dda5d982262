"""``docs/known-bugs.rst``, written from tests/test_known_bugs.py: ``python -m tests.known_bugs``.

``--write`` puts the page in its place; without, it is printed.
"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

TESTS = Path(__file__).with_name("test_known_bugs.py")
PATH = Path(__file__).parents[1] / "docs" / "known-bugs.rst"

HEAD = """\
.. Written by "python -m tests.known_bugs --write", from tests/test_known_bugs.py.

Known bugs of others
====================

What went wrong elsewhere in this field, where that was, and the test, in tests/test_known_bugs.py,
that keeps it out of here.
"""


def bugs() -> list[tuple[int, str, str, str]]:
    """Number, bug, where it happened, and the test, of each test."""
    found = []
    for function in ast.parse(TESTS.read_text()).body:
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            match = re.fullmatch(r"test_bug_(\d+)_(\w+)", function.name)
            where = ast.get_docstring(function)
            assert match, f"{function.name} does not begin with the number of its bug"
            assert where, f"{function.name} does not say where its bug was seen"
            bug = match[2].replace("_", " ")
            found.append((int(match[1]), bug, where.splitlines()[0], function.name))
    return found


TABLE = """\
.. list-table::
   :class: wrapped
   :header-rows: 1
   :widths: 5 30 30 35
"""


def page() -> str:
    """The whole page."""
    lines = [HEAD, TABLE]
    header = ("no.", "bug", "where", "test")
    rows = [(str(number), bug, where, f"``{test}``") for number, bug, where, test in bugs()]
    for row in (header, *rows):
        lines += [f"   {'-' if number else '* -'} {cell}" for number, cell in enumerate(row)]
    return "\n".join(re.sub(r"^   - ", "     - ", line) for line in lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.known_bugs", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {PATH.name}")
    if parser.parse_args().write:
        PATH.write_text(page())
    else:
        print(page())
