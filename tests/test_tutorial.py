"""docs/tutorial.rst, followed step by step: its files, its commands, and a real mail server."""

from __future__ import annotations

import shlex
import socket

import pytest
from commands import ask, masked, run, serving
from documents import blocks
from mail import mail_server
from servers.harness import wait_until

PAGE = blocks("tutorial.rst")
COMMANDS = {
    name: text.split("\n")[0].removeprefix("$ ")
    for name, text in PAGE.items()
    if text.startswith("$ ")
}
ORDER = "/order?email=ada@example.com"


@pytest.fixture
def mails():
    """The mail server, in place of the one in the second terminal."""
    with mail_server() as server:
        yield server


def write(directory, name="shop.py", mail_port=9, sleep="pass"):
    """Write ``shop.py`` from this block of the page; nothing listens on port 9."""
    source = PAGE[name].replace("8025", str(mail_port)).replace("time.sleep(2)", sleep)
    (directory / "shop.py").write_text(source, encoding="utf-8")


def test_everything_on_the_page_is_run_by_a_test():
    assert list(PAGE) == [
        *("begin", "mails", "waits.py", "gunicorn", "order", "shop.py", "timeline", "failed"),
        *("test_shop.py", "pytest"),
    ]
    install = PAGE["begin"].splitlines()[-1]
    # As the tests' extra does:
    assert install == "$ pip install ../wsgi_after gunicorn aiosmtpd pytest"
    assert shlex.split(COMMANDS["order"]) == ["curl", f"http://127.0.0.1:8000{ORDER}"]


def test_the_first_shop_sends_the_mail_before_its_answer(tmp_path, mails):
    write(tmp_path, "waits.py", mails.port)
    with serving(COMMANDS["gunicorn"], tmp_path) as port:
        assert ask(port, ORDER) == (200, "Thank you.\n")
    assert [message["To"] for message in mails.messages] == ["ada@example.com"]


def test_the_second_one_after_it(tmp_path, mails):
    """The callback connects to the test, and waits until the test closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        wait = f"__import__('socket').create_connection({listener.getsockname()}).recv(1)"
        write(tmp_path, "shop.py", mails.port, sleep=wait)
        with serving(COMMANDS["gunicorn"], tmp_path) as port:
            assert ask(port, ORDER) == (200, "Thank you.\n")
            callback, _ = listener.accept()
            assert mails.messages == []
            callback.close()
            [message] = mails.wait()
    assert (message["To"], message["Subject"]) == ("ada@example.com", "Your order")


def test_the_timeline(tmp_path, mails):
    write(tmp_path, "shop.py", mails.port, sleep="time.sleep(0.1)")
    shown = PAGE["timeline"].split("\n", 1)[1]
    assert masked(run(COMMANDS["timeline"], tmp_path)).strip() == masked(shown).strip()
    assert len(mails.messages) == 1


def test_without_a_mail_server_the_log_has_the_error_and_that_the_callback_is_slow(tmp_path):
    write(tmp_path, sleep="time.sleep(2)")
    log = tmp_path / "log"
    with serving(COMMANDS["gunicorn"], tmp_path) as port:
        assert ask(port, ORDER) == (200, "Thank you.\n")
        wait_until(lambda: "shop.send_mail of GET /order took 2." in log.read_text(), log)
        wait_until(lambda: "ConnectionRefusedError: " in log.read_text(), log)
    assert f"\n{PAGE['failed']}\nTraceback (most recent call last):\n" in log.read_text()


def test_the_test(tmp_path):
    write(tmp_path)
    (tmp_path / "test_shop.py").write_text(PAGE["test_shop.py"], encoding="utf-8")
    assert run(COMMANDS["pytest"], tmp_path).splitlines()[-1].startswith("1 passed")
