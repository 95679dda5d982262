"""How the cost grows: with requests in flight, callbacks of a request, chunks of a response.

In instructions, which repeat, as :mod:`benchmarks.instructions` counts them. The slope between two
points is what one more costs there. The cost is linear if no slope is much steeper than the first
one that the fixed cost does not hide.
"""

import sys
from itertools import pairwise

import pyperf

from .contenders import CONTENDERS, FEW
from .instructions import per_request
from .report import machine, main, run, table

#: Title, workload, how it is served, and how many of what.
GROWTHS = {
    "in flight": ("requests in flight", "list", "hold", (1, 10, 100, 1000)),
    "callbacks": ("callbacks of a request", "callbacks-{}", "serve", (0, 1, 10, 100, 1000)),
    "chunks": ("chunks", "chunks-{}", "serve", (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)),
}
#: So many chunks are counted in a single request: they take a minute.
ONCE = 100_000
#: How much steeper it may become: of memory that is allocated anew, of caches that are outgrown.
STEEPER = 0.25


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
    """Count; return a suite with a benchmark of each point: instructions of all of them."""
    wanted = [
        (growth, contender, number)
        for growth in GROWTHS
        for contender in FEW
        for number in points(growth, fast)
    ]
    counts = per_request([case(*one) for one in wanted])
    return pyperf.BenchmarkSuite(
        [
            pyperf.Benchmark([run(f"{g}: {c}: {n}", [total(g, n, count)], unit="integer")])
            for (g, c, n), count in zip(wanted, counts, strict=True)
        ]
    )


def total(growth, number, count):
    """Instructions of all: of one request, or of those that are in flight together."""
    return round(count * number if GROWTHS[growth][2] == "hold" else count)


def summarise(suite):
    """Points of each growth: how many, and the instructions of them all, by contender."""
    counts = {}
    for benchmark in suite:
        growth, contender, number = benchmark.get_name().split(": ")
        values = counts.setdefault(growth, {}).setdefault(contender, [])
        values.append([int(number), round(benchmark.get_values()[0])])
    return {"machine": machine(suite), "growths": counts}


def slopes(points):
    """Instructions of one more, between each two points."""
    return [(second[1] - first[1]) / (second[0] - first[0]) for first, second in pairwise(points)]


def is_linear(points):
    """Whether the last one costs no more than those before it, by what the machine adds."""
    _, *found = slopes(points)
    return max(found) <= (1 + STEEPER) * min(found)


def told(values):
    """Slopes, or a range of them."""
    return " ".join(f"{value:,.0f}" for value in values)


def report(figures):
    """A table of slopes for each growth."""
    header = ["one more", "of how many", "contender", "slopes, in instructions", "linear"]
    rows = [
        [
            GROWTHS[growth][0],
            f"{of[contender][0][0]} to {of[contender][-1][0]:,}",
            CONTENDERS[contender].title,
            told(slopes(of[contender])),
            "yes" if is_linear(of[contender]) else "NO",
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
        axes.set(xscale="symlog", yscale="log", xlabel=GROWTHS[growth][0], ylabel="instructions")
    axes.legend()


if __name__ == "__main__":
    main(sys.modules["__main__"])
