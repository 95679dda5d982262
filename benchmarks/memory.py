"""Bytes of one request in flight: its app was called, its response not yet sent.

Traced by ``tracemalloc``, in a new interpreter for each figure: a thousand requests at once,
without what was there before the first and stays after the last. Each figure includes the copy of
the environ that the server makes.
"""

import gc
import sys
import tracemalloc

import pyperf

from .contenders import CONTENDERS, FEW
from .report import machine, main, run, table, workers
from .workloads import WORKLOADS, hold, serve

#: The workloads that are in flight between the call of the app and the end of its response.
MEASURED = ("list", "list-1", "list-3", "object", "wrapper", "app-wide")
REQUESTS = 1000


def traced(workload, contender):
    """Bytes that the requests take while they are in flight."""
    of = WORKLOADS[workload]
    app = CONTENDERS[contender].make(of)
    serve(app, 100, of.environ)  # so that what is made once is there
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    end = hold(app, REQUESTS, of.environ)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    end()
    return taken


def measure(workload, contender):
    """One figure, in bytes."""
    value = traced(workload, contender) / REQUESTS
    found = run(f"{workload}: {contender}", [value], unit="byte")
    return pyperf.BenchmarkSuite([pyperf.Benchmark([found])])


def collect(fast=False):
    """Run the workers, one at a time."""
    workloads = ("list",) if fast else MEASURED
    return workers(__spec__.name, *([w, contender] for w in workloads for contender in FEW))


def summarise(suite):
    """Bytes of the bare app, and of the others over it."""
    bytes_of = {b.get_name(): round(b.get_values()[0]) for b in suite}
    names = dict.fromkeys(name.partition(": ")[0] for name in bytes_of)
    return {
        "machine": machine(suite),
        "workloads": {
            workload: {
                contender: bytes_of[f"{workload}: {contender}"]
                - (0 if contender == "bare" else bytes_of[f"{workload}: bare"])
                for contender in FEW
            }
            for workload in names
        },
    }


def report(figures):
    """The table, and what it was measured on."""
    header = ["bytes in flight", "bare", *(f"+{CONTENDERS[c].title}" for c in FEW[1:])]
    rows = [
        [WORKLOADS[workload].title, *(f"{of[contender]:,}" for contender in FEW)]
        for workload, of in figures["workloads"].items()
    ]
    return f"{figures['machine']}\n\n{table(header, rows)}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        measure(*sys.argv[2:]).dump(sys.stdout)
    else:
        main(sys.modules["__main__"])
