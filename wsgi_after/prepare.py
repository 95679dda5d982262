"""Change the response before its headers go out.

When code deep in a request has something to say in the response, long before there is one: set a
cookie, delete one, add a header::

    def remember(response):
        response.set_cookie("lang", "de")

    environ["wsgi.after"].on_prepare(remember)

The functions run inside the app's call of ``start_response``. This module is imported when the
first one is registered, and a request in which none is never comes here: registering swaps what
the request's list calls as the server's ``start_response``.

Caution: the body is not adjusted to what becomes of the headers. Whoever changes Content-Length,
or the status to one without a body (204, 304), answers for the body.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from werkzeug import datastructures
from werkzeug.sansio import response as sansio

from .callbacks import CallbackList, reset_current, set_current, status_and_headers
from .logs import describe

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

    Prepare = Callable[[sansio.Response], sansio.Response | None]

# What ends a header early, or is not Latin-1 (PEP 3333, RFC 9110 section 5.5).
unsendable = re.compile(r"[^\x01-\x09\x0b\x0c\x0e-\xff]").findall


class Headers(datastructures.Headers):
    """Headers that refuse what cannot be sent where it is set, and say which header it is."""

    def add(self, key: str, value: Any, /, **kwargs: Any) -> None:
        check_header(key, str(value))
        super().add(key, value, **kwargs)

    def set(self, key: str, value: Any, /, **kwargs: Any) -> None:
        check_header(key, str(value))
        super().set(key, value, **kwargs)


class Response(sansio.Response):
    """Status and headers, without a Content-Type that nobody set."""

    default_mimetype = None


class Preparation:
    """What stands in for the server's ``start_response`` in a request that has functions to run.

    It refers to the list which refers to it: the end of the request takes that apart.
    """

    __slots__ = ("_callbacks", "_functions", "_open", "_start_response")

    def __init__(self, callbacks: CallbackList, start_response: StartResponse) -> None:
        self._callbacks = callbacks
        self._start_response = start_response
        self._functions: list[Prepare] = []
        # Where registering puts a function: into _functions, or while they run, into those of this
        # run only (the next run registers its own); None once it would be too late.
        self._open: list[Prepare] | None = self._functions

    def register(self, fn: Prepare) -> None:
        try:  # not "if": CPython 3.10 may switch threads behind one
            self._open.append(fn)  # type: ignore[union-attr]
        except AttributeError:
            raise too_late() from None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Callable[[bytes], object]:
        """Run the functions, then call the server with what came out, passed as the app did."""
        before = self._open
        try:
            status, headers = self._prepare(*status_and_headers(args, kwargs))
            args = (*(status, headers)[: len(args)], *args[2:])
            named = {"status": status, "headers": headers, "response_headers": headers}
            kwargs = {name: named.get(name, value) for name, value in kwargs.items()}
            write = self._start_response(*args, **kwargs)
        except BaseException:
            self._open = before  # nothing went out: the app may start another response
            raise
        self._callbacks._prepared = (status, headers)
        return write

    def _prepare(self, status: Any, headers: Any) -> tuple[Any, Any]:
        """Status and headers after the functions ran: the app's own objects where none changed."""
        given = list(headers or ())
        response = Response(status, Headers(given))
        given_status = response.status
        self._run(response)
        if response.status != given_status:
            status = response.status
        prepared = response.headers.to_wsgi_list()
        return status, headers if prepared == given and type(headers) is list else prepared

    def _run(self, response: Response) -> None:
        pending = self._open = self._functions.copy()
        pending += self._functions[len(pending) :]  # what another thread registered meanwhile
        # The list of this request may not be the current one: the app may be a body by now, or
        # may have called another app, whose start_response led here.
        token = set_current(self._callbacks)
        try:
            while pending:
                call(pending.pop(0), response)
            self._open = None
            while pending:  # another thread registered between the last look and the mark
                call(pending.pop(0), response)
        finally:
            reset_current(token)


def on_prepare(callbacks: CallbackList, fn: Prepare) -> None:
    """Have ``fn`` run inside ``start_response``: see :meth:`CallbackList.on_prepare`."""
    if not callable(fn):
        raise TypeError(
            f"A response callback must be callable, not {type(fn).__name__}: {fn!r}. The usual "
            "cause is a function that was called where it should be passed."
        )
    if inspect.iscoroutinefunction(fn):
        raise TypeError(
            f"Response callback {describe(fn)} is a coroutine function, which start_response() "
            "cannot wait for. Make it a plain function, and do before what has to be awaited."
        )
    preparation: Any = getattr(callbacks, "_server_start_response", None)
    if not isinstance(preparation, Preparation):
        preparation = stand_in(callbacks, preparation)
    preparation.register(fn)


def stand_in(callbacks: CallbackList, start_response: StartResponse | None) -> Preparation:
    """Have the app's call of ``start_response`` led to a :class:`Preparation`, if it is not out."""
    if start_response is None:
        raise too_late()
    preparation = Preparation(callbacks, start_response)
    try:
        callbacks._write  # noqa: B018  # that it has a value is the mark of the first call
    except AttributeError:  # CPython does not switch threads here
        callbacks._server_start_response = preparation
        return preparation
    raise too_late()


def call(fn: Prepare, response: Response) -> None:
    """Call ``fn(response)``, and look at what it returned and what it left in the response."""
    returned: object = fn(response)
    if returned is not None and returned is not response:
        if isinstance(returned, Coroutine):
            returned.close()
        raise TypeError(
            f"Response callback {describe(fn)} returned {type(returned).__name__}, where None or "
            "the response it was given is expected. It is to change that response: the status and "
            "the headers of another one would be lost."
        )
    if unsendable(response.status):
        raise refusal("The status", response.status, fn)
    for name, value in response.headers:
        check_header(name, value, fn)


def check_header(name: str, value: str, fn: Prepare | None = None) -> None:
    """Raise a ``ValueError`` if one of the two, which ``fn`` left there, cannot be sent."""
    if unsendable(name):
        raise refusal(f"The name of header {name!r}", name, fn)
    if unsendable(value):
        raise refusal(f"The value of header {name!r}", value, fn)


def refusal(place: str, text: str, fn: Prepare | None) -> ValueError:
    # The value itself is left out of the message: it may be somebody's session.
    left = f", which response callback {describe(fn)} left there," if fn else ""
    return ValueError(
        f"{place} contains {unsendable(text)[0]!r}{left} and cannot be sent: status and headers "
        "are Latin-1 text without line breaks. The usual cause is input that was not quoted: see "
        "urllib.parse.quote()."
    )


def too_late() -> RuntimeError:
    return RuntimeError(
        "A response callback was registered too late: the response has started, so its headers "
        "are with the server, or the request has ended without one. It is early enough until the "
        "app calls start_response(), which means until the view, or whatever makes the response, "
        "returns. A response callback may register another, too."
    )
