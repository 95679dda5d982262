"""``around=``: run each callback within a context manager."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic

from ._core import process
from ._core.current import current
from ._core.let_out import goes_on
from ._core.logs import Around, log_around, log_failure
from .arguments import check_around, check_on_error
from .registering import is_due


def caller(
    around: Around | None, on_error: object = None
) -> tuple[Callable[..., object] | None, Callable[..., object] | None]:
    """Return how a list calls its callbacks: each within the context manager of ``around``.

    :param on_error: the ``on_error=`` of the same middleware, which is checked here too.
    :return: the function that calls a callback, and the one that is told of each registration;
        ``None`` where there is none.
    :raises TypeError: if ``around`` or ``on_error`` is not callable.
    """
    if on_error is not None:
        check_on_error(on_error)
    if around is None:
        return None, None
    check_around(around)
    function = around.func if isinstance(around, partial) else around
    return partial(call_within, around), getattr(function, "observer", None)


def is_aside(entry: object) -> bool:
    """Whether an entry is not a callback, but belongs to this package and comes last.

    Such an entry moves behind callbacks that are registered later, but not behind another of its
    kind: two of them would move behind each other forever.
    """
    return getattr(entry, "is_aside", False)


def call_within(around: Around, taken: list[Callable[[], object]], request: str | None) -> object:
    """Call ``taken[0]()`` within the context manager that ``around`` returns.

    If entering it raises, the callback is called without it.

    :param taken: a list of one callback, which is removed when its call begins. If a signal handler
        raises before that, the callback is still in the list, and runs later. No signal handler
        runs between ``del`` and the call.
    :param request: a label for the log.
    :raises BaseException: what the callback raised, unless the context manager suppressed it and
        it may be contained; what entering or leaving raised, if that must go on.
    """
    callback, after, forks, began = taken[0], current.get(), process.forks, monotonic()
    if not is_due(callback):  # it would do nothing
        del taken[0]
        return None
    if is_aside(callback):
        del taken[0]
        return callback()
    outcome: object = None
    failure: BaseException | None = None
    stop: BaseException | None = None
    try:
        try:
            with around(callback, after):
                if process.forks == forks:  # else entering forked, and this is the child
                    try:
                        del taken[0]
                        outcome = callback()
                    except BaseException as error:
                        failure = error
                        raise
            if failure is not None and not goes_on(failure):
                failure = None  # suppressed
        except BaseException as error:
            if process.forks != forks:
                raise
            if error is not failure and goes_on(error):
                stop = error
            elif error is not failure:
                log_around(around, callback, request, error, after)
        if taken and process.forks == forks:
            try:
                del taken[0]
                outcome = callback()
            except BaseException as error:
                failure = error
        if failure is not None and stop is not None and process.forks == forks:
            log_failure(callback, request, monotonic() - began, failure, after)
            failure = None
        if failure is not None:
            raise failure
        if stop is not None:
            raise stop
        return outcome
    finally:
        del failure, stop  # or this frame and the traceback would hold each other
