"""Callbacks after the response, for Flask: in the thread and the context of their request.

::

    app = Flask(__name__)
    AfterResponse(app)                            # or AfterResponse().init_app(app), in a factory

    @app.after_response                           # after each response; without arguments
    def count():
        counters[request.endpoint] += 1

    @app.post("/orders")
    def order():
        after_this_response(send_mail, "Thanks")  # after this one; also a decorator
        return "Ordered"

``current_app``, ``g``, ``request`` and ``session`` are those of the request. Teardown functions run
again after each callback, because that is what gives database connections back.

Caution: the response is out. ``session`` has been stored, uploads are closed, and rows that the
view loaded belong to a database session that is over. Read in the view, and pass ids.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

from flask import Flask, got_request_exception, has_request_context, request, request_started
from flask.globals import app_ctx, request_ctx
from flask.testing import FlaskClient

from . import AfterResponseMiddleware, CallbackList
from ._frameworks.flask_gone import explained
from .integration import KEY, InContext, NoArguments, P, R, check_arguments

if TYPE_CHECKING:
    from flask.ctx import AppContext
    from werkzeug.test import TestResponse

    from .executor import SupportsSubmit

F = TypeVar("F", bound=Callable[..., object])


class AfterResponse:
    """The extension: wraps ``app.wsgi_app``, and gives the app its ``after_response``.

    A second one for the same app does nothing. If the app is wrapped once more, by an
    :class:`wsgi_after.AfterResponseMiddleware` outside, the list of that one is used.

    :param app: the app, or ``None`` to call :meth:`init_app` later, for any number of apps.
    :param executor: as for :class:`wsgi_after.AfterResponseMiddleware`. An executor of this
        process: the context of a request cannot be sent to another one. Flask-Executor's is one.
    :param on_error: as for :class:`wsgi_after.AfterResponseMiddleware`. It is called without a
        context: ``callback.func`` is the function that failed.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        executor: SupportsSubmit | None = None,
        on_error: Callable[[Any, BaseException, CallbackList], object] | None = None,
    ) -> None:
        extension = sys.modules.get("flask_executor")
        if extension is not None and isinstance(executor, extension.Executor):
            executor = WithoutContext(executor)
        self._wrap = partial(AfterResponseMiddleware, executor=executor, on_error=on_error)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Wrap this app, too. What is registered with one app runs for that one only."""
        if "wsgi_after" in app.extensions:
            return
        app.wsgi_app = self._wrap(app.wsgi_app)  # type: ignore[method-assign]
        app.after_response = app.extensions["wsgi_after"] = AfterEachResponse(app)  # type: ignore[attr-defined]


class TypedFlask(Flask):
    """Flask's class with the type of what :class:`AfterResponse` adds, for type checkers.

    ::

        app = TypedFlask(__name__)
        AfterResponse(app)

        @app.after_response    # which a type checker does not know of Flask's own class
        def count() -> None: ...
    """

    after_response: AfterEachResponse


class AfterEachResponse:
    """``app.after_response``: registers functions to run after every response of one app."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._functions: list[Callable[[], object]] = []

    def __call__(self, fn: F, /) -> F:
        """Register ``fn()`` to run after every response from now on, and return ``fn``.

        Also a decorator. These functions run before other callbacks, in order of registration, as
        :func:`after_this_response` runs them. They do not run for a request that Flask never sees,
        because a middleware in between answered it.

        :raises TypeError: if ``fn`` is not callable, or needs an argument.
        :raises RuntimeError: in a request of this app: ``fn`` would run after all later ones, too.
        """
        # A test may have pushed a context of another app, or one that no server asked for.
        if has_request_context() and request_ctx.app is self._app and KEY in request.environ:
            raise RuntimeError(
                "app.after_response() was called in a request. It registers a function for every "
                "request, so each request would add another: call it where the app is set up. For "
                "the current request only, use wsgi_after.flask.after_this_response()."
            )
        check_arguments(fn, (), {}, NO_ARGUMENTS)
        self._functions.append(fn)
        request_started.connect(self._register, self._app)
        # For a request that does not get that far, because its session cannot be opened.
        got_request_exception.connect(self._register, self._app)
        return fn

    def _register(self, app: Flask, **extra: object) -> None:
        registered = vars(unwrapped(request_ctx)).setdefault("_wsgi_after", [])
        if KEY in request.environ and not registered:
            registered += [after_this_response(fn) for fn in self._functions]


