"""Which request this code belongs to, for code that does not have the environ."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from werkzeug.sansio.response import Response

#: The list of the request whose app, or whose callback, is being called in this context. It is
#: reset when that returns: kept, it would keep a failed response that nobody closed.
current: ContextVar[list[Callable[[], object]]] = ContextVar("wsgi.after")
# Bound once: CPython 3.11 takes 7 % of the cost of a request to look these two up.
set_current, reset_current = current.set, current.reset

F = TypeVar("F", bound=Callable[..., object])
P = TypeVar("P", bound="Callable[[Response], Response | None]")


def current_list() -> list[Callable[[], object]] | None:
    """The list of the current request; ``None`` outside one, and in a streaming body."""
    return current.get(None)


def register(callbacks: list[Callable[[], object]], fn: F, /, *args: Any, **kwargs: Any) -> F:
    """Append ``fn``, bound to the arguments if there are any, and return ``fn``.

    :raises TypeError: if ``fn`` is not callable.
    """
    if not callable(fn):
        raise TypeError(
            f"A callback must be callable, not {type(fn).__name__}: {fn!r}. The usual cause is a "
            "function that was called where it should be passed: after(fn, x), not after(fn(x))."
        )
    callbacks.append(partial(fn, *args, **kwargs) if args or kwargs else fn)
    return fn


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
        raise _outside("after_this_response", "append to that")
    return register(callbacks, fn, *args, **kwargs)


def after_this_request(fn: P, /) -> P:
    """Register ``fn(response)`` to change the current response, and return ``fn``.

    :meth:`CallbackList.on_prepare` for code that does not have the environ. Also a decorator.

    :raises TypeError: if ``fn`` is not callable, or a coroutine function.
    :raises RuntimeError: if the app has called ``start_response`` already; outside the call of an
        app behind ``AfterResponseMiddleware``, as for :func:`after_this_response`; if the list in
        use is a plain one, which somebody else put there.
    """
    callbacks = current_list()
    if callbacks is None:
        raise _outside("after_this_request", "call on_prepare() of that")
    on_prepare: Callable[[P], P] | None = getattr(callbacks, "on_prepare", None)
    if on_prepare is None:
        raise RuntimeError(
            f"after_this_request() needs the list of an AfterResponseMiddleware, but "
            f'environ["wsgi.after"] is a plain {type(callbacks).__name__}: the server, or another '
            "middleware, put it there before ours was called, and runs what is in it after the "
            "response. Of such a list only list operations and after_this_response() are promised."
        )
    return on_prepare(fn)


def _outside(function: str, instead: str) -> RuntimeError:
    return RuntimeError(
        f"{function}() was called outside a request. It works while the app is being "
        "called, behind AfterResponseMiddleware. In a streaming body, or in a thread of your "
        f'own, hold on to environ["wsgi.after"] and {instead} instead.'
    )
