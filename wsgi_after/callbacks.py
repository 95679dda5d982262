"""The list of one request, and the list that is current.

``environ["wsgi.after"]`` is a :class:`CallbackList`. It is a ``list``, so no import is needed to
use it: ``environ["wsgi.after"].append(fn)``. Called, it also takes arguments for the callback:
``environ["wsgi.after"](send_mail, user_id)``.

Caution: ``append(fn())`` calls ``fn`` at once and registers what it returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, TypeVar

from .logs import request_line

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from werkzeug.sansio.response import Response

    from .executor import SupportsSubmit

#: The list of the request whose app, or whose callback, is being called in this context. ``None``
#: where the body of a request within a request is being iterated.
current: ContextVar[list[Callable[[], object]] | None] = ContextVar("wsgi.after")
# Bound once: CPython 3.11 takes 7 % of the cost of a request to look these two up.
set_current, reset_current = current.set, current.reset
# super().append() costs 60 ns more.
append_to_list: Callable[[Any, Callable[[], object]], None] = list.append

F = TypeVar("F", bound=Callable[..., object])
P = TypeVar("P", bound="Callable[[Response], Response | None]")


class CallbackList(list[Callable[[], object]]):
    """The callbacks of one request, in order of registration, and what became of its response.

    An entry is a callable without arguments. Entries may be added until the list has ended, by a
    running callback too; ``remove`` and ``clear`` cancel what has not run.

    Read the attributes from a callback: before it, they tell what is known so far.
    """

    # Slots without values: a request stores only what it comes to know (an instance dictionary
    # cost 230 ns a request).
    __slots__ = (
        "_completed",
        "_environ",
        "_error",
        "_executor",
        "_pickled",
        "_prepared",
        "_server_start_response",
        "_started",
        "_write",
    )

    _completed: bool | None
    _environ: WSGIEnvironment | None
    _error: BaseException | None
    _executor: SupportsSubmit | None  # of a DirectedCallbackList; None: run in close()
    _pickled: bool
    _prepared: tuple[Any, Any]
    _server_start_response: StartResponse | None
    _started: tuple[Any, Any]
    _write: Callable[[bytes], object] | None

    def append(self, fn: Callable[[], object], /) -> None:
        """Register ``fn()`` to run after the response.

        :raises RuntimeError: if the callbacks of this request have run already.
        """
        append_to_list(self, fn)
        # The method may have been looked up while the list was open: after.append(make()), and the
        # request ends while make() runs.
        if type(self) is EndedCallbackList:
            self._take_back(fn)

    # The next three as append(): extend() and += may even run a generator meanwhile.

    def insert(self, index: SupportsIndex, fn: Callable[[], object], /) -> None:
        list.insert(self, index, fn)
        if type(self) is EndedCallbackList:
            self._take_back(fn)

    def extend(self, fns: Iterable[Callable[[], object]], /) -> None:
        fns = [*fns]
        list.extend(self, fns)
        if type(self) is EndedCallbackList:
            self._take_back(*fns)

    def __iadd__(self, fns: Any, /) -> Any:  # type: ignore[misc]  # __add__ makes a plain list
        self.extend(fns)
        return self

    def __call__(self, fn: F, /, *args: Any, **kwargs: Any) -> F:
        """Register ``fn(*args, **kwargs)`` to run after the response, and return ``fn``.

        Also a decorator: ``@environ["wsgi.after"]``. It runs last of what is registered now. What
        it returns is ignored; what it raises is logged, and the other callbacks run.

        :raises TypeError: if ``fn`` is not callable.
        :raises RuntimeError: if the callbacks of this request have run already.
        """
        return register(self, fn, *args, **kwargs)

    def on_prepare(self, fn: P, /) -> P:
        """Register ``fn(response)`` to change the response before its headers go out.

        Returns ``fn``, so it is a decorator, too. ``response`` is a
        :class:`werkzeug.sansio.response.Response`: ``status``, ``status_code``, ``headers``,
        ``set_cookie``, ``delete_cookie``, ``vary`` and so on, no body. What is not changed reaches
        the server as the app gave it.

        ``fn`` runs inside the app's call of ``start_response``, in order of registration: again if
        the app calls that again with ``exc_info``, not at all if it never does. It returns ``None``
        or the response it was given. What it registers runs too, last. What it raises, the app's
        call of ``start_response`` raises. Whoever changes Content-Length, or the status to one
        without a body, answers for the body.

        :raises TypeError: if ``fn`` is not callable, or a coroutine function.
        :raises RuntimeError: if the app has called ``start_response`` already.
        """
        from .prepare import on_prepare  # upward: it loads werkzeug, which few requests need

        on_prepare(self, fn)
        return fn

    @property
    def status(self) -> str | None:
        """The status line given to the server; ``None`` if the app did not start a response."""
        status: str | None = self._given_to_server()[0]
        return status

    @property
    def headers(self) -> list[tuple[str, str]] | None:
        """The headers given to the server; ``None`` if the app did not start a response."""
        headers: list[tuple[str, str]] | None = self._given_to_server()[1]
        return headers

    def _given_to_server(self) -> tuple[Any, Any]:
        nothing = (None, None)
        given: tuple[Any, Any] = getattr(self, "_prepared", getattr(self, "_started", nothing))
        return given

    @property
    def error(self) -> BaseException | None:
        """The first exception of the app: from its call, its body, or the ``close()`` of that.

        ``None`` again when the callbacks have run: its traceback would keep the request alive.
        """
        return getattr(self, "_error", None)

    @property
    def completed(self) -> bool | None:
        """Whether the app's iterable was exhausted, in the latest pass over it.

        No proof of delivery: some servers stop at Content-Length, some go on after the client has
        left. ``None`` if it is unknown: the server sent a file by itself, or it is Django's
        middleware that runs the callbacks.
        """
        return getattr(self, "_completed", False)

    def _request_line(self) -> str:
        """Method and path, such as ``"GET /path"``, escaped: they cannot forge a log line."""
        environ = getattr(self, "_environ", None)
        return "a request" if environ is None else request_line(environ)

    def _direct(self, executor: SupportsSubmit | None) -> None:
        """Have the callbacks run by this executor, or in ``close()``."""
        self._executor = executor
        self.__class__ = DirectedCallbackList

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[list[Callable[[], object]]]]:
        """Pickle as a plain list of the callbacks: the rest belongs to this process.

        Once an executor has the list, it ends here with that: nobody would run what comes later.
        """
        self._pickled = True
        if getattr(self, "_environ", self) is None:  # handed over; else that looks for the mark
            self.__class__ = EndedCallbackList
        return list, (list(self),)

    def __copy__(self) -> list[Callable[[], object]]:
        return list(self)

    def _start_response(self, /, *args: Any, **kwargs: Any) -> Callable[[bytes], object]:
        """Call the server's ``start_response`` with just these arguments, and record them.

        This is what the app gets. Whatever it passes reaches the server, which is the one to judge
        it; a call that the server refused is not recorded.
        """
        self._write = None  # from here on it is too late for on_prepare()
        start_response: Callable[..., Callable[[bytes], object]]
        start_response = self._server_start_response  # type: ignore[assignment]  # it has begun
        # Not with ** where there is nothing in it: 30 ns.
        write = self._write = start_response(*args, **kwargs) if kwargs else start_response(*args)
        # The exc_info is not kept: its frames refer to the environ.
        self._started = args if len(args) == 2 else status_and_headers(args, kwargs)
        return write


class DirectedCallbackList(CallbackList):
    """A list of which it was said who runs it, which else the server decides.

    The class is the mark: to find a slot without a value costs 250 ns.
    """

    __slots__ = ()


class EndedCallbackList(CallbackList):
    """A list whose callbacks have run.

    The class of the list is the mark of its end: to ask for that costs nothing before it.
    """

    __slots__ = ()

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            "The callbacks of this request have run already, so nothing more can be registered: "
            "a callback was added after close(). The usual cause is a thread, or a reference to "
            'environ["wsgi.after"], that outlived the request it came from.'
        )

    def _take_back(self, *fns: Callable[[], object]) -> None:
        """Refuse what was registered too late, unless whoever ended the list has run it."""
        late = 0
        for fn in fns:
            with suppress(ValueError):
                self.remove(fn)
                late += 1
        if late:
            self._refuse()

    append = extend = insert = _refuse
    __call__ = __iadd__ = __setitem__ = on_prepare = _refuse


def status_and_headers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The status and the headers, however an app passed them to ``start_response``.

    PEP 3333 wants them by position. Servers that take them by name call the headers either
    ``headers`` or, as the PEP does, ``response_headers``.
    """
    status, headers = (*args, None, None)[:2]
    if status is None:
        status = kwargs.get("status")
    if headers is None:
        headers = kwargs.get("headers", kwargs.get("response_headers"))
    return status, headers


