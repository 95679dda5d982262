"""The pages in docs/: their code blocks, for tests to run.

Sphinx builds the pages in test_docs.py. Here docutils alone reads them, which is faster: the roles
of Sphinx are read as text, its directives are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives, roles
from docutils.parsers.rst.directives.body import CodeBlock

TESTS = Path(__file__).parent
ROOT = TESTS.parent
DOCS = ROOT / "docs"


class LeftOut(Directive):
    """A directive of Sphinx."""

    optional_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return no nodes."""
        return []


for role in ("class", "data", "doc", "func", "meth", "mod", "ref", "term"):
    roles.register_generic_role(role, nodes.inline)
for kind in ("class", "data", "exception", "function", "module"):
    directives.register_directive(f"auto{kind}", LeftOut)
for name in ("currentmodule", "data", "glossary", "index", "toctree"):
    directives.register_directive(name, LeftOut)
CodeBlock.option_spec["emphasize-lines"] = directives.unchanged


def parse(name: str) -> nodes.document:
    """A page of ``docs/``, or one beside it such as ``../README.rst``; a warning is an error."""
    return publish_doctree(
        (DOCS / name).read_text(encoding="utf-8"),
        source_path=str(DOCS / name),
        settings_overrides={"halt_level": 2, "report_level": 5, "syntax_highlight": "none"},
    )


def executed(code: str, **names: Any) -> dict[str, Any]:
    """Run a block of Python that starts with these names; return the names that it leaves."""
    exec(code, names)
    return names


def blocks(name: str) -> dict[str, str]:
    """The blocks of code of a page, by their names."""
    found = parse(name).findall(nodes.literal_block)
    return {name: block.astext() for block in found for name in block["names"]}
