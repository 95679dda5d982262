"""For code that does not have the environ: register with the current request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast, overload

from ._core import process
from ._core.callbacks import CallbackList, P
from ._core.current import current
from ._core.logs import outside, plain_list
from .registering import NoArguments, R, checked, register
from .registering import P as Parameters

if TYPE_CHECKING:
    from werkzeug.sansio.response import Response


def current_list() -> CallbackList | None:
    """The list of the current request; ``None`` outside one, and in a streaming body.

    For code that does not have the environ: ``current_list()`` is ``environ["wsgi.after"]`` where
    :func:`wsgi_after.after_this_response` works. It is a plain list if somebody else put one there.
    """
    return cast("CallbackList | None", current.get(None))


@overload
def after_this_response(fn: NoArguments, /) -> NoArguments: ...
@overload
def after_this_response(
    fn: Callable[Parameters, R], /, *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Callable[Parameters, R]: ...
def after_this_response(fn: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Register ``fn(*args, **kwargs)`` to run after the current response, and return ``fn``.

    For code that does not have the environ. Also a decorator. Call it while the app itself is being
    called, at any depth, or from a running callback.

    :raises TypeError: if ``fn`` is not callable.
    :raises RuntimeError: outside the call of an app behind ``AfterResponseMiddleware``: in a body
        that is being streamed, or in a thread of your own. There, keep a reference to
        ``environ["wsgi.after"]`` and use that. (If the app of another request reads the stream,
        that request is the current one.)
    """
    callbacks = current_list()
    if callbacks is None:
        raise outside("after_this_response", "append to that")
    return register(callbacks, fn, *args, **kwargs)


@overload
def after_this_response_or_now(fn: NoArguments, /) -> NoArguments: ...
@overload
def after_this_response_or_now(
    fn: Callable[Parameters, R], /, *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Callable[Parameters, R]: ...
def after_this_response_or_now(fn: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Register ``fn(*args, **kwargs)`` as :func:`wsgi_after.after_this_response`, or call it now.

    For library code that may also run in a script, a task or a test. Also a decorator. ``fn`` is
    called at once where no request is current: there, in a body that is being streamed, in a thread
    of your own, after the callbacks of the request have run, and in a child that a request forked.
    The return value of ``fn`` is ignored, and ``fn`` is returned.

    :raises TypeError: if ``fn`` is not callable.
    :raises BaseException: what ``fn`` raises, if it is called at once.
    """
    callbacks = current_list()
    is_over = isinstance(callbacks, CallbackList) and (
        callbacks.ended or callbacks._forks != process.forks
    )
    if callbacks is not None and not is_over:
        with suppress(RuntimeError):  # another thread has just ended it
            return register(callbacks, fn, *args, **kwargs)
    checked(fn)(*args, **kwargs)
    return fn


def after_this_request(fn: Callable[[Response], P], /) -> Callable[[Response], P]:
    """Register ``fn(response)`` to change the current response, and return ``fn``.

    :meth:`CallbackList.on_prepare` for code that does not have the environ. Also a decorator.

    :raises TypeError: if ``fn`` is not callable, or a coroutine function.
    :raises RuntimeError: if the app has already called ``start_response``; outside the call of an
        app behind ``AfterResponseMiddleware``, as for :func:`wsgi_after.after_this_response`; if
        the list is a plain one, made by somebody else.
    """
    callbacks: Any = current_list()
    if callbacks is None:
        raise outside("after_this_request", "call on_prepare() of that")
    if not hasattr(callbacks, "on_prepare"):
        raise plain_list(callbacks)
    prepared: Callable[[Response], P] = callbacks.on_prepare(fn)
    return prepared
