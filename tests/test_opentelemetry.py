"""Spans and durations, with the real SDK and OpenTelemetry's own middlewares around or inside."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import flask
import pytest
from conftest import Exchange, django_app, make_environ, registers
from django.conf import settings
from django.http import HttpResponse
from opentelemetry import context, metrics, trace
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.metrics import _internal as metrics_internal
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util._once import Once
from werkzeug.test import Client

import wsgi_after.flask
from wsgi_after import AfterResponseMiddleware, after_this_response
from wsgi_after.django import after_response
from wsgi_after.lint import LintMiddleware
from wsgi_after.moment import KEY, Slot
from wsgi_after.opentelemetry import span


@pytest.fixture
def exporter(monkeypatch):
    """The exporter that gets the spans; its provider is the process's while the test runs."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    # A response that an earlier test never closed may have left its span current.
    token = context.attach(context.Context())
    yield exporter
    context.detach(token)


@pytest.fixture
def reader(monkeypatch):
    """The reader of the metrics."""
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER", None)
    monkeypatch.setattr(metrics_internal, "_METER_PROVIDER_SET_ONCE", Once())
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader


def work():
    return trace.get_current_span()


def app(environ, start_response):
    environ["wsgi.after"].append(work)
    environ["wsgi.after"](work)
    start_response("200 OK", [])
    return [b"body"]


def spans_of(exporter):
    """The span of the request, and those of its callbacks."""
    spans = exporter.get_finished_spans()
    [request] = [span for span in spans if not span.name.endswith("work")]
    return request, [span for span in spans if span is not request]


def links(spans):
    return [[link.context.span_id for link in span.links] for span in spans]


def ours(app, **options):
    return AfterResponseMiddleware(app, around=span, **options)


ORDERS = {
    "inside": lambda app, **options: ours(OpenTelemetryMiddleware(app), **options),
    "outside": lambda app, **options: OpenTelemetryMiddleware(ours(app, **options)),
    "inside, with lint": lambda app, **options: ours(
        LintMiddleware(OpenTelemetryMiddleware(app)), **options
    ),
}


def in_close(wrap, environ):
    Exchange(wrap(app), environ).finish()


def at_a_moment(wrap, environ):
    environ[KEY] = slot = Slot()
    Exchange(wrap(app), environ).finish()
    slot.run()


def in_a_pool(wrap, environ):
    with ThreadPoolExecutor() as pool:
        Exchange(wrap(app, executor=pool), environ).finish()


@pytest.mark.parametrize("run", [in_close, at_a_moment, in_a_pool])
@pytest.mark.parametrize("order", ORDERS)
def test_each_callback_has_a_trace_of_its_own_with_a_link_to_the_requests_span(
    order, run, exporter
):
    run(ORDERS[order], make_environ())
    request, callbacks = spans_of(exporter)
    assert [(span.name, span.parent) for span in callbacks] == [(f"{__name__}.work", None)] * 2
    assert links(callbacks) == [[request.context.span_id]] * 2
    assert len({span.context.trace_id for span in [request, *callbacks]}) == 3
    assert callbacks[0].attributes["http.response.status_code"] == 200


def test_it_can_be_a_child_instead(exporter):
    around = partial(span, child=True)
    Exchange(AfterResponseMiddleware(OpenTelemetryMiddleware(app), around=around)).finish()
    request, callbacks = spans_of(exporter)
    assert {span.parent.span_id for span in callbacks} == {request.context.span_id}
    assert links(callbacks) == [[], []]


def test_without_a_span_there_is_no_link_and_without_a_status_no_attribute(exporter):
    with pytest.raises(ZeroDivisionError):
        Exchange(registers(work, app=lambda *args: 1 / 0, around=span))
    [one] = exporter.get_finished_spans()
    attributes = {"code.function.name": f"{__name__}.work"}
    assert (list(one.links), dict(one.attributes)) == ([], attributes)


def fails():
    raise ZeroDivisionError


def test_an_error_is_recorded_and_durations_are_in_seconds(exporter, reader):
    Exchange(registers(work, fails, around=span)).finish()
    _, failed = exporter.get_finished_spans()
    assert not failed.status.is_ok
    assert failed.events[0].attributes["exception.type"] == "ZeroDivisionError"
    [resource] = reader.get_metrics_data().resource_metrics
    [metric] = resource.scope_metrics[0].metrics
    assert (metric.name, metric.unit) == ("wsgi_after.callback.duration", "s")
    assert [dict(point.attributes) for point in metric.data.data_points] == [
        {"code.function.name": f"{__name__}.work"},
        {"code.function.name": f"{__name__}.fails", "error.type": "ZeroDivisionError"},
    ]


@pytest.mark.parametrize("order", ["inside", "outside"])
def test_a_callback_of_flask_is_linked_too(order, exporter):
    app = flask.Flask(__name__)
    wsgi_after.flask.AfterResponse(app)
    steps = [
        FlaskInstrumentor().instrument_app,
        lambda app: setattr(app, "wsgi_app", ours(app.wsgi_app)),
    ]
    for step in steps if order == "inside" else reversed(steps):
        step(app)

    @app.get("/")
    def view():
        wsgi_after.flask.after_this_response(work)
        after_this_response(work)
        return "body"

    try:
        Client(app).get("/").close()
    finally:
        FlaskInstrumentor().uninstrument_app(app)
    request, callbacks = spans_of(exporter)
    assert links(callbacks) == [[request.context.span_id]] * 2


def test_each_registration_has_its_own_span_in_whatever_order_callbacks_run(exporter):
    tracer = trace.get_tracer("test")

    def app(environ, start_response):
        after = environ["wsgi.after"]
        with tracer.start_as_current_span("first"):
            after.append(work)
        with tracer.start_as_current_span("second"):
            after.insert(0, fails)
        start_response("200 OK", [])
        return []

    exchange = Exchange(ours(app))
    exchange.finish()
    with pytest.raises(RuntimeError):
        exchange.environ["wsgi.after"].append(work)  # too late: nothing is registered
    first, second, *callbacks = exporter.get_finished_spans()
    assert [span.name for span in callbacks] == [f"{__name__}.fails", f"{__name__}.work"]
    assert links(callbacks) == [[second.context.span_id], [first.context.span_id]]


def test_a_callback_of_django_is_linked_too(exporter):
    def view(request):
        after_response(request, work)
        return HttpResponse("body")

    with django_app(view) as app:
        settings.MIDDLEWARE.append("wsgi_after.django.AfterResponseMiddleware")
        DjangoInstrumentor().instrument()
        try:
            app.load_middleware()
            Client(ours(app)).get("/").close()
        finally:
            DjangoInstrumentor().uninstrument()
    request, callbacks = spans_of(exporter)
    assert links(callbacks) == [[request.context.span_id]]
