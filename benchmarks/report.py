"""What the benchmarks share: fresh interpreters, pyperf results, tables, machine and versions."""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pyperf

ROOT = Path(__file__).resolve().parent.parent


def arguments(description, argv=None):
    """The options that each benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fast", action="store_true", help="a rough figure, quickly")
    parser.add_argument("--json", metavar="DIR", type=Path, help="write pyperf JSON into DIR")
    return parser.parse_args(argv)


def interpreter(*args, prefix=(), **environ):
    """Run Python afresh, in the checkout; return what it wrote, stdout and stderr."""
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


def run(name, values, loops=1, unit="second", **options):
    """A :class:`pyperf.Run` that tells the versions, too."""
    import wsgi_after

    metadata = {
        "name": name,
        "loops": loops,
        "unit": unit,
        "werkzeug_version": version("werkzeug"),
        "wsgi_after_version": wsgi_after.__version__,
        "build": optimised(),
        **options.pop("metadata", {}),
    }
    return pyperf.Run(values, metadata=metadata, **options)


def optimised():
    """Whether this Python was built with profile-guided optimisation, which moves the ratios."""
    configured = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return "PGO" if "--enable-optimizations" in configured else "no PGO"


def machine(suite):
    """One line: what the figures were measured on."""
    known = suite.get_benchmarks()[0].get_metadata()
    return (
        f"{platform.python_implementation()} {platform.python_version()} ({known['build']}), "
        f"wsgi_after {known['wsgi_after_version']}, werkzeug {known['werkzeug_version']}, "
        f"pyperf {version('pyperf')}; {platform.system()} {platform.machine()}, "
        f"{known.get('cpu_model_name', 'unknown processor')}, {os.cpu_count()} cores"
    )


def write(suite, directory, name):
    """Write ``name.json`` into the directory, if there is one."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        suite.dump(str(directory / f"{name}.json"), replace=True)


def table(header, rows):
    """The rows under their header, in columns: the first to the left, the others to the right."""
    rows = [header, ["-" * len(title) for title in header], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    )


def quartiles(values):
    """First quartile, median, third quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")
