"""What is measured side by side: the bare app, and the same app behind each middleware.

Most middlewares of other packages do something else: they are here because they stand where this
package does, around the app and around what it returns. Each is set up as its documentation says,
with nothing behind it: no exporter, no transport, no transaction's resource.
"""

from traceback import print_exc

from .workloads import APP_WIDE, LIST, PREPARE, callback


class Contender:
    """One middleware.

    :param make: gets a :class:`~benchmarks.workloads.Workload`, and returns the app to call. It
        imports what it needs only when it is called.
    :param can: which needs of a workload it meets.
    :param package: the distribution that it belongs to.
    :param about: what it does, in a line of the page.
    """

    def __init__(self, title, make, can=(), package=None, about=None):
        self.title = title
        self.about = about
        self.make = make
        self.can = frozenset(can)
        self.package = package

    def serves(self, workload):
        """Whether it has what the workload needs."""
        return workload.needs is None or workload.needs in self.can


def bare(workload):
    """The app alone: the baseline of all others."""
    return workload.bare()


def ours(workload, middleware=None):
    """Behind the middleware of this package, or that of a copy."""
    from wsgi_after import AfterResponseMiddleware

    application = (middleware or AfterResponseMiddleware)(workload.app())
    if workload.needs == APP_WIDE:
        application.after_response(lambda environ: None)
    return application


def recipe(workload):
    """Behind the recipe on ``ClosingIterator``: the yardstick."""
    from werkzeug.wsgi import ClosingIterator

    from .recipe import ClosingIteratorRecipe

    if workload.needs == APP_WIDE:
        return one_list(workload, lambda iterable, close: ClosingIterator(iterable, [close]))
    return ClosingIteratorRecipe(workload.app())


def one_list(workload, wrap):
    """The recipe as people copy it most often: one list for the process."""
    app, callbacks = workload.app(), [callback]

    def flush():
        for function in callbacks:
            try:
                function()
            except Exception:
                print_exc()

    return lambda environ, start_response: wrap(app(environ, start_response), flush)


def with_wrapper(workload, wrap):
    """The recipe, with a wrapper other than werkzeug's around what the app returned."""
    if workload.needs == APP_WIDE:
        return one_list(workload, wrap)
    app = workload.app()

    def application(environ, start_response):
        callbacks = environ["wsgi.after"] = []

        def flush():
            for function in callbacks:
                try:
                    function()
                except Exception:
                    print_exc()

        return wrap(app(environ, start_response), flush)

    return application


def paste(workload):
    """The recipe with ``paste.wsgilib.add_close``."""
    from paste.wsgilib import add_close

    return with_wrapper(workload, add_close)


def bottle(workload):
    """The recipe with ``bottle._closeiter``, which closes what it gets, but not the body."""
    from bottle import _closeiter

    def wrap(iterable, flush):
        close = getattr(iterable, "close", None)
        return _closeiter(iterable, flush if close is None else [close, flush])

    return with_wrapper(workload, wrap)


def repoze(workload):
    """Behind ``repoze.tm2``: a transaction, and callbacks at its end by ``after_end``."""
    import transaction
    from repoze.tm import TM, after_end

    class Registry:
        """What the app finds under the key of this package, so that the app is the same."""

        def append(self, function):
            after_end.register(function, transaction.get())

    app, registry = workload.app(), Registry()

    def with_registry(environ, start_response):
        environ["wsgi.after"] = registry
        return app(environ, start_response)

    return TM(with_registry if workload.needs == LIST else app)


def opentelemetry(workload):
    """Behind OpenTelemetry's WSGI middleware, with a span for each request and no exporter."""
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider

    return OpenTelemetryMiddleware(workload.app(), tracer_provider=TracerProvider())


def sentry(workload):
    """Behind Sentry's WSGI middleware: errors only, no traces, a transport that drops."""
    import sentry_sdk
    from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware

    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=lambda event: None,
        # They would patch what the other contenders use.
        default_integrations=False,
        auto_enabling_integrations=False,
    )
    return SentryWsgiMiddleware(workload.app())


CONTENDERS = {
    "bare": Contender("bare", bare, {LIST, APP_WIDE, PREPARE}, about="the app alone"),
    "ours": Contender(
        "wsgi_after", ours, {LIST, APP_WIDE, PREPARE}, about="the app behind this package"
    ),
    "recipe": Contender(
        "recipe",
        recipe,
        {LIST, APP_WIDE},
        "werkzeug",
        "fifteen lines around werkzeug's ``ClosingIterator``, which people copy to run code in "
        "``close()``",
    ),
    "paste": Contender(
        "add_close",
        paste,
        {LIST, APP_WIDE},
        "Paste",
        "the same lines around ``paste.wsgilib.add_close``",
    ),
    "bottle": Contender(
        "_closeiter",
        bottle,
        {LIST, APP_WIDE},
        "bottle",
        "the same lines around the class with which bottle calls several ``close()``",
    ),
    "repoze": Contender(
        "repoze.tm2",
        repoze,
        {LIST},
        "repoze.tm2",
        "a transaction around each request, with callbacks at its end",
    ),
    "opentelemetry": Contender(
        "OpenTelemetry",
        opentelemetry,
        package="opentelemetry-instrumentation-wsgi",
        about="a span for each request, which is not exported",
    ),
    "sentry": Contender(
        "Sentry",
        sentry,
        package="sentry-sdk",
        about="error reports, without traces, which are not sent",
    ),
}

#: The contenders of which more than the time is measured.
FEW = ("bare", "recipe", "ours")
