"""Time of a response callback: nothing for a request that registers none.

The same cookie is set by a response callback and by the app itself, in turns; the first row is the
list of one chunk with nothing registered. Whether werkzeug was loaded by then is printed, too.
"""

import statistics
import sys

import pyperf

from .contenders import bare, ours
from .report import arguments, interpreter, machine, run, table, write
from .request import WARMUPS, calibrate, timed
from .workloads import BODY, Workload, list_app, serve

HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "14")]


def set_cookie(response):
    """The callback."""
    response.set_cookie("lang", "de")


def callback_app(environ, start_response):
    """A cookie, by a response callback."""
    environ["wsgi.after"].on_prepare(set_cookie)
    start_response("200 OK", HEADERS)
    return [BODY]


def cookie_app(environ, start_response):
    """The same cookie, by the app itself."""
    from werkzeug.http import dump_cookie

    start_response("200 OK", [*HEADERS, ("Set-Cookie", dump_cookie("lang", "de"))])
    return [BODY]


WAYS = {
    "bare app": bare(Workload("", list_app)),
    "nothing registered": ours(Workload("", list_app)),
    "a cookie by the app": ours(Workload("", cookie_app)),
    "a cookie by a response callback": ours(Workload("", callback_app)),
}


def measure(rounds):
    """Let the ways take turns; return a suite with a run of each."""
    unused = WAYS["nothing registered"]
    serve(unused, 100)
    loaded = "werkzeug" in sys.modules or "wsgi_after.prepare" in sys.modules
    loops = calibrate(lambda times: serve(WAYS["a cookie by a response callback"], times))
    taken = {way: [] for way in WAYS}
    for _ in range(WARMUPS + rounds):
        for way, app in WAYS.items():
            taken[way].append(timed(lambda times, app=app: serve(app, times), loops) / loops)
    metadata = {"loaded_unused": str(loaded)}
    return pyperf.BenchmarkSuite(
        [
            pyperf.Benchmark([run(way, taken[way][WARMUPS:], loops, metadata=metadata)])
            for way in WAYS
        ]
    )


def collect(processes, rounds):
    """Run the workers, one at a time, and put their runs together."""
    suite = None
    for _ in range(processes):
        stdout, _ = interpreter("-m", __spec__.name, "--worker", str(rounds))
        worker = pyperf.BenchmarkSuite.loads(stdout)
        if suite is None:
            suite = worker
        else:
            suite.add_runs(worker)
    return suite


def report(suite):
    """The table, and what it was measured on."""
    medians = {b.get_name(): statistics.median(b.get_values()) * 1e9 for b in suite}
    unused = medians["nothing registered"]
    rows = [[way, f"{ns:,.0f} ns", f"{ns - unused:+,.0f} ns"] for way, ns in medians.items()]
    loaded = suite.get_benchmarks()[0].get_metadata()["loaded_unused"] == "True"
    return (
        f"Time of a response callback. {machine(suite)}\n\n"
        + table(["request", "time", "over nothing registered"], rows)
        + f"\n\nWith nothing registered, werkzeug was {'' if loaded else 'not '}loaded."
    )


def main(argv=None):
    """Measure, print, write."""
    options = arguments(__doc__.splitlines()[0], argv)
    suite = collect(*((1, 5) if options.fast else (5, 30)))
    write(suite, options.json, "prepare")
    print(report(suite))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        measure(int(sys.argv[2])).dump(sys.stdout)
    else:
        main()
