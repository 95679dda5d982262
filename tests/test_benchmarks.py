"""Each benchmark runs, prints its table, and writes what pyperf reads. No time is asserted."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyperf
from servers.harness import require

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS = ["list", "list-1", "list-3", "object", "stream"]
CONTENDERS = ["bare", "recipe", "ours"]


def run_fast(benchmark, directory):
    """Run the benchmark with --fast; return what it printed and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{benchmark}", "--fast", "--json", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, pyperf.BenchmarkSuite.load(str(directory / f"{benchmark}.json"))


def test_the_cost_of_a_request_is_measured_beside_the_recipe(tmp_path):
    printed, suite = run_fast("request", tmp_path)

    assert suite.get_benchmark_names() == [f"{w}: {c}" for w in WORKLOADS for c in CONTENDERS]
    assert {benchmark.get_nvalue() for benchmark in suite} == {20}
    assert {benchmark.get_unit() for benchmark in suite} == {"second"}
    assert "list of one chunk" in printed
    assert "1000 chunks, per chunk" in printed


def test_the_import_is_timed_and_loads_nothing_but_the_standard_library(tmp_path):
    printed, suite = run_fast("imports", tmp_path)

    imports = ["wsgiref", "logging", "wsgi_after", "wsgi_after after logging"]
    assert suite.get_benchmark_names() == [f"import {name}" for name in imports]
    assert "ratio to wsgiref" in printed
    assert " wsgi_after.middleware" in printed
    assert "All others than its own are standard library." in printed


def test_the_ways_to_do_some_work_are_measured_side_by_side(tmp_path):
    printed, suite = run_fast("latency", tmp_path)

    ways = ["none", "view", "after_request", "close", "default", "executor"]
    assert suite.get_benchmark_names() == [
        f"{server}: {response}: {way}: {measure}"
        for server in ("gunicorn gthread", "waitress")
        for response in ("sized", "stream")
        for way in ways
        for measure in ("last byte", "next response")
    ]
    p50 = {b.get_name(): b.get_metadata()["p50"] for b in suite}
    assert p50["waitress: stream: view: last byte"] >= 0.05  # the work itself
    assert "waitress, no Content-Length" in printed


def test_the_instructions_of_a_request_are_counted(tmp_path):
    require([] if shutil.which("valgrind") else ["valgrind"])
    printed, suite = run_fast("instructions", tmp_path)

    counts = [benchmark.median() for benchmark in suite]
    assert suite.get_benchmark_names() == [f"list: {contender}" for contender in CONTENDERS]
    assert counts[0] < counts[2] < counts[1]
    assert "list of one chunk" in printed
