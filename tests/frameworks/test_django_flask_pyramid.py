"""What is the same in Django, Flask and Pyramid, each with its integration, without a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import current_thread
from typing import Any
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
#: Called with the way to register that the framework has, and the environ.
View = Callable[[Callable[..., Any], dict[str, Any]], Any]


class InDjango:
    file = File

    def __init__(self, handler: Callable[..., Any], directory: Path) -> None:
        self.handler = handler

    def app(
        self,
        view: View,
        *,
        bare: bool = False,
        lets_out: bool = False,
        on_error: View | None = None,
    ) -> Any:
        """An app with this view.

        :param bare: without the integration.
        :param lets_out: what the view raises goes on to the server.
        :param on_error: a view that answers where the other one raises.
        """

        def called(view: View, request: Any) -> Any:
            return view(
                lambda *args, **kwargs: after_response(request, *args, **kwargs), request.environ
            )

        urls = {"handler500": lambda request: called(on_error, request)} if on_error else {}
        return self.handler(
            lambda request: called(view, request),
            *["django.middleware.common.CommonMiddleware"] * bare,
            DEBUG_PROPAGATE_EXCEPTIONS=lets_out,
            urls=urls,
        )

    def current(self, environ: dict[str, Any]) -> dict[str, Any]:
        """The environ of the request that a callback finds to be the current one."""
        return environ  # it knows none

    def respond(self, kind: str, content: Any = "content\n") -> Any:
        """A response of this kind."""
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

    def __init__(self, handler: Callable[..., Any], directory: Path) -> None:
        pass

    def app(
        self,
        view: View,
        *,
        bare: bool = False,
        lets_out: bool = False,
        on_error: View | None = None,
        **options: Any,
    ) -> Any:
        def called(view: View) -> Any:
            return view(after_this_flask_response, flask.request.environ)

        app = flask.Flask(__name__)
        app.testing = lets_out
        if not bare:
            AfterResponse(app, **options)
        if on_error:
            app.register_error_handler(ValueError, lambda error: called(on_error))
        app.add_url_rule("/", endpoint="index", view_func=lambda: called(view))
        return app

    def current(self, environ: dict[str, Any]) -> dict[str, Any]:
        return flask.request.environ

    def respond(self, kind: str, content: Any = "content\n") -> Any:
        return {
            "text": lambda: (content, 201, {"X-Order": "7"}),
            "stream": lambda: flask.Response(flask.stream_with_context(content)),
            "file": lambda: flask.send_file(content, mimetype="text/plain"),
            "redirect": lambda: flask.redirect("/elsewhere"),
            "empty": lambda: ("", 204),
            "sorry": lambda: ("sorry", 500),
        }[kind]()


class InPyramid:
    def __init__(self, handler: Callable[..., Any], directory: Path) -> None:
        self.path = directory / "file.txt"
        self.path.write_text("content\n", encoding="utf-8")

    def file(self, events: list[Any]) -> str:
        return str(self.path)  # it opens, and closes, its own

    def app(
        self,
        view: View,
        *,
        bare: bool = False,
        lets_out: bool = False,  # what no view handles always does
        on_error: View | None = None,
        executor: Any = None,
    ) -> Any:
        def called(view: View, request: Any) -> Any:
            after = None if bare else request.after
            return view(after.append if type(after) is list else after, request.environ)

        with Configurator(settings={"wsgi_after.executor": executor}) as config:
            if not bare:
                config.include("wsgi_after.pyramid")
            if on_error:
                config.add_exception_view(
                    lambda error, request: called(on_error, request), context=ValueError
                )
            config.add_route("index", "/")
            config.add_view(lambda request: called(view, request), route_name="index")
            return config.make_wsgi_app()

    def current(self, environ: dict[str, Any]) -> dict[str, Any]:
        return get_current_request().environ

    def respond(self, kind: str, content: Any = "content\n") -> Any:
        request = get_current_request()
        return {
            "text": lambda: Response(
                content, 201, [("Content-Type", "text/plain; charset=UTF-8"), ("X-Order", "7")]
            ),
            "stream": lambda: Response(app_iter=content),
            "file": lambda: PyramidFileResponse(content, request),
            "redirect": lambda: HTTPFound("/elsewhere"),
            "empty": HTTPNoContent,
            "sorry": lambda: Response("sorry", status=500),
        }[kind]()


FRAMEWORKS = {"django": InDjango, "flask": InFlask, "pyramid": InPyramid}


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest, handler: Callable[..., Any], tmp_path: Path) -> Any:
    return FRAMEWORKS[request.param](handler, tmp_path)


def exchange(app: Any, **environ: Any) -> Exchange:
    return Exchange(app, make_environ(**ROOT, **environ))


# When callbacks run, and what they know.


def chunks(events: list[Any]) -> Iterator[bytes]:
    try:
        yield b"content\n"
    finally:
        events.append("file closed")


STATUS = {
    "text": "201 CREATED",
    "stream": "200 OK",
    "file": "200 OK",
    "redirect": "302 FOUND",
    "empty": "204 NO CONTENT",
}
FILE_WRAPPERS = {
    "without": {},
    "a class": {"wsgi.file_wrapper": FileWrapper},
    "a function": {"wsgi.file_wrapper": lambda file, size=0: file},
}


@pytest.mark.parametrize("file_wrapper", FILE_WRAPPERS)
@pytest.mark.parametrize("kind", STATUS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "wrapped"])
def test_callbacks_run_once_when_the_response_is_closed(
    framework: Any, events: list[Any], kind: str, file_wrapper: str, wrapped: bool
) -> None:
    def view(after: Any, environ: Any) -> Any:
        after(lambda: events.append(environ["wsgi.after"].status.upper()))
        contents = {"stream": chunks, "file": framework.file}
        return framework.respond(kind, contents.get(kind, lambda events: "content\n")(events))

    app = framework.app(view)
    request = exchange(
        AfterResponseMiddleware(app) if wrapped else app, **FILE_WRAPPERS[file_wrapper]
    )
    body = b"".join(request.result)
    assert body == b"content\n" or kind in ("redirect", "empty")
    assert STATUS[kind] not in events
    request.result.close()
    request.result.close()
    tells = kind == "stream" or (kind == "file" and not isinstance(framework, InPyramid))
    assert events == [*["file closed"] * tells, STATUS[kind]]


def test_a_callback_knows_what_became_of_the_response(framework: Any, events: list[Any]) -> None:
    def view(after: Any, environ: Any) -> Any:
        known = environ["wsgi.after"]
        after(lambda: events.append((dict(known.headers)["X-Order"], known.completed, known.error)))
        return framework.respond("text")

    exchange(framework.app(view)).finish()
    assert events == [("7", None if isinstance(framework, InDjango) else True, None)]


@pytest.mark.parametrize("leaves", [False, True])
def test_a_stream_may_register_and_its_callbacks_run_if_the_client_leaves(
    framework: Any, events: list[Any], leaves: bool
) -> None:
    def view(after: Any, environ: Any) -> Any:
        def stream() -> Iterator[bytes]:
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
def test_a_response_callback_changes_the_response(framework: Any, wrapped: bool) -> None:
    def prepare(response: Any) -> None:
        response.status = "418 I'm a teapot"
        response.headers.set("X-Order", "8")

    def view(after: Any, environ: Any) -> Any:
        after_this_request(prepare)
        return framework.respond("text")

    app = framework.app(view)
    [(status, headers)] = exchange(AfterResponseMiddleware(app) if wrapped else app).started
    assert (status, dict(headers)["X-Order"]) == ("418 I'm a teapot", "8")


# What a view can do.


def test_all_ways_to_register_reach_one_list(framework: Any, events: list[Any]) -> None:
    def view(after: Any, environ: Any) -> Any:
        after_this_response(events.append, "first")
        after(events.append, "second")
        environ["wsgi.after"].append(lambda: events.append("third"))
        assert after(nested) is nested
        return framework.respond("text")

    def nested() -> None:
        after_this_response(events.append, "last")

    app = framework.app(view)
    for _ in range(2):
        exchange(app).finish()
    assert events == ["first", "second", "third", "last"] * 2


def test_arguments_go_through_and_one_that_fails_is_logged_by_its_name_and_the_others_run(
    framework: Any, events: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        events.append((args, kwargs))
        raise ValueError

    def view(after: Any, environ: Any) -> Any:
        with pytest.raises(TypeError, match="must be callable, not int"):
            after(1)
        after(fails, 1, fn=2, self=3)
        after(events.append, "runs")
        return framework.respond("text")

    exchange(framework.app(view)).finish()
    assert events == [((1,), {"fn": 2, "self": 3}), "runs"]
    assert caplog.messages == [f"Callback {__name__}.{fails.__qualname__} of GET / failed."]


def test_an_error_view_answers_and_the_callbacks_of_both_run(
    framework: Any, events: list[Any]
) -> None:
    """The error was handled: for WSGI there is none."""

    def tell(place: str, environ: Any) -> None:
        known = environ["wsgi.after"]
        events.append(
            (place, known.status.upper(), known.error, framework.current(environ) is environ)
        )

    def view(after: Any, environ: Any) -> Any:
        after(tell, "view", environ)
        raise ValueError

    def sorry(after: Any, environ: Any) -> Any:
        after(tell, "error view", environ)
        return framework.respond("sorry")

    assert exchange(framework.app(view, on_error=sorry)).finish() == [b"sorry"]
    told = ("500 INTERNAL SERVER ERROR", None, True)
    assert events == [("view", *told), ("error view", *told)]


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_what_the_framework_lets_out_goes_on_behind_the_callbacks(
    framework: Any, events: list[Any], error: type[BaseException]
) -> None:
    def view(after: Any, environ: Any) -> Any:
        known = environ["wsgi.after"]
        after(lambda: events.append((known.status, known.error, known.completed)))
        after(lambda: events.append(framework.current(environ) is environ))
        raise error

    with pytest.raises(error) as raised:
        exchange(framework.app(view, lets_out=True))
    assert events == [(None, raised.value, False), True]


# The list.


def test_an_environ_that_comes_again_gets_a_list_of_its_own(
    framework: Any, events: list[Any]
) -> None:
    """While its first body is read, as from a middleware that gives the first response up."""
    numbers = count(1)

    def view(after: Any, environ: Any) -> Any:
        after(events.append, next(numbers))
        return framework.respond("stream", iter([b"a", b"b"]))

    app, environ = framework.app(view), make_environ(**ROOT)
    first = Exchange(app, environ)
    assert next(iter(first.result)) == b"a"
    assert (Exchange(app, environ).finish(), events) == ([b"a", b"b"], [2])
    first.result.close()
    assert (Exchange(app, environ).finish(), events) == ([b"a", b"b"], [2, 1, 3])


def test_requests_in_threads_do_not_mix(framework: Any, events: list[Any]) -> None:
    def view(after: Any, environ: Any) -> Any:
        after(lambda: events.append((environ["number"], framework.current(environ)["number"])))
        return framework.respond("text")

    app = framework.app(view)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: exchange(app, number=number).finish(), range(40)))
    assert sorted(events) == [(number, number) for number in range(40)]


def test_a_plain_list_that_somebody_else_put_there_is_used(
    framework: Any, events: list[Any]
) -> None:
    def view(after: Any, environ: Any) -> Any:
        after(lambda: events.append(framework.current(environ) is environ))
        return framework.respond("text")

    theirs: list[Any] = []
    list(exchange(framework.app(view), **{"wsgi.after": theirs}).result)
    assert (len(theirs), events) == (1, [])
    theirs.pop()()
    assert events == [True]


def test_anything_but_a_list_is_refused(framework: Any) -> None:
    app = framework.app(lambda after, environ: framework.respond("text"), lets_out=True)
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
def test_the_list_of_a_middleware_outside_is_used_and_the_innermost_executor(
    framework: Any, events: list[Any], inner: bool
) -> None:
    def view(after: Any, environ: Any) -> Any:
        after(lambda: note("view", framework.current(environ) is environ))
        return framework.respond("text")

    def note(*what: Any) -> None:
        events.append((*what, current_thread().name))

    with ThreadPoolExecutor(1, "inner") as pool, ThreadPoolExecutor(1, "outer") as outer:
        app = framework.app(view, **{"executor": pool} if inner else {})
        app = AfterResponseMiddleware(app, executor=outer)
        app.after_response(lambda environ: note("outer"))
        exchange(app).finish()
    thread = "inner_0" if inner else "outer_0"
    assert events == [("outer", thread), ("view", True, thread)]


def test_captured_callbacks_run_in_their_request(framework: Any, events: list[Any]) -> None:
    def view(after: Any, environ: Any) -> Any:
        after(lambda: events.append(framework.current(environ) is environ))
        return framework.respond("text")

    with capture() as captured:
        exchange(framework.app(view)).finish()
    assert (events, len(captured.callbacks)) == ([], 1)
    captured.run()
    assert events == [True]


def test_nothing_is_kept_that_the_framework_does_not_keep(
    framework: Any, events: list[Any]
) -> None:
    def view(after: Any, environ: Any) -> Any:
        if "wsgi.after" in environ:
            after(lambda: framework.current(environ))
        return framework.respond("stream", chunks(events))

    bare = framework.app(view, bare=True)
    assert is_freed(framework.app(view), **ROOT) == is_freed(bare, **ROOT)
