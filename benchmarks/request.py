"""Time of one request over the bare app: this package beside the recipe on ``ClosingIterator``.

pyperf measures one benchmark after the other, minutes apart, on a machine that is never the same
for minutes: a ratio of two of its results says little. So here each worker process lets the
contenders take turns, a few milliseconds each, and the ratio is that of one round. Many worker
processes, because the layout of memory differs from one to the next; one workload in each, as in
a deployment. What they measured is collected as runs of pyperf, with the metadata of the worker.
"""

import importlib.util
import statistics
import sys
from time import perf_counter

import pyperf

from .contenders import CONTENDERS
from .report import arguments, interpreter, machine, quartiles, run, table, write
from .workloads import WORKLOADS

#: How long one turn of a contender takes: short against the changes of the machine's speed, long
#: against the clock and against the caches that the others left.
TURN = 0.004  # seconds
WARMUPS = 3  # rounds

#: What the ratio to the recipe may be.
LIMITS = {"list": 0.70, "stream": 0.35}


def server(workload, contender):
    """Return a function that serves the workload behind the contender, a number of times.

    Each has the code of app and server to itself: the interpreter specialises it for what passes
    there, which in a deployment is one contender's only.
    """
    spec = importlib.util.find_spec("benchmarks.workloads")
    workloads = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(workloads)
    app = CONTENDERS[contender](workloads.WORKLOADS[workload])
    return lambda times: workloads.serve(app, times)


def timed(serve, times):
    """Seconds that so many requests take."""
    start = perf_counter()
    serve(times)
    return perf_counter() - start


def calibrate(serve):
    """How many requests make a turn."""
    times = 1
    while timed(serve, times) < TURN / 2:
        times *= 2
    return times


def measure(workload, rounds):
    """Let the contenders take turns; return a suite with a run of each."""
    servers = {contender: server(workload, contender) for contender in CONTENDERS}
    loops = calibrate(servers["bare"])
    taken = {contender: [] for contender in servers}
    for number in range(WARMUPS + rounds):
        # Another one begins each time: who comes after whom must not matter.
        turns = list(servers)[number % len(servers) :] + list(servers)[: number % len(servers)]
        for contender in turns:
            taken[contender].append(timed(servers[contender], loops) / loops)
    return pyperf.BenchmarkSuite(
        [pyperf.Benchmark([result(workload, c, taken[c], loops)]) for c in servers]
    )


def result(workload, contender, taken, loops):
    """The turns of one contender in one worker process, in seconds a request (or a chunk)."""
    chunks = WORKLOADS[workload].chunks
    taken = [seconds / chunks for seconds in taken]
    return run(
        f"{workload}: {contender}",
        taken[WARMUPS:],
        loops,
        warmups=[(loops, seconds) for seconds in taken[:WARMUPS]],
        metadata={"inner_loops": chunks},
    )


def collect(workloads, processes, rounds):
    """Run the workers, one at a time, and put their runs together."""
    suite = None
    for _ in range(processes):
        for workload in workloads:
            stdout, _ = interpreter("-m", __spec__.name, "--worker", workload, str(rounds))
            worker = pyperf.BenchmarkSuite.loads(stdout)
            if suite is None:
                suite = worker
            else:
                suite.add_runs(worker)
    return suite


def figures(suite, workload):
    """Nanoseconds by round: bare, recipe over bare, ours over bare; and the ratio of these two."""
    bare, recipe, ours = (
        [value * 1e9 for value in suite.get_benchmark(f"{workload}: {contender}").get_values()]
        for contender in ("bare", "recipe", "ours")
    )
    recipe = [r - b for r, b in zip(recipe, bare, strict=True)]
    ours = [o - b for o, b in zip(ours, bare, strict=True)]
    return bare, recipe, ours, [o / r for o, r in zip(ours, recipe, strict=True)]


def row(suite, workload):
    """One line of the table."""
    bare, recipe, ours, ratios = figures(suite, workload)
    low, ratio, high = quartiles(ratios)
    spread = f"{low:.2f}-{high:.2f}"
    if high - low > abs(1 - ratio):
        spread += " (wider than the difference)"
    limit = LIMITS.get(workload)
    times = [f"{statistics.median(values):,.0f} ns" for values in (bare, recipe, ours)]
    return [
        WORKLOADS[workload].title,
        *times,
        f"{ratio:.2f}",
        spread,
        "" if limit is None else f"{limit:.2f} {'held' if ratio <= limit else 'EXCEEDED'}",
    ]


def report(suite, workloads):
    """The table, and what it was measured on."""
    header = ["request", "bare", "recipe over it", "ours over it", "ratio", "quartiles", "limit"]
    rounds = suite.get_benchmarks()[0].get_nvalue()
    return (
        f"Time of one request. {machine(suite)}\n"
        f"Medians of {rounds} rounds in {suite.get_benchmarks()[0].get_nrun()} processes.\n\n"
        + table(header, [row(suite, workload) for workload in workloads])
    )


def main(argv=None):
    """Measure, print, write."""
    options = arguments(__doc__.splitlines()[0], argv)
    suite = collect(WORKLOADS, *((2, 10) if options.fast else (15, 45)))
    write(suite, options.json, "request")
    print(report(suite, WORKLOADS))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        measure(sys.argv[2], int(sys.argv[3])).dump(sys.stdout)
    else:
        main()
