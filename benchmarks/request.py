"""Time of one request over the bare app: this package beside the recipe, and beside others.

pyperf measures one benchmark after the other, minutes apart, on a machine that does not stay the
same for minutes: a ratio of two of its results says little. So here each worker process lets the
contenders take turns, a few milliseconds each, and the ratio is that of one round. There are
several worker processes, because the layout of memory differs between them; each has one workload,
as in a deployment. Their results are collected as runs of pyperf, with the metadata of the worker.
"""

import importlib.util
import sys
from time import thread_time

import pyperf

from .contenders import CONTENDERS
from .report import machine, main, quartiles, run, spread, table, turns, workers
from .workloads import WORKLOADS

#: How long one turn of a contender takes: short compared with the changes of the machine's speed,
#: long compared with the clock and with the caches that the others left.
TURN = 0.004  # seconds
WARMUPS = 3  # rounds


def server(workload, contender, make=None):
    """Return a function that serves the workload behind the contender, a number of times.

    :param make: makes the app to call, as a contender does; by default, that contender's.

    Each has the code of app and server to itself: the interpreter specialises code for what passes
    there, which in a deployment is only one contender's.
    """
    spec = importlib.util.find_spec("benchmarks.workloads")
    workloads = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(workloads)
    own = workloads.workload(workload)
    app = (make or CONTENDERS[contender].make)(own)
    return lambda times: workloads.serve(app, times, own.environ, own.start_response)


def timed(serve, times):
    """The CPU seconds that so many requests take in this thread, without those of others."""
    start = thread_time()
    serve(times)
    return thread_time() - start


def calibrate(serve):
    """How many requests make a turn."""
    times = 1
    while timed(serve, times) < TURN / 2:
        times *= 2
    return times


def contenders(workload):
    """The contenders that have what the workload needs."""
    return [name for name, one in CONTENDERS.items() if one.serves(WORKLOADS[workload])]


def take_turns(servers, rounds):
    """Seconds a request of each server, in each round, and how many requests made a turn."""
    loops = {name: calibrate(serve) for name, serve in servers.items()}
    taken = {name: [] for name in servers}
    for number in range(rounds):
        for name in turns(servers, number):
            taken[name].append(timed(servers[name], loops[name]) / loops[name])
    return taken, loops


def measure(workload, rounds):
    """Let the contenders take turns; return a suite with a run of each."""
    servers = {contender: server(workload, contender) for contender in contenders(workload)}
    taken, loops = take_turns(servers, WARMUPS + rounds)
    return pyperf.BenchmarkSuite(
        [pyperf.Benchmark([result(workload, c, taken[c], loops[c])]) for c in servers]
    )


def result(workload, contender, taken, loops):
    """The turns of one contender in one worker process, in seconds a request (or a chunk)."""
    chunks = WORKLOADS[workload].chunks
    taken = [seconds / chunks for seconds in taken]
    packages = [one.package for one in CONTENDERS.values() if one.package]
    return run(
        f"{workload}: {contender}",
        taken[WARMUPS:],
        loops,
        warmups=[(loops, seconds) for seconds in taken[:WARMUPS]],
        metadata={"inner_loops": chunks},
        packages=[*packages, "flask", "django"],
    )


def collect(fast=False):
    """Run the workers, one at a time."""
    processes, rounds = (1, 5) if fast else (8, 20)
    return workers(__spec__.name, *([w, rounds] for _ in range(processes) for w in WORKLOADS))


def summarise(suite):
    """Quartiles, in nanoseconds, and those of the ratios to the recipe."""
    rounds = suite.get_benchmarks()[0].get_nvalue()
    return {
        "machine": machine(suite),
        "rounds": f"Medians of {rounds} rounds in {suite.get_benchmarks()[0].get_nrun()} processes",
        "build": suite.get_benchmarks()[0].get_metadata()["build"],
        "workloads": {workload: of_workload(suite, workload) for workload in WORKLOADS},
    }


