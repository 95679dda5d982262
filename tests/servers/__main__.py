"""``python -m tests.servers``: print the page on servers as it is measured here.

``--write`` puts it in ``docs/servers.rst``.
"""

from __future__ import annotations

import argparse

from .page import PATH, measured_page

parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
parser.add_argument("--write", action="store_true", help=f"write {PATH.name}")

write = parser.parse_args().write
text = measured_page()
if write:
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text)
else:
    print(text)
