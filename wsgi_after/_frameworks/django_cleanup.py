"""Django lets go of a request after its last callback, rather than before the first.

When a response is closed, Django closes uploads, by ``request.close()``, and sends
``request_finished``, whose receivers close database connections. A callback that opens a connection
later has nobody to close it, until the thread begins its next request. Sessions and messages were
stored before the response went out.

So this module puts Django's cleanup behind the callbacks, closes the connections that come later
still, and knows what has been changed too late to be stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections

from ..integration import OpenRequest, current_list, has_moment, is_aside, put_last

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

_of_thread = threading.local()  # .serves: Django has served a request in it, so it looks after it
#: The list of the request whose view is being called. Its callbacks do not run yet.
_in_view: ContextVar[object] = ContextVar("wsgi_after.django", default=None)


@contextmanager
def calling_view(after: list[Any]) -> Iterator[None]:
    """Note that a view is being called, in a thread that Django looks after."""
    _of_thread.serves = True
    token = _in_view.set(after)
    try:
        yield
    finally:
        _in_view.reset(token)


def clean_up_last(response: HttpResponse, request: HttpRequest, opened: OpenRequest) -> None:
    """Have the callbacks of a request run before Django's own cleanup."""
    end: Callable[[], object] = partial(begin, request)
    if not opened.is_shared:
        end = opened.closer(end)
    if opened.is_shared or has_moment(request.environ):
        response.close = Close(close, response, request, opened.after, end)
    else:  # Django itself appends request.close behind it, and then sends request_finished
        response._resource_closers.append(end)


def begin(request: HttpRequest) -> None:
    """Make ready for callbacks: close the connections that broke in the view.

    What the view changed has been stored.
    """
    stored(request)
    for connection in connections.all(initialized_only=True):
        if connection.errors_occurred:
            close_if_old(connection)


def stored(request: HttpRequest) -> list[str]:
    """What has changed in the request since Django stored it. It counts as stored from now on."""
    changed = []
    for name, mark in ("session", "modified"), ("_messages", "added_new"):
        storage = vars(request).get(name)
        if getattr(storage, mark, False):
            setattr(storage, mark, False)
            changed.append(f"request.{name}" if name == "session" else "the messages")
    return changed


class Close(partial[None]):
    """The ``close`` of one response.

    A cache pickles the response. What it unpickles has Django's own method.
    """

    def __reduce__(self) -> Any:
        return getattr, (self.args[0], "close")


def close(
    response: HttpResponse, request: HttpRequest, after: list[Any], end: Callable[[], object]
) -> None:
    """Close what the response uses; run the callbacks, unless they run elsewhere; clean up."""
    vars(response).pop("close", None)  # no cycle any more
    closers = response._resource_closers
    own = [closer for closer in closers if closer != request.close]
    closers[:] = [closer for closer in closers if closer == request.close]
    for closer in own:
        with suppress(Exception):  # as Django does
            closer()
    cleanup = Cleanup(response, after)
    is_last = put_last(after, cleanup)
    try:
        end()
    finally:
        if not is_last:
            cleanup.run()


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


def bracket(callbacks: list[Any]) -> None:
    """Look after the connections of the thread in which an executor runs the callbacks.

    By list's own operations: a forked child must not register, and must not fail here either.
    """
    if callbacks and getattr(callbacks, "executor", None) is not None:
        list.insert(callbacks, 0, close_old)
        list.append(callbacks, close_connections)


def close_again(connection: Any, **kwargs: Any) -> None:
    """Have a connection that a callback has just opened closed, after the last callback so far."""
    callbacks = current_list()
    if callbacks is not None and callbacks is not _in_view.get():
        list.append(callbacks, close_connections)  # a list that has just ended would refuse


def close_connections() -> None:
    """Close what Django would have closed; in a thread that Django does not look after, all."""
    if getattr(_of_thread, "serves", False):
        close_old()
    else:
        for connection in connections.all(initialized_only=True):
            if not connection.allow_thread_sharing:
                connection.close()


def close_old() -> None:
    """Close the connections of this thread that are unusable or too old."""
    for connection in connections.all(initialized_only=True):
        close_if_old(connection)


def close_if_old(connection: Any) -> None:
    """Close a connection that is unusable or too old, unless a test may be using it.

    A ``TestCase`` keeps a transaction open, and a test may share its connection with a thread. What
    a view left open is closed by Django itself.
    """
    if not (connection.in_atomic_block or connection.allow_thread_sharing):
        connection.close_if_unusable_or_obsolete()
