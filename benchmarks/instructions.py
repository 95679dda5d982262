"""Instructions of one request over the bare app, counted by ``valgrind --tool=callgrind``.

A count does not depend on what else the machine does. But it is not a time: a mispredicted jump
counts like any other.

One interpreter imports everything, and forks for each count: one child serves N requests, the next
2N, and the difference is the cost of N. Starting, importing and warming up drop out.

``--check`` compares with ``benchmarks/bounds.json``, as ``tests/test_instructions.py`` does, and
``--update`` writes into it what this Python takes now.
"""

import json
import re
import shutil
import statistics
import sys
from importlib.metadata import version
from pathlib import Path

import pyperf

from .contenders import CONTENDERS, FEW
from .report import build, interpreter, machine, main, run, table
from .workloads import WORKLOADS

#: The workloads that import little.
COUNTED = ("list", "list-1", "list-3", "gunicorn", "object", "stream")

REQUESTS = 100
STREAMS = 2  # requests, of many chunks each

#: CPython caches the attributes of types in a table without buckets. If two that a request needs
#: fall into the same place, the request costs 5 % more; where they fall depends on how many types
#: were used before. So the count is the median of a few, with so many more types used before each.
SHIFTS = range(3)

#: Takes lines of workload, contender, number of requests, shift, function that serves; forks a
#: child for each. The garbage collector starts from zero in each: one collection that falls into
#: the 2N requests but not into the N would add some hundred instructions to each.
SERVE = """
import gc, os, sys
from benchmarks import workloads
from benchmarks.contenders import CONTENDERS
for line in sys.argv[1:]:
    name, contender, times, shift, how = line.split()
    workload = workloads.workload(name)
    app = CONTENDERS[contender].make(workload)
    gc.collect()
    gc.freeze()
    child = os.fork()
    if not child:
        for _ in range(int(shift)):
            hasattr(type("Shift", (), {})(), "attribute")
        served = getattr(workloads, how)
        ended = served(app, int(times), workload.environ, workload.start_response)
        if ended is not None:
            ended()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{line}: the app failed")
"""

VALGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")

BOUNDS = Path(__file__).with_name("bounds.json")
#: How much a ratio may rise, and how much it may fall, before it is out of its bounds.
ROOM = 0.02
LOOSE = 0.06


def counted(lines):
    """Instructions of the child that serves each line, those before the fork included."""
    if shutil.which("valgrind") is None:
        sys.exit("Instructions cannot be counted: valgrind is not installed.")
    _, stderr = interpreter("-c", SERVE, *lines, prefix=VALGRIND, PYTHONHASHSEED="0")
    counts = [int(count) for count in re.findall(r"Collected : (\d+)", stderr)]
    return counts[: len(lines)]  # the last is the parent's


def per_request(cases):
    """Instructions of one request in each case: (workload, contender, requests, shift, how).

    A single request is compared with none: it is so long that nothing else shows.
    """
    lines = [
        f"{workload} {contender} {n * times} {shift} {how}"
        for workload, contender, times, shift, how in cases
        for n in ((0, 1) if times == 1 else (1, 2))
    ]
    counts = counted(lines)
    pairs = zip(cases, counts[::2], counts[1::2], strict=True)
    return [(second - first) / case[2] for case, first, second in pairs]


def collect(fast=False):
    """Count; return a suite with a benchmark of each workload and contender."""
    workloads, shifts = (("list",), SHIFTS[:1]) if fast else (COUNTED, SHIFTS)
    cases = [
        (w, c, REQUESTS if WORKLOADS[w].chunks == 1 else STREAMS, shift, "serve")
        for w in workloads
        for c in FEW
        for shift in shifts
    ]
    found = {}
    for (workload, contender, *_), count in zip(cases, per_request(cases), strict=True):
        per_chunk = round(count / WORKLOADS[workload].chunks)
        found.setdefault(f"{workload}: {contender}", []).append(per_chunk)
    return pyperf.BenchmarkSuite(
        [pyperf.Benchmark([run(name, counts, unit="integer")]) for name, counts in found.items()]
    )


