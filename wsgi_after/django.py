"""Django: callbacks that run in ``response.close()``, in the request's thread, and can use the ORM.

::

    MIDDLEWARE = ["wsgi_after.django.AfterResponseMiddleware", ...]    # in the settings

    def order(request):                                                # in a view
        after_response(request, send_mail, "Thank you", ...)
        return HttpResponse("Thank you.")

The entry is enough. Wrap the WSGI application as well to pass ``executor=``: then the list of that
middleware is used, and the connections that callbacks open after ``request_finished`` are closed.

Caution: put the entry first. A middleware before it may answer with a response of its own. Then the
callbacks run when the response that was dropped is garbage-collected.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from http.cookies import Morsel, SimpleCookie
from inspect import iscoroutinefunction, signature
from typing import TYPE_CHECKING, Any, ClassVar, overload

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIRequest
from django.db import close_old_connections, connections
from django.db.backends.signals import connection_created
from django.http import HttpRequest

from .integration import (
    KEY,
    NoArguments,
    OpenRequest,
    P,
    R,
    current_list,
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
    "before the end of the response. Use a TransactionTestCase, or wait for both, commit and "
    "response: docs/django.rst has the lines (after_both)."
)

_of_thread = threading.local()  # .serves: Django has served a request in it, so it looks after it
#: The list of the request whose view is being called. Its callbacks do not run yet.
_in_view: ContextVar[object] = ContextVar("wsgi_after.django", default=None)


@overload
def after_response(request: HttpRequest, fn: NoArguments, /) -> NoArguments: ...
@overload
def after_response(
    request: HttpRequest, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
) -> Callable[P, R]: ...
def after_response(request: HttpRequest, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Register ``fn(*args, **kwargs)`` to run after the response to ``request``; return ``fn``.

    Callbacks run in order of registration. What ``fn`` returns is ignored. What it raises is
    logged, and the others run. The list is ``request.environ["wsgi.after"]``.

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
    register(callbacks, fn, *args, **kwargs)
    return fn


def is_test_case() -> bool:
    """Whether this is called within a transaction, as all of a ``TestCase`` is."""
    return any(connection.in_atomic_block for connection in connections.all(initialized_only=True))


class AfterResponseMiddleware:
    """An entry of ``MIDDLEWARE``: gives each request a list of callbacks to run after the response.

    They run in ``response.close()``, before ``request_finished``. If the request has a list
    already, that one is used, and whoever made it runs the callbacks.

    :param get_response: what Django passes.
    :raises ImproperlyConfigured: under ASGI; around a WSGI application.
    """

    sync_capable = True
    async_capable = True  # to be told of ASGI when the process starts

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        if iscoroutinefunction(get_response):
            raise ImproperlyConfigured(_ASGI)
        if not takes_a_request(get_response):
            raise ImproperlyConfigured(_AROUND)
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
        _of_thread.serves = True
        with open_request(request.environ) as opened:
            token = _in_view.set(opened.after)
            try:
                response = self.get_response(request)
            finally:
                _in_view.reset(token)
                if opened.is_shared:
                    bracket(opened.after)
            if not opened.is_shared:
                start(response, opened)
        if not opened.is_shared:
            response._resource_closers.append(opened.closer(close_broken_connections))
        return response


def takes_a_request(get_response: Callable[..., Any]) -> bool:
    """Whether it can be called with one argument, as far as it tells."""
    try:
        told = signature(get_response)
    except (TypeError, ValueError):
        return True
    try:
        told.bind(None)
    except TypeError:
        return False
    return True


def bracket(callbacks: list[Any]) -> None:
    """Look after the connections of the thread in which an executor runs the callbacks.

    By list's own operations: a forked child must not register, and must not fail here either.
    """
    if callbacks and getattr(callbacks, "executor", None) is not None:
        list.insert(callbacks, 0, close_old_connections)
        list.append(callbacks, close_connections)


def start(response: HttpResponse, opened: OpenRequest) -> None:
    """Have the request's response callbacks change the response."""
    status = f"{response.status_code} {response.reason_phrase}"
    cookies = {morsel.OutputString(): name for name, morsel in response.cookies.items()}
    headers = [*response.items(), *(("Set-Cookie", text) for text in cookies)]
    prepared_status, prepared_headers = opened.start(status, headers)
    if prepared_status != status:
        code, _, response.reason_phrase = prepared_status.partition(" ")
        response.status_code = int(code)
    if prepared_headers is not headers:
        replace_headers(response, cookies, prepared_headers)


def replace_headers(
    response: HttpResponse, cookies: dict[str, str], headers: list[tuple[str, str]]
) -> None:
    """Give the response these headers. Cookies, which it keeps apart, stay if they did not change.

    :param cookies: the names of those that it has, by their header.
    """
    for name in [*response.headers]:
        del response.headers[name]
    set_cookies = []
    for name, value in headers:
        if name.lower() == "set-cookie":
            set_cookies.append(value)
        else:  # Django has each name once (RFC 9110, section 5.3)
            present = response.headers.get(name)
            response.headers[name] = value if present is None else f"{present}, {value}"
    for text in cookies.keys() - set_cookies:
        del response.cookies[cookies[text]]
    for text in set_cookies:
        if text not in cookies:
            add_cookie(response.cookies, text)


class Cookie(Morsel[str]):
    """A cookie that knows an attribute which Python's own does from 3.14 on."""

    _reserved: ClassVar = {**Morsel._reserved, "partitioned": "Partitioned"}  # type: ignore
    _flags: ClassVar = {*Morsel._flags, "partitioned"}  # type: ignore


def add_cookie(cookies: SimpleCookie, text: str) -> None:
    """Add what a ``Set-Cookie`` header says.

    :raises http.cookies.CookieError: if it has an attribute that a cookie of Django's cannot have.
    """
    pair, *attributes = text.split(";")
    name, _, coded = pair.strip().partition("=")
    cookie = Cookie()
    cookie.set(name, cookies.value_decode(coded)[0], coded)
    for attribute in attributes:
        key, has_value, value = attribute.strip().partition("=")
        cookie[key] = value if has_value else True
    cookies[name] = cookie


# Django closes its connections in request_finished, which response.close() sends, and when a thread
# begins its next request.


def close_broken_connections() -> None:
    """Close the connections that broke in the view, so that callbacks get new ones."""
    for connection in connections.all(initialized_only=True):
        if connection.errors_occurred:
            connection.close_if_unusable_or_obsolete()


def close_again(connection: Any, **kwargs: Any) -> None:
    """Have a connection that a callback has just opened closed, after the last callback so far."""
    callbacks = current_list()
    if callbacks is not None and callbacks is not _in_view.get():
        list.append(callbacks, close_connections)  # a list that has just ended would refuse


def close_connections() -> None:
    """Close what Django would have closed; in a thread that Django does not look after, all."""
    if getattr(_of_thread, "serves", False):
        close_old_connections()
    else:
        connections.close_all()


if TYPE_CHECKING:
    from .django_tasks import AfterResponseBackend as AfterResponseBackend
else:

    def __getattr__(name: str) -> Any:
        """Import ``AfterResponseBackend`` when it is asked for: not every Django has tasks."""
        if name != "AfterResponseBackend":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .django_tasks import AfterResponseBackend

        return AfterResponseBackend
