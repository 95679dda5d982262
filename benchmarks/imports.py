"""Time of ``import wsgi_after`` beside ``import wsgiref`` and ``import logging``; what it loads.

Each import in a fresh interpreter, in turns. ``wsgiref`` is an empty package: what one file costs.
``logging`` is what every app imports anyway, and most of what this package imports: an app that
has it pays only the rest, which is measured, too.
"""

import statistics
from sys import stdlib_module_names
from tempfile import TemporaryDirectory

import pyperf

from .report import arguments, interpreter, machine, quartiles, run, table, write

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

    ``cache`` is a directory for compiled code. Without one the time would depend on whether Python
    may write beside the sources: where it may not, each import compiles.
    """
    module, before = IMPORTS[name]
    code = TIMED.format(module=module, before=before)
    stdout, _ = interpreter("-c", code, PYTHONPYCACHEPREFIX=cache, PYTHONDONTWRITEBYTECODE="")
    return float(stdout)


def collect(rounds):
    """Take turns; return a suite with a benchmark of each import."""
    runs = {name: [] for name in IMPORTS}
    with TemporaryDirectory() as cache:
        for number in range(1 + rounds):
            for name in IMPORTS:
                seconds = timed(name, cache)
                if number:  # the first compiled
                    runs[name].append(run(f"import {name}", [seconds]))
    return pyperf.BenchmarkSuite([pyperf.Benchmark(of_one) for of_one in runs.values()])


def loaded():
    """The modules that ``import wsgi_after`` loads, those aside that Python starts with."""
    return interpreter("-c", LISTED)[0].split()


def foreign(modules):
    """Those that are neither of the package nor of the standard library."""
    known = {"wsgi_after", *stdlib_module_names}
    return [module for module in modules if module.partition(".")[0] not in known]


def row(benchmark, baseline):
    """One line of the table."""
    values = [seconds * 1e6 for seconds in benchmark.get_values()]
    low, median, high = quartiles(values)
    ratio = median / statistics.median(seconds * 1e6 for seconds in baseline.get_values())
    return [benchmark.get_name(), f"{median:,.0f} us", f"{low:,.0f}-{high:,.0f}", f"{ratio:.1f}"]


def report(suite, modules):
    """The table, what it was measured on, and the modules."""
    baseline = suite.get_benchmark("import wsgiref")
    header = ["import", "median", "quartiles", "ratio to wsgiref"]
    strangers = foreign(modules)
    return "\n".join(
        [
            f"Time of import, {baseline.get_nrun()} interpreters each. {machine(suite)}\n",
            table(header, [row(benchmark, baseline) for benchmark in suite]),
            f"\nimport wsgi_after loads {len(modules)} modules: {', '.join(modules)}.",
            f"Not standard library: {', '.join(strangers)}!"
            if strangers
            else "All others than its own are standard library.",
        ]
    )


def main(argv=None):
    """Measure, print, write."""
    options = arguments(__doc__.splitlines()[0], argv)
    suite = collect(rounds=5 if options.fast else 60)
    write(suite, options.json, "imports")
    print(report(suite, loaded()))


if __name__ == "__main__":
    main()
