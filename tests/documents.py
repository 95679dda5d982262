"""The pages in docs/: their code blocks, to be run by tests."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def parse(name: str) -> nodes.document:
    """A page; a warning is an error."""
    return publish_doctree(
        (DOCS / name).read_text(encoding="utf-8"),
        settings_overrides={"halt_level": 2, "report_level": 5, "syntax_highlight": "none"},
    )


def blocks(name: str) -> dict[str, str]:
    """The blocks of code of a page, by their names; each must have one."""
    return {block["names"][0]: block.astext() for block in parse(name).findall(nodes.literal_block)}
