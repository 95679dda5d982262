"""Other middlewares, the real ones, to stand around ours and between ours and the app."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import webob.dec
from conftest import forgets_close
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


def ours_again(app: Any) -> Any:
    """An instance of the package within another: it shares the list of the outer one."""
    application = AfterResponseMiddleware(app)
    application.after_response(partial(for_each, "app-wide, of an inner one", "nothing"))
    return application


def told_of_ours(app: Any) -> Any:
    """What that does, told again."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        fn = partial(for_each, "app-wide, of an inner one", "nothing")
        environ["wsgi.after"].append(partial(fn, environ))
        return app(environ, start_response)

    return middleware


#: What may stand between ours and the app only, and what it is where ours is not.
INSIDE = {"ours": ours_again}
OF_REFERENCE = {"ours": told_of_ours}


def stacked(names: list[str], app: Any, inside: dict[str, Any] = INSIDE) -> Any:
    """The app, with these around it; the first is the outermost."""
    for name in reversed(names):
        app = (STACK | inside)[name](app)
    return app
