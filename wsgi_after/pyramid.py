"""Callbacks after the response, for Pyramid: ``request.after``.

::

    config.include("wsgi_after.pyramid")                  # where the app is configured

    def order(request):                                   # a view
        request.after(send_mail, request.POST["email"])   # request.after is environ["wsgi.after"]
        return Response("Ordered")

What a view, a tween or a callback registers runs with the threadlocals of its request:
``get_current_request()`` and ``get_current_registry()`` return what they returned in the view.
Nothing needs to be wrapped. If pyramid_retry tries a request again, the last attempt counts.

Caution: the transaction of pyramid_tm is over. What a callback does by ``request.tm`` is committed
after it, or raises ``NoTransaction`` if the manager is explicit: then begin a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import setitem
from typing import TYPE_CHECKING, Any

from pyramid.events import ApplicationCreated
from pyramid.threadlocal import RequestContext

from . import AfterResponseMiddleware, CallbackList
from .integration import KEY, InContext, bind, current_list
from .paste import filter_app_factory as filter_app_factory  # a name of this module, too
from .paste import find_executor

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from pyramid.config import Configurator
    from pyramid.request import Request

    from .executor import SupportsSubmit


def includeme(config: Configurator) -> None:
    """Give requests their ``after``: what ``config.include("wsgi_after.pyramid")`` calls.

    Include it before or after what sets an execution policy, such as pyramid_retry. The setting
    ``wsgi_after.executor`` names an executor for the callbacks, as for
    :func:`wsgi_after.paste.filter_app_factory`.

    :raises ValueError: if the setting does not name an executor.
    """
    executor = find_executor(config.get_settings().get("wsgi_after.executor"))
    config.add_request_method(after, "after", property=True)

    # When the app has been created, nothing replaces its execution policy any more.
    def install(event: ApplicationCreated) -> None:
        event.app.execution_policy = ExecutionPolicy(event.app, executor)

    config.add_subscriber(install, ApplicationCreated)


def after(request: Request) -> list[Callable[[], object]]:
    """``request.after``: the list of the request; of a subrequest, that of the request around it.

    :raises RuntimeError: if there is none, such as in a script or for a request made by a test.
    """
    callbacks = request.environ.get(KEY, current_list())
    if callbacks is None:
        raise RuntimeError(
            "request.after was used of a request that was made by hand, so there is no response to "
            "run callbacks after. To test code by itself, set request.environ['wsgi.after'] = "
            "CallbackList()."
        )
    return callbacks  # type: ignore[no-any-return]


class ExecutionPolicy:
    """An execution policy of Pyramid, around the one that the app had.

    In place of a response it returns the middleware, a WSGI app as well, which calls that one.
    """

    def __init__(self, router: Any, executor: SupportsSubmit | None) -> None:
        self._router = router
        self._inside: Callable[[WSGIEnvironment, Any], WSGIApplication] = router.execution_policy
        self._application = AfterResponseMiddleware(self._respond, executor=executor)

    def __call__(self, environ: WSGIEnvironment, router: Any) -> AfterResponseMiddleware:
        """What the router calls with the environ and ``start_response``."""
        return self._application

    def _respond(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        attempts = Attempts(self._router, environ[KEY])
        try:
            response = self._inside(environ, attempts)
        finally:
            attempts.end()
        return response(environ, start_response)


class Attempts:
    """The router, for one request: each context that the policy asks for begins an attempt."""

    def __init__(self, router: Any, callbacks: list[Callable[[], object]]) -> None:
        self._router = router
        self._callbacks = callbacks
        self._before = callbacks.copy()
        self._restore = partial(setitem, callbacks, slice(None), self._before)
        if isinstance(callbacks, CallbackList):
            self._restore = partial(callbacks.restore, callbacks.snapshot())
        self._request: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._router, name)

    def request_context(self, environ: WSGIEnvironment) -> Any:
        """What the router returns, and the list as it was before the first attempt."""
        if self._request is not None:
            self._restore()
        context = self._router.request_context(environ)
        self._request = context.request
        return context

    def end(self) -> None:
        """Have what the last attempt registered run with its threadlocals."""
        if self._request is not None:
            bind(self._callbacks, self._before, partial(InThreadlocals.of, self._request))


class InThreadlocals(InContext):
    """A callback that runs with the threadlocals of a request. It equals the one it stands for."""

    @contextmanager
    def context(self) -> Iterator[None]:
        """What the callback registers meanwhile has the same threadlocals."""
        callbacks: list[Callable[[], object]] | None = current_list()
        if callbacks is None:  # run one by one, from a list that is not ours
            callbacks = []
        before = callbacks.copy()
        with RequestContext(self.request):
            try:
                with transaction_of(self.request):
                    yield
            finally:
                if callbacks != before:
                    bind(callbacks, before, partial(InThreadlocals.of, self.request))


@contextmanager
def transaction_of(request: Request) -> Iterator[None]:
    """End the transaction of ``request.tm`` that is begun within, without a word.

    pyramid_tm's default manager, that of the thread, begins one at the first use. Nobody else would
    end it, so what a callback adds to ``request.dbsession`` would vanish.
    """
    manager = vars(request).get("tm")  # if somebody has asked for it
    outer = {"tm.active", "repoze.tm.active"} & request.environ.keys()
    is_ours = manager is not None and not manager.explicit and not outer
    try:
        yield
    except BaseException as error:
        if is_ours:
            manager.abort()
        if type(error).__name__ == "NoTransaction":
            error.add_note(
                "The transaction of the request is over when its callbacks run. Begin one of the "
                "callback's own: with request.tm: ..."
            )
        raise
    if is_ours:
        manager.commit()
