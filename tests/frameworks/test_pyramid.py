"""``config.include("wsgi_after.pyramid")``, and the filter of PasteDeploy."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import current_thread

import pyramid_retry
import pytest
from conftest import Exchange, hello, make_environ
from paste.deploy import loadapp
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid.threadlocal import get_current_registry, get_current_request

from wsgi_after import AfterResponseMiddleware, CallbackList, after_this_response
from wsgi_after import pyramid as wsgi_after_pyramid


def make_app(view, *includes, before=None, autocommit=False, commits=False, **settings):
    """A Pyramid app with a view at every path.

    :param commits: whether to commit the configuration after each include.
    """
    with Configurator(settings=settings, autocommit=autocommit) as config:
        for name in includes or ("wsgi_after.pyramid",):
            config.include(name)
            if commits:
                config.commit()
        config.add_route("all", "/*path")
        config.add_view(view, route_name="all")
        if before is not None:
            before(config)
        return config.make_wsgi_app()


def registers(*callbacks):
    """A view that registers these callbacks."""

    def view(request):
        request.after.extend(callbacks)
        return Response("body")

    return view


# request.after, and the threadlocals of its callbacks.


@pytest.mark.parametrize("pooled", [False, True])
def test_it_is_the_list_of_the_request_and_its_callbacks_have_the_threadlocals(pooled, events):
    def callback(request):
        current = get_current_request(), get_current_registry()
        events.append(current == (request, request.registry))
        after_this_response(nested, request)
        raise ZeroDivisionError

    def nested(request):
        events.append(get_current_request() is request)

    def view(request):
        events.append((request.after is request.environ["wsgi.after"], type(request.after)))
        request.environ["wsgi.after"].append(partial(callback, request))
        return Response()

    with ThreadPoolExecutor(1) as pool:
        Exchange(make_app(view, **{"wsgi_after.executor": pool if pooled else "none"})).finish()
        events.append(pool.submit(get_current_request).result())
    assert events == [(True, CallbackList), True, True, None]
    assert get_current_request() is None


def test_a_tween_can_register_and_is_built_once(events):
    def tween(handler, registry):
        def registering(request):
            request.after(lambda: events.append(get_current_request() is request))
            return Response("by the tween")

        events.append("built")
        return registering

    sys.modules[__name__].tween = tween
    add = make_app(registers(), before=lambda config: config.add_tween(f"{__name__}.tween"))
    Exchange(add).finish()
    assert events == ["built", True]


def blank(request):
    return Request.blank("/inner")


def copied(request):
    inner = request.copy()
    inner.path_info = "/inner"
    return inner


@pytest.mark.parametrize("make", [blank, copied])
def test_a_subrequest_registers_for_the_request_around_it(make, events):
    def view(request):
        def note(place):
            events.append((place, get_current_request().path))

        if request.path == "/inner":
            request.after(note, "inner")
            return Response("inner")
        request.after(note, "first")
        response = request.invoke_subrequest(make(request))
        request.after(note, "last")
        return response

    assert Exchange(make_app(view)).finish() == [b"inner"]
    assert events == [("first", "/path"), ("inner", "/path"), ("last", "/path")]


def test_an_app_within_an_app_keeps_its_own_threadlocals(events):
    def note(request):
        events.append(get_current_request() is request)

    def inner_view(request):
        request.after(note, request)
        return Response("body")

    def outer_view(request):
        request.after(note, request)
        return request.get_response(make_app(inner_view))

    assert Exchange(make_app(outer_view)).finish() == [b"body"]
    assert events == [True, True]


def test_a_function_registered_outside_and_inside_is_bound_inside_only(events):
    def callback():
        events.append(get_current_request() is not None)

    application = make_app(registers(callback))

    def outer(environ, start_response):
        environ["wsgi.after"].append(callback)
        return application(environ, start_response)

    Exchange(AfterResponseMiddleware(outer)).finish()
    assert events == [False, True]


def test_a_running_callback_cancels_another(events):
    cancelled, kept = partial(events.append, "cancelled"), partial(events.append, "kept")

    def cancel():
        after = get_current_request().after
        after.remove(cancelled)
        events.append(after == [kept])

    Exchange(make_app(registers(cancel, cancelled, kept))).finish()
    assert events == [True, "kept"]


def test_a_bound_callback_that_is_called_by_itself_has_the_threadlocals():
    request = Request.blank("/")
    request.registry = get_current_registry()
    callback = wsgi_after_pyramid.InThreadlocals.of(request, get_current_request)
    assert callback() is request


def test_a_request_made_by_hand_has_no_list():
    with pytest.raises(RuntimeError, match="made by hand"):
        wsgi_after_pyramid.after(Request.blank("/"))


# pyramid_retry and pyramid_tm


RETRY = [("wsgi_after.pyramid", "pyramid_retry"), ("pyramid_retry", "wsgi_after.pyramid")]


@pytest.mark.parametrize("includes", RETRY)
@pytest.mark.parametrize("options", [{}, {"commits": True}, {"commits": True, "autocommit": True}])
def test_of_a_request_that_is_tried_again_the_last_attempt_counts(includes, options, events):
    """In any order of includes, and whenever the configuration is committed."""

    def view(request):
        number = request.environ["retry.attempt"]
        request.after(lambda: events.append((number, get_current_request() is request)))
        if number < 2:
            raise pyramid_retry.RetryableException
        return Response("body")

    assert Exchange(make_app(view, *includes, **options)).finish() == [b"body"]
    assert events == [(2, True)]


def test_if_the_last_attempt_fails_its_callbacks_run(events):
    def view(request):
        request.after(events.append, request.environ["retry.attempt"])
        raise pyramid_retry.RetryableException

    with pytest.raises(pyramid_retry.RetryableException):
        Exchange(make_app(view, *RETRY[0], **{"retry.attempts": 2}))
    assert events == [1]


@pytest.mark.parametrize("plain", [False, True])
def test_an_attempt_begins_with_the_list_of_the_first(plain, events):
    """What an earlier attempt cancelled is back; its response callbacks are gone."""

    def view(request):
        number = request.environ["retry.attempt"]
        events.append(len(request.after))
        if number == 0:
            request.after.clear()
            if not plain:
                request.after.on_prepare(lambda response: events.append("never"))
            raise pyramid_retry.RetryableException
        return Response("body")

    application = make_app(view, *RETRY[0])
    callbacks = [partial(events.append, "from outside")]
    extra = {"wsgi.after": callbacks} if plain else {}
    if not plain:
        application = AfterResponseMiddleware(application)
        application.after_response(lambda environ: events.append("from outside"))
    exchange = Exchange(application, make_environ(**extra))
    assert list(exchange.result) == [b"body"]
    if not plain:
        exchange.result.close()
    assert (events, len(callbacks)) == ([1, 1, *(() if plain else ("from outside",))], 1)


def test_a_policy_that_fails_before_there_is_a_request_costs_nothing(events):
    def policy(environ, router):
        environ["wsgi.after"](events.append, get_current_request())
        raise ZeroDivisionError

    app = make_app(registers(), before=lambda config: config.set_execution_policy(policy))
    with pytest.raises(ZeroDivisionError):
        Exchange(app)
    assert events == [None]


# The filter of PasteDeploy, and the setting


INI = """
[app:main]
use = call:{module}:paste_app
filter-with = after