NO_ARGUMENTS = (
    "app.after_response() of Flask calls a function without arguments: take what you need from "
    "flask.request. It is after_response() of AfterResponseMiddleware that passes the environ, and "
    "after_request() of Flask that passes the response."
)


@overload
def after_this_response(fn: NoArguments, /) -> NoArguments: ...
@overload
def after_this_response(
    fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> Callable[P, R]: ...
def after_this_response(fn: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Register ``fn(*args, **kwargs)`` to run after the current response, and return ``fn``.

    Also a decorator. Call it in a request of Flask's, in a body that is streamed with
    ``flask.stream_with_context``, and from a callback. Callbacks run in order of registration, in
    the context of the request. Teardown functions run after each of them, and are told what it
    raised, which is logged, too; the other callbacks run. ``fn`` may be ``async``, as a view may.

    :raises TypeError: if ``fn`` is not callable, or not with these arguments and no others.
    :raises RuntimeError: outside a request; in an app that neither :class:`AfterResponse` nor
        :class:`wsgi_after.AfterResponseMiddleware` wraps; after the callbacks of the request ran.
    """
    if not has_request_context():
        raise RuntimeError(
            "after_this_response() was called outside a request of Flask's. The usual cause is a "
            "thread of your own, or a streaming body without flask.stream_with_context()."
        )
    if KEY not in request.environ:
        raise RuntimeError(
            f"{app_ctx.app!r} is not wrapped, so nothing would run the callback: call "
            "wsgi_after.flask.AfterResponse(app) where the app is set up. A request that is made "
            "by app.test_request_context() has no response to run it after, either."
        )
    check_arguments(fn, args, kwargs, THESE_ARGUMENTS)
    request.environ[KEY].append(InRequest.of(unwrapped(request_ctx), fn, *args, **kwargs))
    return fn


def unwrapped(proxy: Any) -> Any:
    """The object of this context that the proxy stands for."""
    return proxy._get_current_object()


THESE_ARGUMENTS = (
    "It gets the arguments that after_this_response() was given, and no others. The usual cause is "
    "a function that expects the response, as for after_this_request() of Flask."
)


class InRequest(InContext):
    """A callback that runs in contexts like those in which it was registered."""

    def keep(self) -> None:
        """Keep the context of the app beside that of the request, which ``self.request`` is."""
        self.app_context: AppContext = unwrapped(app_ctx)

    def __call__(self, /) -> object:
        """Call the function, which may be ``async``, as a view may."""
        with self.context():
            return self.app_context.app.ensure_sync(self.func)(*self.args, **self.keywords)

    @contextmanager
    def context(self) -> Iterator[None]:
        """Copies of the contexts. They call the teardown functions after the callback.

        Copies, because a context can be current in one thread only, and a test client may still
        hold it. They share ``g``, the request and the session.
        """
        app_context = self.app_context.app.app_context()
        app_context.g = self.app_context.g
        of_request, in_own_thread = self.request, get_ident() == self.thread
        with app_context, of_request.copy(), explained(of_request.request, in_own_thread):
            yield

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A callback of after_this_response() in wsgi_after.flask cannot be pickled, because it "
            "needs the context of its request. For an executor in another process, register a "
            'plain function by request.environ["wsgi.after"](fn, *args).'
        )


class WithoutContext:
    """Flask-Executor's pool without its own ``submit()``, which works in a request only."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def submit(self, fn: Callable[..., object], /, *args: object) -> object:
        """Submit to its pool, which exists once it has been initialised with an app."""
        return self._executor._self.submit(fn, *args)


class AfterResponseClient(FlaskClient):
    """A test client that reads and closes each response, so that its callbacks have run.

    ::

        app.test_client_class = AfterResponseClient

    With ``buffered=False`` a response is left open, as by Flask's own.
    """

    def open(self, *args: Any, buffered: bool = True, **kwargs: Any) -> TestResponse:
        """Send a request, as :meth:`flask.testing.FlaskClient.open` does."""
        return super().open(*args, buffered=buffered, **kwargs)
