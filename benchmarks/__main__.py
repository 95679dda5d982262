"""``python -m benchmarks [--fast] [--json DIR] [--write]``: all of them, one after the other."""

from . import (
    ablation,
    growth,
    imports,
    instructions,
    latency,
    memory,
    report,
    request,
    throughput,
)

BENCHMARKS = (request, ablation, instructions, memory, growth, imports, latency, throughput)


if __name__ == "__main__":
    report.main(*BENCHMARKS)
