"""Change the response before its headers go out.

Use it when code deep in a request must change a response that does not exist yet: set a cookie,
delete one, add a header::

    def remember(response):
        response.set_cookie("lang", "de")

    environ["wsgi.after"].on_prepare(remember)

The response callbacks run inside the app's call of ``start_response``. This module loads werkzeug.
It is imported when the first one is registered.

Caution: nothing adjusts the body to the headers. If you change Content-Length, or the status to one
without a body (204, 304), make sure that the body matches.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine
from itertools import chain
from typing import Any

from werkzeug import datastructures
from werkzeug.sansio import response as sansio

from .current import current
from .logs import THE_RESPONSE, describe, lacks_arguments
from .servers import status_and_headers

Prepare = Callable[[sansio.Response], sansio.Response | None]

# What ends a header early, or is not Latin-1 (PEP 3333, RFC 9110 section 5.5).
unsendable = re.compile(r"[^\x01-\x09\x0b\x0c\x0e-\xff]").findall


class Headers(datastructures.Headers):
    """Headers that refuse at once what cannot be sent, and name the header in the error."""

    def add(self, key: str, value: Any, /, **kwargs: Any) -> None:
        check_header(key, str(value))
        super().add(key, value, **kwargs)

    def set(self, key: str, value: Any, /, **kwargs: Any) -> None:
        check_header(key, str(value))
        super().set(key, value, **kwargs)


class Response(sansio.Response):
    """Status and headers, without a Content-Type that nobody set."""

    default_mimetype = None

    @classmethod
    def of(cls, status: str, headers: Headers) -> Response:
        """The app's: without a look for its Content-Type, which takes 1 us."""
        response = cls.__new__(cls)
        response.headers = headers
        response.status = status
        return response


class ResponseCallback:
    """A function that was registered to change the response.

    Two threads may want it: the one in ``start_response``, to call it, and the one that registers
    it, to take it back because it is too late. The first one has it.

    :param once: it belongs to the run of the response callbacks that is under way.
    :raises TypeError: if ``fn`` is not callable, or a coroutine function.
    """

    __slots__ = ("_claimed", "_tickets", "fn", "once")

    def __init__(self, fn: Prepare, *, once: bool) -> None:
        if not callable(fn):
            raise TypeError(
                f"A response callback must be callable, not {type(fn).__name__}: {fn!r}. The usual "
                "cause is a function that was called instead of passed."
            )
        if inspect.iscoroutinefunction(fn):
            raise TypeError(
                f"Response callback {describe(fn)} is a coroutine function, which start_response() "
                "cannot wait for. Register a plain function, and await what it needs before that."
            )
        self.fn = fn
        self.once = once
        self._claimed = False
        self._tickets = ["the only one"]

    def claim(self) -> bool:
        """Whether ``start_response`` is to call it, now and each time."""
        self._claimed = self._claimed or self.take_back()
        return self._claimed

    def take_back(self) -> bool:
        """Whether it had not been claimed, and so will not be called."""
        try:
            self._tickets.pop()
        except IndexError:
            return False
        return True

    @staticmethod
    def prepare(
        after: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Run all response callbacks of a request.

        Others may be registered meanwhile: by these, for this run only, and by other threads.

        :param after: the list of the request, a ``CallbackList``.
        :param args: what the app passed to ``start_response`` by position.
        :param kwargs: what it passed by name.
        :return: these, with what has changed.
        """
        pending: list[ResponseCallback] = after._response_callbacks
        for entry in [*pending]:
            if entry.once:  # registered by one in an earlier run, which registers again
                pending.remove(entry)
        # Most apps pass both by position: 0.4 us less.
        given = args[:2] if len(args) > 1 else status_and_headers(args, kwargs)
        draft = after._draft = Draft(*given)
        # The list of this request may not be the current one: the app may be a body by now, or may
        # have called another app, whose start_response led here.
        token = current.set(after)
        try:
            done = 0
            while after._draft is not None or done < len(pending):
                if done == len(pending):
                    after._draft = None  # from here on it is too late; then look once more
                    continue
                entry, done = pending[done], done + 1
                if entry.claim():
                    draft.call(entry.fn)
        finally:
            after._draft = None
            current.reset(token)
        return draft.arguments(args, kwargs)


class Draft:
    """A response before its headers go out."""

    def __init__(self, status: Any, headers: Any) -> None:
        self._status, self._headers = status, headers  # the app's
        self._given = list(headers or ())
        drafted = Headers()
        try:
            drafted[:] = self._given  # 1 us less than to add one after the other
        except ValueError:
            drafted.extend(self._given)  # raises, too, and says which header it is
        self._response = Response.of(status, drafted)
        self._given_status = self._response.status

    def call(self, fn: Prepare) -> None:
        """Call ``fn(response)``; look at what it returned and what it left in the response."""
        response = self._response
        try:
            returned: object = fn(response)
        except TypeError as error:
            if lacks_arguments(error):
                error.add_note(THE_RESPONSE)
            raise
        if returned is not None and returned is not response:
            if isinstance(returned, Coroutine):
                returned.close()
            raise TypeError(
                f"Response callback {describe(fn)} returned {type(returned).__name__}, where None "
                "or the response it was given is expected. It must change that response, because "
                "the status and the headers of another one would be lost."
            )
        if unsendable("".join([response.status, *chain.from_iterable(response.headers)])):
            if unsendable(response.status):
                raise refusal("The status", response.status, fn)
            for name, value in response.headers:  # pragma: no branch -- one of them raises
                check_header(name, value, fn)

    def arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of ``start_response``, passed as the app did: its objects if none changed.

        :param args: what the app passed by position.
        :param kwargs: what it passed by name.
        """
        status, headers = self._status, self._headers
        if self._response.status != self._given_status:
            status = self._response.status
        prepared = self._response.headers.to_wsgi_list()
        if prepared != self._given or type(headers) is not list:
            headers = prepared
        named = {"status": status, "headers": headers, "response_headers": headers}
        args = (*(status, headers)[: len(args)], *args[2:])
        return args, {name: named.get(name, value) for name, value in kwargs.items()}


def check_header(name: str, value: str, fn: Prepare | None = None) -> None:
    """Raise a ``ValueError`` if one of the two, which ``fn`` left there, cannot be sent."""
    if unsendable(name):
        raise refusal(f"The name of header {name!r}", name, fn)
    if unsendable(value):
        raise refusal(f"The value of header {name!r}", value, fn)


def refusal(place: str, text: str, fn: Prepare | None) -> ValueError:
    """What to raise for a text that cannot be sent. It may be a session: the text is left out."""
    left = f", which response callback {describe(fn)} left there," if fn else ""
    return ValueError(
        f"{place} contains {unsendable(text)[0]!r}{left} and cannot be sent: status and headers "
        "are Latin-1 text without line breaks. The usual cause is input that was not quoted: see "
        "urllib.parse.quote()."
    )
