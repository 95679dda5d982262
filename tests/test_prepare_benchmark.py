"""The benchmark of response callbacks runs, and shows that a request without one loads nothing."""

import subprocess
import sys
from pathlib import Path

import pyperf


def test_the_cost_of_a_response_callback_is_measured_beside_none(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.prepare", "--fast", "--json", str(tmp_path)],
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    suite = pyperf.BenchmarkSuite.load(str(tmp_path / "prepare.json"))
    ways = ["bare app", "nothing registered", "a cookie by the app"]
    assert suite.get_benchmark_names() == [*ways, "a cookie by a response callback"]
    assert "With nothing registered, werkzeug was not loaded." in done.stdout
