"""The list of one request: its state, what became of the response, and its one end.

``environ["wsgi.after"]`` is a :class:`CallbackList`. It is a ``list``, so no import is needed to
use it: ``environ["wsgi.after"].append(fn)``. Called, it also takes arguments for the callback:
``environ["wsgi.after"](send_mail, user_id)``.

Caution: ``append(fn())`` calls ``fn`` at once and registers what it returned.

The state, and what causes each change. Callbacks may be registered in all states but the last two,
response callbacks in the first two::

    OPEN -- start_response --> PREPARING -- the response callbacks ran --> STARTED
      |     (none registered: straight to STARTED; it raised: back)          |
      +--------------------------------+-------------------------------------+
                                       | close(), or the app raised
                +-- no executor -------+-------- executor= --+
                v                                            v
             RUNNING <------- it refused the job ------ HANDED_OVER -- pickled --> SENT
                |                                            | the job began
                v                                            v
              ENDED <----------- the list is empty ------- IN_JOB

Threads may register while a request ends. Whoever registers appends first, then looks at the state,
and takes the entry back if it is too late. Whoever ends sets the state first, then looks at the
list. Each operation of a list is atomic, so one of the two has the entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import copy
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex

from . import process
from .current import F, P, register, reset_current, set_current
from .logs import request_line

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from ..executor import SupportsSubmit
    from .prepare import ResponseCallback

# The states: see above. SENT: the job has left this process.
OPEN, PREPARING, STARTED, RUNNING, HANDED_OVER, IN_JOB, ENDED, SENT = range(8)

# How far the response is: the app has not returned yet; nobody has read what it returned; somebody
# reads it; a pass over it failed; nobody here can see (the server sends the file, or it is Django);
# it was exhausted; it was exhausted, and its last chunk was empty.
IN_CALL, UNREAD, IN_BODY, FAILED, UNSEEN, EXHAUSTED, EXHAUSTED_EMPTY = range(7)

# super().append() costs 60 ns more.
append_to_list: Callable[[Any, Callable[[], object]], None] = list.append


class Observer(Protocol):
    """Told of what is registered, such as by :mod:`wsgi_after.lint`. It may raise."""

    def registers(self, *fns: object) -> None:
        """Called before callbacks are registered."""

    def refused(self, what: str, *, response_callback: bool = False) -> None:
        """Called before a registration that came too late raises."""


class CallbackList(list[Callable[[], object]]):
    """The callbacks of one request, in order of registration, and what became of its response.

    An entry is a callable without arguments. Entries may be added until the list has ended, by a
    running callback too. ``remove`` and ``clear`` cancel what has not run.

    Read the attributes from a callback: before it, they tell what is known so far.
    """

    __slots__ = (
        "_environ",
        "_error",
        "_executor",
        "_forks",
        "_given",
        "_maker",
        "_observer",
        "_progress",
        "_response_callbacks",
        "_server_start_response",
        "_state",
        "_thread",
        "_write",
    )

    def __init__(
        self,
        callbacks: Iterable[Callable[[], object]] = (),
        maker: object = None,
        environ: WSGIEnvironment | None = None,
        start_response: StartResponse | None = None,
        executor: SupportsSubmit | None = None,
        /,
    ) -> None:
        """Make the list of a request; the last four arguments are those of this package."""
        if callbacks:
            list.extend(self, callbacks)
        self._state: int = STARTED if start_response is None else OPEN
        self._progress: int = IN_CALL
        self._maker = maker  # None: a server, or whoever made this list by hand
        self._forks = process.forks
        self._environ = environ
        self._server_start_response: StartResponse = start_response or refuse_to_start
        self._write: Callable[[bytes], object] | None = None
        self._given: tuple[Any, Any] = (None, None)  # status and headers
        self._error: BaseException | None = None
        self._executor = executor
        self._thread: int | None = None  # the only one to run the callbacks in, if there is one
        self._response_callbacks: list[ResponseCallback] = []
        self._observer: Observer | None = None

    def append(self, fn: Callable[[], object], /) -> None:
        """Register ``fn()`` to run after the response.

        :raises RuntimeError: if the callbacks of this request have run already.
        """
        if self._observer is not None:
            self._observer.registers(fn)
        append_to_list(self, fn)
        if self._state >= ENDED or self._forks != process.forks:
            self._take_back(fn)

    def insert(self, index: SupportsIndex, fn: Callable[[], object], /) -> None:
        self._register([fn], lambda: list.insert(self, index, fn))

    def extend(self, fns: Iterable[Callable[[], object]], /) -> None:
        fns = [*fns]
        self._register(fns, lambda: list.extend(self, fns))

    def __iadd__(self, fns: Any, /) -> Any:  # type: ignore[misc]  # __add__ makes a plain list
        self.extend(fns)
        return self

    def __setitem__(self, index: Any, value: Any, /) -> None:
        fns = value = [*value] if isinstance(index, slice) else value
        self._register(
            fns if isinstance(index, slice) else [fns],
            lambda: list.__setitem__(self, index, value),
        )

    def _register(self, fns: list[Any], put: Callable[[], object]) -> None:
        """:meth:`append`, for the other operations."""
        if self._observer is not None:
            self._observer.registers(*fns)
        put()
        if self._state >= ENDED or self._forks != process.forks:
            self._take_back(*fns)

    def _take_back(self, *fns: Callable[[], object]) -> None:
        """Refuse what was registered too late, unless whoever ended the list has run it."""
        late = 0
        for fn in fns:
            try:
                self.remove(fn)
            except ValueError:
                continue
            late += 1
        if late:
            if self._observer is not None:
                self._observer.refused("registered after the last callback ran")
            raise RuntimeError(_TOO_LATE if self._forks == process.forks else OTHER_PROCESS)

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
        call of ``start_response`` raises. If you change Content-Length, or the status to one
        without a body, make sure that the body matches.

        :raises TypeError: if ``fn`` is not callable, or a coroutine function.
        :raises RuntimeError: if the app has called ``start_response`` already.
        """
        from .prepare import ResponseCallback, too_late  # loads werkzeug, which few requests need

        entry = ResponseCallback(fn, once=self._state == PREPARING)
        self._response_callbacks.append(entry)
        if self._state > PREPARING and entry.take_back():
            if self._observer is not None:
                self._observer.refused("called on_prepare() too late", response_callback=True)
            raise RuntimeError(_TOO_LATE) if self.ended else too_late()
        return fn

    @property
    def status(self) -> str | None:
        """The status line given to the server; ``None`` if the app did not start a response."""
        status: str | None = self._given[0]
        return status

    @property
    def headers(self) -> list[tuple[str, str]] | None:
        """The headers given to the server; ``None`` if the app did not start a response."""
        headers: list[tuple[str, str]] | None = self._given[1]
        return headers

    @property
    def error(self) -> BaseException | None:
        """The first exception of the app: from its call, its body, or the ``close()`` of that.

        ``None`` again when the callbacks have run: its traceback would keep the request alive.
        """
        return self._error

    @property
    def completed(self) -> bool | None:
        """Whether the app's iterable was exhausted, in the latest pass over it.

        No proof of delivery: some servers stop at Content-Length, some go on after the client has
        left. ``None`` if it is unknown: the server sent a file by itself, or it is Django's
        middleware that runs the callbacks.
        """
        return None if self._progress == UNSEEN else self._progress >= EXHAUSTED

    @property
    def ended(self) -> bool:
        """Whether the callbacks have run, so that nothing more can be registered."""
        return self._state >= ENDED

    @property
    def running(self) -> bool:
        """Whether the callbacks run now, here or in an executor, or are about to."""
        return RUNNING <= self._state <= IN_JOB

    @property
    def executor(self) -> SupportsSubmit | None:
        """Who takes the callbacks: the innermost ``executor=`` that was passed; else ``None``."""
        return self._executor

    def snapshot(self) -> Snapshot:
        """What is registered now, for :meth:`restore`."""
        return Snapshot(self)

    def restore(self, snapshot: Snapshot) -> None:
        """Take back what was registered since the snapshot, and put back what was cancelled."""
        self[:] = snapshot.callbacks
        self._response_callbacks[:] = snapshot.response_callbacks

    def __copy__(self) -> list[Callable[[], object]]:
        return list(self)

    def __deepcopy__(self, memo: object) -> CallbackList:
        """Share the list with the copy of an environ: a request has one."""
        return self

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[list[Callable[[], object]]]]:
        """Pickle as a plain list of the callbacks: the rest belongs to this process.

        If an executor has the list, its job leaves the process: nobody here would run what comes
        later.
        """
        if self._state == HANDED_OVER:
            self._state = SENT
        return list, (list(self),)

    def _request_line(self) -> str:
        """Method and path, such as ``"GET /path"``, escaped: they cannot forge a log line."""
        return "a request" if self._environ is None else request_line(self._environ)

    def _is_shared_with(self, instance: object) -> bool:
        """Whether a call of ``instance`` uses this list, which it found in the environ (rule 2)."""
        if self._maker is None:
            return self._state < ENDED
        if self._state >= RUNNING or self._forks != process.forks:
            return False
        return self._progress == IN_CALL or (
            self._progress == IN_BODY and self._maker is not instance
        )

    def _start_response(self, /, *args: Any, **kwargs: Any) -> Callable[[bytes], object]:
        """Call the server's ``start_response`` with just these arguments, and record them.

        This is what the app gets. Whatever it passes reaches the server, which decides whether it
        is valid. A call that the server refused is not recorded.
        """
        before = self._state
        if before == OPEN:
            self._state = STARTED  # before the look at the response callbacks
        try:
            if self._response_callbacks:
                args, kwargs = self._prepare(args, kwargs)
            start_response: Callable[..., Any] = self._server_start_response
            # Not with ** where there is nothing in it: 30 ns.
            write = start_response(*args, **kwargs) if kwargs else start_response(*args)
        except BaseException:
            if before < STARTED:
                self._state = before  # nothing went out: the app may start another response
            raise
        self._write = write
        # The exc_info is not kept: its frames refer to the environ.
        self._given = args if len(args) == 2 else status_and_headers(args, kwargs)
        return write  # type: ignore[no-any-return]

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of ``start_response``, after the response callbacks ran."""
        from .prepare import Draft  # loaded already: one is registered

        pending = self._response_callbacks
        for entry in copy(pending):
            if entry.once:  # registered by one in an earlier run, which registers again
                pending.remove(entry)
        draft = Draft(*status_and_headers(args, kwargs))
        if self._state < RUNNING:  # else the app has run its callbacks itself
            self._state = PREPARING
        # The list of this request may not be the current one: the app may be a body by now, or
        # may have called another app, whose start_response led here.
        token = set_current(self)
        try:
            done = 0
            while self._state == PREPARING or done < len(pending):
                if done == len(pending):
                    self._state = STARTED  # then look once more
                    continue
                entry, done = pending[done], done + 1
                if entry.claim():
                    draft.call(entry.fn)
        finally:
            if self._state == PREPARING:
                self._state = STARTED
            reset_current(token)
        return draft.arguments(args, kwargs)

    def _end(self) -> bool:
        """End the list if it is empty: mark it, then look again.

        :return: whether it has ended. If not, another thread registered before the mark.
        """
        before, self._state = self._state, ENDED
        if self:
            self._state = before
            return False
        self._error = None
        return True

    def _let_go(self) -> None:
        """Drop what is the server's, so that it can free the environ: the request is over."""
        self._environ = self._write = None
        self._server_start_response = refuse_to_start
        self._response_callbacks.clear()
        if self._state >= ENDED:
            self._error = None


class Snapshot:
    """What was registered in a list at one moment."""

    __slots__ = ("callbacks", "response_callbacks")

    def __init__(self, after: CallbackList) -> None:
        self.callbacks: list[Callable[[], object]] = list(after)
        self.response_callbacks = copy(after._response_callbacks)


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


def refuse_to_start(*args: object, **kwargs: object) -> Any:
    """Stand in for the ``start_response`` of a server when the request is over."""
    raise RuntimeError(
        "start_response() was called after the end of its request, when the server had closed the "
        "response. The usual cause is a callback, or a thread, that answers a request once more."
    )


_TOO_LATE = (
    "The callbacks of this request have run already, so nothing more can be registered: "
    "a callback was added after close(). The usual cause is a thread, or a reference to "
    'environ["wsgi.after"], that outlived the request it came from.'
)
OTHER_PROCESS = (
    'environ["wsgi.after"] belongs to the process that made it, which runs its callbacks, and this '
    "is a forked child: what it registers would never run. Register before the fork, or do the "
    "work in the child itself."
)
