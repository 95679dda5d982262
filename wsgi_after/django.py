"""Django: callbacks that run after the response, before Django lets go of the request.

::

    MIDDLEWARE = ["wsgi_after.django.AfterResponseMiddleware", ...]    # in the settings

    def order(request):                                                # in a view
        after_response(request, send_mail, "Thank you", ...)
        return HttpResponse("Thank you.")

The entry is enough. Wrap the WSGI application as well to pass ``executor=``: then the list of that
middleware is used. In either case ``request.close()``, which closes uploads, and
``request_finished`` come after the last callback; with ``executor=`` they stay in ``close()``.

Caution: put the entry first. A middleware before it may answer with a response of its own. Then the
callbacks run when the response that was dropped is garbage-collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from inspect import iscoroutinefunction
from logging import getLogger
from threading import get_ident
from typing import TYPE_CHECKING, Any, overload

from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIRequest
from django.db import connections, transaction
from django.db.backends.signals import connection_created
from django.http import HttpRequest
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation
from django.utils.datastructures import MultiValueDict

from ._frameworks.django_cleanup import bracket, calling_view, clean_up_last, close_again, stored
from ._frameworks.django_cleanup import close_connections as close_connections  # pickled by name
from ._frameworks.django_response import Cookie as Cookie  # pickled by name
from ._frameworks.django_response import start
from .integration import (
    KEY,
    InContext,
    NoArguments,
    P,
    R,
    bind,
    check_arguments,
    describe,
    open_request,
    register,
    use_moment,
)

if TYPE_CHECKING:
    from django.http import HttpResponse


_ASGI = (
    "wsgi_after.django.AfterResponseMiddleware is for WSGI, whose servers close responses. It was "
    "given a request, or a handler, of ASGI. Serve the project's wsgi.py, or take the entry out of "
    "MIDDLEWARE. (If this is WSGI, a middleware behind it is asynchronous only: move it before.)"
)
_ABSENT = (
    'The request has no list of callbacks: add "wsgi_after.django.AfterResponseMiddleware" to '
    "MIDDLEWARE, as the first. A request that a test made without a client, by RequestFactory, has "
    "none either."
)
_AROUND = (
    "wsgi_after.django.AfterResponseMiddleware is an entry of MIDDLEWARE, and was called with "
    "something that takes more than a request. To wrap a WSGI application, as in wsgi.py, use "
    "wsgi_after.AfterResponseMiddleware."
)

_ON_COMMIT = (
    "after_response() was called within a transaction, when the response had been closed and the "
    "callbacks of its request had run. The usual cause is captureOnCommitCallbacks(execute=True) "
    "in a TestCase: it calls what on_commit() was given only then, while a real commit comes "
    "before the end of the response. Use after_commit(request, fn, ...) of wsgi_after.django: it "
    "waits for both, whichever comes last."
)
_CHANGED = (
    "%s changed %s after the response, when it had been stored: the change is lost, unless the "
    "callback stored it itself."
)
_CLOSED = (
    "The upload %r is closed: Django has let go of the request, as it does in close() before "
    "callbacks of executor=, or where the entry of MIDDLEWARE is missing. Read the upload in the "
    "view, and pass on what was read; or run this callback without executor=."
)


@overload
def after_response(request: HttpRequest, fn: NoArguments, /) -> NoArguments: ...
@overload
def after_response(
    request: HttpRequest, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> Callable[P, R]: ...
def after_response(request: HttpRequest, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Register ``fn(*args, **kwargs)`` to run after the response to ``request``; return ``fn``.

    Callbacks run in order of registration. What ``fn`` returns is ignored. What it raises is
    logged, and the others run. The list is ``request.environ["wsgi.after"]``. A coroutine function
    is run to its end by asgiref's ``async_to_sync``.

    :raises ImproperlyConfigured: if the request has no list.
    :raises TypeError: if ``fn`` is not callable, or ``request`` is something else.
    :raises RuntimeError: if the callbacks of this request have run already.
    """
    callbacks = getattr(request, "environ", {}).get(KEY)
    if callbacks is None and not (hasattr(request, "environ") or isinstance(request, HttpRequest)):
        raise TypeError(
            "after_response() expects the request first, as after_response(request, fn, ...), not "
            f"{type(request).__name__}: {request!r}. It is wsgi_after.after_this_response(fn, ...) "
            "that finds the request by itself."
        )
    if callbacks is None:
        raise ImproperlyConfigured(_ABSENT)
    if getattr(callbacks, "ended", False) and is_test_case():
        raise RuntimeError(_ON_COMMIT)
    if not callable(fn):
        return register(callbacks, fn)  # which raises
    callback = InRequest.of(request, fn, *args, **kwargs)
    callback.original = fn if not (args or kwargs) else None
    callback.is_coroutine = iscoroutinefunction(fn)
    callbacks.append(callback)
    return fn


