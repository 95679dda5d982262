"""The middleware: put the list, call the app, wrap what it returns.

::

    application = AfterResponseMiddleware(application)

Put it outermost, so that no other middleware stands between it and the server's ``close()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeVar

from .body import ListBody, wrap
from .callbacks import CallbackList, EndedCallbackList, reset_current, set_current
from .file_wrapper import python_class, watch
from .finish import finish
from .nested import NOT_NESTED, nested
from .servers import recognise

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .executor import SupportsSubmit

    G = TypeVar("G", bound=Callable[[WSGIEnvironment], object])

#: The key of the list in the environ. No request header can reach it: those arrive as HTTP_...
KEY = "wsgi.after"


class AfterResponseMiddleware:
    """A WSGI app that gives each request of ``app`` a list of callbacks to run after the response.

    :param app: any WSGI application.
    :param executor: who runs the callbacks: anything with ``submit(fn, *args)``, which gets one job
        for each request that has any. What it refuses runs in ``close()``. ``None``: they always
        run there. Left out: they run there, but in a small pool of threads where the server is
        known to have the client wait for ``close()``. Where instances share a list, the outer
        one's counts.
    :raises TypeError: if ``app`` is not callable, or ``executor`` has no ``submit``.
    """

    def __init__(
        self, app: WSGIApplication, *, executor: SupportsSubmit | EllipsisType | None = ...
    ) -> None:
        if not callable(app):
            raise TypeError(
                f"AfterResponseMiddleware expects a WSGI application, which is a callable, not "
                f"{type(app).__name__}: {app!r}. The usual cause is a module, or the name of an "
                "application, passed in its place."
            )
        if executor is not None and executor is not ... and not hasattr(executor, "submit"):
            raise TypeError(
                f"executor= expects an object with submit(fn, *args), such as those of "
                f"concurrent.futures, or None, not {type(executor).__name__}: {executor!r}."
            )
        self.app = app
        self._executor = executor
        self._app_wide: tuple[Callable[[WSGIEnvironment], object], ...] = ()
        self._configured = executor is not ...  # whether a request has more to do than the least

    def after_response(self, fn: G) -> G:
        """Register ``fn(environ)`` to run after every response from now on, and return ``fn``.

        Also a decorator. These come first in the list of each request, in order of registration,
        and one that raises is logged as any other. The environ is the request's own; its
        ``wsgi.input`` and ``wsgi.errors`` are of no use any more. It is ``app.after_response()`` of
        :mod:`wsgi_after.flask` that passes nothing.

        :raises TypeError: if ``fn`` is not callable with one argument.
        """
        from .arguments import check_arguments  # loads inspect, which no request needs

        check_arguments(
            fn,
            ({},),
            {},
            "after_response() expects a callable that takes the environ. It is after_response() of "
            "wsgi_after.flask that passes nothing.",
        )
        self._app_wide = (*self._app_wide, fn)
        self._configured = True
        return fn

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the app, as PEP 3333 has it.

        :raises TypeError: if ``environ["wsgi.after"]`` is there already and no list.
        """
        callbacks = CallbackList()
        present = environ.setdefault(KEY, callbacks)
        if present is not callbacks:
            if not isinstance(present, EndedCallbackList):
                return self._share(present, environ, start_response)
            environ[KEY] = callbacks  # this environ has been through a request already
        callbacks._server_start_response = start_response
        if "wsgi.file_wrapper" in environ and environ["wsgi.file_wrapper"] not in python_class:
            watch(environ)
        if self._configured:
            environ = self._configure(callbacks, environ)
        callbacks._environ = environ
        token = set_current(callbacks)
        try:
            result = self.app(environ, callbacks._start_response)
        except BaseException as error:
            # Nothing was returned that the server could close.
            finish(callbacks, error=error)
            raise
        finally:
            reset_current(token)
        if type(result) is not list:
            wrapped: Iterable[bytes] = wrap(result, callbacks, environ)
            return wrapped if token.old_value is NOT_NESTED else nested(wrapped)
        body = ListBody()
        body._iterable = result
        body._iterator = None
        body._callbacks = callbacks
        return body

    def _configure(self, callbacks: CallbackList, environ: WSGIEnvironment) -> WSGIEnvironment:
        """Give the list its executor and the app-wide callbacks; return the app's environ."""
        if self._executor is not ...:
            callbacks._direct(self._executor)
            if self._executor is not None and recognise(environ).reuses_environ:
                environ = environ.copy()  # or the job would read another client's request
        self._register_app_wide(callbacks, environ)
        return environ

    def _register_app_wide(self, callbacks: list[Any], environ: WSGIEnvironment) -> None:
        for fn in self._app_wide:
            callbacks.append(partial(fn, environ))

    def _share(
        self, present: object, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Call the app with the list that is there: whoever made it runs what is in it."""
        if not isinstance(present, list):
            raise not_a_list(present)
        self._register_app_wide(present, environ)
        token = set_current(present)
        try:
            return self.app(environ, start_response)
        finally:
            reset_current(token)


def not_a_list(present: object) -> TypeError:
    """What to raise where something else is at the list's place in the environ."""
    return TypeError(
        f'environ["wsgi.after"] is {type(present).__name__}, where a list was expected: '
        f"{present!r}. The usual cause is an app or a middleware that assigned to the key: use "
        "environ['wsgi.after'].append(fn)."
    )
