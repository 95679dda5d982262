"""The middleware: put the list, call the app, wrap what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .. import uwsgi
from . import process, unclosed
from .body import body_classes
from .callbacks import IN_CALL, OPEN, UNREAD, CallbackList
from .current import reset_current, set_current
from .files import arm, watch
from .finish import finish
from .logs import is_get_response, no_application, no_executor, no_list
from .servers import rebound, recognise

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ..executor import SupportsSubmit
    from .logs import Around, OnError

G = TypeVar("G", bound="Callable[[WSGIEnvironment], object]")

#: The key of the list in the environ. No request header can reach it: those arrive as HTTP_...
KEY = "wsgi.after"

new_list = list.__new__

#: Called with a list and with who is about to share it: ``python -m wsgi_after`` sets it.
sharing: Callable[[list[Any], object], object] | None = None


class AfterResponseMiddleware:
    """A WSGI app that gives each request of ``app`` a list of callbacks to run after the response.

    They run in ``close()``, in the thread in which the server calls it. Put the middleware
    outermost, so that no other middleware stands between it and the server. If instances share a
    list, the ``executor`` of the innermost one counts, and ``on_error`` and ``around`` of the one
    that made the list.

    :param app: any WSGI application.
    :param executor: an object with ``submit(fn, *args)``, which gets one job for each request that
        has callbacks. A job that it refuses runs in ``close()``.
    :param on_error: called as ``on_error(callback, error, after)`` when a callback has failed and
        the failure is logged, but not in another process. ``callback`` is the entry, and ``after``
        the list. What it raises is logged.
    :param moment: whether the callbacks run at the server's own moment after the response, if the
        server has one (see :mod:`wsgi_after.moment`). With ``False``, they run in ``close()``.
    :param around: called as ``around(callback, after)`` before each callback. It returns a context
        manager, within which the callback runs. What that raises is logged, and the callback still
        runs. If ``around`` has an attribute ``observer``, that is called as
        :func:`wsgi_after.integration.observe` describes.
    :raises TypeError: if an argument is of the wrong kind.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        executor: SupportsSubmit | None = None,
        on_error: OnError | None = None,
        moment: bool = True,
        around: Around | None = None,
    ) -> None:
        if not callable(app) or is_get_response(app):
            raise no_application(app)
        check_executor(executor)
        self._call = self._observer = None
        if on_error is not None or around is not None:
            from ..around import caller  # loads inspect, which is large

            self._call, self._observer = caller(around, on_error)
        self.app = app
        self._executor = executor
        self._on_error = on_error
        self._moment = moment
        self._app_wide: list[Callable[[WSGIEnvironment], object]] = []
        uwsgi.install()

    def after_response(self, fn: G) -> G:
        """Register ``fn(environ)`` to run after every response from now on, and return ``fn``.

        Also a decorator. These come first in the list of each request, in order of registration.
        The environ is the request's own; do not use its ``wsgi.input`` and ``wsgi.errors``. In
        Flask, ``app.after_response()`` registers functions without arguments.

        :raises TypeError: if ``fn`` is not callable with one argument.
        """
        from ..arguments import THE_ENVIRON, check_arguments  # loads inspect, which is large

        check_arguments(fn, ({},), {}, THE_ENVIRON)
        self._app_wide.append(fn)
        return fn

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Call the app, as PEP 3333 specifies.

        :raises TypeError: if ``environ["wsgi.after"]`` is already set, but is not a list.
        """
        # Close the responses of other requests that nobody closed: it is safe here.
        if unclosed.waiting and (raised := unclosed.close_waiting()) is not None:
            raise raised
        if KEY in environ and is_shared(environ[KEY], self):
            return self._share(environ[KEY], environ, start_response)
        # All slots, without __init__. With an empty list that ends within Body.close(), and with a
        # start_response() called without **, this saves 150 ns (3.14 with PGO) to 180 (3.11, 3.13).
        after = new_list(CallbackList)
        after._state, after._progress, after._forks = OPEN, IN_CALL, process.forks
        after._maker, after._call, after._observer = self, self._call, self._observer
        after._environ, after._server_start_response = environ, start_response
        after._executor, after._given = self._executor, (None, None)
        after._draft = after._error = after._notes = after._thread = after._write = None
        after._response_callbacks = None
        environ[KEY] = after
        if self._executor is not None and recognise(environ).reuses_environ:
            # The app gets a copy: in the server's own, the job would read the next request.
            environ = after._environ = environ.copy()
        if "wsgi.file_wrapper" in environ:
            watch(environ)
        for fn in self._app_wide:
            after.append(partial(fn, environ))
        token = set_current(after)
        try:
            try:
                result = self.app(environ, after._start_response)
            except BaseException as error:  # nothing was returned that the server could close
                finish(after, error)
                raise
            finally:
                reset_current(token)
            after._progress = UNREAD
            if "wsgi.file_wrapper" in environ and arm(result, after, environ):
                return result
            body = body_classes[type(result)]
            if body is not None:
                return body(result, after)
            finish(after)
            return result  # not iterable: gunicorn's sign that the response is out already
        except BaseException as error:  # a signal handler may have interrupted finish()
            finish(after, error)
            raise

    def _share(
        self, present: list[Any], environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        """Call the app with the list that is there: whoever made it runs what is in it."""
        if self._executor is not None and isinstance(present, CallbackList):
            present._executor = self._executor
            if recognise(environ).reuses_environ:
                environ = rebound(present, environ)
        present.extend(partial(fn, environ) for fn in self._app_wide)
        token = set_current(present)
        try:
            return self.app(environ, start_response)
        finally:
            reset_current(token)


def is_shared(present: object, instance: object) -> bool:
    """Whether a call of ``instance`` uses what is in the environ (rule 2).

    :raises TypeError: if that is not a list.
    """
    if not isinstance(present, list):
        raise no_list(present)
    shared = not isinstance(present, CallbackList) or present._is_shared_with(instance)
    if shared and sharing is not None:
        sharing(present, instance)
    return shared


def check_executor(executor: object) -> None:
    """Raise a ``TypeError`` unless ``executor`` has ``submit``, or is ``None``."""
    if executor is not None and not hasattr(executor, "submit"):
        raise no_executor(executor)
