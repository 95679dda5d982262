"""How the cost grows: with requests in flight, callbacks of a request, chunks of a response.

In instructions, which repeat, as :mod:`benchmarks.instructions` counts them; callbacks in time, as
:mod:`benchmarks.request` takes it, because taking the first one out of a list moves the others:
many instructions that take next to no time. The slope between two points is what one more costs
there. The cost is linear if no slope is much steeper than an earlier one, except the first, which
includes the fixed cost.
"""

import statistics
import sys
from itertools import combinations, pairwise

import pyperf

from .contenders import CONTENDERS, FEW
from .instructions import per_request
from .report import machine, main, run, table, workers
from .request import WARMUPS, server, take_turns

#: Title, workload, how it is served, and how many of what.
GROWTHS = {
    "in flight": ("requests in flight", "list", "hold", (1, 10, 100, 1000)),
    "callbacks": ("callbacks of a request", "callbacks-{}", "serve", (0, 1, 10, 100, 1000)),
    "chunks": ("chunks", "chunks-{}", "serve", (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)),
}
#: From so many chunks on, a single request is counted: it takes a minute.
ONCE = 100_000
#: How much steeper a slope may be: memory is allocated anew, and caches are outgrown.
STEEPER = 0.25


def unit(growth):
    """The unit of its cost."""
    return "nanoseconds" if growth == "callbacks" else "instructions"


def points(growth, fast):
    """How many are counted."""
    return GROWTHS[growth][3][:4] if fast else GROWTHS[growth][3]


def case(growth, contender, number):
    """What is counted at one point, for :func:`~benchmarks.instructions.per_request`."""
    _, workload, how, _ = GROWTHS[growth]
    times = number if how == "hold" else min(100, max(2, 2000 // max(1, number)))
    if number >= ONCE:
        times = 1
    return workload.format(number), contender, times, 0, how


def collect(fast=False):
    """Time, and count; return a suite with a benchmark of each point: the cost of all of them."""
    processes, rounds = (1, 5) if fast else (4, 20)
    suite = workers(
        __spec__.name, *([rounds, *points("callbacks", fast)] for _ in range(processes))
    )
    wanted = [
        (growth, contender, number)
        for growth in GROWTHS
        if unit(growth) == "instructions"
        for contender in FEW
        for number in points(growth, fast)
    ]
    counts = per_request([case(*one) for one in wanted])
    for (g, c, n), count in zip(wanted, counts, strict=True):
        # Of one request, or of those that are in flight together.
        instructions = round(count * n if GROWTHS[g][2] == "hold" else count)
        counted = run(f"{g}: {c}: {n}", [instructions], unit="integer")
        suite.add_benchmark(pyperf.Benchmark([counted]))
    return suite


def measure(rounds, numbers):
    """Let the contenders take turns with so many callbacks; return a suite with a run of each."""
    servers = {(c, n): server(f"callbacks-{n}", c) for c in FEW for n in numbers}
    taken, loops = take_turns(servers, WARMUPS + rounds)
    return pyperf.BenchmarkSuite(
        [
            pyperf.Benchmark([run(f"callbacks: {c}: {n}", taken[c, n][WARMUPS:], loops[c, n])])
            for c, n in servers
        ]
    )


def summarise(suite):
    """Points of each growth: how many, and the cost of them all, by contender."""
    counts = {}
    for benchmark in suite:
        growth, contender, number = benchmark.get_name().split(": ")
        values = counts.setdefault(growth, {}).setdefault(contender, [])
        cost = statistics.median(benchmark.get_values())
        values.append([int(number), round(cost * 1e9 if unit(growth) == "nanoseconds" else cost)])
    return {"machine": machine(suite), "growths": counts}


def slopes(points):
    """What one more costs, between each two points."""
    return [(second[1] - first[1]) / (second[0] - first[0]) for first, second in pairwise(points)]


def is_linear(points):
    """Whether later ones cost no more than earlier ones, except for what the machine adds."""
    _, *found = slopes(points)
    return all(later <= (1 + STEEPER) * sooner for sooner, later in combinations(found, 2))


def told(values):
    """The slopes, as text."""
    return " ".join(f"{value:,.0f}" for value in values)


def report(figures):
    """A table of slopes for each growth."""
    header = ["what grows", "range", "contender", "cost of one more", "unit", "linear"]
    rows = [
        [
            GROWTHS[growth][0],
            f"{of[contender][0][0]} to {of[contender][-1][0]:,}",
            CONTENDERS[contender].title,
            told(slopes(of[contender])),
            unit(growth),
            "yes" if is_linear(of[contender]) else "no",
        ]
        for growth, of in figures["growths"].items()
        for contender in FEW
    ]
    return f"{figures['machine']}\n\n{table(header, rows)}"


def plot(figures, drawing):
    """A line for each contender, with logarithmic axes: linear is a slope of one."""
    for axes, (growth, of) in zip(
        drawing.subplots(1, len(GROWTHS)), figures["growths"].items(), strict=True
    ):
        for contender, colour in zip(FEW, ("tab:green", "tab:gray", "tab:blue"), strict=True):
            numbers, counts = zip(*of[contender], strict=True)
            axes.plot(numbers, counts, marker=".", color=colour, label=CONTENDERS[contender].title)
        axes.set(xscale="symlog", yscale="log", xlabel=GROWTHS[growth][0], ylabel=unit(growth))
    axes.legend()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        rounds, *numbers = map(int, sys.argv[2:])
        measure(rounds, numbers).dump(sys.stdout)
    else:
        main(sys.modules["__main__"])