[filter:after]
use = egg:wsgi-after
"""


def paste_app(global_conf, **settings):
    return paste_application


def paste_application(environ, start_response):
    environ["wsgi.after"](lambda: ran.append(current_thread().name[:4]))
    return hello(environ, start_response)


ran = []
test_pool = None  # set by the test


@pytest.fixture
def load(tmp_path):
    """Load an app from a file."""
    path = tmp_path / "app.ini"

    def load(options=""):
        path.write_text(INI.format(module=__name__) + options)
        return loadapp(f"config:{path}")

    ran.clear()
    return load


@pytest.mark.parametrize(
    ("options", "thread"),
    [
        ("", "Main"),
        ("executor = None", "Main"),
        (f"executor = {__name__}:test_pool", "pool"),
        (f"executor = {__name__}.test_pool", "pool"),
    ],
)
def test_an_ini_file_wraps_an_app(load, options, thread, monkeypatch):
    with ThreadPoolExecutor(1, "pool") as executor:
        monkeypatch.setattr(sys.modules[__name__], "test_pool", executor)
        assert Exchange(load(options)).finish() == [b"hello"]
    assert ran == [thread]


WANTED = "must be none, or .*"
ABSENT = "which cannot be imported"


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ("executor = default", ValueError, f"{WANTED}'default', {ABSENT}: No module named"),
        ("executor = conftest:nothing", ValueError, f"{WANTED}'conftest:nothing', {ABSENT}"),
        ("executor = 4", ValueError, f"{WANTED}'4', {ABSENT}"),
        ("executor = conftest:hello", ValueError, f"{WANTED}'conftest:hello', which has no submit"),
        ("pool_size = 4", TypeError, "pool_size"),
    ],
)
def test_what_names_no_executor_is_refused(load, option, error, message):
    with pytest.raises(error, match=message):
        load(option)


def test_the_filter_wraps_an_app_where_pyramid_is_not_installed():
    code = (
        "import sys; sys.modules['pyramid'] = None; from wsgi_after.paste import *; "
        "print(type(filter_app_factory(print, {})).__name__)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, text=True) == "AfterResponseMiddleware\n"


def test_the_setting_is_checked_when_the_app_is_configured():
    with pytest.raises(ValueError, match=f"{WANTED}'threads'"):
        make_app(registers(), **{"wsgi_after.executor": "threads"})
