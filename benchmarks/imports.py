"""Time of ``import wsgi_after`` beside ``import wsgiref`` and ``import logging``; what it loads.

Each import runs in a fresh interpreter, in turns. ``wsgiref`` is an empty package: it shows what
one file costs. ``logging`` is what every app imports anyway, and most of what this package imports:
an app that has it pays only for the rest, which is measured too.
"""

import sys
from sys import stdlib_module_names
from tempfile import TemporaryDirectory

import pyperf

from .report import interpreter, machine, main, quartiles, run, table

TIMED = """
{before}
from time import perf_counter
start = perf_counter()
import {module}
print(perf_counter() - start)
"""

LISTED = """
import sys
before = set(sys.modules)
import wsgi_after
print(*sorted(set(sys.modules) - before))
"""

#: What is measured: the module, and what the app has imported before.
IMPORTS = {
    "wsgiref": ("wsgiref", ""),
    "logging": ("logging", ""),
    "wsgi_after": ("wsgi_after", ""),
    "wsgi_after after logging": ("wsgi_after", "import logging"),
}


def timed(name, cache):
    """Seconds that the import takes, in an interpreter that has just started.

    ``cache`` is a directory for compiled code. Without one, the time would depend on whether Python
    may write beside the sources: if it may not, each import compiles.
    """
    module, before = IMPORTS[name]
    code = TIMED.format(module=module, before=before)
    stdout, _ = interpreter("-c", code, PYTHONPYCACHEPREFIX=cache, PYTHONDONTWRITEBYTECODE="")
    return float(stdout)


def collect(fast=False):
    """Take turns; return a suite with a benchmark of each import."""
    runs = {name: [] for name in IMPORTS}
    with TemporaryDirectory() as cache:
        for number in range(1 + (5 if fast else 40)):
            for name in IMPORTS:
                seconds = timed(name, cache)
                if number:  # the first round compiled
                    runs[name].append(run(f"import {name}", [seconds]))
    return pyperf.BenchmarkSuite([pyperf.Benchmark(of_one) for of_one in runs.values()])


def loaded():
    """The modules that ``import wsgi_after`` loads, except those that Python starts with."""
    return interpreter("-c", LISTED)[0].split()


def foreign(modules):
    """Those that are neither of the package nor of the standard library."""
    known = {"wsgi_after", *stdlib_module_names}
    return [module for module in modules if module.partition(".")[0] not in known]


def summarise(suite):
    """Quartiles of each, in microseconds, and the modules that are loaded."""
    return {
        "machine": machine(suite),
        "interpreters": suite.get_benchmarks()[0].get_nrun(),
        "imports": {
            benchmark.get_name(): [round(v * 1e6) for v in quartiles(benchmark.get_values())]
            for benchmark in suite
        },
        "loaded": (modules := loaded()),
        "strangers": foreign(modules),  # for the Python that measured
    }


def report(figures):
    """The table, what it was measured on, and the modules."""
    header = ["import", "median", "quartiles", "ratio to wsgiref"]
    baseline = figures["imports"]["import wsgiref"][1]
    rows = [
        [name, f"{median:,} µs", f"{low:,} to {high:,}", f"{median / baseline:.1f}"]
        for name, (low, median, high) in figures["imports"].items()
    ]
    strangers = figures["strangers"]
    return "\n\n".join(
        [
            f"Each timed in {figures['interpreters']} new interpreters. {figures['machine']}",
            table(header, rows),
            f"import wsgi_after loads {len(figures['loaded'])} modules.",
            f"These are not in the standard library: {', '.join(strangers)}."
            if strangers
            else "All except its own are in the standard library.",
        ]
    )


if __name__ == "__main__":
    main(sys.modules["__main__"])
