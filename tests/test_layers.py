"""The structure of the package: imports go down, parts share public names, no class is swapped."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
from planted import faults, planted

import wsgi_after

PACKAGE = Path(wsgi_after.__file__).parent

#: From the top. The modules of one layer do not import each other, either.
LAYERS = [
    {"__main__", "gunicorn", "pytest_plugin"},
    # Only users import these:
    {"django", "flask", "lint", "opentelemetry", "probe", "pyramid", "testing"},
    {"_frameworks.django_cleanup", "_frameworks.django_response", "_frameworks.flask_gone"}
    | {"django_tasks", "paste", "waitress"},
    {"integration"},
    {"__init__"},
    {"exits", "functions"},
    {"_core.middleware"},
    {"uwsgi"},
    {"moment"},
    {"_core.files"},
    {"_core.body"},
    {"_core.finish"},
    {"_core.hand_off", "_core.unclosed"},
    {"_core.run"},
    {"_core.callbacks"},
    {"_core.prepare"},
    {"around"},
    {"registering"},
    {"arguments"},
    {"_core.logs"},
    {"_core.current", "_core.let_out", "_core.process", "_core.servers", "claims", "executor"},
    {"_core.__init__", "_frameworks.__init__"},
]
DEPTH = {module: depth for depth, layer in enumerate(LAYERS) for module in layer}

#: The modules that use only public names of the core.
OUTSIDE = [module for layer in LAYERS[:3] for module in sorted(layer)]

#: The part of the core that counts: without its messages, and without what changes a response.
COUNTED = [
    path for path in PACKAGE.glob("_core/*.py") if path.name not in {"logs.py", "prepare.py"}
]
#: The modules that a request with one callback passes through.
WAY = ["middleware", "body", "finish", "run", "callbacks"]


def source_of(module):
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def imported(module, statement):
    """The modules of the package that a statement imports, at run time or for types."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom):
        inside = ["wsgi_after", *module.split(".")][: -statement.level] if statement.level else []
        base = [*inside, *(statement.module or "").split(".")]
        names = [".".join([*filter(None, base), alias.name]) for alias in statement.names]
    else:
        return
    for name in names:
        package, _, rest = name.partition(".")
        if package == "wsgi_after":
            parts = rest.split(".")
            candidates = [".".join(parts[:2]), parts[0], "__init__"]
            yield next(candidate for candidate in candidates if candidate in DEPTH)


def upward(module, source):
    """The imports of a module with this source that are not below it, in functions too."""
    for statement in ast.walk(ast.parse(source)):
        for name in imported(module, statement):
            if DEPTH[name] <= DEPTH[module]:
                yield name


def test_every_module_has_its_layer():
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")]
    assert sorted(".".join(path.parts) for path in paths) == sorted(
        module for layer in LAYERS for module in layer
    )


@pytest.mark.parametrize("module", sorted(DEPTH))
def test_no_module_imports_upward(module):
    """So there is no import cycle."""
    assert list(upward(module, source_of(module))) == []


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("from .body import body_class, Body", ["_core.body", "_core.body"]),
        ("from . import body", ["_core.body"]),
        ("from .. import run_callbacks", ["__init__"]),
        ("from wsgi_after._core import files", ["_core.files"]),
        ("from wsgi_after._core.finish import finish", ["_core.finish"]),
        ("import wsgi_after._core.finish", ["_core.finish"]),
        ("import wsgi_after", ["__init__"]),
        ("def f():\n    from .body import Body", ["_core.body"]),
        ("if TYPE_CHECKING:\n    from .body import Body", ["_core.body"]),
        ("from .run import run", []),
        ("from ..executor import SupportsSubmit", []),
        ("from logging import body", []),
    ],
)
def test_an_import_that_goes_up_from_the_end_of_a_request_is_seen(source, seen):
    assert list(upward("_core.finish", source)) == seen


@pytest.mark.parametrize("module", OUTSIDE)
def test_integrations_and_tools_touch_public_names_only(module):
    tree = ast.parse(source_of(module))
    imports = {name for node in ast.walk(tree) for name in imported(module, node)}
    assert {name for name in imports if name.startswith("_core")} == set()
    core = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.glob("_core/*.py"))
    private = {
        node.attr
        for node in ast.walk(ast.parse(core))
        if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)
    }
    touched = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    }
    assert touched & private == set()


def test_no_live_object_gets_another_class():
    swaps = [
        module
        for module in DEPTH
        for node in ast.walk(ast.parse(source_of(module)))
        if isinstance(node, ast.Attribute)
        and (node.attr, type(node.ctx)) == ("__class__", ast.Store)
    ]
    assert swaps == []


def lines_of_code(path):
    """Count the lines without docstrings, comments and blank lines."""
    source = path.read_text(encoding="utf-8")
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT}:
            code.update(range(token.start[0], token.end[0] + bool(token.string)))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node) is not None:
            code -= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return len(code)


def test_the_core_stays_small_enough_to_be_read():
    """Both in lines and in lines of code."""
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in COUNTED)
    way = sum(len(source_of(f"_core.{module}").splitlines()) for module in WAY)
    assert (lines <= 1_300, sum(map(lines_of_code, COUNTED)) <= 800, way <= 850) == (True,) * 3


def test_the_modules_for_frameworks_stay_thin():
    """Other code that a framework makes necessary is in ``_frameworks``."""
    lines = [len(source_of(name).splitlines()) for name in ("django", "flask", "pyramid")]
    assert sum(lines) <= 700


def test_each_fault_of_planted_txt_can_be_planted():
    """The lines that it replaces are in the current code."""
    assert [planted(fault) for fault in faults()] != []
