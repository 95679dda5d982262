"""docs/integrations.rst: its examples run. Also what ``open_request`` promises beyond them."""

from __future__ import annotations

import pickle
import sys
from contextlib import nullcontext
from functools import partial

import bottle
import pytest
from commands import ask, serving
from conftest import Exchange, Immediately, Refuses, hello, make_environ
from documents import blocks, executed
from servers.harness import free_port, wait_until
from werkzeug.test import Client

from wsgi_after import (
    AfterResponseMiddleware,
    CallbackList,
    after_this_request,
    after_this_response,
)
from wsgi_after.integration import InContext, bind, notes_of, observe, open_request

PAGE = blocks("integrations.rst")


def test_everything_on_the_page_is_run_by_a_test():
    assert list(PAGE) == [
        *("bottle_app.py", "bottle_after.py", "bottle_orders.py"),
        *("cherrypy_after.py", "cherrypy_orders.py"),
    ]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A directory with the files of the page, which can be imported."""
    for name, text in PAGE.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in PAGE:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_bottle(capsys):
    response = Client(executed(PAGE["bottle_app.py"])["application"]).get("/hello")
    assert (response.text, capsys.readouterr().out) == ("Hello\n", "")
    response.close()
    assert capsys.readouterr().out == "after the response\n"


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("pooled", [False, True])
def test_the_integration_for_bottle_brings_the_request_back(capsys, pooled):
    names = executed(PAGE["bottle_orders.py"])
    client = Client(names["application"] if pooled else AfterResponseMiddleware(names["app"]))
    first = client.post("/orders", data={"email": "ada@example.com"})
    client.post("/orders", data={"email": "grace@example.com"}, buffered=True)
    first.close()  # its thread has served another request by then
    names["pool"].shutdown()
    out = capsys.readouterr().out
    assert sorted(out.splitlines()) == ["Order of ada@example.com", "Order of grace@example.com"]
    assert bottle.request.forms.email == "grace@example.com"


def test_the_integration_for_bottle_refuses_what_would_not_run(page):
    after_response = executed(PAGE["bottle_after.py"])["after_response"]
    app = bottle.Bottle()
    app.config["catchall"] = False
    app.route("/", callback=lambda: after_response(print))
    with pytest.raises(RuntimeError, match="Wrap the app"):
        Client(app).get("/")
    with pytest.raises(TypeError, match="arguments of after_response"):
        after_response(lambda: None, "one too many")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("page")
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("email", "status"),
    [
        ("ada", "200 OK"),
        ("nobody", "400 Bad Request"),
        ("nobody knows", "500 Internal Server Error"),
    ],
)
def test_the_tool_for_cherrypy_runs_callbacks_at_close(wrapped, email, status, events):
    import cherrypy

    class Orders(executed(PAGE["cherrypy_orders.py"])["Orders"]):
        note = events.append

        @cherrypy.expose
        def index(self, email):
            after = cherrypy.request.wsgi_environ["wsgi.after"]
            after(lambda: events.append(after.status))
            text = super().index(email)
            assert email != "nobody knows"
            return text

    app = cherrypy.Application(Orders(), "", {"/": {"tools.after_response.on": True}})
    app.log.screen = False
    with Client(AfterResponseMiddleware(app) if wrapped else app).get(f"/?email={email}") as got:
        assert (got.status, events) == (status, [])
        assert got.headers.getlist("Set-Cookie") == ["ordered=yes; Path=/"]
    assert events == [status, email]


def test_the_tool_for_cherrypy_on_its_own_server(page):
    port = free_port()
    source = PAGE["cherrypy_orders.py"].replace("8000", str(port))
    (page / "cherrypy_orders.py").write_text(source, encoding="utf-8")
    with serving("python -W ignore cherrypy_orders.py", page, port) as port:
        assert ask(port, "/?email=ada") == (200, "Ordered\n")
        assert ask(port, "/?email=nobody")[0] == 400
        expected = ["/ ada 200 OK", "/ nobody 400 Bad Request"]  # by two threads
        wait_until(
            lambda: sorted((page / "log").read_text().splitlines()) == expected, page / "log"
        )


# open_request() by itself.


def test_a_request_that_is_opened_by_hand_ends_when_its_closer_is_called(events):
    environ = make_environ()
    with open_request(environ) as opened:
        after_this_response(lambda: events.append((after.status, after.completed, after.error)))
        after_this_request(lambda response: response.headers.set("X-Prepared", "yes"))
        after = environ["wsgi.after"]
    assert opened.start("200 OK", []) == ("200 OK", [("X-Prepared", "yes")])
    close = opened.closer(lambda: events.append("closed"))
    pickle.loads(pickle.dumps(close))()  # as a cache does
    assert (events, opened.after is after) == ([], True)
    close()
    close()
    assert events == ["closed", ("200 OK", None, None)]


def test_an_exception_out_of_the_block_ends_the_request(events):
    def view(after):
        after(lambda: events.append(after.error))
        raise error

    environ, error = make_environ(), ValueError("of the view")
    with pytest.raises(ValueError, match="of the view"), open_request(environ) as opened:
        view(opened.after)
    assert (events, environ["wsgi.after"].ended) == ([error], True)


def test_a_closer_that_is_dropped_closes_with_a_warning(events):
    with open_request(make_environ()) as opened:
        after_this_response(events.append, "callback")
    close = opened.closer()
    with pytest.warns(ResourceWarning, match="GET /path was never closed"):
        del close
    assert events == ["callback"]


def test_a_list_that_is_shared_is_left_to_whoever_made_it(events):
    """Unless an executor is passed: the innermost counts."""

    def app(environ, start_response):
        with open_request(environ, Immediately()) as opened:
            opened.after.append(lambda: events.append("callback"))
        assert opened.start("204 No Content", []) == ("204 No Content", [])
        with pytest.raises(RuntimeError, match=r"Call closer\(\) only if is_shared is false"):
            opened.closer()
        events.append((opened.is_shared, opened.after is environ["wsgi.after"]))
        return hello(environ, start_response)

    Exchange(AfterResponseMiddleware(app, executor=Refuses(AssertionError))).finish()
    assert events == [(True, True), "callback"]


def test_what_is_no_executor_and_no_list_is_refused():
    with pytest.raises(TypeError, match="expects an object with submit"):
        open_request(make_environ(), print)
    with pytest.raises(TypeError, match="is tuple, where a list was expected"):
        open_request(make_environ(**{"wsgi.after": ()}))


class Silent(InContext):
    """A callback with an empty context."""

    def context(self):
        return nullcontext()


def test_a_callback_in_context_calls_its_function_and_pickles_as_a_plain_one(events):
    plain = [partial(events.append, 1), print]
    callbacks = [*plain]
    bind(callbacks, [print], Silent)
    bound, other = callbacks
    bound()
    assert (events, other is print, bound == plain[0], bound == Silent(print)) == (
        [1],
        True,
        True,
        False,
    )
    assert hash(bound) == hash(plain[0])
    assert len({Silent(print), Silent(print)}) == 2
    for callback in (Silent(print, 1), Silent(print, 1, sep="")):
        assert pickle.loads(pickle.dumps(callback))() is None
    with pytest.raises(NotImplementedError):
        InContext(print)()


def test_only_a_list_of_ours_is_observed_and_has_notes():
    assert observe([], print) is False
    with pytest.raises(TypeError, match="Only a CallbackList has notes, not list"):
        notes_of([])
    after = CallbackList()
    notes_of(after)["mine"] = 1
    assert (notes_of(after), observe(after, print), observe(after, print)) == (
        {"mine": 1},
        True,
        False,
    )