def register(callbacks: list[Callable[[], object]], fn: F, /, *args: Any, **kwargs: Any) -> F:
    """Append ``fn``, bound to the arguments if there are any, and return ``fn``."""
    if not callable(fn):
        raise TypeError(
            f"A callback must be callable, not {type(fn).__name__}: {fn!r}. The usual cause is a "
            "function that was called where it should be passed: after(fn, x), not after(fn(x))."
        )
    entry = partial(fn, *args, **kwargs) if args or kwargs else fn
    callbacks.append(entry)  # not in one: the list may end between looking append up and calling it
    return fn


def after_this_response(fn: F, /, *args: Any, **kwargs: Any) -> F:
    """Register ``fn(*args, **kwargs)`` to run after the current response, and return ``fn``.

    For code that does not have the environ. Also a decorator. It can be called wherever the app
    itself is being called, however deep, and from a running callback.

    :raises TypeError: if ``fn`` is not callable.
    :raises RuntimeError: outside the call of an app behind ``AfterResponseMiddleware``: in a body
        that is being streamed, in a thread of one's own. There, hold on to
        ``environ["wsgi.after"]`` and use that.
    """
    callbacks = current.get(None)
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
    callbacks = current.get(None)
    if callbacks is None:
        raise _outside("after_this_request", "call on_prepare() of that")
    if not isinstance(callbacks, CallbackList):
        raise RuntimeError(
            f"after_this_request() needs the list of an AfterResponseMiddleware, but "
            f'environ["wsgi.after"] is a plain {type(callbacks).__name__}: the server, or another '
            "middleware, put it there before ours was called, and runs what is in it after the "
            "response. Of such a list only list operations and after_this_response() are promised."
        )
    return callbacks.on_prepare(fn)


def _outside(function: str, instead: str) -> RuntimeError:
    return RuntimeError(
        f"{function}() was called outside a request. It works while the app is being "
        "called, behind AfterResponseMiddleware. In a streaming body, or in a thread of your "
        f'own, hold on to environ["wsgi.after"] and {instead} instead.'
    )
