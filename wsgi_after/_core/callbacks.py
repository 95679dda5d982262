"""The list of one request: its state, what became of the response, and its one end.

The state, and what causes each change. Callbacks may be registered in all states but ``ENDED`` and
``SENT``; response callbacks in ``OPEN``, and while ``start_response`` runs them::

    OPEN -- start_response --> STARTED
      |     (it raised: back)     |
      +-------------+-------------+
                    | close(), or the app raised
        +-----------+---- executor= ------+
        v                                 v
    RUNNING <--- submit() raised --- HANDED_OVER -- pickled --> SENT
        |                                 | the job began        |
        v                                 v                      |
      ENDED <---- the list is empty --- IN_JOB                   |
        ^-------- the future is done: what did not run is lost --+

Threads may register while a request ends. The thread that registers appends first, then reads the
state, and takes the entry back if it is too late. The thread that ends the list sets the state
first, then looks at the list. List methods are atomic, with the GIL and without, so one of the two
gets it. If the second finds an entry, it resets the state and runs the rest: two may end one list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from ..claims import Places, insert, response_callbacks_of, take
from ..registering import Registering
from . import logs, process
from .logs import OTHER_PROCESS, STARTED_TOO_LATE, TOO_LATE, request_line
from .servers import status_and_headers

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from werkzeug.sansio.response import Response

    from ..executor import SupportsSubmit
    from .prepare import Draft, ResponseCallback

P = TypeVar("P", bound="Response | None")

# The states, in an order that counts: see above.
OPEN, STARTED, RUNNING, HANDED_OVER, IN_JOB, ENDED, SENT = range(7)
#: The state while callbacks run, by the state before.
WHILE_RUNNING = (RUNNING, RUNNING, RUNNING, IN_JOB, IN_JOB, ENDED, SENT)

# How far the response is, in an order that counts. UNSEEN: the server sends a file itself.
# EXHAUSTED_EMPTY: and the last chunk, if there was one, was empty.
IN_CALL, UNREAD, IN_BODY, FAILED, UNSEEN, EXHAUSTED, EXHAUSTED_EMPTY = range(7)


#: Replaces an error when the request is over: the error's traceback holds the request.
FORGOTTEN = Exception("The callbacks have run.")


class CallbackList(Registering, Places):
    """The callbacks of one request, in order of registration, and what became of its response.

    An entry is a callable without arguments. Add entries until the list has ended, from a running
    callback too; ``remove`` and ``clear`` cancel. The attributes tell what is known so far.
    """

    __slots__ = tuple(
        "_call _draft _environ _error _executor _forks _given _maker _notes _observer "  # noqa: SIM905
        "_progress _response_callbacks _server_start_response _state _thread _write".split()
    )

    def __init__(self, callbacks: Iterable[Callable[[], object]] = (), /) -> None:
        """Make a list by hand. The middleware makes the list of a request without this method."""
        list.__init__(self, callbacks)
        self._state: int = STARTED
        self._progress: int = IN_CALL
        self._maker: logs.Maker | None = None  # None: a server, or whoever made this list by hand
        self._forks = process.forks
        self._environ: WSGIEnvironment | None = None
        self._server_start_response: StartResponse = refuse_to_start
        self._write: Callable[[bytes], object] | None = None
        self._given: tuple[Any, Any] = (None, None)  # status and headers
        self._error: BaseException | None = None
        self._executor: SupportsSubmit | None = None
        self._call: Callable[..., object] | None = None  # calls a callback: see around.py
        self._thread: int | None = None  # if set: run them in it, or in a thread of their own
        self._response_callbacks: list[ResponseCallback] | None = None  # None: there are none
        self._draft: Draft | None = None  # what these change, while they run
        self._observer: Callable[..., object] | None = None  # see integration.observe()
        self._notes: dict[str, Any] | None = None  # of registering.py and integration.notes_of()

    def append(self, fn: Callable[[], object], /) -> None:
        """Register ``fn()`` to run after the response; ``append(fn())`` would call it at once.

        :raises RuntimeError: if the callbacks of this request have run already.
        """
        if self._observer is not None:
            self._observer(self, "registers", fn)
        list.append(self, fn)  # super().append(fn) costs 60 ns more
        if self._state >= ENDED or self._forks != process.forks:
            self._take_back([fn])

    def insert(self, index: SupportsIndex, fn: Callable[[], object], /) -> None:
        self._put([fn], insert, index, fn)

    def extend(self, fns: Iterable[Callable[[], object]], /) -> None:
        fns = [*fns]
        self._put(fns, list.extend, fns)

    def __iadd__(self, fns: Any, /) -> Any:  # type: ignore[misc]  # __add__ makes a plain list
        self.extend(fns)
        return self

    def __setitem__(self, index: Any, value: Any, /) -> None:
        value = [*value] if isinstance(index, slice) else value
        self._put(value if isinstance(index, slice) else [value], list.__setitem__, index, value)

    def _put(self, fns: list[Any], method: Callable[..., object], *args: object) -> None:
        if self._observer is not None:
            self._observer(self, "registers", *fns)
        method(self, *args)
        if self._state >= ENDED or self._forks != process.forks:
            self._take_back(fns)

    def _take_back(self, fns: list[Any]) -> None:
        """Refuse what was registered too late, unless the thread that ended the list runs it.

        That thread takes the first entry first, and checks the list again before it ends it.
        """
        if take(self, fns):
            if self._observer is not None and self._state >= ENDED:
                self._observer(self, "too late")
            raise RuntimeError(TOO_LATE if self._forks == process.forks else OTHER_PROCESS)

    def on_prepare(self, fn: Callable[[Response], P], /) -> Callable[[Response], P]:
        """Register ``fn(response)``, to change the response before its headers go out.

        Returns ``fn``: also a decorator. ``response`` is a
        :class:`werkzeug.sansio.response.Response`: ``status``, ``headers``, ``set_cookie`` and so
        on, no body. What is not changed reaches the server as the app gave it. If you change
        Content-Length, or the status to one without a body, make sure that the body matches.

        ``fn`` runs inside the app's call of ``start_response``, in order of registration. It runs
        again if the app calls that again with ``exc_info``, and not at all if the app never calls
        it. ``fn`` returns ``None`` or the response. Functions that it registers run last. If it
        raises, the app's call of ``start_response`` raises that.

        :raises TypeError: if ``fn`` is not callable, or a coroutine function.
        :raises RuntimeError: if the app has called ``start_response`` already.
        """
        from .prepare import ResponseCallback  # loads werkzeug, which few requests need

        entry = ResponseCallback(fn, once=self._draft is not None)
        response_callbacks_of(self).append(entry)
        if self._state != OPEN and self._draft is None and entry.take_back():
            if self._observer is not None:
                self._observer(self, "on_prepare too late")
            raise RuntimeError(TOO_LATE if self.ended else logs.PREPARED_TOO_LATE)
        return fn

    @property
    def status(self) -> str | None:
        """The status line given to the server; ``None`` if the app did not start a response."""
        return self._given[0]  # type: ignore[no-any-return]

    @property
    def headers(self) -> list[tuple[str, str]] | None:
        """The headers given to the server; ``None`` if the app did not start a response."""
        return self._given[1]  # type: ignore[no-any-return]

    @property
    def error(self) -> BaseException | None:
        """The first exception of the app: from its call, its body, or the ``close()`` of that.

        ``None`` again when the callbacks have run, because its traceback refers to the request.
        """
        return None if self._error is FORGOTTEN else self._error

    @property
    def completed(self) -> bool | None:
        """Whether the app's iterable was exhausted, which is no proof of delivery.

        ``None`` if unknown: the server sent a file itself, or Django's middleware runs callbacks.
        """
        return None if self._progress == UNSEEN else self._progress >= EXHAUSTED

    @property
    def ended(self) -> bool:
        """Whether the callbacks have run, or are lost: nothing more can be registered."""
        return self._state >= ENDED

    @property
    def executor(self) -> SupportsSubmit | None:
        """The executor of the callbacks: the innermost ``executor=``, or ``None``."""
        return self._executor

    def snapshot(self) -> tuple[list[Any], list[Any]]:
        """What is registered now, for :meth:`restore`."""
        return [*self], [*(self._response_callbacks or ())]

    def restore(self, snapshot: tuple[list[Any], list[Any]]) -> None:
        """Register exactly what was registered at the snapshot."""
        list.__setitem__(self, slice(None), snapshot[0])
        if self._response_callbacks is not None:
            self._response_callbacks[:] = snapshot[1]

    __repr__ = logs.list_text

    def __copy__(self) -> list[Callable[[], object]]:
        return list(self)

    def __deepcopy__(self, memo: object) -> CallbackList:
        return self  # shared with the copy of an environ: a request has one list

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[list[Callable[[], object]]]]:
        """Pickle as a plain list of the callbacks: the rest belongs to this process."""
        if self._state == HANDED_OVER:
            self._state = SENT  # nothing here would run a later entry
        return list, (list(self),)

    def _request_line(self) -> str:
        return "a request" if self._environ is None else request_line(self._environ)

    def _is_shared_with(self, instance: object) -> bool:
        """Whether a call of ``instance`` that finds this list in the environ uses it (rule 2)."""
        if self._maker is None:
            return self._state < ENDED
        being_read = self._progress == IN_BODY and self._maker is not instance
        is_ours = self._state < RUNNING and self._forks == process.forks
        return is_ours and (self._progress == IN_CALL or being_read)

    def _start_response(self, /, *args: Any, **kwargs: Any) -> Callable[[bytes], object]:
        """The app calls this: pass the same arguments to the server, and record them."""
        before = self._state
        if before == OPEN:
            self._state = STARTED  # before the look at the response callbacks
        try:
            if self._response_callbacks:
                # Through an entry: importing prepare.py again takes 0.5 us.
                args, kwargs = self._response_callbacks[0].prepare(self, args, kwargs)
            start_response: Callable[..., Any] = self._server_start_response
            write = start_response(*args, **kwargs) if kwargs else start_response(*args)
        except BaseException:
            if before == OPEN:
                self._state = OPEN  # nothing went out: the app may start another response
            raise
        self._write = write
        # The exc_info is not kept: its frames refer to the environ.
        self._given = args if len(args) == 2 else status_and_headers(args, kwargs)
        return write  # type: ignore[no-any-return]

    def _end(self) -> bool:
        """End the list. False if it is not empty: another thread registered before the mark."""
        before, self._state = self._state, ENDED
        if self:
            self._state = before
            return False
        if self._error is not None:
            self._error = FORGOTTEN
        self._notes = None
        return True

    def _let_go(self) -> None:
        """Drop what is the server's, so that it can free the environ: the request is over."""
        self._environ = self._write = self._response_callbacks = None
        self._server_start_response = refuse_to_start
        if self._error is not None and self._state >= ENDED:
            self._error = FORGOTTEN


def refuse_to_start(*args: object, **kwargs: object) -> Any:
    """Stand in for the ``start_response`` of a server when the request is over."""
    raise RuntimeError(STARTED_TOO_LATE)
