"""The ways to register a call with a list: plainly, on success, once per request.

An entry for the latter two stands for the call. It decides whether to make it when its turn comes,
or before it leaves the process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, ParamSpec, TypeVar, overload

from ._core.logs import call_of, not_callable
from .claims import notes_of, take

P = ParamSpec("P")
R = TypeVar("R")
NoArguments = TypeVar("NoArguments", bound=Callable[[], object])


class Registering:
    """What a ``CallbackList`` can be asked for with arguments, and what decides about success.

    Each method is a decorator, too.
    """

    __slots__ = ()

    @property
    def ok(self: Any) -> bool | None:
        """Whether the status is below 400 and nothing was raised, also if the client has left.

        ``None`` while there is neither a status nor an error. Frameworks turn an exception of a
        view into a response, so ``error`` alone is not enough. The value stays after the callbacks
        have run.
        """
        if self._error is not None:
            return False
        return None if self.status is None else bool(self.status < "400")

    @overload
    def __call__(self, fn: NoArguments, /) -> NoArguments: ...
    @overload
    def __call__(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Callable[P, R]: ...
    def __call__(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Register ``fn(*args, **kwargs)`` to run after the response, and return ``fn``.

        Also a decorator. ``fn`` runs after all callbacks that were registered before it. Its return
        value is ignored. If it raises, the exception is logged, and the other callbacks run.

        :raises TypeError: if ``fn`` is not callable.
        :raises RuntimeError: as for ``append()``.
        """
        return register(self, fn, *args, **kwargs)

    def remove(self: Any, fn: object, /) -> None:
        """Cancel the first callback that equals ``fn``.

        :raises ValueError: if there is none, for example because it has run.
        """
        for entry in [*self]:
            if (entry is fn or entry == fn) and take(self, [entry]):
                return
        raise ValueError(
            f"This callback is not in the list: {fn!r}. The usual causes are that it has run, and "
            "that it was registered with arguments. Then pass remove() an equal functools.partial."
        )

    @overload
    def on_success(self, fn: NoArguments, /) -> NoArguments: ...
    @overload
    def on_success(
        self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Callable[P, R]: ...
    def on_success(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Register ``fn(*args, **kwargs)`` to run if :attr:`ok` is true by then; return ``fn``.

        Also a decorator. ``fn`` keeps its place in the order. If callbacks are handed over,
        :attr:`ok` is looked at just before. To cancel, pass ``fn``, or an equal partial, to
        ``remove()``.

        :raises TypeError: if ``fn`` is not callable.
        :raises RuntimeError: as for ``append()``.
        """
        register_conditional(self, partial(checked(fn), *args, **kwargs), "on_success")
        return fn

    @overload
    def once(self, fn: NoArguments, /) -> NoArguments: ...
    @overload
    def once(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Callable[P, R]: ...
    def once(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Register ``fn(*args, **kwargs)`` unless the same call is there already; return ``fn``.

        Also a decorator. Two calls are the same if function, arguments and keywords are equal by
        ``==``; they need not be hashable, and a partial equals its function with its arguments. A
        call is there if it waits in the list, or if it has run and was registered by this method or
        :meth:`on_success`. A call cancelled by ``remove()`` or ``clear()`` can be registered again.

        The two nest, in either order: ``after.on_success(after.once, fn, 1)``.

        :raises TypeError: if ``fn`` is not callable.
        :raises RuntimeError: as for ``append()``.
        """
        register_conditional(self, partial(checked(fn), *args, **kwargs), "once")
        return fn


def register(callbacks: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Append ``fn`` to a list, bound to the arguments if there are any, and return ``fn``.

    :raises TypeError: if ``fn`` is not callable.
    """
    checked(fn)
    callbacks.append(partial(fn, *args, **kwargs) if args or kwargs else fn)
    return fn


def checked(fn: Any) -> Any:
    """``fn``.

    :raises TypeError: if it is not callable.
    """
    if not callable(fn):
        raise not_callable(fn)
    return fn


class Conditional(partial[object]):
    """A callback that runs if its conditions hold. It equals the call that it stands for."""

    after: Any  # a CallbackList
    calls: list[Any]  # those of this list that were made, also when it has ended
    on_success: bool
    once: bool

    def is_right(self) -> bool:
        """Whether the response is one to run after, as far as is known now."""
        return not self.on_success or self.after.ok is True

    def is_due(self) -> bool:
        """Whether it is to run, as far as is known now."""
        return self.is_right() and not (self.once and call_of(self) in self.calls)

    def __call__(self, /) -> object:
        """Call the function, if it is due."""
        if not self.is_right():
            return None
        call = call_of(self)
        self.calls.append(call)  # then look: of two threads, one is the first
        if self.once and next(other for other in self.calls if other == call) is not call:
            return None
        return self.func(*self.args, **self.keywords)

    def __eq__(self, other: object) -> bool:
        return bool(call_of(self) == call_of(other))

    def __hash__(self) -> int:
        return hash(self.func)  # the arguments need not be hashable

    def __reduce__(self) -> Any:
        """Pickle as a plain callback: the list, which could decide later, stays here."""
        due = partial(self.func, *self.args, **self.keywords) if self.is_due() else partial(bool)
        return due.__reduce__()


def register_conditional(after: Any, call: partial[object], *kinds: str) -> None:
    """Register a call on conditions: ``"on_success"``, ``"once"``, or both.

    :param after: a ``CallbackList``.
    :raises TypeError: if what is to be called is not callable.
    """
    kind = method_of(after, call.func)
    while kind is not None:  # one within the other
        kinds = (*kinds, kind)
        call = partial(checked(*call.args[:1] or [None]), *call.args[1:], **call.keywords)
        kind = method_of(after, call.func)
    entry = Conditional(call.func, *call.args, **call.keywords)
    entry.after, entry.on_success, entry.once = after, "on_success" in kinds, "once" in kinds
    entry.calls = notes_of(after).setdefault("called", [])
    if not (entry.once and is_there(after, entry)):
        after.append(entry)


def method_of(after: Any, fn: object) -> str | None:
    """Which of the two methods of this list ``fn`` is, if it is one."""
    if type(fn) is MethodType and fn.__self__ is after and fn.__name__ in {"on_success", "once"}:
        return fn.__name__
    return None


def is_there(after: Any, entry: Conditional) -> bool:
    """Whether the same call has run, or waits and will run if ``entry`` would."""
    call = call_of(entry)
    return call in entry.calls or any(
        call == call_of(other) and (entry.on_success or not depends_on_success(other))
        for other in [*after]
    )


def depends_on_success(entry: object) -> bool:
    """Whether an entry runs on success only."""
    found = conditional_in(entry)
    return found is not None and found.on_success


def conditional_in(entry: object) -> Conditional | None:
    """An entry as one of this module: some have it inside, as those of Pyramid's module do."""
    while isinstance(entry, partial) and not isinstance(entry, Conditional):
        entry = entry.func
    return entry if isinstance(entry, Conditional) else None


def is_due(entry: object) -> bool:
    """Whether an entry would call its function now."""
    found = conditional_in(entry)
    return found is None or found.is_due()


def decide(after: Any) -> None:
    """Take off a list what is not due: before it is handed over, when the response is known."""
    seen: list[Any] = []
    for entry in [*after]:
        found, call = conditional_in(entry), call_of(entry)
        if found is not None and (not found.is_due() or (found.once and call in seen)):
            take(after, [entry])  # not an equal one, which may have other conditions
        else:
            seen.append(call)
