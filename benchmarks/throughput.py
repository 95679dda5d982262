"""Requests per second on real servers, by wrk: bare, behind the recipe, behind this package.

Beside them the least wrapper, whose only work is to be no list, as anything that is to learn of
``close()``, and this package without what :mod:`benchmarks.ablation` leaves out. All run side by
side, each in a server of its own, and wrk asks one after the other, in turns of about a second:
what the machine does meanwhile meets all alike. A ratio is that of one round.

wrk takes part of the same machine, so it is the ratios that tell something.
"""

import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from tempfile import TemporaryDirectory

import pyperf

from .ablation import variants, without
from .contenders import CONTENDERS, FEW
from .report import machine, main, quartiles, run, spread, table, turns
from .servers import HOST, serving

APP = "benchmarks.throughput_app"
SIZE = 20_000_000  # bytes of the file
SERVERS = {
    "gunicorn gthread": (
        "gunicorn", "--threads=4", "--bind={host}:{port}", "--keep-alive=30", f"{APP}:{{app}}"
    ),
    "gunicorn, our GThread": (
        "gunicorn", "--worker-class=wsgi_after.gunicorn.GThread", "--threads=4",
        "--bind={host}:{port}", "--keep-alive=30", f"{APP}:{{app}}",
    ),
    "waitress, our serve": ("benchmarks.waitress_serve", "{host}", "{port}", f"{APP}:{{app}}"),
    "uWSGI": (
        "uwsgi", "--http-socket={host}:{port}", "--add-header=Connection: close",
        "--master", "--die-on-term", "--need-app",
        "--enable-threads", "--threads=4", "--disable-logging", f"--module={APP}:{{app}}",
    ),
    "granian": (
        "granian", "--interface=wsgi", "--host={host}", "--port={port}", "--no-ws",
        f"{APP}:{{app}}",
    ),
}  # fmt: skip
PACKAGES = ("gunicorn", "waitress", "uWSGI", "granian")
#: Server and path.
CASES = (
    *((server, path) for path in ("/hello", "/") for server in SERVERS),
    ("gunicorn gthread", "/file"),
    ("uWSGI", "/file"),
)
TITLES = {contender: CONTENDERS[contender].title for contender in FEW}
TITLES |= {"least": "least wrapper", "ablated": "ablated"}
WHAT = {"/": "greeting", "/hello": "Flask's greeting", "/file": "20 MB file"}


def wrk(port, path):
    """Requests per second that the server answered; stop if one of them failed."""
    connections = 2 if path == "/file" else 4
    command = ["wrk", "--threads=1", f"--connections={connections}", "--duration=1s"]
    command.append("--timeout=30s")  # a busy machine is no failure
    done = subprocess.run(
        [*command, f"http://{HOST}:{port}{path}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    if failed := re.search(r"Non-2xx.*|Socket errors: .*", done.stdout):
        sys.exit(f"{path}: {failed[0]}")
    return float(re.search(r"Requests/sec: +([\d.]+)", done.stdout)[1])


def measure(server, path, environs, starts, rounds):
    """Requests per second of each contender, by round, of so many rounds after each start.

    They start anew because a process that happens to be slower stays so as long as it lives.

    :param environs: the environment variables of each contender's server.
    """
    found = {contender: [] for contender in TITLES}
    for _ in range(starts):
        with ExitStack() as stack:
            ports = {
                c: stack.enter_context(serving(command(server, c), **environs[c])) for c in TITLES
            }
            for number in range(1 + rounds):
                for contender in turns(TITLES, number):
                    rate = wrk(ports[contender], path)
                    if number > 0:  # the first warmed up
                        found[contender].append(rate)
    return found


def command(server, contender):
    """How the server is started with the app of a contender."""
    return [part.replace("{app}", contender) for part in SERVERS[server]]


def collect(fast=False):
    """Measure; return a suite with a benchmark of each case and contender: seconds a request."""
    if shutil.which("wrk") is None:
        sys.exit("Throughput cannot be measured: wrk is not installed.")
    benchmarks = []
    with TemporaryDirectory() as directory:
        file = f"{directory}/file"
        with open(file, "wb") as content:
            content.write(b"0123456789abcdef" * (SIZE // 16))
        environs = {contender: {"BENCHMARK_FILE": file} for contender in TITLES}
        copy = without(variants("list")["all of these"], f"{directory}/copy")
        environs["ablated"]["BENCHMARK_COPY"] = copy
        for server, path in CASES:
            found = measure(server, path, environs, *((1, 2) if fast else (4, 4)))
            for contender, rates in found.items():
                values = [1 / rate for rate in rates]
                name = f"{server}: {path}: {contender}"
                packages = ("werkzeug", *PACKAGES)
                benchmarks.append(pyperf.Benchmark([run(name, values, packages=packages)]))
    return pyperf.BenchmarkSuite(benchmarks)


def summarise(suite):
    """Medians of requests per second, and the quartiles of the ratios to the bare app."""
    done = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return {
        "machine": machine(suite, " ".join((done.stdout + done.stderr).split()[:2])),
        "rounds": suite.get_benchmarks()[0].get_nvalue(),
        "cases": [of_case(suite, *case) for case in CASES],
    }


def of_case(suite, server, path):
    """The figures of one server and path."""
    rates = {
        c: [1 / s for s in suite.get_benchmark(f"{server}: {path}: {c}").get_values()]
        for c in TITLES
    }
    ratios = {
        c: [round(q, 3) for q in quartiles([a / b for a, b in pairs(rates[c], rates["bare"])])]
        for c in TITLES
        if c != "bare"
    }
    medians = {c: round(quartiles(values)[1], 1) for c, values in rates.items()}
    return {"server": server, "path": path, "rates": medians, "ratios": ratios}


def pairs(values, others):
    """Those of the same round."""
    return zip(values, others, strict=True)


def row(case):
    """One line of the table."""
    low, ratio, high = case["ratios"]["ours"]
    return [
        f"{case['server']}, {WHAT[case['path']]}",
        f"{case['rates']['bare']:,.0f}",
        *(f"{case['ratios'][c][1]:.3f}" for c in ("recipe", "least", "ablated")),
        f"{ratio:.3f}",
        spread(low, ratio, high),
    ]


def report(figures):
    """The table, and what it was measured on."""
    ratios = ["recipe/bare", "least/bare", "ablated/bare", "wsgi_after/bare", "quartiles"]
    header = ["requests a second", "bare", *ratios]
    return f"Medians of {figures['rounds']} rounds. {figures['machine']}\n\n" + table(
        header, [row(case) for case in figures["cases"]]
    )


def plot(figures, drawing):
    """Ratios to the bare app, with their quartiles."""
    axes = drawing.subplots()
    colours = {"recipe": "gray", "least": "green", "ablated": "orange", "ours": "blue"}
    for shift, (contender, colour) in zip((-0.3, -0.1, 0.1, 0.3), colours.items(), strict=True):
        for place, case in enumerate(figures["cases"]):
            low, ratio, high = case["ratios"][contender]
            label = None if place else TITLES[contender]
            error = [[ratio - low], [high - ratio]]
            axes.errorbar(
                ratio, place + shift, xerr=error, fmt="o", color=f"tab:{colour}", label=label
            )
    axes.axvline(1, color="black", linewidth=0.5)
    names = [f"{case['server']}, {WHAT[case['path']]}" for case in figures["cases"]]
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="requests a second, over those of the bare app")
    axes.invert_yaxis()
    axes.legend()


if __name__ == "__main__":
    main(sys.modules["__main__"])
