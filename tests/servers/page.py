"""``docs/servers.rst``, written from what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .descriptions import SERVERS
from .expectations import EMPTY, IMPOSSIBLE, STREAMS, expected
from .limits import LIMITS
from .measure import EXPECTED, Measurements, measured

PATH = Path(__file__).parents[2] / "docs" / "servers.rst"

COLUMNS = {
    "Content-Length": ["list_with_length", "two_requests", "small_file", "large_file"],
    "write()": ["write"],
    "list, no length": ["list_without_length"],
    "stream, no length": STREAMS,
    "empty list, no length": ["empty_list"],
    "302 with length 0, 204, 304, HEAD": EMPTY,
    "error before return": ["error_before_return"],
    "error in first chunk": ["error_in_first_chunk"],
    "error in mid-body": ["error_in_mid_body"],
}

HEAD = """\
.. Written by "python -m tests.servers --write". The tests compare it with what they measure.

Servers
=======

Each server below is started by the tests, as its documentation says, and asked for each kind of
response, with the middleware and without. On all of them, for every kind of response:

* the callbacks ran exactly once, in order;
* the client received the same bytes, but for the time of day, for how a process in between (nginx,
  Apache before a daemon process, uWSGI's http router) cuts a chunked body, which varies without the
  middleware, too, and for the framing of a list on granian;
* a file went out by ``sendfile`` where it does so without the middleware (gunicorn, uWSGI,
  mod_wsgi, bjoern).

Whether the client waits for callbacks in ``close()``
-----------------------------------------------------

This is with ``executor=None``. A callback was kept from ending until the client said that it had
its response, or half a second had passed.

in time
    The client had its headers and its last byte before the callback ended.
end late
    It had its headers; the last byte came when the callback had ended.
late
    The headers, too, came when the callback had ended.
unclosed
    The server did not call ``close()``, and the callbacks ran at garbage collection.
no response
    The server sends none, with the middleware or without.
"""

BY_DEFAULT = """\
Whether the client waits by default
-----------------------------------

The same without ``executor=``: where the client would wait for ``close()``, a small pool of threads
runs the callbacks, if the server is known, and really runs threads.
"""

ORDINARY_REASONS = """\
An error before the app returns leaves nothing to close, so the callbacks run before the server
hears of it. After an error in the body, PEP 3333 has the server call ``close()`` first.
"""

SIGTERM = """\
SIGTERM
-------

A callback was running that needed two more seconds when the server got a SIGTERM, in ``close()`` or
in a pool of threads, as with ``executor=``. Where it was lost, the server ended at once, or did not
wait for so long: :doc:`hand-off` has what helps. A server that is killed loses every
callback that has not run: work that must survive belongs in a queue.
"""


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A ``list-table`` with the server's name in the first column."""
    lines = [".. list-table::", "   :header-rows: 1", "   :stub-columns: 1", ""]
    for row in [header, *rows]:
        lines += [f"   {'-' if number else '* -'} {cell}" for number, cell in enumerate(row)]
    return "\n".join(line if not line.startswith("   - ") else "     " + line[3:] for line in lines)


def cell(found: Measurements, kinds: list[str]) -> str:
    """What was measured for some kinds, which is nearly always the same for all."""
    timings = {kind: found.cells[kind].timing for kind in kinds}
    if len(set(timings.values())) == 1:
        return next(iter(timings.values()))
    return "; ".join(f"{kind}: {timing}" for kind, timing in timings.items())


def reasons(name: str) -> list[str]:
    """The lines on one server: which kinds of response are not as they are elsewhere, and why."""
    by_reason: dict[str, list[str]] = {}
    for kinds in COLUMNS.values():
        for kind in kinds:
            if reason := expected(name, kind).reason:
                by_reason.setdefault(reason, []).append(kind)
    return [f"{', '.join(kinds)}: {reason}" for reason, kinds in by_reason.items()]


def timings(found: dict[str, Measurements]) -> str:
    """One row for each server."""
    return table(
        ["server", *COLUMNS],
        [[name, *(cell(found[name], kinds) for kinds in COLUMNS.values())] for name in found],
    )


def page(found: dict[str, Measurements], default: dict[str, Measurements]) -> str:
    """The whole page."""
    impossible = "\n".join(
        f"{name}\n"
        + "\n".join(f"    * {', '.join(kinds)}: {reason}" for kinds, reason in cells)
        + "\n"
        for name, cells in IMPOSSIBLE.items()
    )
    why = "\n".join(
        f"{name}\n" + "\n".join(f"    * {line}" for line in lines) + "\n"
        for name in found
        if (lines := reasons(name))
    )
    sigterm = table(
        ["server", "in close()", "in a pool"],
        [[name, found[name].sigterm, default[name].sigterm] for name in found],
    )
    limits = "\n".join(f"* **{name}**: {reason}. Way out: {out}." for name, reason, out in LIMITS)
    versions = table(
        ["server", "measured"],
        [[server.name, found[server.name].version] for server in SERVERS],
    )
    return f"""{HEAD}
{timings(found)}

{ORDINARY_REASONS}
{why}
{BY_DEFAULT}
{timings(default)}

{impossible}
{SIGTERM}
{sigterm}

What a server makes impossible
------------------------------

{limits}

Versions
--------

On CPython {next(iter(found.values())).python}.

{versions}
"""


def measured_page() -> str:
    """Start every server, and write down what is seen."""
    return page(*({s.name: measured(s.name, mode) for s in SERVERS} for mode in EXPECTED))
