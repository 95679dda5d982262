"""The lint middleware: each way to break the contract, by apps, servers and real middlewares."""

from __future__ import annotations

import asyncio
import gc
import io
import pickle
import re
import warnings
import weakref
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import partial
from importlib import import_module
from linecache import getline
from pathlib import Path
from wsgiref.util import FileWrapper

import pytest
from asgiref.wsgi import WsgiToAsgi
from conftest import Exchange, collector_off, forgets_close, hello, make_environ
from documents import blocks, parse
from docutils import nodes
from elasticapm.middleware import ElasticAPM
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from repoze.tm import TM

from wsgi_after import AfterResponseMiddleware, after_this_request, after_this_response, lint
from wsgi_after.lint import LintMiddleware, WSGIAfterWarning


def drop(exchange):
    """Do what a server does that forgets to close."""
    vars(exchange).pop("result", None)
    gc.collect()


@contextmanager
def violations(*expected):
    """Expect exactly these warnings, each given as a check and whose fault it is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", WSGIAfterWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        seen = []
        yield seen
    seen += [w.message for w in caught if isinstance(w.message, WSGIAfterWarning)]
    assert [(w.rule, w.sentence, w.fault) for w in seen] == [
        (check.rule, check.sentence, fault) for check, fault in expected
    ]


def app_that(view, body=None):
    """An app that calls ``view(environ)``, and returns ``body``."""

    def app(environ, start_response):
        view(environ)
        start_response("200 OK", [])
        return [b"body"] if body is None else body

    return app


def ran(events):
    """A view whose callback notes that it ran."""
    return lambda environ: environ["wsgi.after"].append(partial(events.append, "ran"))


def inside(app, **options):
    return AfterResponseMiddleware(LintMiddleware(app, **options))


def outside(app, **options):
    return LintMiddleware(AfterResponseMiddleware(app), **options)


def both(app):
    return LintMiddleware(inside(app))


class App:
    """Its instances are callbacks."""

    async def __call__(self): ...

    def needs_one(self, argument): ...


async def coroutine_function(): ...


def generator_function():
    yield


async def async_generator_function():
    yield


# What keeps the contract.


@pytest.mark.parametrize("place", [inside, outside, both])
def test_what_keeps_the_contract_passes_and_its_callbacks_run(place, events):
    def view(environ):
        after = environ["wsgi.after"]
        after.append(partial(events.append, "append"))
        after.extend([partial(events.append, "extend")])
        after += [partial(events.append, "iadd")]
        after.insert(0, partial(events.append, "insert"))
        after[1:1] = [partial(events.append, "slice")]
        after[1] = partial(events.append, "item")
        after(events.append, "call")
        after.append(dict)  # which has no signature to look at
        after(print, end="")
        after_this_response(events.append, "current")
        after_this_request(lambda response: None)

    with violations():
        assert Exchange(place(app_that(view))).finish() == [b"body"]
    assert events == ["insert", "item", "append", "extend", "iadd", "call", "current"]


@pytest.mark.parametrize(
    ("result", "length", "chunks"),
    [
        ([b"a"], 1, [b"a"]),
        ((b"a", b"b"), 2, [b"a", b"b"]),
        (iter([b"a"]), None, [b"a"]),
        (b"bytes", 1, [b"bytes"]),
    ],
)
def test_the_server_sees_what_it_would_have_seen(result, length, chunks):
    """The body has a length if and only if the app's result has one."""
    got = Exchange(both(lambda environ, start_response: result)).result
    assert (len(got) if hasattr(type(got), "__len__") else None) == length
    assert list(got) == chunks
    got.close()


def test_what_cannot_be_iterated_passes():
    assert Exchange(both(lambda environ, start_response: None)).result is None


def test_the_attributes_of_the_app_s_object_stay_readable():
    class Body(list[bytes]):
        note = "app"

        def __hash__(self):
            return 7

    body = Body([b"a"])
    got = Exchange(LintMiddleware(lambda environ, start_response: body)).result
    assert (got.note, got == body, hash(got)) == ("app", True, 7)
    assert (next(got), next(got, None), list(iter(iter(got)))) == (b"a", None, [b"a"])
    got.close()


