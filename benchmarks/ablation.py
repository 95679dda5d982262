"""What each part of the contract costs: the package measured with that part left out.

Each variant is a copy of the package in which one piece of text is replaced. All variants take
turns in one process, as in :mod:`benchmarks.request`. A variant breaks the contract: it shows what
leaving the part out would save, not what is possible.
"""

import importlib
import shutil
import statistics
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyperf

from .contenders import ours
from .report import machine, main, run, table, workers
from .request import WARMUPS, server, take_turns
from .workloads import WORKLOADS

ROOT = Path(__file__).resolve().parent.parent
#: Measured without each part, and without all.
COUNTED = ("list", "list-1")
#: Measured only without all.
OTHERS = ("list-3", "gunicorn", "app-wide", "object", "stream")
BOTH = ("as it is", "all of these")

ITERATOR = """\
    def __iter__(self):
        return iter(self._iterable)

    def not_called(self):
        \"\"\"A fresh"""

#: What is left out, and by which replacements: module of the core, text, new text.
PARTS = {
    "status and headers are not recorded": [
        ("middleware", "after._start_response)", "start_response)")
    ],
    "after_this_response() finds no list in the view": [
        ("middleware", "token = set_current(after)", "token = None"),
        ("middleware", "reset_current(token)", "pass"),
    ],
    "after_this_response() finds no list in a callback": [
        ("run", "token = set_current(callbacks)", "token = None"),
        ("run", "reset_current(token)", "pass"),
    ],
    "whether the body was exhausted is not recorded": [
        ("body", "    def __iter__(self) -> Iterator[bytes]:\n        \"\"\"A fresh", ITERATOR)
    ],
    "a body that nobody closes loses its callbacks": [("body", "def __del__", "def not_called")],
    "slow callbacks are not reported": [
        ("run", "began = monotonic()", "began = 0.0"),
        ("run", "ended = monotonic()", "ended = 0.0"),
    ],
    "append() accepts entries after the end": [
        ("callbacks", "def append(self", "def not_called(self")
    ],
    "a file that the server sends itself runs no callbacks": [
        ("middleware", 'if "wsgi.file_wrapper" in environ', "if False"),
    ],
}  # fmt: skip


def variants(workload):
    """The parts that are left out: none, each alone where that is measured, all."""
    everything = [replacement for part in PARTS.values() for replacement in part]
    alone = PARTS if workload in COUNTED else {}
    return {"as it is": [], **alone, "all of these": everything}


def without(replacements, directory):
    """Write a copy of the package without a part; return the directory to import it from.

    :raises ValueError: if a text is no longer there: then adapt the part.
    """
    package = Path(directory, "wsgi_after")
    shutil.copytree(ROOT / "wsgi_after", package, ignore=shutil.ignore_patterns("__pycache__"))
    for module, old, new in replacements:
        path = package / "_core" / f"{module}.py"
        text = path.read_text(encoding="utf-8")
        if old not in text:
            raise ValueError(f"{module}.py has no {old!r}")
        path.write_text(text.replace(old, new), encoding="utf-8")
    return str(directory)


def middleware_of(directory):
    """The middleware of a copy, which shares no module with the other copies."""
    own = {name: module for name, module in sys.modules.items() if name.startswith("wsgi_after")}
    for name in own:
        del sys.modules[name]
    sys.path.insert(0, directory)
    try:
        return importlib.import_module("wsgi_after").AfterResponseMiddleware
    finally:
        sys.path.remove(directory)


def measure(workload, rounds):
    """Let the variants take turns with the bare app and the recipe."""
    servers = {contender: server(workload, contender) for contender in ("bare", "recipe")}
    with TemporaryDirectory() as directory:
        for number, (name, replacements) in enumerate(variants(workload).items()):
            place = Path(directory, str(number))
            middleware = middleware_of(without(replacements, place))
            servers[name] = server(workload, name, partial(ours, middleware=middleware))
        taken, loops = take_turns(servers, WARMUPS + rounds)
    return pyperf.BenchmarkSuite(
        [
            pyperf.Benchmark([run(f"{workload}: {name}", taken[name][WARMUPS:], loops[name])])
            for name in servers
        ]
    )


def collect(fast=False):
    """Run the workers, one at a time."""
    processes, rounds = (1, 3) if fast else (8, 20)
    workloads = (*COUNTED, *OTHERS)
    return workers(__spec__.name, *([w, rounds] for _ in range(processes) for w in workloads))


def summarise(suite):
    """Nanoseconds that each part costs, and the ratio to the recipe without it."""
    return {
        "machine": machine(suite),
        "parts": {
            workload: {name: of_part(suite, workload, name) for name in variants(workload)}
            for workload in (*COUNTED, *OTHERS)
        },
    }


def of_part(suite, workload, name):
    """For one variant, the medians of what it saves, and of its ratio to the recipe."""
    bare, recipe, whole, without_it = (
        suite.get_benchmark(f"{workload}: {of}").get_values()
        for of in ("bare", "recipe", "as it is", name)
    )
    saved = [(a - b) * 1e9 for a, b in zip(whole, without_it, strict=True)]
    ratios = [(w - b) / (r - b) for w, r, b in zip(without_it, recipe, bare, strict=True)]
    return {"saves": round(statistics.median(saved)), "ratio": round(statistics.median(ratios), 3)}


def report(figures):
    """The tables, and what they were measured on."""
    parts = figures["parts"]
    header = ["left out"]
    for workload in COUNTED:
        header += [WORKLOADS[workload].title, "ratio to the recipe"]
    rows = [
        [name, *(cell for workload in COUNTED for cell in cells(parts[workload][name]))]
        for name in variants(COUNTED[0])
    ]
    both = [
        [WORKLOADS[workload].title, *(f"{parts[workload][name]['ratio']:.2f}" for name in BOTH)]
        for workload in parts
    ]
    tables = table(header, rows), table(["ratio to the recipe", *BOTH], both)
    return "\n\n".join([figures["machine"], *tables])


def cells(part):
    """What a part costs, and the ratio without it."""
    return [f"{part['saves']:,} ns" if part["saves"] > 0 else "none", f"{part['ratio']:.2f}"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        measure(sys.argv[2], int(sys.argv[3])).dump(sys.stdout)
    else:
        main(sys.modules["__main__"])
