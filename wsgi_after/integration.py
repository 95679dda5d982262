"""Names for those who integrate a framework, a test tool or a server.

If no WSGI middleware is around the app, open a request by hand::

    with open_request(environ) as request:
        response = view(environ)
        response.status, response.headers = request.start(response.status, response.headers)
    response.on_close(request.closer())

Caution: if you open a request, make sure that its closer is called. Otherwise its callbacks run
late or not at all.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from threading import get_ident
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Self

from . import claims
from ._core import hand_off, let_out, logs, process, unclosed
from ._core import middleware as middleware_module
from ._core.body import Body
from ._core.callbacks import OPEN, RUNNING, UNSEEN, CallbackList
from ._core.current import current
from ._core.files import file_of
from ._core.finish import finish
from ._core.logs import Nobody, describe, request_line
from ._core.middleware import KEY, check_executor, is_shared
from ._core.servers import recognise
from .arguments import check_arguments
from .around import caller, is_aside
from .functions import current_list
from .registering import NoArguments, P, R, register
from .uwsgi import install as use_moment

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ._core.logs import Around
    from .executor import SupportsSubmit

__all__ = [
    "KEY",
    "InContext",
    "NoArguments",
    "OpenRequest",
    "P",
    "R",
    "add_failure_hook",
    "add_let_out",
    "bind",
    "check_arguments",
    "current_list",
    "describe",
    "file_of",
    "has_moment",
    "is_aside",
    "is_shared",
    "notes_of",
    "observe",
    "open_request",
    "put_last",
    "register",
    "request_line",
    "set_capture",
    "set_sharing",
    "unfinished",
    "use_moment",
]


def open_request(
    environ: WSGIEnvironment,
    executor: SupportsSubmit | None = None,
    *,
    around: Around | None = None,
) -> OpenRequest:
    """Give a request its list, as :class:`wsgi_after.AfterResponseMiddleware` does.

    :param environ: the environ of the request. Rule 2 of the contract says whether a list in it is
        shared. With an executor on uWSGI, which reuses the environ, pass a copy, and give the app
        the same copy.
    :param executor: as for the middleware.
    :param around: as for the middleware.
    :return: a context manager. Call the app, or the view, within its block.
    :raises TypeError: if ``environ["wsgi.after"]`` exists and is not a list, or if an argument is
        of the wrong kind.
    """
    check_executor(executor)
    return OpenRequest(environ, executor, *caller(around))


class OpenRequest:
    """A request that is opened by hand. An exception that leaves the ``with`` block ends it.

    :ivar after: the list of the request, which is the current one within the block.
    :ivar is_shared: whether somebody else made the list, and runs its callbacks.
    """

    def __init__(
        self,
        environ: WSGIEnvironment,
        executor: SupportsSubmit | None,
        call: Callable[..., object] | None,
        observer: Callable[..., object] | None,
    ) -> None:
        self._environ = environ
        present = environ.get(KEY)
        self.is_shared = present is not None and is_shared(present, self)
        if self.is_shared:
            self.after: list[Callable[[], object]] = environ[KEY]
            if executor is not None and isinstance(self.after, CallbackList):
                self.after._executor = executor
        else:
            own = self.after = CallbackList()
            own._state, own._maker = OPEN, Nobody
            own._environ, own._server_start_response = environ, _start
            own._executor, own._call, own._observer = executor, call, observer
            environ[KEY] = own

    def __enter__(self) -> OpenRequest:
        self._token = current.set(self.after)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is not None and not self.is_shared:
                finish(self._own(), error)
        finally:
            current.reset(self._token)

    def start(
        self, status: str, headers: list[tuple[str, str]]
    ) -> tuple[str, list[tuple[str, str]]]:
        """Run the response callbacks, which may change the status line and headers; return both.

        Both are returned unchanged if there are no response callbacks, or if the list is shared:
        whoever made it runs its response callbacks.
        """
        if self.is_shared:
            return status, headers
        after = self._own()
        after._start_response(status, headers)
        return after._given

    def closer(self, close: Callable[[], object] | None = None) -> Closer:
        """Return a function that ends the request. Call it once, when the response is closed.

        :param close: called before the callbacks run.
        :raises RuntimeError: if the list is shared.
        """
        after = self._own()
        after._progress = UNSEEN
        if recognise(self._environ).closes_elsewhere:
            after._thread = get_ident()
        return Closer(after, close)

    def _own(self) -> CallbackList:
        if self.is_shared or not isinstance(self.after, CallbackList):
            raise RuntimeError(
                "closer() was called for a request that shares a list. Whoever made the list ends "
                "the request. Call closer() only if is_shared is false."
            )
        return self.after


class Closer:
    """Ends a request that was opened by hand, when it is called or collected. Cannot be pickled.

    A cache may pickle the response that holds it: unpickled, it does nothing.
    """

    def __init__(self, after: CallbackList, close: Callable[[], object] | None) -> None:
        self._body = Body(SimpleNamespace(close=close), after)

    def __call__(self) -> None:
        self._body.close()

    def __reduce__(self) -> Any:
        return partial, (bool,)


class InContext(partial[object]):
    """A callback that runs within a context: what a framework's module registers.

    A subclass defines :meth:`context`. This class is a partial, so that the log and ``capture()``
    show the function. If :func:`bind` made the instance, it equals the callback that it replaced.

    :ivar request: the request that was passed to :meth:`of`.
    :ivar thread: the identifier of the thread in which :meth:`of` was called.
    """

    request: Any
    thread: int
    original: Callable[[], object] | None = None

    @classmethod
    def of(cls, request: Any, fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> Self:
        """Make a callback that calls ``fn(*args, **kwargs)`` within the context of a request."""
        callback = cls(fn, *args, **kwargs)
        callback.request, callback.thread = request, get_ident()
        callback.keep()
        return callback

    def keep(self) -> None:
        """Store what :meth:`context` needs. :meth:`of` calls this. A subclass may define it."""

    def context(self) -> AbstractContextManager[object]:
        """Return a new context manager, within which the callback runs once."""
        raise NotImplementedError

    def __call__(self, /) -> object:
        with self.context():
            return self.func(*self.args, **self.keywords)

    def __eq__(self, other: object) -> bool:
        theirs = other.original if isinstance(other, InContext) else other
        return self is other or (self.original is not None and self.original == theirs)

    def __hash__(self) -> int:
        return hash(self.original) if self.original is not None else id(self)

    def __reduce__(self) -> Any:
        """Pickle as a plain callback: the request and thread-local data stay in this process."""
        if self.keywords:
            return partial, (partial(self.func, *self.args, **self.keywords),)
        return partial, (self.func, *self.args)


#: The method of ``list``: that of ``CallbackList`` registers, which raises in a forked child.
replace: Callable[[Any, int, object], None] = list.__setitem__


def bind(
    callbacks: list[Callable[[], object]],
    before: list[Callable[[], object]],
    in_context: Callable[[Callable[[], object]], InContext],
) -> None:
    """Make the callbacks of a list run within a context, except those that have one already.

    :param callbacks: the list, which is changed in place.
    :param before: callbacks of the list that stay as they are, because they were there before.
    :param in_context: called with a plain callback; returns the callback that replaces it.
    """
    known = [id(fn) for fn in before]
    for index, fn in enumerate(callbacks):
        if id(fn) in known:
            known.remove(id(fn))  # once: it may have been registered again
        elif callable(fn) and not isinstance(fn, InContext):
            bound = in_context(fn)
            bound.original = fn
            replace(callbacks, index, bound)


def has_moment(environ: WSGIEnvironment) -> bool:
    """Return whether callbacks may run at the server's own moment, after ``close()``."""
    return hand_off.find_slot is not None or hand_off.MOMENT in environ


