"""Each benchmark runs, prints its tables, and writes what pyperf reads. No time is asserted."""

import importlib
import importlib.util
import subprocess
import sys

import pyperf
import pytest
from documents import ROOT
from servers.harness import find, require

from benchmarks import page
from benchmarks.__main__ import BENCHMARKS
from benchmarks.growth import is_linear, slopes

#: The modules and programs that each benchmark needs.
MODULES = {
    "request": ["bottle", "django", "flask", "opentelemetry", "paste", "repoze", "sentry_sdk"],
    "latency": ["flask", "gunicorn", "waitress"],
    "throughput": ["gunicorn", "granian", "waitress"],
}
PROGRAMS = {"instructions": ["valgrind"], "growth": ["valgrind"], "throughput": ["wrk", "uwsgi"]}
#: How many pyperf benchmarks each one writes, and words from its tables.
WRITTEN = {
    "request": (105, ["list of one chunk", "+Sentry", "wsgi_after to the recipe"]),
    "ablation": (44, ["left out", "all of these", "response object"]),
    "memory": (3, ["bytes in flight", "list of one chunk"]),
    "imports": (4, ["import wsgiref", "All except its own are in the standard library."]),
    "latency": (40, ["waitress, no Content-Length", "in the view"]),
    "instructions": (3, ["list of one chunk", "+recipe"]),
    "growth": (36, ["requests in flight", "callbacks of a request", "chunks"]),
    "throughput": (60, ["granian, greeting", "uWSGI, 20 MB file"]),
}


@pytest.mark.servers
@pytest.mark.parametrize("benchmark", WRITTEN)
def test_it_runs_and_writes_what_pyperf_reads(benchmark, tmp_path):
    modules, programs = MODULES.get(benchmark, []), PROGRAMS.get(benchmark, [])
    require([name for name in modules if not importlib.util.find_spec(name)])
    require([name for name in programs if not find(name)])
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{benchmark}", "--fast", "--json", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    count, words = WRITTEN[benchmark]
    suite = pyperf.BenchmarkSuite.load(str(tmp_path / f"{benchmark}.json"))
    assert len(suite.get_benchmark_names()) == count
    assert [word for word in words if word not in done.stdout] == []


def test_one_command_runs_all():
    names = {module.__name__.rpartition(".")[2] for module in BENCHMARKS}
    assert names == set(WRITTEN)


@pytest.mark.parametrize("benchmark", WRITTEN)
def test_the_page_shows_the_committed_figures(benchmark):
    module = importlib.import_module(f"benchmarks.{benchmark}")
    if not (page.FIGURES / f"{benchmark}.json").exists():
        pytest.fail(f"run: python -m benchmarks.{benchmark} --write")
    figures = page.load(benchmark)
    shown = page.PAGE.read_text(encoding="utf-8")
    for part, told in page.blocks(benchmark, module, figures).items():
        assert page.block(part).search(shown)[0] == told
    if hasattr(module, "plot"):
        drawn = (page.FIGURES / f"{benchmark}.svg").read_text(encoding="utf-8")
        assert page.digest(figures) in drawn


def test_what_is_linear_counts_as_such():
    linear = [[number, 5000 + 100 * number] for number in (0, 1, 10, 100, 1000)]
    quadratic = [[number, 5000 + number * number] for number in (0, 1, 10, 100, 1000)]
    assert slopes(linear) == [100, 100, 100, 100]
    assert (is_linear(linear), is_linear(quadratic)) == (True, False)


@pytest.mark.parametrize("growth", ["in flight", "callbacks", "chunks"])
def test_the_figures_of_growth_on_the_page_are_linear(growth):
    assert is_linear(page.load("growth")["growths"][growth]["ours"])
