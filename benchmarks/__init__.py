"""What the package costs. ``python -m benchmarks`` runs everything; each module runs alone, too.

* :mod:`benchmarks.request`: time of one request, and of one chunk of a stream;
* :mod:`benchmarks.instructions`: the same in instructions, which repeat exactly (needs valgrind);
* :mod:`benchmarks.imports`: time of ``import wsgi_after``, and what it loads.

Each prints a table beside its baseline, with the machine and the versions, and writes pyperf JSON
(``--json``), which ``python -m pyperf compare_to before.json after.json`` reads.
"""