def put_last(after: list[Any], entry: Callable[[], object]) -> bool:
    """Append an entry that releases the request, if the callbacks run where it is closed.

    :param entry: called after the last callback.
    :return: whether the entry was appended. It is not appended if there are no callbacks, if they
        are running or have run, or if an executor, ``capture()`` or the process that forked this
        one runs them.
    """
    if isinstance(after, CallbackList) and (
        after._executor is not None
        or after._state >= RUNNING
        or after._forks != process.forks
        or (hand_off.capturing is not None and hand_off.capturing() is not None)
    ):
        return False
    if after:
        list.append(after, entry)
    return bool(after)


def _start(*args: object) -> Any:
    """Stand in for the server, whose ``start_response`` is called later, or not at all."""


def observe(after: list[Callable[[], object]], observer: Callable[..., object]) -> bool:
    """Set the function that learns what is registered in a list, unless the list has one.

    An observer that ``around=`` has set does not count: both are called.

    :param after: the list. If it is not a ``CallbackList``, no observer is set.
    :param observer: called as ``observer(after, "registers", *functions)`` before functions are
        registered, and as ``observer(after, "too late")`` or ``observer(after, "on_prepare too
        late")`` before a registration raises because it came too late. Its exceptions propagate to
        the code that registers.
    :return: whether the observer was set.
    """
    if not isinstance(after, CallbackList):
        return False
    first = after._observer
    if first is None:
        after._observer = observer
    elif after._maker is not None and first == after._maker._observer:
        after._observer = partial(tell_both, first, observer)
    else:
        return False
    return True


