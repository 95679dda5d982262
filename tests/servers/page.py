"""``docs/servers.rst``, written from what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill

from .descriptions import OURS, SERVERS
from .expectations import (
    ADVICE,
    BODILESS,
    ELSEWHERE,
    END_LATE,
    FRAMED,
    IN_TIME,
    LATE,
    NOT_FREED,
    STREAMS,
    expected,
)
from .measure import Measurements, measured

PATH = Path(__file__).parents[2] / "docs" / "servers.rst"

#: The head of a column, which also stands before a note → the kinds that were measured for it.
COLUMNS = {
    "Content-Length": FRAMED,
    "write()": ["write"],
    "list": ["list_without_length"],
    "stream": STREAMS,
    "empty list": ["empty_list"],
    "redirect": ["redirect"],
    "no body": BODILESS,
    "early error": ["error_before_return"],
    "first chunk error": ["error_in_first_chunk"],
    "mid-body error": ["error_in_mid_body"],
}
WITHOUT_ERROR = [column for column in COLUMNS if not column.endswith("error")]

PAGE = """\
.. Written by "python -m tests.servers --write". The tests compare it with what they measure.

Servers
=======

Callbacks run inside ``close()``, in the thread in which the server calls ``close()``. Most servers
call it when the client has the whole response, so no client waits. Some servers send certain
responses, or the end of them, only after ``close()`` has returned, so their clients wait for the
callbacks. This page lists these cases.

The tests start {count} servers, some in several ways, as the documentation of each server says.
They request each kind of response, with the middleware and without it. In every case:

* The callbacks ran exactly once, in order.
* They ran in the thread and the greenlet in which the server called ``close()``, and saw the
  context variables that were set there.
* The app had been called in the same place. A callback cleared a thread-local that the app had set,
  and the next request of the thread found it cleared.
