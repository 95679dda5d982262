"""wsgi_after.flask on servers: docs/flask.rst, its example project, and real databases."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from urllib.parse import urlencode

import pytest
from commands import (
    ask,
    ask_all,
    ask_json,
    copied_checkout,
    installs,
    paste,
    run,
    serving,
)
from databases import PostgreSQL
from documents import DOCS, blocks
from mail import MailServer
from servers.harness import wait_until

PAGE = blocks("flask.rst")
ORDER = urlencode({"email": "ada@example.com"})


def command(name: str) -> str:
    """What a block of the page shows behind its prompt."""
    return re.findall(r"(?m)^\$ (.*)", PAGE[name])[0]


# The page.


def test_every_block_of_the_page_is_run() -> None:
    assert list(PAGE) == [
        *("install", "shop.py", "run", "order", "factory.py", "factory_used.py", "orders.py"),
        *("test_orders.py", "gunicorn", "uwsgi"),
    ]


@pytest.mark.parametrize("option", ["", " --debug --no-reload"])
def test_the_mail_is_sent_under_flask_run(
    tmp_path: Path, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("FLASK_SMTP_PORT", str(mail_server.port))
    (tmp_path / "shop.py").write_text(PAGE["shop.py"], encoding="utf-8")
    with serving(command("run") + option, tmp_path) as port:
        answer = ask(port, "/orders", ORDER)
        [message] = mail_server.wait()
    assert answer == (200, PAGE["order"].partition("\n")[2] + "\n")
    assert (message["To"], message["Subject"]) == ("ada@example.com", "Your order")
    assert message.get_content().rstrip() == f"Thank you for your order at 127.0.0.1:{port}"


def test_the_order_that_is_shown_is_one_for_the_server_that_is_shown() -> None:
    program, *arguments = shlex.split(command("order"))
    assert (program, arguments[:2]) == ("curl", ["-d", "email=ada@example.com"])
    port = re.findall(r"--port (\d+)", command("run"))[0]
    assert arguments[2:] == [f"http://127.0.0.1:{port}/orders"]


def test_the_factory_on_the_page(tmp_path: Path) -> None:
    for name in ("factory.py", "factory_used.py"):
        (tmp_path / name).write_text(PAGE[name], encoding="utf-8")
    run("python -W error factory_used.py", tmp_path)


def test_the_tests_on_the_page_pass(tmp_path: Path) -> None:
    for name in ("orders.py", "test_orders.py"):
        (tmp_path / name).write_text(PAGE[name], encoding="utf-8")
    pytest_ = "python -m pytest -q -p no:cacheprovider test_orders.py"
    assert "2 passed" in run(pytest_, tmp_path, PYTEST_ADDOPTS="")


@pytest.mark.servers
@installs
def test_what_the_page_installs_is_enough(tmp_path: Path) -> None:
    checkout = copied_checkout(tmp_path)
    (checkout / "shop.py").write_text(PAGE["shop.py"], encoding="utf-8")
    routes = command("run").partition(" run")[0] + " routes"
    install = command("install").replace("wsgi-after", ".")  # from here, not from the index
    out = paste(f"python3 -m venv .venv && . .venv/bin/activate && {install} && {routes}", checkout)
    assert re.search(r"order +POST +/orders", out)


# The example project.


@pytest.mark.parametrize("server", ["gunicorn", pytest.param("uwsgi", marks=pytest.mark.servers)])
def test_the_example_project_runs_by_the_command_that_is_shown(
    tmp_path: Path, mail_server: MailServer, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("FLASK_SMTP_PORT", str(mail_server.port))
    left_out = shutil.ignore_patterns("__pycache__", "instance")
    project = shutil.copytree(DOCS / "examples" / "flask", tmp_path / "flask", ignore=left_out)
    with serving(command(server), project) as port:
        status, answer = ask(port, "/orders", ORDER)
        [message] = mail_server.wait()
        order = json.loads(answer)["id"]
        wait_until(lambda: ask_json(port, f"/orders/{order}")["mailed"], project / "log")
    assert (status, message["To"], message["Subject"]) == (201, "ada@example.com", "Your order 1")
    assert "POST /orders: 201 CREATED" in (project / "log").read_text()


# Real databases.

REQUESTS = 1000


@pytest.mark.servers  # SQLite takes seconds for 1000 transactions
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_each_of_1000_callbacks_writes_its_row_and_gives_its_connection_back(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
) -> None:
    url = f"sqlite:///{tmp_path / 'rows.db'}"
    if database == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        url = server.url("postgresql+psycopg")
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", url)
    shutil.copy(Path(__file__).with_name("flask_rows.py"), tmp_path)
    gunicorn = "gunicorn --bind 127.0.0.1:8000 --worker-class gthread --threads 4 flask_rows:app"
    with serving(gunicorn, tmp_path) as port:
        paths = [f"/add/{number}" for number in range(REQUESTS)]
        assert ask_all(port, paths) == {(200, "Later\n")}
        all_there = {"numbers": list(range(REQUESTS)), "checked_out": 0}
        wait_until(lambda: ask_json(port, "/state") == all_there, tmp_path / "log")
    assert (tmp_path / "log").read_text().count("ValueError: on purpose") == REQUESTS // 10
