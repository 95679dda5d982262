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

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from http.cookies import Morsel, SimpleCookie
from inspect import iscoroutinefunction, signature
from logging import getLogger
from typing import TYPE_CHECKING, Any, ClassVar, overload

from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIRequest
from django.db import close_old_connections, connections, transaction
from django.db.backends.signals import connection_created
from django.http import HttpRequest
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation
from django.utils.datastructures import MultiValueDict

from .integration import (
    KEY,
    InContext,
    NoArguments,
    OpenRequest,
    P,
    R,
    bind,
    current_list,
    describe,
    has_moment,
    is_aside,
    open_request,
    put_last,
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
    callback = InRequest(fn, *args, **kwargs)
    callback.keep(request)
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
            token, before = _in_view.set(opened.after), [*opened.after]
            vars(request)["_wsgi_after_around"] = self.around
            try:
                response = self.get_response(request)
            finally:
                _in_view.reset(token)
                if len(opened.after) > len(before):
                    before += [fn for fn in opened.after if hasattr(fn, "task_result")]
                    bind(opened.after, before, partial(bound, request))
                if opened.is_shared:
                    bracket(opened.after)
            if not opened.is_shared:
                start(response, opened)
        end = (
            partial(begin, request) if opened.is_shared else opened.closer(partial(begin, request))
        )
        if opened.is_shared or has_moment(request.environ):
            response.close = Close(response, request, opened.after, end)
        else:  # Django itself appends request.close behind it, and then sends request_finished
            response._resource_closers.append(end)
        return response


def bound(request: HttpRequest, fn: Callable[[], object]) -> InRequest:
    """A callback that was registered plainly, in the context of the request."""
    callback = InRequest(fn)
    callback.keep(request)
    return callback


class InRequest(InContext):
    """A callback that finds its request: in another thread, language and time zone are restored."""

    is_coroutine = False

    def keep(self, request: HttpRequest) -> None:
        """Keep what the callback will find, as it is now."""
        self.request, self.thread = request, threading.get_ident()
        self.language, self.zone = translation.get_language(), timezone.get_current_timezone()
        self.urls = get_urlconf(), get_script_prefix()

    @contextmanager
    def context(self) -> Iterator[None]:
        """Enter ``around``; in another thread, restore language, zone, urlconf, script prefix."""
        around = getattr(self.request, "_wsgi_after_around", None)
        with ExitStack() as stack:
            if threading.get_ident() != self.thread:
                stack.enter_context(translation.override(self.language))
                stack.enter_context(timezone.override(self.zone))
                stack.callback(set_urlconf, get_urlconf())
                stack.callback(set_script_prefix, get_script_prefix())
                set_urlconf(self.urls[0])
                set_script_prefix(self.urls[1])
            if around is not None:
                stack.enter_context(around(self.request))
            yield

    def __call__(self, /) -> object:
        """Call the function, and report changes that Django no longer stores."""
        with self.context():
            fn: Callable[..., Any] = self.func
            try:
                if self.is_coroutine:
                    fn = async_to_sync(fn)
                return fn(*self.args, **self.keywords)
            except ValueError as error:
                for name, uploads in getattr(self.request, "_files", NO_FILES).lists():
                    if any(upload.closed for upload in uploads):
                        error.add_note(_CLOSED % name)
                raise
            finally:
                for name in stored(self.request):
                    getLogger("wsgi_after").warning(_CHANGED, describe(self), name)


NO_FILES: MultiValueDict[str, Any] = MultiValueDict()


def stored(request: HttpRequest) -> list[str]:
    """What has changed in the request since Django stored it. It counts as stored from now on."""
    changed = []
    for name, mark in ("session", "modified"), ("_messages", "added_new"):
        storage = vars(request).get(name)
        if getattr(storage, mark, False):
            setattr(storage, mark, False)
            changed.append(f"request.{name}" if name == "session" else "the messages")
    return changed


class Close:
    """The ``close`` of one response: it lets the callbacks run before Django's own cleanup.

    A cache pickles the response. What it unpickles has Django's own method.
    """

    def __init__(
        self,
        response: HttpResponse,
        request: HttpRequest,
        after: list[Any],
        end: Callable[[], object],
    ) -> None:
        self.response, self.request, self.after, self.end = response, request, after, end

    def __call__(self) -> None:
        """Close what the response uses; run the callbacks, unless they run elsewhere; clean up."""
        vars(self.response).pop("close", None)  # no cycle any more
        closers = self.response._resource_closers
        own = [closer for closer in closers if closer != self.request.close]
        closers[:] = [closer for closer in closers if closer == self.request.close]
        for closer in own:
            with suppress(Exception):  # as Django does
                closer()
        cleanup = Cleanup(self.response, self.after)
        is_last = put_last(self.after, cleanup)
        try:
            self.end()
        finally:
            if not is_last:
                cleanup.run()

    def __reduce__(self) -> Any:
        return getattr, (self.response, "close")  # unpickled, it is in nobody's way


class Cleanup:
    """The last entry of a list: what Django does when a response is closed."""

    is_aside = True  # so around= is not asked

    def __init__(self, response: HttpResponse, after: list[Any]) -> None:
        self.response, self.after = response, after

    def __call__(self) -> None:
        """Clean up, or move behind what has been registered meanwhile."""
        if not all(map(is_aside, self.after)):
            list.append(self.after, self)
        else:
            self.run()

    def run(self) -> None:
        """Close uploads, and send ``request_finished``, which closes connections."""
        type(self.response).close(self.response)


def takes_a_request(get_response: Callable[..., Any]) -> bool:
    """Whether it can be called with one argument, as far as its signature shows."""
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


def begin(request: HttpRequest) -> None:
    """Make ready for callbacks: close the connections that broke in the view.

    What the view changed has been stored.
    """
    stored(request)
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
