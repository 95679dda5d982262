"""The tables of the manual: tests compare their cells with what they see."""

from __future__ import annotations

from documents import parse
from docutils import nodes


def table(page: str, head: str, number: int = 0) -> dict[str, dict[str, str]]:
    """The rows by their first cell: each has the other cells by column.

    :param head: the head of one of the columns.
    :param number: which table, if several have such a column.
    """
    found = []
    for each in parse(page).findall(nodes.table):
        columns, *rows = (
            [" ".join(cell.astext().split()) for cell in row] for row in each.findall(nodes.row)
        )
        if head in columns:
            found.append({row[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows})
    return found[number]
