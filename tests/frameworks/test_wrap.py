"""docs/wrap.rst: each framework on its server; and the three lines for each in README.rst."""

from __future__ import annotations

import pytest
from commands import ask, run, serving
from conftest import Exchange
from django.http import HttpResponse
from documents import blocks, executed, parse
from docutils import nodes
from flask import Flask
from pyramid.config import Configurator
from pyramid.response import Response
from servers.harness import wait_until
from werkzeug.test import Client

from wsgi_after import AfterResponseMiddleware

PAGE = blocks("wrap.rst")
README = {
    name: block.astext()
    for block in parse("../README.rst").findall(nodes.literal_block)
    for name in block["names"]
}


def test_everything_on_the_page_is_run_by_a_test():
    """What its commands install is in the extras of the tests."""
    assert list(PAGE) == [
        *("flask_app.py", "flask", "startproject", "shop/wsgi.py", "shop/urls.py", "django"),
        *("pyramid_app.py", "pyramid", "success.py"),
    ]
    installs = [line for text in PAGE.values() for line in text.splitlines() if "pip" in line]
    assert installs == [
        *("$ pip install flask gunicorn", "$ pip install django uwsgi"),
        "$ pip install pyramid waitress",
    ]


#: The files that each command serves.
SERVED = {
    "flask": ["flask_app.py"],
    "django": ["shop/wsgi.py", "shop/urls.py"],
    "pyramid": ["pyramid_app.py"],
}


@pytest.mark.parametrize(
    "framework", ["flask", pytest.param("django", marks=pytest.mark.servers), "pyramid"]
)
def test_a_framework_runs_its_callback_on_the_server_that_is_shown(tmp_path, framework):
    if framework == "django":
        run(PAGE["startproject"].splitlines()[-1].removeprefix("$ "), tmp_path)
    for name in SERVED[framework]:
        (tmp_path / name).write_text(PAGE[name])
    command = PAGE[framework].splitlines()[-1].removeprefix("$ ")
    with serving(command, tmp_path) as port:
        assert ask(port, "/") == (200, "Hello\n")
        log = tmp_path / "log"
        wait_until(lambda: "after the response" in log.read_text(), log)


def test_callbacks_that_run_only_if_the_response_succeeded(capsys):
    order = executed(PAGE["success.py"])["order"]

    def refused(environ, start_response):
        return order(environ, lambda status, headers: start_response("409 Conflict", headers))

    for app in (order, refused):
        Exchange(AfterResponseMiddleware(app)).finish()
    assert capsys.readouterr().out.splitlines() == [
        *("an invoice for ada@example.com", "a receipt for ada@example.com")
    ]


# The lines in README: each example is cut where the view begins.


def cut(name):
    """The lines that go where the app is made, and the one for a view."""
    *once, in_a_view = README[name].splitlines()
    return "\n".join(once), in_a_view


def called(app):
    """GET the app's response, close it, and return its text."""
    with Client(app).get("/") as response:
        return response.text


def test_the_three_lines_for_flask():
    events = []
    once, in_a_view = cut("flask.py")
    names = executed(once, app=Flask(__name__), send_mail=events.append, user_id=7)
    names["app"].add_url_rule("/", view_func=lambda: exec(in_a_view, names) or "Hello")
    assert (called(names["app"]), events) == ("Hello", [7])


def test_the_three_lines_for_django(handler):
    events = []
    once, in_a_view = cut("django.py")
    names = executed(once, MIDDLEWARE=[], send_mail=events.append, user_id=7)

    def view(request):
        exec(in_a_view, names, {"request": request})
        return HttpResponse("Hello")

    assert (called(handler(view, *names["MIDDLEWARE"])), events) == ("Hello", [7])


def test_the_two_lines_for_pyramid():
    events = []
    once, in_a_view = cut("pyramid.py")

    def view(request):
        exec(in_a_view, {"request": request, "send_mail": events.append, "user_id": 7})
        return Response("Hello")

    with Configurator() as config:
        executed(once, config=config)
        config.add_route("index", "/")
        config.add_view(view, route_name="index")
        app = config.make_wsgi_app()
    assert (called(app), events) == ("Hello", [7])
