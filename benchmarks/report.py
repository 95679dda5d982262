"""What the benchmarks share: fresh interpreters, pyperf results, tables, the command, the page."""

import argparse
import os
import statistics
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pyperf

from . import page

ROOT = Path(__file__).resolve().parent.parent


def main(*benchmarks):
    """The command: measure, print and write each benchmark in turn."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a rough figure, quickly")
    parser.add_argument("--json", metavar="DIR", type=Path, help="write pyperf JSON into DIR")
    parser.add_argument("--write", action="store_true", help="write figures and plots into docs/")
    options = parser.parse_args()
    for benchmark in benchmarks:
        suite = benchmark.collect(options.fast)
        figures = benchmark.summarise(suite)
        name = benchmark.__spec__.name.rpartition(".")[2]
        print(benchmark.report(figures), end="\n\n", flush=True)
        if options.json is not None:
            options.json.mkdir(parents=True, exist_ok=True)
            suite.dump(str(options.json / f"{name}.json"), replace=True)
        if options.write:
            page.write(name, benchmark, figures)


def interpreter(*args, prefix=(), **environ):
    """Run a new Python in the checkout; return what it wrote to stdout and stderr."""
    done = subprocess.run(
        [*prefix, sys.executable, *args],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(args)} failed:\n{done.stderr}")
    return done.stdout, done.stderr


def workers(module, *arguments):
    """Run ``python -m module --worker ...`` for each of ``arguments``; put their runs together."""
    suite = None
    for of_one in arguments:
        stdout, _ = interpreter("-m", module, "--worker", *map(str, of_one))
        worker = pyperf.BenchmarkSuite.loads(stdout)
        if suite is None:
            suite = worker
        else:
            suite.add_runs(worker)
    return suite


def turns(names, number):
    """The names, with another one first in each round: who comes first must not matter."""
    names = list(names)
    first = number % len(names)
    return names[first:] + names[:first]


def run(name, values, loops=1, unit="second", packages=("werkzeug",), **options):
    """A :class:`pyperf.Run` that names the versions, also those of ``packages``."""
    import wsgi_after

    versions = [f"{package} {version(package)}" for package in packages]
    metadata = {
        "name": name,
        "loops": loops,
        "unit": unit,
        "versions": ", ".join([f"wsgi_after {wsgi_after.__version__}", *versions]),
        "build": build(),
        **options.pop("metadata", {}),
    }
    return pyperf.Run(values, metadata=metadata, **options)


def build():
    """This Python, and whether profile-guided optimisation was used, which changes ratios."""
    configured = sysconfig.get_config_var("CONFIG_ARGS") or ""
    pgo = "PGO" if "--enable-optimizations" in configured else "no PGO"
    return f"CPython {'.'.join(map(str, sys.version_info[:3]))} ({pgo})"


def machine(suite, *more):
    """One sentence: what the figures were measured on."""
    known = suite.get_benchmarks()[0].get_metadata()
    processor = known.get("cpu_model_name", "unknown processor")
    versions = [known["build"], known["versions"], *more, f"pyperf {version('pyperf')}"]
    return f"{', '.join(versions)}; {processor}, {known['cpu_count']} cores."


def table(header, rows):
    """The rows under their header, in columns: the first to the left, the others to the right.

    A simple table of reStructuredText, so that the pages show it as it is printed.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def quartiles(values):
    """First quartile, median, third quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


def spread(low, ratio, high):
    """The quartiles of a ratio, with a note if they do not show which of the two is more."""
    told = f"{low:.2f} to {high:.2f}"
    return f"{told} (no clear difference)" if high - low > abs(1 - ratio) else told
