"""A context manager around each callback: what ``around=`` asks for."""

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
    """How a list calls its callbacks, so that each is within what ``around`` returns for it.

    :param on_error: of the same middleware, to be checked, too.
    :return: this, and who is told of what is registered; ``None`` for neither.
    :raises TypeError: if one of them is something else.
    """
    if on_error is not None:
        check_on_error(on_error)
    if around is None:
        return None, None
    check_around(around)
    function = around.func if isinstance(around, partial) else around
    return partial(call_within, around), getattr(function, "observer", None)


def is_aside(entry: object) -> bool:
    """Whether an entry is no callback, but something of this package that is to come last.

    Such an entry goes behind what is registered meanwhile, but not behind another one of its kind:
    two would move behind each other for ever.
    """
    return getattr(entry, "is_aside", False)


def call_within(around: Around, taken: list[Callable[[], object]], request: str | None) -> object:
    """Call ``taken[0]()`` within what ``around`` returns for it; without, if entering that raises.

    :param taken: one callback. It is taken out where it begins: what is raised here, by a handler
        of a signal, while it is still there must not cost its call. No instruction from ``del`` to
        the call lets a signal in.
    :param request: a label for the log.
    :raises BaseException: what the callback raised, unless the context manager suppressed it and
        it is not to go on; what entering or leaving raised, if that is to go on.
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
