"""The kinds of fault that users met in code that runs after a response, each tried at large.

One file a kind. ``docs/contract.rst`` has the rules that they are tried against.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from commands import environment


def run_script(source: str, directory: Path, *arguments: str) -> list[str]:
    """Run a script in a new Python; return the lines that it and its children printed, in order."""
    script = directory / "script.py"
    script.write_text(source)
    command = [sys.executable, "-W", "ignore", str(script), *arguments]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=60, cwd=directory
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()