* The client received the same bytes, except for the time of day, for how a process in between
  (nginx, Apache in front of a daemon process, uWSGI's http router) cuts a chunked body, and for the
  framing of a list on granian.
* A file was sent by ``sendfile`` wherever the server does so without the middleware (gunicorn,
  uWSGI, mod_wsgi, bjoern).

There are two exceptions to where the callbacks ran. Waitress closes a large file in the thread that
serves all sockets, so those callbacks run in a new thread that ends with them. If the server never
closes a response (marked ``unclosed`` below), its callbacks run when it is garbage-collected, or
soon after.

Servers that need nothing
-------------------------

{need_nothing}

Who waits in ``close()``
------------------------

These clients wait, by kind of response:

{summary}

When the app raises, the client waits on nearly every server: the error page comes after the
callbacks.

{executor}

A few lines adapt some of these servers, so that no client waits and the callbacks stay in the
thread of their request: see the :doc:`recipes <for-a-server>` for cheroot, gevent.pywsgi, eventlet,
Twisted, a2wsgi and hypercorn. For AWS Lambda, see :doc:`serverless`. The last rows of the table are
this package's worker classes for :doc:`gunicorn` and its ``serve`` for :doc:`waitress`. On a narrow
screen, the table scrolls sideways.

{table}

The columns are kinds of response:

Content-Length
    A body with Content-Length: a list, a small file, a large one.
write()
    A body sent with the ``write()`` that ``start_response`` returned.
list, stream, empty list
    No Content-Length: a list of one chunk; a tuple, a generator or an iterator of several; ``[]``.
redirect
    A 302 with ``Content-Length: 0``.
no body
    A 204, a 304, or the answer to a HEAD.
early error, first chunk error, mid-body error
    The app raises before it returns, in the first step of its body, or after the first chunk.

The cells say what the client waits for while a callback runs:

no
    Nothing: it has the whole response.
end
    The end of the response: it has the headers, and what the app has sent.
all
    The whole response, headers included.
unclosed
    Nothing, but the server does not call ``close()``: the callbacks run after garbage collection.
none
    The server sends no response, with the middleware or without.

If the app raises before it returns, there is nothing to close: the callbacks run before the server
sees the exception. If the body raises, PEP 3333 has the server call ``close()`` first, and answer
then.

In HTTP/1.0, a response without Content-Length ends with the connection. Servers close the
connection after ``close()``, so the client waits. nginx before 1.29.7 speaks HTTP/1.0 to the server
behind it, unless you configure HTTP/1.1: :doc:`nginx`.

Notes by server
---------------

{notes}
SIGTERM
-------

{sigterm}

A server that is killed loses every callback that has not run. Work that must survive belongs in a
queue.

Versions
--------

{versions}
"""


def wrapped(text: str, indent: str = "") -> str:
    """The lines of a paragraph, or of an item of a list."""
    return fill(text, 100, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A simple table; each word of the header has a line of its own."""
    words = [re.split(r" |(?<=-)", cell) for cell in header]
    height = max(map(len, words))
    lines = zip(*[[*cell, *[""] * (height - len(cell))] for cell in words], strict=True)
    cells = [*lines, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    text = [
        "  ".join(map(str.ljust, row, widths)).rstrip()  # an empty first cell continues the row
        for row in cells
    ]
    return "\n".join([rule, *text[:height], rule, *text[height:], rule])


def family(name: str) -> str:
    """The name of the server, however it is started, or of what stands before it."""
    return re.split("[ ,]", name)[0]


def listed(names: Iterable[str]) -> str:
    """Servers in a sentence; all the ways in which one is started are one item."""
    names, shown = list(names), {}
    for name in names:
        ways = [server.name for server in SERVERS if family(server.name) == family(name)]
        front, _, behind = name.partition(", ")
        if front.startswith("nginx"):
            shown[f"{behind} behind {front}"] = True
        else:
            shown[family(name) if set(ways) <= set(names) and len(ways) > 1 else front] = True
    *most, last = shown
    return f"{', '.join(most)} and {last}" if most else last


def waits(found: Measurements, kinds: list[str]) -> str:
    """What was measured for some kinds, which is the same for all."""
    [timing] = {found.cells[kind]["wrapped"].timing for kind in kinds}
    return timing


def summary(rows: dict[str, dict[str, str]]) -> str:
    """Who waits, by kind of response; kinds with the same result are one item."""
    columns_of: dict[str, list[str]] = {}
    for column in WITHOUT_ERROR:
        said = [
            f"for {what} on {listed(names)}"
            for timing, what in {END_LATE: "the end", LATE: "everything"}.items()
            if (names := [name for name, row in rows.items() if row[column] == timing])
        ]
        columns_of.setdefault("; ".join(said), []).append(column)
    items = [f"* **{', '.join(columns)}**: {said}." for said, columns in columns_of.items()]
    return "\n".join(wrapped(item, "  ") for item in items)


def notes() -> str:
    """What is special about each server, and why."""
    items: dict[str, list[str]] = {family(server.name): [] for server in SERVERS}
    for server in SERVERS:
        columns_of: dict[str, list[str]] = {}
        for column, kinds in COLUMNS.items():
            for reason in {expected(server.name, kind).reason for kind in kinds} - {""}:
                columns_of.setdefault(reason, []).append(column)
        items[family(server.name)] += [
            *(f"**{', '.join(columns)}**: {reason}" for reason, columns in columns_of.items()),
            ELSEWHERE.get(server.name, ([], ""))[1],
            NOT_FREED.get(server.name, ""),
        ]
    for name, advice in ADVICE.items():
        items[name] += advice
    return "\n".join(
        f"{name}\n" + "".join(wrapped(f"    * {item}.", "      ") + "\n" for item in found)
        for name in items
        if (found := dict.fromkeys(filter(None, items[name])))
    )


def page(found: dict[str, Measurements]) -> str:
    """The whole page."""
    rows = {
        name: {column: waits(measurements, kinds) for column, kinds in COLUMNS.items()}
        for name, measurements in found.items()
    }
    need_nothing = [
        name for name, row in rows.items() if {row[column] for column in WITHOUT_ERROR} == {IN_TIME}
    ]
    fates = {
        fate: listed(name for name in found if found[name].sigterm == fate)
        for fate in ("finishes", "lost")
    }
    versions = dict.fromkeys(
        part for one in found.values() for part in one.version.split(", ") if part
    )
    return PAGE.format(
        count=len({family(name) for name in found} - {"nginx", *(one.name for one in OURS)}),
        need_nothing=wrapped(
            f"On {listed(need_nothing)}, no client waits for a callback, whatever the app returns. "
            "You need no setting and no pool. Only an error page may come after the callbacks."
        ),
        summary=summary(rows),
        executor=wrapped(
            f"``executor=`` frees these clients, except on {listed(NOT_FREED)}: ``close()`` "
            "returns at once, and a pool runs the callbacks. The price is another thread, which "
            "does not have the request's thread-locals: :doc:`hand-off`."
        ),
        table=table(["server", *COLUMNS], [[name, *row.values()] for name, row in rows.items()]),
        notes=notes(),
        sigterm=wrapped(
            "A callback was running in ``close()``, and needed two more seconds, when the server "
            f"got a SIGTERM. The callback finished on {fates['finishes']}. It was lost on "
            f"{fates['lost']}. On uWSGI, ``die-on-term`` loses the callback: :doc:`uwsgi` has a "
            "setting that lets the callback finish. For callbacks in a pool, see :doc:`hand-off`."
        ),
        versions=wrapped(
            f"CPython {next(iter(found.values())).python}, {', '.join(list(versions))}."
        ),
    )


def measured_page() -> str:
    """Measure every server, and return the page."""
    return page({server.name: measured(server.name) for server in SERVERS})
