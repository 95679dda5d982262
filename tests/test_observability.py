"""What is logged of a failing callback reaches JSON, Sentry and OpenTelemetry as the page says."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any

import pytest
import sentry_sdk
from conftest import Exchange, hello, make_environ
from documents import blocks, executed
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter

from wsgi_after import AfterResponseMiddleware, run_callbacks

DSN = "https://key@sentry.invalid/1"


def send_mail() -> None:
    raise ValueError("no such address")


async def coroutine_function() -> None: ...


def stop() -> None:
    raise SystemExit


def post(*entries: Any, around: Any = lambda app: app) -> None:
    """Make a request that registers these."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        environ["wsgi.after"].extend(entries)
        return hello(environ, start_response)

    environ = make_environ(REQUEST_METHOD="POST", PATH_INFO="/orders")
    Exchange(around(AfterResponseMiddleware)(app), environ).finish()


def snippet(name: str) -> dict[str, Any]:
    return executed(blocks("observability.rst")[name])


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's, with its handlers as they were afterwards; and the root's."""
    loggers = [logging.getLogger("wsgi_after"), logging.getLogger()]
    before = [(logger.handlers.copy(), logger.level) for logger in loggers]
    yield loggers[0]
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


def test_a_page_has_no_block_that_is_not_run() -> None:
    assert list(blocks("observability.rst")) == [
        *("json_logs.py", "json_logs.json", "sentry.py", "opentelemetry_logs.py")
    ]


async def async_generator_function() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("entry", "name", "outcome"),
    [
        (send_mail, "test_observability.send_mail", "failed"),
        (partial(send_mail), "test_observability.send_mail", "failed"),
        (coroutine_function, "test_observability.coroutine_function", "coroutine"),
        (
            async_generator_function,
            *("test_observability.async_generator_function", "generator"),
        ),
        (7, "7", "not callable"),
        (stop, "test_observability.stop", "system exit"),
    ],
)
def test_a_record_tells_callback_request_and_outcome(
    entry: Any, name: str, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    post(entry)
    [record] = caplog.records
    assert (record.callback, record.request_line) == (name, "POST /orders")
    assert record.outcome == outcome


def test_a_record_without_a_request_says_so(caplog: pytest.LogCaptureFixture) -> None:
    run_callbacks([send_mail])
    assert [record.request_line for record in caplog.records] == ["a request"]


def test_each_callback_has_its_own_seconds(caplog: pytest.LogCaptureFixture) -> None:
    def fail_slowly() -> None:
        Event().wait(0.5)
        raise ValueError

    post(fail_slowly, send_mail)
    slow, fast = [record.seconds for record in caplog.records]
    assert 0.5 <= slow < 30
    assert 0 <= fast < 0.5


def test_json(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    snippet("json_logs.py")
    post(send_mail)
    logged = json.loads(err.getvalue())
    shown = json.loads(blocks("observability.rst")["json_logs.json"])
    assert logged.keys() == shown.keys()
    assert logged["callback"] == "test_observability.send_mail"
    assert logged["exc_info"].endswith("ValueError: no such address")


class Transport(sentry_sdk.transport.Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Any) -> None:
        self.events.append(envelope.get_event())


def options(transport: Transport) -> dict[str, Any]:
    """Without the integrations for all frameworks that are installed: importing some warns."""
    return {"transport": transport, "auto_enabling_integrations": False}


@pytest.fixture
def transport(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    transport = Transport()
    # Sentry's integration for threads stands in their place, and nothing takes that back: these
    # do, at the end.
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", ThreadPoolExecutor.submit)
    yield transport
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def test_sentry(transport: Transport) -> None:
    monitored = snippet("sentry.py")["monitored"]
    post(
        send_mail,
        coroutine_function,
        around=lambda middleware: lambda app: monitored(app, DSN, **options(transport)),
    )
    failed, coroutine = transport.events
    assert failed["exception"]["values"][0]["value"] == "no such address"
    assert failed["logger"] == "wsgi_after"
    assert failed["tags"] == {"callback": "test_observability.send_mail", "outcome": "failed"}
    assert failed["extra"]["seconds"] >= 0
    assert failed["transaction"] == failed["extra"]["request_line"] == "POST /orders"
    assert failed["fingerprint"] == ["{{ default }}", "test_observability.send_mail"]
    assert coroutine["tags"]["outcome"] == "coroutine"


def test_sentry_gets_other_events_as_they_were(transport: Transport) -> None:
    snippet("sentry.py")["monitored"](hello, DSN, **options(transport))
    logging.getLogger("other").error("something else")
    assert [event.get("tags") for event in transport.events] == [None]


def test_opentelemetry(logger: logging.Logger) -> None:
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
