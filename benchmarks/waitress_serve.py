"""``python -m benchmarks.waitress_serve HOST PORT MODULE:APP``: waitress, with our ``serve``."""

import pkgutil
import sys

from wsgi_after.waitress import serve

if __name__ == "__main__":
    host, port, name = sys.argv[1:]
    serve(pkgutil.resolve_name(name), host=host, port=int(port), threads=4)
