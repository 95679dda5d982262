"""docs/integrations.rst: its examples run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commands import run
from documents import blocks, executed
from werkzeug.test import Client

PAGE = blocks("integrations.rst")


def test_bottle(capsys: Any) -> None:
    response = Client(executed(PAGE["bottle_app.py"])["application"]).get("/hello")
    assert (response.text, capsys.readouterr().out) == ("Hello\n", "")
    response.close()
    assert capsys.readouterr().out == "after the response\n"


def test_the_integration_that_is_shown(tmp_path: Path) -> None:
    names = ["small.py", "small_after.py", "small_used.py"]
    assert list(PAGE) == ["bottle_app.py", *names]
    for name in names:
        (tmp_path / name).write_text(PAGE[name], encoding="utf-8")
    shown = PAGE["small_used.py"].rpartition("# prints: ")[2]
    assert run("python small_used.py", tmp_path) == f"{shown}\n"