@pytest.mark.parametrize("keep", [copy, deepcopy, lambda body: pickle.loads(pickle.dumps(body))])
def test_a_cache_outside_keeps_what_the_app_returned(keep):
    with violations():
        exchange = Exchange(LintMiddleware(hello))
        assert type(keep(exchange.result)) is list
        assert (keep(exchange.result), exchange.finish()) == ([b"hello"], [b"hello"])


@pytest.mark.parametrize("at_once", [False, True])
def test_an_environ_can_be_sent_again(at_once):
    """A middleware that retries does this. The app has replaced nothing."""
    environ, application = make_environ(), both(hello)
    with violations():
        first = Exchange(application, environ)
        bodies = [] if at_once else [first.finish()]
        bodies.append(Exchange(application, environ).finish())
        bodies += [first.finish()] if at_once else []
    assert bodies == [[b"hello"]] * 2
    assert lint.WATCH not in environ


def test_nothing_is_kept_of_an_environ():
    with collector_off():
        exchange = Exchange(both(hello))
        exchange.finish()
        referrers = gc.get_referrers(exchange.environ)
        assert [r for r in referrers if isinstance(r, (lint.Watch, lint.LintBody))] == []
        assert all(vars(exchange) is r or not isinstance(r, dict) for r in referrers)


# What an app does.

ENTRIES = {
    "the result of a call": (None, "is NoneType and cannot be called"),
    "a coroutine function": (coroutine_function, "is a coroutine function"),
    "an object with such a __call__": (App(), "is a coroutine function"),
    "one bound to arguments": (partial(coroutine_function), "is a coroutine function"),
    "a generator function": (generator_function, "is a generator function"),
    "an asynchronous one": (async_generator_function, "is a generator function"),
    "one that wants an argument": (App().needs_one, "missing a required argument: 'argument'"),
    "one that wants none": (partial(App.needs_one, 1, 2, 3), "too many positional arguments"),
}


@pytest.mark.parametrize(("entry", "wrong"), ENTRIES.values(), ids=list(ENTRIES))
def test_an_entry_that_cannot_run_is_reported_at_the_line_that_registers_it(entry, wrong, events):
    """The entry stays registered: it belongs to the app."""

    def view(environ):
        environ["wsgi.after"].append(entry)
        events.extend(environ["wsgi.after"])
        environ["wsgi.after"].clear()

    with violations((lint.ENTRY, "app")) as seen:
        Exchange(inside(app_that(view))).finish()
    assert wrong in str(seen[0])
    assert re.search(r"view \(.*test_lint.py, line \d+\)", seen[0].culprit)
    assert events == [entry]


def test_each_way_to_put_an_entry_into_the_list_is_watched():
    def view(environ):
        after = environ["wsgi.after"]
        after.append(1)
        after.insert(0, 2)
        after.extend([3])
        after += [4]
        after[0] = 5
        after[:1] = [6]
        after(len)
        after_this_response(len)
        assert after[:5] == [6, 1, 3, 4, len]
        after.clear()

    with violations(*[(lint.ENTRY, "app")] * 8):
        Exchange(inside(app_that(view))).finish()


def test_what_was_registered_for_every_request_is_looked_at_too():
    async def log(environ): ...

    application = inside(hello)
    application.after_response(log)
    with violations((lint.ENTRY, "app")) as seen:
        exchange = Exchange(application)
        exchange.environ["wsgi.after"].clear()
        exchange.result.close()
    assert "test_lint.py" in seen[0].culprit


REPLACED = {
    "replaced": lambda environ: environ.update({"wsgi.after": []}),
    "deleted": lambda environ: environ.pop("wsgi.after"),
}


@pytest.mark.parametrize("plain", [False, True], ids=["our list", "a plain one"])
@pytest.mark.parametrize("how", REPLACED)
def test_a_list_that_is_replaced_or_deleted_is_reported(how, plain):
    app = app_that(REPLACED[how])
    environ = make_environ(**{"wsgi.after": []} if plain else {})
    with violations((lint.KEPT, "app")) as seen:
        Exchange(LintMiddleware(app) if plain else inside(app), environ).finish()
    assert f'left environ["wsgi.after"] {how}' in str(seen[0])
    assert re.search(r"app_that.<locals>.app \(.*, line \d+\)", seen[0].culprit)


def test_a_list_that_is_replaced_by_a_body_is_reported():
    def app(environ, start_response):
        del environ["wsgi.after"]
        yield b"body"

    with violations((lint.KEPT, "app")):
        Exchange(inside(app)).finish()


