"""docs/imports.rst: each name exists, and an error names the function that looks alike."""

from __future__ import annotations

import pkgutil
import re

import pytest
from conftest import Exchange, registers
from documents import DOCS, parse
from docutils import nodes

import wsgi_after
from wsgi_after import AfterResponseMiddleware, after_this_request

NAMED = {
    literal.astext()
    for table in parse("imports.rst").findall(nodes.table)
    for literal in table.findall(nodes.literal)
}
PUBLIC = {name for name in NAMED if re.fullmatch(r"wsgi_after(\.\w+)+", name)}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_name_can_be_imported(name):
    assert callable(pkgutil.resolve_name(name))


def test_each_way_to_register_of_the_package_is_on_the_page():
    page = (DOCS / "imports.rst").read_text(encoding="utf-8")
    ways = set(wsgi_after.__all__) - {"CallbackList", "run_callbacks"}
    assert {name for name in ways if name not in page} == set()


@pytest.mark.parametrize(
    ("callback", "notes"),
    [
        (lambda response: None, "If the function takes the response, .* with after_this_request()"),
        (lambda: len(5), ""),
        (lambda: int("one", argument=2), ""),
    ],
)
def test_a_callback_that_wants_an_argument_is_told_who_passes_one(callback, notes, caplog):
    """An error inside the callback stays as it is."""
    Exchange(registers(callback)).finish()
    [record] = caplog.records
    assert re.search(notes, "".join(getattr(record.exc_info[1], "__notes__", [])))
    assert bool(notes) == hasattr(record.exc_info[1], "__notes__")


@pytest.mark.parametrize(
    ("callback", "notes"),
    [(lambda: None, "with after_this_response()"), (lambda response: len(5), "")],
)
def test_a_response_callback_that_takes_nothing_is_told_who_passes_nothing(callback, notes):
    def app(environ, start_response):
        after_this_request(callback)
        return start_response("200 OK", [])

    with pytest.raises(TypeError) as raised:
        Exchange(AfterResponseMiddleware(app))
    assert notes in "".join(getattr(raised.value, "__notes__", []))
    assert bool(notes) == hasattr(raised.value, "__notes__")
