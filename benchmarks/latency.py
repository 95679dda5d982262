"""Time to the last byte, and to the next response on the connection, with 50 ms of work to do.

The work is done in the view, in Flask's ``after_request``, in a callback, and in a callback that an
executor takes, on two servers. Each round goes through all of them, so what the machine does
meanwhile affects all alike. With a Content-Length, the ways differ in the next response; without
one, some servers make the client wait for ``close()``.
"""

import http.client
import sys
import time
from importlib.metadata import version

import pyperf

from .report import machine, main, run, table
from .servers import HOST, serving

WARMUPS = 2  # rounds
APP = "benchmarks.latency_app:application"
SERVERS = {
    "gunicorn gthread": ["gunicorn", "--threads=4", "--bind={host}:{port}", APP],
    "waitress": ["waitress", "--listen={host}:{port}", APP],
}
RESPONSES = {"sized": "Content-Length", "stream": "no Content-Length"}
WAYS = {
    "none": "nothing to do",
    "view": "in the view",
    "after_request": "Flask after_request",
    "callback": "callback, in close()",
    "executor": "callback, executor=pool",
}
MEASURES = ("last byte", "next response")


def get(connection, path):
    """Seconds from the request to the last byte of its response."""
    start = time.perf_counter()
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    taken = time.perf_counter() - start
    if response.status != 200:
        sys.exit(f"{path}: {response.status} {response.reason}")
    return taken


def measure(port, way, response):
    """Seconds of a request, and of one without work right after it on the same connection."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        return get(connection, f"/{way}/{response}"), get(connection, "/none/sized")
    finally:
        connection.close()


def collect(fast=False):
    """Measure; return a suite with a benchmark of each server, response, way and measure."""
    rounds = 3 if fast else 100
    cells = {(s, r, w): [] for s in SERVERS for r in RESPONSES for w in WAYS}
    with (
        serving(SERVERS["gunicorn gthread"]) as gunicorn,
        serving(SERVERS["waitress"]) as waitress,
    ):
        ports = {"gunicorn gthread": gunicorn, "waitress": waitress}
        for _ in range(WARMUPS + rounds):
            for (server, response, way), taken in cells.items():
                taken.append(measure(ports[server], way, response))
    return pyperf.BenchmarkSuite(
        [
            result(cell, name, [pair[number] for pair in taken[WARMUPS:]])
            for cell, taken in cells.items()
            for number, name in enumerate(MEASURES)
        ]
    )


def result(cell, measure, values):
    """The benchmark of one cell, with its percentiles, for plots."""
    server, response, way = cell
    metadata = {
        "server": server,
        "server_version": version(server.split()[0]),
        "response": response,
        "way": way,
        "measure": measure,
        "p50": percentile(values, 50),
        "p99": percentile(values, 99),
    }
    return pyperf.Benchmark([run(name(cell, measure), values, metadata=metadata)])


def name(cell, measure):
    """What a benchmark is called in the file."""
    return f"{': '.join(cell)}: {measure}"


def percentile(values, percent):
    """The value that so many percent of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def summarise(suite):
    """Milliseconds: p50 and p99 of both measures, by server, response and way."""
    known = {b.get_name(): b.get_metadata() for b in suite}
    versions = [f"{name} {version(name)}" for name in ("gunicorn", "waitress", "flask")]
    return {
        "machine": machine(suite, *versions),
        "rounds": suite.get_benchmarks()[0].get_nvalue(),
        "servers": {
            server: {r: {w: cell(known, (server, r, w)) for w in WAYS} for r in RESPONSES}
            for server in SERVERS
        },
    }


def cell(known, of):
    """The figures of one way."""
    return [
        round(known[name(of, measure)][percent] * 1000, 1)
        for measure in MEASURES
        for percent in ("p50", "p99")
    ]


def report(figures):
    """The tables, and what they were measured on."""
    header = ["50 ms of work", "last byte p50", "p99", "next response p50", "p99"]
    tables = [
        f"{server}, {RESPONSES[r]}:\n\n"
        + table(header, [[WAYS[way], *map(str, ways[way])] for way in WAYS])
        for server, responses in figures["servers"].items()
        for r, ways in responses.items()
    ]
    first = f"Milliseconds, {figures['rounds']} rounds. {figures['machine']}"
    return "\n\n".join([first, *tables])


def plot(figures, drawing):
    """Bars: the median until the last byte, and until the next response."""
    axes = drawing.subplots(1, len(SERVERS) * len(RESPONSES), sharey=True)
    cells = [(s, r) for s in SERVERS for r in RESPONSES]
    for one, (server, response) in zip(axes, cells, strict=True):
        ways = figures["servers"][server][response]
        for shift, number, colour in ((-0.2, 0, "tab:blue"), (0.2, 2, "tab:orange")):
            places = [place + shift for place in range(len(WAYS))]
            values = [ways[way][number] for way in WAYS]
            one.barh(places, values, 0.4, color=colour, label=MEASURES[number // 2])
        one.set_yticks(range(len(WAYS)), WAYS.values())
        one.set(xlabel="ms", title=f"{server},\n{RESPONSES[response]}")
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=7)


if __name__ == "__main__":
    main(sys.modules["__main__"])