@pytest.mark.parametrize("method", ["append", "extend", "insert", "__call__", "__setitem__"])
def test_a_list_that_is_used_after_the_end_is_reported_and_raises(method):
    """Even by a method that was looked up before the end."""
    environ = make_environ()
    exchange = Exchange(inside(hello), environ)
    register = getattr(environ["wsgi.after"], method)
    exchange.finish()
    arguments = {"extend": [[print]], "insert": [0, print], "__setitem__": [slice(0), [print]]}
    with (
        violations((lint.REGISTERED_IN_TIME, "app")) as seen,
        pytest.raises(RuntimeError, match="have run already"),
    ):
        register(*arguments.get(method, [print]))
    [line] = re.findall(r"test_a_list_that_is_used.*, line (\d+)", seen[0].culprit)
    assert getline(__file__, int(line)).strip().startswith("register(")
    assert environ["wsgi.after"] == []


def test_on_prepare_too_late_is_reported_and_raises():
    def app(environ, start_response):
        start_response("200 OK", [])
        after_this_request(lambda response: None)
        return []

    with (
        violations((lint.PREPARED_IN_TIME, "app")) as seen,
        pytest.raises(RuntimeError, match="too late"),
    ):
        Exchange(inside(app))
    assert seen[0].request == "GET /path"


# A list that somebody else put there.


def test_of_a_plain_list_the_entries_are_looked_at_after_the_app_and_at_the_end():
    after = [len]
    body = app_that(lambda environ: environ["wsgi.after"].append(sum))
    with violations(*[(lint.ENTRY, "app")] * 5):
        exchange = Exchange(LintMiddleware(body), make_environ(**{"wsgi.after": after}))
        exchange.finish()
    assert after == [len, sum]


# What servers do, and middlewares.


def close_twice(exchange):
    exchange.finish()
    exchange.result.close()


def close_the_iterator(exchange):
    iterator = iter(exchange.result)
    next(iterator)
    iterator.close()
    exchange.result.close()


def iterate_after_close(exchange):
    exchange.result.close()
    list(exchange.result)


def go_on_after_close(exchange):
    next(exchange.result)
    exchange.result.close()
    next(exchange.result, None)


def drop_the_iterator(exchange):
    iterator = iter(exchange.result)
    del exchange.result
    gc.collect()
    assert next(iterator) == b"body"  # whoever made it may still close it
    del iterator
    gc.collect()


OFFENCES = {
    drop: [lint.CLOSED],
    drop_the_iterator: [lint.CLOSED],
    close_the_iterator: [lint.CLOSED],
    close_twice: [lint.ONCE],
    iterate_after_close: [lint.AT_REST],
    go_on_after_close: [lint.AT_REST],
}


def test_a_server_that_keeps_the_iterator_alone_may_still_close_later():
    with violations():
        exchange = Exchange(outside(hello))
        body = weakref.ref(exchange.result)
        iterator = iter(exchange.result)
        del exchange.result
        gc.collect()
        assert list(iterator) == [b"hello"]
        body().close()


@pytest.mark.parametrize("place", [inside, outside, both])
@pytest.mark.parametrize("offence", OFFENCES)
def test_an_offence_of_the_server_is_reported_once_and_callbacks_run(offence, place, events):
    app = app_that(ran(events))
    expected = [] if place is inside and offence in HIDDEN else OFFENCES[offence]
    with violations(*[(check, "server") for check in expected]) as seen:
        offence(Exchange(place(app)))
    assert events == ["ran"]
    assert all("test_lint" in w.culprit or "conftest" in w.culprit for w in seen)


#: A lint inside cannot see these: our own middleware is in between, and makes up for them.
HIDDEN = [drop, drop_the_iterator, close_the_iterator, close_twice]


def test_close_from_within_the_iteration_is_reported():
    exchange: Exchange

    class Body:
        def __iter__(self):
            return self

        def __next__(self):
            exchange.result.close()
            raise StopIteration

    with violations((lint.AT_REST, "server")) as seen:
        exchange = Exchange(LintMiddleware(app_that(lambda environ: None, Body())))
        assert list(exchange.result) == []
    assert "while the body was iterated" in str(seen[0])


