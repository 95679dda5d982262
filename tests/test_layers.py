"""One way down: each module of the package imports those below it, and nothing imports upward."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import wsgi_after

PACKAGE = Path(wsgi_after.__file__).parent

#: From the top; those of one layer do not import each other, either.
LAYERS = [
    {"__main__", "pytest_plugin"},
    {"django", "flask", "lint", "probe", "pyramid", "testing"},  # imported by their users alone
    {"__init__"},
    {"middleware"},
    {"nested"},
    {"body"},
    {"file_wrapper"},
    {"finish"},
    {"hand_off"},
    {"prepare", "run"},
    {"callbacks"},
    {"arguments"},
    {"executor", "logs", "servers", "throttle"},
]
DEPTH = {module: depth for depth, layer in enumerate(LAYERS) for module in layer}

#: What stands behind an import that goes up all the same, with its reason.
MARK = re.compile(r"# upward: \w+")


def imported(statement: ast.AST) -> Iterator[str]:
    """The modules of the package that a statement imports, within functions and for types, too."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom):
        base = ("wsgi_after." if statement.level else "") + (statement.module or "")
        names = [f"{base.rstrip('.')}.{alias.name}" for alias in statement.names]
    else:
        return
    for name in names:
        package, _, rest = f"{name}.".partition(".")
        if package == "wsgi_after":
            module = rest.partition(".")[0]
            yield module if module in DEPTH else "__init__"


def upward(module: str, source: str) -> Iterator[str]:
    """What a module with this source imports that is not below it, those aside that are marked."""
    lines = source.splitlines()
    for statement in ast.walk(ast.parse(source)):
        for name in imported(statement):
            if DEPTH[name] <= DEPTH[module] and not MARK.search(lines[statement.lineno - 1]):
                yield name


def test_every_module_has_its_layer() -> None:
    assert sorted(DEPTH) == sorted(path.stem for path in PACKAGE.glob("*.py"))
    assert len(DEPTH) == sum(map(len, LAYERS))


@pytest.mark.parametrize("module", DEPTH)
def test_no_module_imports_upward(module: str) -> None:
    source = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    assert list(upward(module, source)) == []


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("from .body import wrap, Body", ["body", "body"]),
        ("from . import body", ["body"]),
        ("from . import run_callbacks", ["__init__"]),
        ("from wsgi_after import nested", ["nested"]),
        ("from wsgi_after.finish import finish", ["finish"]),
        ("import wsgi_after.finish", ["finish"]),
        ("import wsgi_after", ["__init__"]),
        ("def f():\n    from .body import wrap", ["body"]),
        ("if TYPE_CHECKING:\n    from .body import Body", ["body"]),
        ("from .body import wrap  # upward:", ["body"]),
        ("from .body import wrap  # upward: it loads much, and most never need it", []),
        ("from .run import run", []),
        ("from logging import body", []),
    ],
)
def test_an_import_that_goes_up_from_the_end_of_a_request_is_seen(
    source: str, seen: list[str]
) -> None:
    assert list(upward("finish", source)) == seen
