"""Real middlewares of other packages, to stand around ours and between ours and the app."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import webob.dec
from conftest import Refuses, forgets_close
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from paste.cascade import Cascade
from paste.gzipper import middleware as gzip
from paste.recursive import RecursiveMiddleware
from paste.translogger import TransLogger
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.middleware.shared_data import SharedDataMiddleware
from werkzeug.wsgi import ClosingIterator
from whitenoise import WhiteNoise

from wsgi_after import AfterResponseMiddleware

from .callbacks import for_each
from .reference import ReferenceList

HERE = str(Path(__file__).parent)
tracers = TracerProvider()


def not_found(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("404 NOT FOUND", [])
    return []


@webob.dec.wsgify.middleware
def through_webob(request: Any, app: Any) -> Any:
    return request.get_response(app)


def with_closing_iterator(app: Any) -> Any:
    return lambda environ, start_response: ClosingIterator(app(environ, start_response))


STACK = {
    "werkzeug ProxyFix": ProxyFix,
    "werkzeug DispatcherMiddleware": lambda app: DispatcherMiddleware(app, {"/x": not_found}),
    "werkzeug SharedDataMiddleware": lambda app: SharedDataMiddleware(app, {"/static": HERE}),
    "werkzeug ClosingIterator": with_closing_iterator,
    "Paste Cascade": lambda app: Cascade([not_found, app]),
    "Paste gzipper": gzip,
    "Paste RecursiveMiddleware": lambda app: RecursiveMiddleware(app, {}),
    "Paste TransLogger": lambda app: TransLogger(app, logger=logging.getLogger("model")),
    "WebOb": through_webob,
    "WhiteNoise": lambda app: WhiteNoise(app, root=HERE, prefix="static"),
    "Sentry": SentryWsgiMiddleware,
    "OpenTelemetry": lambda app: OpenTelemetryMiddleware(app, tracer_provider=tracers),
    "forgets close": forgets_close,
}


# A second call with the same environ, by rule 2 of the contract.


def quiet(*args: Any) -> Any:
    """The ``start_response`` of a response that nobody gets."""
    return lambda chunk: None


def twice(app: Any) -> Any:
    """Calls the app, then calls it again for the response, like a retry or an error page."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        first = app(environ, quiet)
        getattr(first, "close", lambda: None)()
        return app(environ, start_response)

    return middleware


def twice_at_once(app: Any) -> Any:
    """The same, but the first response is being read, and closed only after the second call."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        first = app(environ, quiet)
        for _ in () if first is None else first:
            break
        try:
            return app(environ, start_response)
        finally:
            getattr(first, "close", lambda: None)()

    return middleware


def again(app: Any) -> Any:
    """Has the request handled once more by ours, or what takes its place, within the call."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        if "model.again" in environ:
            return app(environ, start_response)
        environ["model.again"] = True
        return environ["model.side"].middleware(environ, start_response)

    return middleware


def lazy(app: Any) -> Any:
    """Calls the app when its body is read."""

    def read(environ: dict[str, Any], start_response: Any) -> Any:
        body = app(environ, start_response)
        try:
            for chunk in body:
                yield chunk
        finally:
            getattr(body, "close", lambda: None)()

    return read


def ours_again(app: Any, executor: Any = None) -> Any:
    """An instance of the package within another: it shares the list of the outer one."""
    application = AfterResponseMiddleware(app, executor=executor)
    application.after_response(partial(for_each, "app-wide, of an inner one", "nothing"))
    return application


def told_of_ours(app: Any, executor: str | None = None) -> Any:
    """The same for the reference."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        after = environ["wsgi.after"]
        fn = partial(for_each, "app-wide, of an inner one", "nothing")
        after.append(partial(fn, environ, after))
        if executor is not None and isinstance(after, ReferenceList):
            after.executor = executor
        return app(environ, start_response)

    return middleware


#: What may stand around ours only.
AROUND = {"twice": twice, "twice at once": twice_at_once}
#: What may stand between ours and the app only; and the same for the reference.
LATE = "ours, while the body is read"
INSIDE = {
    "again": again,
    "ours": ours_again,
    "ours, with an executor": lambda app: ours_again(app, Refuses()),
    LATE: lambda app: lazy(ours_again(app)),
}
OF_REFERENCE = {
    "again": again,
    "ours": told_of_ours,
    "ours, with an executor": lambda app: told_of_ours(app, "refuses"),
    LATE: lambda app: lazy(told_of_ours(app)),
}


def stacked(names: list[str], app: Any, inside: dict[str, Any] = INSIDE) -> Any:
    """The app, with these around it; the first is the outermost."""
    for name in reversed(names):
        app = (STACK | AROUND | inside)[name](app)
    return app