def test_a_server_that_is_not_in_python_is_named_as_such(monkeypatch):
    monkeypatch.setattr(lint, "is_ours", lambda frame: True)
    with violations((lint.CLOSED, "server"), (lint.ONCE, "server")) as seen:
        drop(Exchange(LintMiddleware(hello)))
        close_twice(Exchange(LintMiddleware(hello)))
    assert {warning.culprit for warning in seen} == {"the server"}


@pytest.mark.parametrize("in_c", [False, True], ids=["server in Python", "server in C"])
def test_who_closes_twice_is_told_by_where_it_is(monkeypatch, in_c):
    """Lint compares packages. Here the server is in the package of the test."""
    if in_c:
        monkeypatch.setattr(lint, "callers", lambda: (lint.Place("m", "f", "m.py", 1), None))
    with violations((lint.ONCE, "middleware" if in_c else "server")):
        result = passing_on(LintMiddleware(hello))(make_environ(), print)
        result.close()
        result.close()


# A file.


def send_file(environ, start_response):
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](io.BytesIO(b"file"))


def passing_on(app):
    """A middleware that passes the iterable on."""
    return lambda environ, start_response: app(environ, start_response)


class Note:
    """A file that records each ``close()``, which may be an attribute of the instance."""

    def __init__(self, events, of_instance):
        self.events = events
        if of_instance:
            self.close = lambda: events.append("closed")

    def close(self):
        self.events.append("closed")


@pytest.mark.parametrize("place", [inside, outside, both])
@pytest.mark.parametrize("wrapper", [FileWrapper, lambda file: file])
@pytest.mark.parametrize("of_instance", [False, True])
def test_a_file_that_is_returned_twice_arrives_untouched_each_time(
    place, wrapper, of_instance, events
):
    """Each request runs its callbacks and closes the file; then the file is as it was."""
    made = []

    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "ran"))
        start_response("200 OK", [])
        if not made:
            made.append(environ["wsgi.file_wrapper"](file))
        return made[0]

    file = Note(events, of_instance)
    attributes = {*vars(file)}
    with violations():
        for _ in range(2):
            exchange = Exchange(place(app), make_environ(**{"wsgi.file_wrapper": wrapper}))
            assert (exchange.result is made[0], events) == (True, [])
            exchange.result.close()
            assert (events, {*vars(file)}) == (["closed", "ran"], attributes)
            events.clear()


def test_a_file_that_is_not_closed_is_reported():
    environ = make_environ(**{"wsgi.file_wrapper": FileWrapper})
    with violations((lint.CLOSED, "server")):
        drop(Exchange(outside(send_file), environ))


def test_a_middleware_that_copies_a_file_is_reported():
    environ = make_environ(**{"wsgi.file_wrapper": FileWrapper})
    with violations((lint.FILE, "middleware"), (lint.CLOSED, "middleware")) as seen:
        exchange = Exchange(LintMiddleware(forgets_close(LintMiddleware(send_file))), environ)
        assert exchange.finish() == [b"file"]
        drop(exchange)
    assert "forgets_close" in seen[0].culprit or "middleware" in seen[0].culprit


class Slotted:
    """A file wrapper like those in C: no attribute can be set on it."""

    __slots__ = ("file",)

    def __init__(self, file):
        self.file = file


@pytest.mark.parametrize("wrapper", [Slotted, lambda file: [b"file"]])
def test_a_file_wrapper_of_another_kind_passes(wrapper):
    environ = make_environ(**{"wsgi.file_wrapper": wrapper})
    result = Exchange(LintMiddleware(send_file), environ).result
    assert type(result) is Slotted or list(result) == [b"file"]
    getattr(result, "close", lambda: None)()


# Real offenders.


def elastic_apm(app):
    return ElasticAPM(app, None)


def close_before_the_first_chunk(exchange):
    exchange.result.close()
    drop(exchange)


def close_after_the_first_chunk(exchange):
    next(iter(exchange.result))
    exchange.result.close()
    drop(exchange)


REAL = [
    (OpenTelemetryMiddleware, close_before_the_first_chunk, "opentelemetry.instrumentation.wsgi."),
    (OpenTelemetryMiddleware, close_after_the_first_chunk, "opentelemetry.instrumentation.wsgi."),
    (TM, Exchange.finish, "repoze.tm."),
    (TM, close_after_the_first_chunk, "repoze.tm."),
    (elastic_apm, Exchange.finish, "elasticapm.middleware."),
]