def summarise(suite):
    """The counts, and the two ratios of ours: to what the recipe adds, and to the bare app."""
    names = [name.partition(": ")[0] for name in suite.get_benchmark_names()]
    return {
        "machine": machine(suite),
        "workloads": {name: of_workload(suite, name) for name in dict.fromkeys(names)},
    }


def of_workload(suite, workload):
    """The counts of one workload: of the bare app, and what the others add; and the ratios."""
    bare, recipe, ours = (
        round(statistics.median(suite.get_benchmark(f"{workload}: {contender}").get_values()))
        for contender in FEW
    )
    return {
        "bare": bare,
        "recipe": recipe - bare,
        "ours": ours - bare,
        "of the recipe": round((ours - bare) / (recipe - bare), 4),
        "of the bare app": round((ours - bare) / bare, 4),
    }


def report(figures):
    """The table, and what it was counted on."""
    header = ["instructions", "bare", *(f"+{CONTENDERS[c].title}" for c in FEW[1:]), "ratio"]
    rows = [
        [
            WORKLOADS[workload].title,
            *(f"{of[contender]:,}" for contender in FEW),
            f"{of['of the recipe']:.3f}",
        ]
        for workload, of in figures["workloads"].items()
    ]
    return f"{figures['machine']}\n\n{table(header, rows)}"


def minor():
    """The minor version of this Python: each has bounds of its own."""
    return "{}.{}".format(*sys.version_info)


def counted_on():
    """What the counts depend on, besides the code."""
    return f"{build()}, werkzeug {version('werkzeug')}"


def bounds():
    """The bounds of this minor version; ``None`` if it has none."""
    return json.loads(BOUNDS.read_text(encoding="utf-8")).get(minor())


def update(figures):
    """Write what was counted into the file of bounds."""
    known = json.loads(BOUNDS.read_text(encoding="utf-8")) if BOUNDS.exists() else {}
    known[minor()] = {
        "counted on": counted_on(),
        **{
            workload: {kind: of[kind] for kind in ("of the recipe", "of the bare app")}
            for workload, of in figures["workloads"].items()
        },
    }
    text = json.dumps(dict(sorted(known.items())), indent=2) + "\n"
    BOUNDS.write_text(text, encoding="utf-8")


def broken(figures, known):
    """A line for each ratio that is out of its bounds, in either direction."""
    return [
        f"{workload}: {ratio:.4f} {kind}, where it was {known[workload][kind]:.4f} "
        f"({ratio / known[workload][kind] - 1:+.1%}; it may be "
        f"-{LOOSE:.0%} to +{ROOM:.0%})"
        for workload, of in figures["workloads"].items()
        for kind, ratio in of.items()
        if kind in known[workload] and not 1 - LOOSE <= ratio / known[workload][kind] <= 1 + ROOM
    ]


def advice(lines, known):
    """What to do about them."""
    return "\n".join(
        [
            f"Instructions of one request, wsgi_after over the bare app, on {counted_on()}:",
            *lines,
            f"The bounds in benchmarks/bounds.json were counted on {known['counted on']}.",
            "More than there was: look for what the change adds to every request, by "
            "'python -m benchmarks.instructions' before and after it. If it is worth its cost, say "
            "so in the commit, and run 'python -m benchmarks.instructions --update' with each "
            "Python that has bounds. Less: run that, so that it stays as it is now.",
            "If all moved alike, Python or werkzeug did: run it, too.",
        ]
    )


def check():
    """The text to print if a ratio is out of its bounds, else an empty one."""
    known = bounds()
    figures = summarise(collect())
    lines = broken(figures, known)
    return advice(lines, known) if lines else ""


if __name__ == "__main__":
    if "--update" in sys.argv:
        update(summarise(collect()))
    elif "--check" in sys.argv:
        sys.exit(check() or 0)  # an empty text would be a failure
    else:
        main(sys.modules["__main__"])
