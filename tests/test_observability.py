"""Log records of failing callbacks reach JSON, Sentry and OpenTelemetry as the page says."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event

import pytest
import sentry_sdk
from commands import ask, run, serving
from conftest import Exchange, Immediately, hello, make_environ, registers
from documents import blocks, executed
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter
from servers.harness import wait_until

from wsgi_after import AfterResponseMiddleware, CallbackList, run_callbacks
from wsgi_after.testing import capture

DSN = "https://key@sentry.invalid/1"
PAGE = blocks("observability.rst")


def send_mail():
    raise ValueError("no such address")


async def coroutine_function(): ...


def generator_function():
    yield


async def async_generator_function():
    yield


def stop():
    raise SystemExit


def post(*entries, around=lambda app: app):
    """Make a request that registers these."""
    environ = make_environ(REQUEST_METHOD="POST", PATH_INFO="/orders")
    Exchange(around(registers(*entries)), environ).finish()


def snippet(name):
    return executed(PAGE[name])


@pytest.fixture
def logger():
    """The package's logger; afterwards, its handlers and level, and the root's, are as before."""
    loggers = [logging.getLogger("wsgi_after"), logging.getLogger()]
    before = [(logger.handlers.copy(), logger.level) for logger in loggers]
    yield loggers[0]
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


def test_a_page_has_no_block_that_is_not_run():
    assert list(PAGE) == [
        *("silent.py", "count_failures.py", "time_callbacks.py"),
        *("json_logs.py", "json_logs.json", "prometheus.py", "access_log.py", "in_context.py"),
        *("sentry.py", "spans.py", "opentelemetry_logs.py"),
    ]


@pytest.mark.parametrize(
    ("entry", "name", "outcome"),
    [
        (send_mail, "test_observability.send_mail", "failed"),
        (partial(send_mail), "test_observability.send_mail", "failed"),
        (coroutine_function, "test_observability.coroutine_function", "coroutine"),
        (async_generator_function, "test_observability.async_generator_function", "generator"),
        (7, "7", "not callable"),
        (stop, "test_observability.stop", "system exit"),
    ],
)
def test_a_record_tells_callback_request_and_outcome(entry, name, outcome, caplog):
    post(entry)
    assert [
        (record.callback, record.request_line, record.outcome) for record in caplog.records
    ] == [(name, "POST /orders", outcome)]


def test_each_callback_has_its_own_seconds(caplog):
    def fail_slowly():
        Event().wait(0.5)
        raise ValueError

    post(fail_slowly, send_mail)
    slow, fast = [record.seconds for record in caplog.records]
    assert 0 <= fast < 0.5 <= slow < 30


def test_json(logger, monkeypatch):
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    snippet("json_logs.py")
    post(send_mail)
    logged = json.loads(err.getvalue())
    assert logged.keys() == json.loads(PAGE["json_logs.json"]).keys()
    assert logged["callback"] == "test_observability.send_mail"
    assert logged["exc_info"].endswith("ValueError: no such address")


class Transport(sentry_sdk.transport.Transport):
    """Keeps what would be sent."""

    def __init__(self):
        super().__init__()
        self.events = []

    def capture_envelope(self, envelope):
        self.events.append(envelope.get_event())


@pytest.fixture
def sentry(logger, monkeypatch):
    """The page's function for Sentry, and the events that it would send."""
    transport = Transport()
    # Sentry's integration for threads replaces these two, and nothing undoes that: monkeypatch
    # does so, at the end.
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", ThreadPoolExecutor.submit)
    # Without the integrations for all frameworks that are installed: importing some warns.
    options = {"transport": transport, "auto_enabling_integrations": False}
    yield partial(snippet("sentry.py")["monitored"], dsn=DSN, **options), transport.events
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def test_sentry(sentry):
    monitored, events = sentry
    post(send_mail, coroutine_function, around=monitored)
    failed, coroutine = events
    assert failed["exception"]["values"][0]["value"] == "no such address"
    assert failed["logger"] == "wsgi_after"
    assert failed["tags"] == {"callback": "test_observability.send_mail", "outcome": "failed"}
    assert failed["extra"]["seconds"] >= 0
    assert failed["transaction"] == failed["extra"]["request_line"] == "POST /orders"
    assert failed["fingerprint"] == ["{{ default }}", "test_observability.send_mail"]
    assert coroutine["tags"]["outcome"] == "coroutine"


