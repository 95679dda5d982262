"""The kinds of fault that users met in code that runs after a response, in many variants.

One file for each kind. ``docs/contract.rst`` has the rules that they are tested against.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from commands import environment


def run_python(source: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new Python, with these arguments."""
    script = directory / "script.py"
    script.write_text(source)
    command = [sys.executable, "-W", "ignore", str(script), *arguments]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=60, cwd=directory
    )


def run_script(source: str, directory: Path, *arguments: str) -> list[str]:
    """Run a script that must leave stderr empty; return what it and its children print in order."""
    done = run_python(source, directory, *arguments)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()