def notes_of(after: list[Callable[[], object]]) -> dict[str, Any]:
    """Return a dict in which an observer, or an ``around=``, keeps notes as long as the list lives.

    Use the name of your package as a key.

    :raises TypeError: if ``after`` is not a ``CallbackList``.
    """
    if not isinstance(after, CallbackList):
        raise TypeError(
            f"Only a CallbackList has notes, not {type(after).__name__}: {after!r}. The usual "
            "cause is a list that the server, or another middleware, put into the environ."
        )
    return claims.notes_of(after)


def tell_both(
    first: Callable[..., object], second: Callable[..., object], /, *event: object
) -> None:
    """Call two observers."""
    first(*event)
    second(*event)


def set_capture(capturing: Callable[[], SupportsSubmit | None]) -> None:
    """Call ``capturing()`` at the end of each request with callbacks, to get their executor.

    The executor that it returns takes precedence over any ``executor=``. If it returns ``None``,
    the callbacks run as usual.
    """
    hand_off.capturing = capturing


def set_sharing(sharing: Callable[[list[Any], object], object] | None) -> None:
    """Call ``sharing(after, instance)`` when an instance finds a list that it will share.

    ``instance`` is a middleware, an :class:`OpenRequest`, or what was passed to :func:`is_shared`.
    """
    middleware_module.sharing = sharing


def add_failure_hook(hook: Callable[[str, BaseException | None], object]) -> None:
    """Call ``hook(text, error)`` for each failure of a callback, when it has been logged.

    ``error`` is ``None`` for a callback that returned a coroutine or a generator.
    """
    logs.failure_hooks.append(hook)


def add_let_out(*kinds: type[BaseException]) -> None:
    """Re-raise such exceptions of a callback, as ``KeyboardInterrupt`` is. Use it to end a test."""
    let_out.kinds = (*let_out.kinds, *kinds)


def unfinished() -> list[CallbackList]:
    """Return the lists of this process that have not ended. This is slow: use it in tests only.

    A list counts from the call of the app until its last callback has run, or until the job has
    left the process. Responses that nobody closed, and that wait for a safe moment, are closed
    first. The lists are found through the garbage collector, so that requests need not be counted.
    """
    raised = unclosed.close_waiting()
    if raised is not None:
        raise raised
    # By type(): isinstance() asks a proxy, such as flask.request, what it stands for.
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), CallbackList)
        # Another thread may just be making it; this is set behind the other two.
        and getattr(thing, "_forks", None) == process.forks
        and thing._maker is not None
        and not thing.ended
    ]