def test_sentry_gets_other_events_as_they_were(sentry):
    monitored, events = sentry
    monitored(hello)
    logging.getLogger("other").error("something else")
    assert [event.get("tags") for event in events] == [None]


def test_opentelemetry(logger):
    exporter = InMemoryLogRecordExporter()
    snippet("opentelemetry_logs.py")["export_logs"](exporter)
    post(send_mail)
    [exported] = exporter.get_finished_logs()
    attributes = exported.log_record.attributes
    assert exported.log_record.severity_text == "ERROR"
    assert attributes["callback"] == "test_observability.send_mail"
    assert (attributes["request_line"], attributes["outcome"]) == ("POST /orders", "failed")
    assert attributes["seconds"] >= 0
    assert attributes["exception.message"] == "no such address"


# A failure shows, however logging is configured

PLAIN = """
from wsgi_after import AfterResponseMiddleware

def fails():
    raise ValueError("on purpose")

@AfterResponseMiddleware
def application(environ, start_response):
    environ["wsgi.after"].append(fails)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]
"""

#: As in Flask's manual, page "Logging". The package is imported first, as an extension would do.
FLASK = """
from logging.config import dictConfig
from flask import Flask
from wsgi_after.flask import AfterResponse, after_this_response

dictConfig({
    "version": 1,
    "formatters": {"default": {"format": "[%(asctime)s] %(levelname)s in %(module)s: %(message)s"}},
    "handlers": {"wsgi": {
        "class": "logging.StreamHandler",
        "stream": "ext://flask.logging.wsgi_errors_stream",
        "formatter": "default",
    }},
    "root": {"level": "INFO", "handlers": ["wsgi"]},
})
application = Flask(__name__)
AfterResponse(application)

@application.get("/")
def view():
    @after_this_response
    def fails():
        raise ValueError("on purpose")
    return "ok"
"""

#: The logger is made when wsgi.py imports the package; Django configures logging after that.
DJANGO = """
import wsgi_after
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

def fails():
    raise ValueError("on purpose")

def view(request):
    request.environ["wsgi.after"].append(fails)
    return HttpResponse("ok")

urlpatterns = [path("", view)]
settings.configure(
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["wsgi_after.django.AfterResponseMiddleware"],
    ROOT_URLCONF=__name__,
    LOGGING=%s,
)
application = get_wsgi_application()
"""

SETUPS = {
    "no configuration": PLAIN,
    "Flask's manual": FLASK,
    "Django's default": DJANGO % "{}",
    "Django, all existing loggers disabled": DJANGO
    % """{
        "version": 1,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "loggers": {"django": {"handlers": ["console"]}},
    }""",
}

SERVERS = {
    "gunicorn": "gunicorn --bind 127.0.0.1:8000 shop:application",
    "uWSGI": "uwsgi --http-socket 127.0.0.1:8000 --die-on-term --module shop:application",
}


@pytest.mark.servers
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("server", SERVERS)
def test_a_failure_shows_on_a_server_however_logging_is_configured(server, setup, tmp_path):
    (tmp_path / "shop.py").write_text(SETUPS[setup])
    log = tmp_path / "log"
    with serving(SERVERS[server], tmp_path) as port:
        assert ask(port, "/") == (200, "ok")
        wait_until(lambda: "ValueError: on purpose" in log.read_text(), log, seconds=10)
    assert log.read_text().count("fails of GET / failed.") == 1


