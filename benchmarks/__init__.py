"""What the package costs. ``python -m benchmarks`` measures it all; each module also runs alone.

* :mod:`benchmarks.request`: time of one request, and of one chunk of a stream, beside others;
* :mod:`benchmarks.ablation`: what each part of the contract costs;
* :mod:`benchmarks.instructions`: the same in instructions, which repeat (needs valgrind);
* :mod:`benchmarks.memory`: bytes of one request in flight;
* :mod:`benchmarks.growth`: how instructions and bytes grow (needs valgrind);
* :mod:`benchmarks.imports`: time of ``import wsgi_after``, and what it loads;
* :mod:`benchmarks.latency`: who waits for 50 ms of work, on two servers;
* :mod:`benchmarks.throughput`: requests per second on four servers (needs wrk and uWSGI).

Each has ``collect(fast)``, which measures and returns a pyperf suite; ``summarise(suite)``, which
returns the figures to show, as JSON has them; ``report(figures)``, which returns the tables; and
some have ``plot(figures, drawing)``. The tables name the machine and the versions.

``--json DIR`` writes the suites, which ``python -m pyperf compare_to before.json after.json``
reads. ``--write`` writes figures, tables and plots into ``docs/``.
"""
