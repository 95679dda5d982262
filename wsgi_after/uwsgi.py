"""uWSGI's own moment after the response: ``uwsgi.after_req_hook``.

The middleware and the integrations set this hook when they are constructed. uWSGI calls it in the
thread of the request, after closing the client's connection. uWSGI reads the hook once, after
importing the app. If that was too early, or if uWSGI calls another hook instead, callbacks run in
``close()``. The package relies on the hook in a thread after uWSGI has called it there once.

With ``mount``, uWSGI reads the hook before it imports the apps. There, set ``single-interpreter =
true`` and ``import = wsgi_after.uwsgi``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import BytesIO
from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ._core import process
from .moment import Slot, here, set_finder

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

__all__ = ["install"]

#: In these modes requests take turns in one thread.
ASYNC = {"async", "asyncio", "greenlet", "loop", "tornado"}
LOGVAR = "wsgi_after"

seen: set[object] = set()  # where the hook has been called
pending: dict[object, RequestSlot] = {}  # by request
running: set[object] = set()  # requests whose hook is being called
previous: Callable[[], object] | None = None  # the hook that was there
numbers = count()


class RequestSlot(Slot):
    """The slot of a request. It refills the environ, which uWSGI has emptied by then."""

    def __init__(self) -> None:
        super().__init__()
        self.environ: WSGIEnvironment = {}
        self._copies: list[tuple[WSGIEnvironment, WSGIEnvironment]] = []

    def submit(self, fn: Callable[..., object], callbacks: Any, /, *args: object) -> None:
        self._copies.append((self.environ, self.environ.copy()))
        pending[request()] = self
        super().submit(fn, callbacks, *args)

    def run(self) -> None:
        filled = []
        for environ, copied in self._copies:
            if not environ:  # else it is a copy that somebody made: it stays as it is
                # uWSGI would read from the connection, whose number may be another's by now.
                environ.update(copied)
                environ["wsgi.input"] = BytesIO()
                filled.append(environ)
        try:
            super().run()
        finally:
            for environ in filled:
                environ.clear()


def install() -> None:
    """Set the hook, if this process belongs to uWSGI.

    An existing hook is called after the callbacks. Call this function while the app is imported,
    and again if other code may have replaced the hook.
    """
    global previous
    opt = options()
    if opt is None or (not ASYNC.isdisjoint(opt) and not {"gevent", "ugreen"} & opt):
        return
    uwsgi: Any = sys.modules["uwsgi"]
    present = getattr(uwsgi, "after_req_hook", None)
    if present is not hook:
        previous, uwsgi.after_req_hook = present, hook
    set_finder(find)


def options() -> set[str] | None:
    """The names of uWSGI's options; ``None`` in another process."""
    opt = getattr(sys.modules.get("uwsgi"), "opt", None)
    return None if opt is None else set(opt)


def hook() -> None:
    """Run the callbacks of the request that has just ended in this thread."""
    seen.add(worker())
    this = request()
    if this in running:  # somebody's hook calls this one, and is called by it
        return
    running.add(this)
    try:
        if (slot := pending.pop(this, None)) is not None:
            slot.run()
    finally:
        try:
            if previous is not None:
                previous()
        finally:
            running.discard(this)


def find(environ: WSGIEnvironment) -> Slot | None:
    """The slot of a request, if uWSGI is sure to call the hook for it."""
    if "uwsgi.version" not in environ or worker() not in seen or not is_served():
        return None
    this = request()
    if this in running or (failed(environ) and ends_at_exceptions()):
        return None
    slot = pending.get(this) or RequestSlot()
    slot.environ = environ
    return slot


def worker() -> object:
    """A key for this thread. With gevent, for the process: each request has a new greenlet."""
    uwsgi: Any = sys.modules["uwsgi"]
    return process.forks, None if "gevent" in uwsgi.opt else get_ident()


def is_served() -> bool:
    """Whether uWSGI serves a request in this thread or greenlet, not somebody within the app."""
    uwsgi: Any = sys.modules["uwsgi"]
    return "gevent" not in uwsgi.opt or hasattr(here(), "uwsgi_wsgi_req")


def request() -> object:
    """A key for the request that uWSGI serves here, valid until its hook has been called."""
    uwsgi: Any = sys.modules["uwsgi"]
    if "ugreen" not in uwsgi.opt:
        return here()
    # Its coroutines are unknown to Python. A variable for the log belongs to the request.
    if uwsgi.get_logvar(LOGVAR) is None:
        uwsgi.set_logvar(LOGVAR, str(next(numbers)))
    return uwsgi.get_logvar(LOGVAR)


def failed(environ: WSGIEnvironment) -> bool:
    """Whether the app has raised."""
    return getattr(environ.get("wsgi.after"), "error", None) is not None


def ends_at_exceptions() -> bool:
    """Whether uWSGI may end the worker at an exception of the app, before it calls the hook."""
    return any(name.startswith("reload-on-exception") for name in options() or ())


install()
