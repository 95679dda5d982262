"""What integrations of frameworks, test tools and servers need besides the list.

Without a WSGI middleware around the app, open a request by hand::

    with open_request(environ) as request:
        response = view(environ)
        response.status, response.headers = request.start(response.status, response.headers)
    response.on_close(request.closer())

Caution: if you open a request, make sure that its closer is called.
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

    :param environ: of the request. A list that is there is shared by rule 2 of the contract. With
        an executor on uWSGI, which uses an environ again, pass a copy, and give that to the app.
    :param executor: as for the middleware.
    :param around: as for the middleware.
    :return: a context manager, to be entered while the app, or what stands for it, is called.
    :raises TypeError: if ``environ["wsgi.after"]`` is there already and no list; if an
        argument is something else.
    """
    check_executor(executor)
    return OpenRequest(environ, executor, *caller(around))


class OpenRequest:
    """A request that is opened by hand. An exception out of the ``with`` block ends it.

    :ivar after: the list of the request, which is the current one within the block.
    :ivar is_shared: whether somebody else made the list, and runs it.
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
        """Run the response callbacks on a status line and headers; return both as prepared.

        Without a response callback they come back as they are. Of a shared list, whoever made it
        runs them, so here nothing happens.
        """
        if self.is_shared:
            return status, headers
        after = self._own()
        after._start_response(status, headers)
        return after._given

    def closer(self, close: Callable[[], object] | None = None) -> Closer:
        """What ends the request: call it, once, in place of ``close()`` of a response.

        :param close: called before the callbacks run.
        """
        after = self._own()
        after._progress = UNSEEN
        if recognise(self._environ).closes_elsewhere:
            after._thread = get_ident()
        return Closer(after, close)

    def _own(self) -> CallbackList:
        if self.is_shared or not isinstance(self.after, CallbackList):
            raise RuntimeError(
                "Somebody else made the list of this request, and ends it: see is_shared."
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

    A subclass says by :meth:`context` which. This is a partial, so that the log and ``capture()``
    show the function; it equals the callback that it stands for, if :func:`bind` made it.

    :ivar request: the request that :meth:`of` was given.
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
        """Keep what :meth:`context` needs, as it is when :meth:`of` is called. For subclasses."""

    def context(self) -> AbstractContextManager[object]:
        """What the callback runs within, made anew for each run."""
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
        """Pickle as a plain callback: a request, and what is local to a thread, stays here."""
        if self.keywords:
            return partial, (partial(self.func, *self.args, **self.keywords),)
        return partial, (self.func, *self.args)


#: Not the list's own: nothing is registered here, which in a forked child would raise.
replace: Callable[[Any, int, object], None] = list.__setitem__


def bind(
    callbacks: list[Callable[[], object]],
    before: list[Callable[[], object]],
    in_context: Callable[[Callable[[], object]], InContext],
) -> None:
    """Have callbacks run within a context, but not those that were there, nor what has one.

    :param before: the callbacks that were there.
    :param in_context: makes the callback that takes the place of a plain one.
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
    """Whether the callbacks of a request may run at the server's own moment, after ``close()``."""
    return hand_off.find_slot is not None or hand_off.MOMENT in environ


def put_last(after: list[Any], entry: Callable[[], object]) -> bool:
    """Append an entry that lets go of the request, if the callbacks run where it is closed.

    :return: ``False`` if there are none, if they have run, or if somebody else takes them: an
        executor, ``capture()``, or the process that forked this one. Then nothing was appended.
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
    """Have an observer told of what is registered in a list of ours, if it has none yet.

    That of ``around=`` does not count: it is told, too.

    :param observer: called as ``observer(after, "registers", *functions)`` before functions are
        registered, and as ``observer(after, "too late")`` or ``observer(after, "on_prepare too
        late")`` before a registration raises because it came too late. What it raises goes to
        whoever registers.
    :return: whether it will be told.
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
    """What an observer, or an ``around=``, keeps of one request as long as its list lives.

    Use the name of your package as a key.

    :raises TypeError: if this is no list of ours.
    """
    if not isinstance(after, CallbackList):
        raise TypeError(f"Only a CallbackList has notes, not {type(after).__name__}: {after!r}.")
    return claims.notes_of(after)


def tell_both(
    first: Callable[..., object], second: Callable[..., object], /, *event: object
) -> None:
    """Tell two observers."""
    first(*event)
    second(*event)


def set_capture(capturing: Callable[[], SupportsSubmit | None]) -> None:
    """Ask ``capturing()`` at the end of each request with callbacks who takes them.

    It comes before any executor, and returns ``None`` for nobody.
    """
    hand_off.capturing = capturing


def set_sharing(sharing: Callable[[list[Any], object], object] | None) -> None:
    """Call ``sharing(after, instance)`` where an instance finds a list that it is to share.

    ``instance`` is a middleware, an :class:`OpenRequest`, or who else asks :func:`is_shared`.
    """
    middleware_module.sharing = sharing


def add_failure_hook(hook: Callable[[str, BaseException | None], object]) -> None:
    """Call ``hook(text, error)`` for each failure of a callback that is logged, too.

    ``error`` is ``None`` for a callback that returned a coroutine or a generator.
    """
    logs.failure_hooks.append(hook)


def add_let_out(*kinds: type[BaseException]) -> None:
    """Let these out of a callback, beside ``KeyboardInterrupt``: what has to end a test."""
    let_out.kinds = (*let_out.kinds, *kinds)


def unfinished() -> list[CallbackList]:
    """The lists of this process's requests that have not ended: for tests, because it is slow.

    From the call of the app until the last callback has run, or until the job has left the process.
    Found by the garbage collector, so that requests need not be counted. What nobody closed, and
    waits for a safe moment, is closed first.
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
