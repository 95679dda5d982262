"""For code that does not have the environ: register with the current request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._core.callbacks import F, P, register
from ._core.current import current
from ._core.logs import outside, plain_list


def current_list() -> list[Callable[[], object]] | None:
    """The list of the current request; ``None`` outside one, and in a streaming body."""
    return current.get(None)


def after_this_response(fn: F, /, *args: Any, **kwargs: Any) -> F:
    """Register ``fn(*args, **kwargs)`` to run after the current response, and return ``fn``.

    For code that does not have the environ. Also a decorator. Call it wherever the app itself is
    being called, however deep, and from a running callback.

    :raises TypeError: if ``fn`` is not callable.
    :raises RuntimeError: outside the call of an app behind ``AfterResponseMiddleware``: in a body
        that is being streamed, in a thread of your own. There, hold on to
        ``environ["wsgi.after"]`` and use that. (A stream that another request's app reads belongs
        to that request.)
    """
    callbacks = current_list()
    if callbacks is None:
        raise outside("after_this_response", "append to that")
    return register(callbacks, fn, *args, **kwargs)


def after_this_request(fn: P, /) -> P:
    """Register ``fn(response)`` to change the current response, and return ``fn``.

    :meth:`CallbackList.on_prepare` for code that does not have the environ. Also a decorator.

    :raises TypeError: if ``fn`` is not callable, or a coroutine function.
    :raises RuntimeError: if the app has called ``start_response`` already; outside the call of an
        app behind ``AfterResponseMiddleware``, as for :func:`after_this_response`; if the list in
        use is a plain one, which somebody else put there.
    """
    callbacks: Any = current_list()
    if callbacks is None:
        raise outside("after_this_request", "call on_prepare() of that")
    if not hasattr(callbacks, "on_prepare"):
        raise plain_list(callbacks)
    prepared: P = callbacks.on_prepare(fn)
    return prepared
