"""A span and a duration for each callback, for OpenTelemetry.

::

    application = AfterResponseMiddleware(app, around=span)

When callbacks run, the request's span has ended or is no longer current. So the package remembers
the span that is current where a callback is registered, and gives the callback's span a link to it.
OpenTelemetry's middleware may stand inside or outside.

Caution: a callback that code registers outside any span has no link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode

from .integration import describe, notes_of

__all__ = ["span"]

NAME = "wsgi_after"


class Registered:
    """The spans that were current where the callbacks of one request were registered."""

    def __init__(self) -> None:
        self._found: list[tuple[object, SpanContext]] = []

    def add(self, callback: object) -> None:
        """Remember the current span, if there is one."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            self._found.append((callback, context))

    def take(self, callback: object) -> SpanContext | None:
        """The span of one registration of this callback, the oldest; each once."""
        for index, (other, context) in enumerate(self._found):
            if other is callback or other is getattr(callback, "original", None):
                del self._found[index]
                return context
        return None


@contextmanager
def span(callback: Callable[[], object], after: Any, *, child: bool = False) -> Iterator[None]:
    """A context manager for ``around=``: a span of one callback, and a record of its duration.

    The span is named after the callback's function. It begins a trace of its own, with a link to
    the span in which the callback was registered. If the callback raises, the exception is
    recorded, and the status of the span is an error. Its attributes are
    ``http.response.status_code``, if it is known, and ``code.function.name``.

    The histogram ``wsgi_after.callback.duration`` is in seconds. Its attributes are
    ``code.function.name`` and, after a failure, ``error.type``.

    :param child: make it a child of that span instead of linking to it: ``around=partial(span,
        child=True)``. The parent has ended by then, which some backends show badly.
    """
    name = describe(callback)
    context = registered_in(after).take(callback)
    attributes: dict[str, str | int] = {"code.function.name": name}
    if after.status is not None:
        attributes["http.response.status_code"] = int(after.status[:3])
    parent, links = trace.INVALID_SPAN, []
    if context is not None and child:
        parent = NonRecordingSpan(context)
    elif context is not None:
        links = [Link(context)]
    tracer, began = trace.get_tracer(NAME), monotonic()
    measured = {"code.function.name": name}
    try:
        with tracer.start_as_current_span(
            name,
            trace.set_span_in_context(parent),
            links=links,
            attributes=attributes,
            set_status_on_exception=False,
        ) as current:
            try:
                yield
            except BaseException as error:
                measured["error.type"] = type(error).__qualname__
                current.set_status(Status(StatusCode.ERROR, type(error).__qualname__))
                raise
    finally:
        histogram().record(monotonic() - began, measured)


def histogram() -> metrics.Histogram:
    """The one of the current meter provider, which makes it once."""
    meter = metrics.get_meter(NAME)
    return meter.create_histogram(
        "wsgi_after.callback.duration", "s", "How long a callback after the response took."
    )


def observe(after: Any, event: str, *callbacks: object) -> None:
    """Remember the current span for each callback: called where they are registered."""
    if event == "registers":
        for callback in callbacks:
            registered_in(after).add(callback)


def registered_in(after: Any) -> Registered:
    """What is remembered for the list of a request."""
    return notes_of(after).setdefault(NAME, Registered())  # type: ignore[no-any-return]


span.observer = observe  # type: ignore[attr-defined]
