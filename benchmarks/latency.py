"""Time to the last byte, and to the next response on the connection, with 50 ms of work to do.

The work is done in the view, in Flask's ``after_request``, in ``close()``, where the package does
it by default, and in an executor, on two servers. Each round goes through all of them, so what the
machine does meanwhile meets all alike. With a Content-Length, what tells the ways apart is the next
response; without one, some servers make the client wait for ``close()``.
"""

import http.client
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.metadata import version

import pyperf

from .report import ROOT, arguments, machine, run, table, write

HOST = "127.0.0.1"
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
    "close": "executor=None: in close()",
    "default": "default",
    "executor": "executor=pool",
}
MEASURES = ("last byte", "next response")


@contextmanager
def serving(server):
    """Run the server on a free port, which it yields, until the end of the block."""
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    command = [part.format(host=HOST, port=port) for part in SERVERS[server]]
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stderr=subprocess.PIPE)
    try:
        wait_until_ready(process, port)
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=30)


def wait_until_ready(process, port):
    """Return when the port answers."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((HOST, port)).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                sys.exit(f"The server did not start:\n{process.communicate()[1].decode()}")
            time.sleep(0.05)


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
    """Seconds of a request, and of one without work right behind it on the same connection."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        return get(connection, f"/{way}/{response}"), get(connection, "/none/sized")
    finally:
        connection.close()


def collect(rounds, warmups=2):
    """Measure; return a suite with a benchmark of each server, response, way and measure."""
    cells = {(s, r, w): [] for s in SERVERS for r in RESPONSES for w in WAYS}
    with serving("gunicorn gthread") as gunicorn, serving("waitress") as waitress:
        ports = {"gunicorn gthread": gunicorn, "waitress": waitress}
        for _ in range(warmups + rounds):
            for (server, response, way), taken in cells.items():
                taken.append(measure(ports[server], way, response))
    return pyperf.BenchmarkSuite(
        [
            result(cell, name, [pair[number] for pair in taken[warmups:]])
            for cell, taken in cells.items()
            for number, name in enumerate(MEASURES)
        ]
    )


def result(cell, measure, values):
    """The benchmark of one cell, with its percentiles, for who plots it."""
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


def row(suite, cell):
    """One line of the table, in milliseconds."""
    figures = [
        f"{percentile(suite.get_benchmark(name(cell, measure)).get_values(), percent) * 1000:.1f}"
        for measure in MEASURES
        for percent in (50, 99)
    ]
    return [WAYS[cell[2]], *figures]


def report(suite):
    """The tables, and what they were measured on."""
    rounds = suite.get_benchmarks()[0].get_nvalue()
    versions = ", ".join(f"{name} {version(name)}" for name in ("gunicorn", "waitress", "flask"))
    header = ["50 ms of work", "last byte p50", "p99", "next response p50", "p99"]
    tables = [
        f"{server}, {title}\n\n{table(header, [row(suite, (server, r, way)) for way in WAYS])}"
        for server in SERVERS
        for r, title in RESPONSES.items()
    ]
    return "\n\n".join([f"Milliseconds, {rounds} rounds. {versions}; {machine(suite)}", *tables])


def main(argv=None):
    """Measure, print, write."""
    options = arguments(__doc__.splitlines()[0], argv)
    suite = collect(3 if options.fast else 100)
    write(suite, options.json, "latency")
    print(report(suite))


if __name__ == "__main__":
    main()
