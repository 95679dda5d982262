"""The list that is current: of the request whose app, or whose callback, is being called."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

#: Reset when the app, or the callback, returns. Otherwise the context would keep alive a failed
#: response that nobody closed.
current: ContextVar[list[Callable[[], object]]] = ContextVar("wsgi.after")
set_current, reset_current = current.set, current.reset  # bound once, which saves 100 ns
