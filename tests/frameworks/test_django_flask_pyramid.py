"""What is the same in Django, Flask and Pyramid, each with its integration, without a server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from threading import current_thread
from wsgiref.util import FileWrapper

import flask
import pytest
from conftest import Exchange, File, is_freed, make_environ
from django.http import FileResponse, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPFound, HTTPNoContent
from pyramid.response import FileResponse as PyramidFileResponse
from pyramid.response import Response
from pyramid.threadlocal import get_current_request

from wsgi_after import AfterResponseMiddleware, after_this_request, after_this_response
from wsgi_after.django import after_response
from wsgi_after.flask import AfterResponse
from wsgi_after.flask import after_this_response as after_this_flask_response
from wsgi_after.testing import capture

ROOT = {"PATH_INFO": "/", "SCRIPT_NAME": ""}


class InDjango:
    file = File  # what a response of the kind "file" is made of

    def __init__(self, handler, directory):
        self.handler = handler

    def app(self, view, on_error=None, **options):
        """An app with a view and an error view, which get a function to register, and the environ.

        Without an error view, what the view raises propagates to the server.
        """

        def called(view, request):
            return view(partial(after_response, request), request.environ)

        return self.handler(
            lambda request: called(view, request),
            DEBUG_PROPAGATE_EXCEPTIONS=on_error is None,
            urls={"handler500": lambda request: called(on_error, request)},
        )

    def current(self, environ):
        """The environ of the request that is current while a callback runs."""
        return environ  # Django has no current request

    def respond(self, kind, content="content\n"):
        return {
            "text": lambda: HttpResponse(content, status=201, headers={"X-Order": "7"}),
            "stream": lambda: StreamingHttpResponse(content),
            "file": lambda: FileResponse(content),
            "redirect": lambda: HttpResponseRedirect("/elsewhere"),
            "empty": lambda: HttpResponse(status=204),
            "sorry": lambda: HttpResponse("sorry", status=500),
        }[kind]()


class InFlask:
    file = File

    def __init__(self, *unused):
        pass

    def app(self, view, on_error=None, **options):
        def called(view):
            return view(after_this_flask_response, flask.request.environ)

        app = flask.Flask(__name__)
        app.testing = True
        AfterResponse(app, **options)
        app.add_url_rule("/", endpoint="index", view_func=lambda: called(view))
        if on_error:
            app.register_error_handler(ValueError, lambda error: called(on_error))
        return app

    def current(self, environ):
        return flask.request.environ

    def respond(self, kind, content="content\n"):
        return {
            "text": lambda: (content, 201, {"X-Order": "7"}),
            "stream": lambda: flask.Response(flask.stream_with_context(content)),
            "file": lambda: flask.send_file(content, mimetype="text/plain"),
            "redirect": lambda: flask.redirect("/elsewhere"),
            "empty": lambda: ("", 204),
            "sorry": lambda: ("sorry", 500),
        }[kind]()


class InPyramid:
    def __init__(self, handler, directory):
        self.path = directory / "file.txt"
        self.path.write_text("content\n", encoding="utf-8")

    def app(self, view, on_error=None, **options):
        def called(view, request):
            def register(*args, **kwargs):
                after = request.after  # each time, in the stream too
                return (after.append if type(after) is list else after)(*args, **kwargs)

            return view(register, request.environ)

        settings = {f"wsgi_after.{name}": value for name, value in options.items()}
        with Configurator(settings=settings) as config:
            config.include("wsgi_after.pyramid")
            config.add_route("index", "/")
            config.add_view(lambda request: called(view, request), route_name="index")
            if on_error:
                config.add_exception_view(
                    lambda error, request: called(on_error, request), context=ValueError
                )
            return config.make_wsgi_app()

    def current(self, environ):
        return get_current_request().environ

    def file(self, events):
        return str(self.path)  # Pyramid opens and closes the file itself

    def respond(self, kind, content="content\n"):
        headers = [("Content-Type", "text/plain; charset=UTF-8"), ("X-Order", "7")]
        return {
            "text": lambda: Response(content, 201, headers),
            "stream": lambda: Response(app_iter=content),
            "file": lambda: PyramidFileResponse(content, get_current_request()),
            "redirect": lambda: HTTPFound("/elsewhere"),
            "empty": HTTPNoContent,
            "sorry": lambda: Response("sorry", status=500),
        }[kind]()


FRAMEWORKS = {"django": InDjango, "flask": InFlask, "pyramid": InPyramid}


@pytest.fixture(params=FRAMEWORKS)
def framework(request, handler, tmp_path):
    return FRAMEWORKS[request.param](handler, tmp_path)


def exchange(app, **environ):
    return Exchange(app, make_environ(**ROOT, **environ))


# When callbacks run, and what they know.


def chunks(events):
    try:
        yield b"content\n"
    finally:
        events.append("file closed")


STATUS = {
    "text": ("201 CREATED", "7"),
    "stream": ("200 OK", None),
    "file": ("200 OK", None),
    "redirect": ("302 FOUND", None),
    "empty": ("204 NO CONTENT", None),
}
FILE_WRAPPERS = {
    "without": {},
    "a class": {"wsgi.file_wrapper": FileWrapper},
    "a function": {"wsgi.file_wrapper": lambda file, size=0: file},
}


@pytest.mark.parametrize("file_wrapper", FILE_WRAPPERS)
@pytest.mark.parametrize("kind", STATUS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
def test_callbacks_run_once_at_close_and_know_the_response(
    framework, events, kind, file_wrapper, wrapped
):
    def tell(after):
        order = dict(after.headers).get("X-Order")
        events.append((after.status.upper(), order, after.completed, after.error))

    def view(after, environ):
        after(tell, environ["wsgi.after"])
        contents = {"stream": chunks, "file": framework.file}
        return framework.respond(kind, contents.get(kind, lambda events: "content\n")(events))

    app = framework.app(view)
    request = exchange(
        AfterResponseMiddleware(app) if wrapped else app, **FILE_WRAPPERS[file_wrapper]
    )
    body = b"".join(request.result)
    assert body == b"content\n" or kind in ("redirect", "empty")
    assert [event for event in events if event != "file closed"] == []
    request.result.close()
    request.result.close()
    tells = kind == "stream" or (kind == "file" and not isinstance(framework, InPyramid))
    sent_by_server = kind == "file" and file_wrapper != "without"
    unseen = sent_by_server or (isinstance(framework, InDjango) and not wrapped)
    assert events == [*["file closed"] * tells, (*STATUS[kind], None if unseen else True, None)]


@pytest.mark.parametrize("leaves", [False, True])
def test_a_stream_registers_callbacks_that_run_if_the_client_leaves(framework, events, leaves):
    def view(after, environ):
        def stream():
            after(events.append, "by the stream")
            yield from chunks(events)
            events.append("not reached" if leaves else "read")

        after(events.append, "by the view")
        return framework.respond("stream", stream())

    request = exchange(framework.app(view))
    assert next(iter(request.result)) == b"content\n"
    if leaves:
        request.result.close()
    else:
        assert request.finish() == []
    assert events == ["file closed", *["read"] * (not leaves), "by the view", "by the stream"]


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
def test_a_response_callback_changes_the_response(framework, wrapped):
    def prepare(response):
        response.status = "418 I'm a teapot"
        response.headers.set("X-Order", "8")

    def view(after, environ):
        after_this_request(prepare)
        return framework.respond("text")

    app = framework.app(view)
    [(status, headers)] = exchange(AfterResponseMiddleware(app) if wrapped else app).started
    assert (status, dict(headers)["X-Order"]) == ("418 I'm a teapot", "8")


# What a view can do.


def test_all_ways_to_register_reach_one_list(framework, events):
    def view(after, environ):
        after_this_response(events.append, "first")
        after(events.append, "second")
        environ["wsgi.after"].append(lambda: events.append("third"))
        assert after(nested) is nested
        return framework.respond("text")

    def nested():
        after_this_response(events.append, "last")

    app = framework.app(view)
    for _ in range(2):
        exchange(app).finish()
    assert events == ["first", "second", "third", "last"] * 2


def test_arguments_go_through_and_a_failure_is_logged(framework, events, caplog):
    def fails(*args, **kwargs):
        events.append((args, kwargs))
        raise ValueError

    def view(after, environ):
        with pytest.raises(TypeError, match="must be callable, not int"):
            after(1)
        after(fails, 1, fn=2, self=3)
        after(events.append, "runs")
        return framework.respond("text")

    exchange(framework.app(view)).finish()
    assert events == [((1,), {"fn": 2, "self": 3}), "runs"]
    assert caplog.messages == [f"Callback {__name__}.{fails.__qualname__} of GET / failed."]


def test_an_error_view_answers_and_the_callbacks_of_both_run(framework, events):
    """The error was handled, so WSGI sees none."""

    def tell(place, environ):
        known = environ["wsgi.after"]
        events.append(
            (place, known.status.upper(), known.error, framework.current(environ) is environ)
        )

    def view(after, environ):
        after(tell, "view", environ)
        raise ValueError

    def sorry(after, environ):
        after(tell, "error view", environ)
        return framework.respond("sorry")

    assert exchange(framework.app(view, on_error=sorry)).finish() == [b"sorry"]
    told = ("500 INTERNAL SERVER ERROR", None, True)
    assert events == [("view", *told), ("error view", *told)]


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_what_the_framework_lets_out_goes_on_behind_the_callbacks(framework, events, error):
    def view(after, environ):
        known = environ["wsgi.after"]
        after(lambda: events.append((known.status, known.error, known.completed)))
        after(lambda: events.append(framework.current(environ) is environ))
        raise error

    with pytest.raises(error) as raised:
        exchange(framework.app(view))
    assert events == [(None, raised.value, False), True]


# The list.


def test_an_environ_that_comes_again_gets_a_list_of_its_own(framework, events):
    """While its first body is being read, as if a middleware gave up the first response."""
    numbers = count(1)

    def view(after, environ):
        after(events.append, next(numbers))
        return framework.respond("stream", iter([b"a", b"b"]))

    app, environ = framework.app(view), make_environ(**ROOT)
    first = Exchange(app, environ)
    assert next(iter(first.result)) == b"a"
    assert (Exchange(app, environ).finish(), events) == ([b"a", b"b"], [2])
    first.result.close()
    assert (Exchange(app, environ).finish(), events) == ([b"a", b"b"], [2, 1, 3])


def test_requests_in_threads_do_not_mix(framework, events):
    def view(after, environ):
        after(lambda: events.append((environ["number"], framework.current(environ)["number"])))
        return framework.respond("text")

    app = framework.app(view)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: exchange(app, number=number).finish(), range(40)))
    assert sorted(events) == [(number, number) for number in range(40)]


def test_a_plain_list_that_somebody_else_put_there_is_used(framework, events):
    def view(after, environ):
        after(lambda: events.append(framework.current(environ) is environ))
        return framework.respond("text")

    theirs = []
    list(exchange(framework.app(view), **{"wsgi.after": theirs}).result)
    assert (len(theirs), events) == (1, [])
    theirs.pop()()
    assert events == [True]


def test_anything_but_a_list_is_refused(framework):
    app = framework.app(lambda after, environ: framework.respond("text"))
    with pytest.raises(TypeError, match="is tuple, where a list was expected"):
        exchange(app, **{"wsgi.after": ()})


@pytest.mark.parametrize(
    ("framework", "inner"),
    [
        ("django", False),
        *((name, inner) for name in ("flask", "pyramid") for inner in (False, True)),
    ],
    indirect=["framework"],
)
def test_an_outer_list_is_used_and_the_innermost_executor(framework, events, inner):
    def view(after, environ):
        after(lambda: note("view", framework.current(environ) is environ))
        return framework.respond("text")

    def note(*what):
        events.append((*what, current_thread().name))

    with ThreadPoolExecutor(1, "inner") as pool, ThreadPoolExecutor(1, "outer") as outer:
        app = framework.app(view, **{"executor": pool} if inner else {})
        app = AfterResponseMiddleware(app, executor=outer)
        app.after_response(lambda environ: note("outer"))
        exchange(app).finish()
    thread = "inner_0" if inner else "outer_0"
    assert events == [("outer", thread), ("view", True, thread)]


def test_captured_callbacks_run_in_their_request(framework, events):
    def view(after, environ):
        after(lambda: events.append(framework.current(environ) is environ))
        return framework.respond("text")

    with capture() as captured:
        exchange(framework.app(view)).finish()
    assert (events, len(captured.callbacks)) == ([], 1)
    captured.run()
    assert events == [True]


def test_nothing_is_kept(framework):
    def view(after, environ):
        after(lambda: framework.current(environ))
        return framework.respond("text")

    assert is_freed(framework.app(view), **ROOT)