def of_workload(suite, workload):
    """Nanoseconds of the bare app, and what each other adds; the ratio of ours to the recipe."""
    times = {
        contender: [
            seconds * 1e9
            for seconds in suite.get_benchmark(f"{workload}: {contender}").get_values()
        ]
        for contender in contenders(workload)
    }
    over = {
        contender: [time - bare for time, bare in zip(taken, times["bare"], strict=True)]
        for contender, taken in times.items()
        if contender != "bare"
    }
    figures = {
        contender: [round(time, 1) for time in quartiles(taken)]
        for contender, taken in {"bare": times["bare"], **over}.items()
    }
    if "recipe" in over:
        ratios = [o / r for o, r in zip(over["ours"], over["recipe"], strict=True)]
        figures["ratio"] = [round(ratio, 3) for ratio in quartiles(ratios)]
    return figures


def sentence(figures):
    """What the middleware adds to a request: in microseconds, and as a share of a real one."""
    workloads = figures["workloads"]
    told = [added(name, workloads[f"{name.lower()}-request"]) for name in ("Flask", "Django")]
    alone, one = (workloads[workload]["ours"][1] / 1000 for workload in ("list", "list-1"))
    return (
        f"The middleware adds {', and '.join(told)}. In a loop of small requests, where all code "
        f"stays in the processor's caches, it adds {alone:.1f} µs, or {one:.1f} µs with one "
        f"callback. Measured on {figures['build']}, with one view in each app, without a server."
    )


def added(name, figures):
    """What it adds to one framework's request."""
    ours, whole = figures["ours"][1], figures["bare"][1]
    return f"{ours / 1000:.1f} µs to a {name} request of {whole / 1000:.0f} µs ({ours / whole:.0%})"


def cell(contender, figures):
    """One cell of the table of times."""
    if contender not in figures:
        return "cannot"
    low, median, high = figures[contender]
    return f"{median:,.0f}" if high - low < median else "not measurable"


def row(workload, figures):
    """One line of the table of times."""
    return [WORKLOADS[workload].title, *(cell(contender, figures) for contender in CONTENDERS)]


def ratio_row(workload, figures):
    """One line of the table of ratios."""
    low, ratio, high = figures["ratio"]
    measurable = cell("ours", figures) != "not measurable" != cell("recipe", figures)
    told = [f"{ratio:.2f}", spread(low, ratio, high)] if measurable else ["not measurable", ""]
    return [WORKLOADS[workload].title, *told]


def report(figures):
    """The tables, and what they were measured on."""
    workloads = figures["workloads"]
    header = ["nanoseconds", "bare", *(f"+{c.title}" for c in list(CONTENDERS.values())[1:])]
    ratios = [ratio_row(workload, of) for workload, of in workloads.items() if "ratio" in of]
    return "\n\n".join(
        [
            "\n".join(f"* {one.title}: {one.about}." for one in CONTENDERS.values()),
            f"{figures['rounds']}. {figures['machine']}",
            table(header, [row(workload, of) for workload, of in workloads.items()]),
            table(["wsgi_after to the recipe", "ratio", "quartiles"], ratios),
        ]
    )


def plot(figures, drawing):
    """Bars: what each adds to a request of one chunk, and ours beside the recipe for all."""
    one, all_ = drawing.subplots(1, 2, width_ratios=[1, 1.6])
    added = {c: figures["workloads"]["list"][c][1] / 1000 for c in list(CONTENDERS)[1:]}
    names = [CONTENDERS[c].title for c in added]
    colours = ["tab:blue" if c == "ours" else "tab:gray" for c in added]
    one.barh(names, added.values(), color=colours)
    one.set(xscale="log", xlabel="µs over the bare app", title="List of one chunk")
    one.invert_yaxis()
    shown = {
        workload: of
        for workload, of in figures["workloads"].items()
        if workload != "stream" and "not measurable" != cell("recipe", of) != "cannot"
    }
    places = range(len(shown))
    for shift, contender, colour in ((-0.2, "ours", "tab:blue"), (0.2, "recipe", "tab:gray")):
        values = [of[contender][1] / 1000 for of in shown.values()]
        all_.barh(
            [place + shift for place in places],
            values,
            0.4,
            color=colour,
            label=CONTENDERS[contender].title,
        )
    all_.set_yticks(places, [WORKLOADS[workload].title for workload in shown])
    all_.set(xlabel="µs over the bare app", title="Beside the recipe")
    all_.invert_yaxis()
    # Below the axis, where no bar is.
    all_.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, fontsize=7)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        measure(sys.argv[2], int(sys.argv[3])).dump(sys.stdout)
    else:
        main(sys.modules["__main__"])