@pytest.mark.parametrize(("middleware", "use", "culprit"), REAL)
@pytest.mark.parametrize("more", [False, True], ids=["one lint", "one around it, too"])
def test_a_real_middleware_that_closes_badly_is_named(middleware, use, culprit, more, events):
    app = app_that(ran(events))
    application = middleware(outside(app))
    with violations((lint.CLOSED, "middleware")) as seen:
        exchange = Exchange(LintMiddleware(application) if more else application)
        use(exchange)
        drop(exchange)
    assert events == ["ran"]
    assert seen[0].culprit.startswith(culprit)
    assert "Put AfterResponseMiddleware around that middleware" in str(seen[0])


@pytest.mark.parametrize(("middleware", "use"), [case[:2] for case in REAL])
def test_the_way_out_works(middleware, use, events):
    app = app_that(ran(events))
    with violations():
        use(Exchange(outside(middleware(app))))
    assert events == ["ran"]


def test_asgiref_which_closes_nothing_is_named(events):
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "http_version": "1"}
    sent = []

    async def receive():
        return {"type": "http.request"}

    async def send(message):
        sent.append(message["type"])

    with violations((lint.CLOSED, "server")) as seen:
        asyncio.run(WsgiToAsgi(outside(app_that(ran(events))))(scope, receive, send))
        gc.collect()
    assert (sent[-1], events) == ("http.response.body", ["ran"])
    assert seen[0].culprit.startswith("asgiref.wsgi.")
    assert "as an adapter to ASGI, a2wsgi closes" in str(seen[0])


# strict=True.


def test_strict_raises_what_the_app_does_where_it_does_it(events):
    """It also raises what the server does wrong."""

    def view(environ):
        for action in (lambda: environ["wsgi.after"].append(1), lambda: after_this_response(len)):
            with pytest.raises(WSGIAfterWarning) as caught:
                action()
            events.append(caught.value.rule)
        assert environ["wsgi.after"] == []

    exchange = Exchange(LintMiddleware(inside(app_that(view), strict=True), strict=True))
    exchange.finish()
    with pytest.raises(WSGIAfterWarning, match="after the last callback"):
        exchange.environ["wsgi.after"].append(print)
    with pytest.raises(WSGIAfterWarning, match="a second time"):
        exchange.result.close()
    assert events == [1, 1]


def test_strict_closes_what_it_does_not_return(events):
    class Body(list[bytes]):
        def close(self):
            events.append("closed")

    for body in (Body(), None):
        with pytest.raises(WSGIAfterWarning, match="left environ"):
            Exchange(inside(app_that(REPLACED["deleted"], body), strict=True))
    assert events == ["closed"]


def test_a_path_cannot_forge_a_line():
    with violations((lint.CLOSED, "server")) as seen:
        drop(Exchange(LintMiddleware(hello), make_environ(PATH_INFO="/\nforged")))
    assert seen[0].request == "GET /\\nforged"
    assert "\n" not in str(seen[0])


# The page.


def test_the_page_lists_the_checks():
    [rows] = list(parse("lint.rst").findall(nodes.tbody))
    cells = [
        [" ".join(entry.astext().split()) for entry in row.findall(nodes.entry)]
        for row in rows.findall(nodes.row)
    ]
    checks = [value for value in vars(lint).values() if isinstance(value, lint.Check)]
    app = {lint.ENTRY, lint.KEPT, lint.REGISTERED_IN_TIME, lint.PREPARED_IN_TIME}
    assert cells == [
        [
            str(check.rule),
            "app" if check in app else "who calls",
            check.sentence.replace("``", ""),
        ]
        for check in checks
    ]


def test_the_example_of_the_page_warns_as_shown(tmp_path, monkeypatch):
    (tmp_path / "linted.py").write_text(blocks("lint.rst")["linted.py"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.warns(WSGIAfterWarning) as caught:
        application = import_module("linted").application
        Exchange(application, make_environ(PATH_INFO="/")).finish()
    shown = f"{Path(caught[0].filename).name}:{caught[0].lineno}: WSGIAfterWarning: "
    shown += str(caught[0].message).replace(f"{tmp_path}/", "")
    assert shown == " ".join(blocks("lint.rst")["linted.out"].split())