@overload
def after_commit(request: HttpRequest, fn: NoArguments, /) -> NoArguments: ...
@overload
def after_commit(
    request: HttpRequest, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> Callable[P, R]: ...
def after_commit(request: HttpRequest, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Register ``fn(*args, **kwargs)`` to run after the response, if the transaction commits.

    It is the transaction of the default database; outside one, this is :func:`after_response`. If
    the response is over when the transaction commits, as in a ``TestCase`` with
    ``captureOnCommitCallbacks(execute=True)``, ``fn`` is called at once, by Django, and what it
    raises goes to whoever commits.

    :return: ``fn``.
    :raises ImproperlyConfigured: if the request has no list.
    :raises TypeError: if ``fn`` is not callable.
    """
    callbacks = getattr(request, "environ", {}).get(KEY)
    if callbacks is None or not callable(fn):
        return after_response(request, fn)  # which raises

    def committed() -> None:
        if not getattr(callbacks, "ended", False):
            after_response(request, fn, *args, **kwargs)
        else:
            (async_to_sync(fn) if iscoroutinefunction(fn) else fn)(*args, **kwargs)

    transaction.on_commit(committed)
    return fn


def is_test_case() -> bool:
    """Whether this is called within a transaction, as all of a ``TestCase`` is."""
    return any(connection.in_atomic_block for connection in connections.all(initialized_only=True))


class AfterResponseMiddleware:
    """An entry of ``MIDDLEWARE``: gives each request a list of callbacks to run after the response.

    They run before ``request.close()`` and ``request_finished``. If the request has a list already,
    that one is used, and whoever made it runs the callbacks. A subclass may define :attr:`around`.

    :param get_response: what Django passes.
    :raises ImproperlyConfigured: under ASGI; around a WSGI application.
    """

    #: A method of a subclass, called as ``around(request)`` before each callback, in its thread. It
    #: returns a context manager, within which the callback runs.
    around: Callable[[HttpRequest], AbstractContextManager[object]] | None = None

    sync_capable = True
    async_capable = True  # to be told of ASGI when the process starts

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        if iscoroutinefunction(get_response):
            raise ImproperlyConfigured(_ASGI)
        try:
            check_arguments(get_response, (None,), {}, "")
        except TypeError:
            raise ImproperlyConfigured(_AROUND) from None
        self.get_response = get_response
        connection_created.connect(close_again)
        use_moment()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """The view's response, which runs the callbacks when it is closed.

        :raises ImproperlyConfigured: under ASGI.
        :raises TypeError: if ``environ["wsgi.after"]`` is there already and no list.
        """
        if not isinstance(request, WSGIRequest):  # ASGI, behind a synchronous middleware
            raise ImproperlyConfigured(_ASGI)
        with open_request(request.environ) as opened:
            before = [*opened.after]
            vars(request)["_wsgi_after_around"] = self.around
            try:
                with calling_view(opened.after):
                    response = self.get_response(request)
            finally:
                if len(opened.after) > len(before):
                    before += [fn for fn in opened.after if hasattr(fn, "task_result")]
                    bind(opened.after, before, partial(InRequest.of, request))
                bracket(opened.after)
            start(response, opened)
        clean_up_last(response, request, opened)
        return response


class InRequest(InContext):
    """A callback that finds its request: in another thread, language and time zone are restored."""

    is_coroutine = False

    def keep(self) -> None:
        """Keep what the callback will find, as it is now."""
        self.language, self.zone = translation.get_language(), timezone.get_current_timezone()
        self.urls = get_urlconf(), get_script_prefix()

    @contextmanager
    def context(self) -> Iterator[None]:
        """Restore what belongs to the thread, enter ``around``, and report what comes too late."""
        around = getattr(self.request, "_wsgi_after_around", None)
        with ExitStack() as stack:
            if get_ident() != self.thread:
                stack.enter_context(translation.override(self.language))
                stack.enter_context(timezone.override(self.zone))
                stack.callback(set_urlconf, get_urlconf())
                stack.callback(set_script_prefix, get_script_prefix())
                set_urlconf(self.urls[0])
                set_script_prefix(self.urls[1])
            if around is not None:
                stack.enter_context(around(self.request))
            try:
                yield
            except ValueError as error:
                for name, uploads in getattr(self.request, "_files", MultiValueDict()).lists():
                    if any(upload.closed for upload in uploads):
                        error.add_note(_CLOSED % name)
                raise
            finally:
                for name in stored(self.request):
                    getLogger("wsgi_after").warning(_CHANGED, describe(self), name)

    def __call__(self, /) -> object:
        """Call the function, a coroutine function to its end."""
        with self.context():
            fn: Callable[..., Any] = self.func
            return (async_to_sync(fn) if self.is_coroutine else fn)(*self.args, **self.keywords)


if TYPE_CHECKING:
    from .django_tasks import AfterResponseBackend as AfterResponseBackend
else:

    def __getattr__(name: str) -> Any:
        """Import ``AfterResponseBackend`` when it is asked for: not every Django has tasks."""
        if name != "AfterResponseBackend":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .django_tasks import AfterResponseBackend

        return AfterResponseBackend