@pytest.mark.parametrize("setup", SETUPS)
def test_a_failure_shows_in_the_command_however_logging_is_configured(setup, tmp_path):
    (tmp_path / "shop.py").write_text(SETUPS[setup])
    printed = run("python -m wsgi_after shop:application", tmp_path)
    assert printed.count("fails of GET / failed.") == printed.count("ValueError: on purpose") == 1


#: Code after the failing app that configures logging, and whether a failure shows then.
CONFIGURATIONS = {
    "logging.config.dictConfig({'version': 1})": True,
    "logging.config.fileConfig('logging.ini')": True,
    "logger.disabled = True": True,
    "logger.setLevel(logging.CRITICAL)": False,
    "logger.addFilter(lambda record: False)": False,
    PAGE["silent.py"]: False,
    "logging.config.dictConfig({'version': 1, 'loggers': {'wsgi_after': {'level': 50}}})": False,
    "logging.disable()": False,
}

INI = """
[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=
[logger_root]
handlers=console
[handler_console]
class=StreamHandler
"""

CONFIGURED = """
import logging.config
from webtest import TestApp

logger = logging.getLogger("wsgi_after")
{}
TestApp(application).get("/")
"""


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_failure_shows_unless_it_is_silenced_on_purpose(configuration, tmp_path):
    (tmp_path / "logging.ini").write_text(INI)
    (tmp_path / "shop.py").write_text(PLAIN + CONFIGURED.format(configuration))
    shown = "Callback shop.fails of GET / failed." in run("python -c 'import shop'", tmp_path)
    assert shown == CONFIGURATIONS[configuration]


# on_error


@pytest.fixture
def told(events):
    """An ``on_error`` that records its arguments."""

    def on_error(callback, error, after):
        events.append((callback, f"{type(error).__name__}: {error}", after.status))

    return on_error


FAILED = [(send_mail, "ValueError: no such address", "200 OK")]


def order(*entries, **options):
    """Make a request that registers these, to a middleware with these options."""
    Exchange(registers(*entries, **options)).finish()


NOT_RUN = (
    "RuntimeError: Callback test_observability.{} of GET /path returned a {}, so its code has not"
)


def test_on_error_is_told_of_each_failure(told, events):
    bound = partial(send_mail)
    order(bound, str, coroutine_function, generator_function, stop, on_error=told)
    failed, coroutine, generator, exited = events
    assert failed == (bound, "ValueError: no such address", "200 OK")
    assert coroutine[1].startswith(NOT_RUN.format("coroutine_function", "coroutine"))
    assert generator[1].startswith(NOT_RUN.format("generator_function", "generator"))
    assert exited == (stop, "SystemExit: ", "200 OK")


def test_on_error_is_called_where_the_callback_ran_and_after_it_was_logged(caplog, events):
    def on_error(callback, error, after):
        events.append((threading.current_thread().name, len(caplog.records)))
        after.append(partial(events.append, "registered by on_error"))

    with ThreadPoolExecutor(1, "pool") as pool:
        order(send_mail, partial(events.append, "the other"), on_error=on_error, executor=pool)
    assert events == [("pool_0", 1), "the other", "registered by on_error"]


def test_on_error_is_told_of_what_is_captured_when_that_runs(told, events):
    with capture() as captured:
        order(send_mail, on_error=told)
        assert events == []
        captured.run()
    assert events == FAILED


def test_of_instances_that_share_a_list_the_on_error_of_its_maker_counts(told, events):
    inner = registers(send_mail, on_error=lambda *args: pytest.fail("of the inner one"))
    for options in ({"on_error": told}, {}):
        Exchange(AfterResponseMiddleware(inner, **options)).finish()
    assert events == FAILED


def test_an_on_error_that_fails_is_logged_itself(caplog, events):
    def on_error(callback, error, after):
        raise [OSError("no pager"), SystemExit(3)][len(events)]

    order(send_mail, partial(events.append, 1), send_mail, on_error=on_error)
    name = "test_observability.test_an_on_error_that_fails_is_logged_itself.<locals>.on_error"
    assert caplog.messages == 2 * [
        "Callback test_observability.send_mail of GET /path failed.",
        f"The function {name}, passed as on_error=, raised an exception. It was called because a "
        "callback of GET /path failed: see the record before this one.",
    ]
    assert [str(record.exc_info[1]) for record in caplog.records[1::2]] == ["no pager", "3"]


