"""``python -m benchmarks [--fast] [--json DIR]``: all of them, one after the other."""

import shutil

from . import imports, instructions, latency, request


def main():
    """Run all; without valgrind, say that the instructions are not counted."""
    request.main()
    print()
    imports.main()
    print()
    latency.main()
    print()
    if shutil.which("valgrind") is None:
        print("Instructions were not counted: valgrind is not installed.")
    else:
        instructions.main()


if __name__ == "__main__":
    main()
