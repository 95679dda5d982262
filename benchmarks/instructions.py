"""Instructions of one request over the bare app, counted by ``valgrind --tool=callgrind``.

A count does not depend on what else the machine does. It is no time, either: a jump that is
predicted wrong counts as one that is not.

One interpreter imports everything, and forks for each count: one child serves N requests, the next
2N, and the difference is that of N. Starting, importing and warming up drop out.
"""

import re
import shutil
import sys

import pyperf

from .contenders import CONTENDERS
from .report import arguments, interpreter, machine, run, table, write
from .workloads import WORKLOADS

REQUESTS = 400
STREAMS = 5  # requests, of many chunks each

#: CPython caches the attributes of types in a table without buckets. If two that a request needs
#: fall into the same place, it costs 5 % more; where they fall depends on how many types were used
#: before. So the count is the median of a few, with so many more types used before each.
SHIFTS = range(5)

#: Takes lines of workload, contender, number of requests, shift; forks a child for each. The
#: garbage collector begins at nought in each: one collection that falls into the 2N requests but
#: not into the N would add some hundred instructions to each.
SERVE = """
import gc, os, sys
from benchmarks.contenders import CONTENDERS
from benchmarks.workloads import WORKLOADS, serve
for line in sys.argv[1:]:
    workload, contender, times, shift = line.split()
    app = CONTENDERS[contender](WORKLOADS[workload])
    gc.collect()
    gc.freeze()
    child = os.fork()
    if not child:
        for _ in range(int(shift)):
            hasattr(type("Shift", (), {})(), "attribute")
        serve(app, int(times))
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{line}: the app failed")
"""

VALGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")


def requests(workload):
    """The smaller of the numbers of requests that are served."""
    return REQUESTS if WORKLOADS[workload].chunks == 1 else STREAMS


def counted(lines):
    """Instructions of the child that serves each line, those before the fork included."""
    _, stderr = interpreter("-c", SERVE, *lines, prefix=VALGRIND, PYTHONHASHSEED="0")
    counts = [int(count) for count in re.findall(r"Collected : (\d+)", stderr)]
    return counts[: len(lines)]  # the last is the parent's


def collect(workloads, shifts):
    """Count; return a suite with a benchmark of each workload and contender."""
    cases = [(w, c, shift) for w in workloads for c in CONTENDERS for shift in shifts]
    lines = [f"{w} {c} {n * requests(w)} {shift}" for w, c, shift in cases for n in (1, 2)]
    counts = counted(lines)
    found = {}
    for (workload, contender, _), a, b in zip(cases, counts[::2], counts[1::2], strict=True):
        found.setdefault((workload, contender), []).append(b - a)
    return pyperf.BenchmarkSuite([result(*case, counts) for case, counts in found.items()])


def result(workload, contender, differences):
    """The benchmark of one contender: instructions of one request, or of one chunk."""
    served = requests(workload) * WORKLOADS[workload].chunks
    counts = [round(difference / served) for difference in differences]
    return pyperf.Benchmark([run(f"{workload}: {contender}", counts, unit="integer")])


def row(suite, workload):
    """One line of the table."""
    bare, recipe, ours = (
        round(suite.get_benchmark(f"{workload}: {contender}").median())
        for contender in ("bare", "recipe", "ours")
    )
    over, ratio = (recipe - bare, ours - bare), (ours - bare) / (recipe - bare)
    return [WORKLOADS[workload].title, *(f"{count:,}" for count in (bare, *over)), f"{ratio:.3f}"]


def report(suite, workloads):
    """The table, and what it was counted on."""
    header = ["request", "bare", "recipe over it", "ours over it", "ratio"]
    rows = [row(suite, workload) for workload in workloads]
    return f"Instructions of one request. {machine(suite)}\n\n{table(header, rows)}"


def main(argv=None):
    """Count, print, write."""
    options = arguments(__doc__.splitlines()[0], argv)
    if shutil.which("valgrind") is None:
        sys.exit("Instructions cannot be counted: valgrind is not installed.")
    workloads = ["list"] if options.fast else list(WORKLOADS)
    suite = collect(workloads, SHIFTS[:1] if options.fast else SHIFTS)
    write(suite, options.json, "instructions")
    print(report(suite, workloads))


if __name__ == "__main__":
    main()