def test_an_interrupt_in_on_error_goes_on_after_the_other_callbacks(events):
    def interrupt(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        order(send_mail, partial(events.append, "the other"), on_error=interrupt)
    assert events == ["the other"]


class Pickles(Immediately):
    """An executor that runs a job elsewhere, as far as this process can tell."""

    def submit(self, fn, *args):
        super().submit(*pickle.loads(pickle.dumps((fn, *args))))


def test_a_job_that_is_pickled_leaves_on_error_behind(caplog):
    order(send_mail, on_error=lambda *args: pytest.fail("here"), executor=Pickles())
    assert len(caplog.records) == 1


FORKS = """
import os, sys
from webtest import TestApp
from wsgi_after import AfterResponseMiddleware

PARENT = os.getpid()

def where():
    return "parent" if os.getpid() == PARENT else "child"

def say(*words):
    print(*words, where(), flush=True)

def fails():
    raise ValueError

class Forks:
    def submit(self, fn, *args):
        pid = os.fork()
        if pid == 0:
            fn(*args)
            os._exit(0)
        os.waitpid(pid, 0)

def fork_and_raise(callback, error, after):
    pid = os.fork()
    if pid == 0:
        raise ZeroDivisionError if after.status == "200 OK" else SystemExit
    os.waitpid(pid, 0)
    say("on_error")

def app(environ, start_response):
    for callback in (fails, lambda: say("the other")):
        environ["wsgi.after"].append(callback)
    start_response(environ["PATH_INFO"][1:], [("Content-Type", "text/plain")])
    return [b"ok"]

def ask(path, **options):
    try:
        TestApp(AfterResponseMiddleware(app, **options)).get(path, status="*")
    except BaseException as error:
        say(type(error).__name__)
    if where() == "child":
        sys.exit()

ask("/200 OK", executor=Forks(), on_error=lambda *args: say("on_error"))
ask("/200 OK", on_error=fork_and_raise)
ask("/404 Not Found", on_error=fork_and_raise)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_on_error_and_processes(tmp_path):
    """It is not called in another process; if it forks, the child exits as it intended."""
    (tmp_path / "forks.py").write_text(FORKS)
    lines = run("python -c 'import forks'", tmp_path).splitlines()
    assert [line for line in lines if line.endswith(("parent", "child"))] == [
        "the other child",
        *("ZeroDivisionError child", "on_error parent", "the other parent"),
        *("SystemExit child", "on_error parent", "the other parent"),
    ]


def test_the_failures_that_the_page_counts():
    names = snippet("count_failures.py")
    Exchange(names["counted"](registers(send_mail, stop))).finish()
    assert names["failures"] == {("ValueError", "200 OK"): 1, ("SystemExit", "200 OK"): 1}


def test_the_times_that_the_page_takes():
    names = snippet("time_callbacks.py")
    Exchange(names["with_times"](registers(send_mail, stop))).finish()
    assert [status for status, seconds in names["times"]] == ["200 OK"] * 2


def test_a_list_without_a_middleware_has_no_on_error(caplog):
    run_callbacks(CallbackList([send_mail]))
    assert [record.request_line for record in caplog.records] == ["a request"]


async def coroutine_on_error(callback, error, after): ...


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, r"on_error= expects a plain function fn\(.*\), or None, not int: 3\. The usual .*"),
        (coroutine_on_error, r"on_error= expects a plain function .*, not function: .*"),
        (send_mail, r".*send_mail\(\) cannot be called: .* on_error= expects a .*"),
    ],
)
def test_an_on_error_that_cannot_be_called_is_refused(wrong, message):
    with pytest.raises(TypeError, match=f"^{message}$"):
        AfterResponseMiddleware(hello, on_error=wrong)
