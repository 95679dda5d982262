"""What belongs to this process, rather than to a request."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..executor import SupportsSubmit

#: How often this process, or one that it descends from, was forked. A list remembers the number it
#: was made under, and so knows a forked child. To compare it costs 9 ns, ``os.getpid()`` 150.
#: uWSGI forks without telling Python, but before any request.
forks = 0

#: Called in a forked child.
after_fork: list[Callable[[], object]] = []


def _forked() -> None:
    global forks
    forks += 1
    for hook in after_fork:
        hook()


if hasattr(os, "register_at_fork"):  # where there is none, nothing forks
    os.register_at_fork(after_in_child=_forked)

#: Returns who takes the callbacks of the current request in place of everybody else, or ``None``:
#: ``wsgi_after.testing.capture()``.
capturing: Callable[[], SupportsSubmit | None] | None = None

#: Called with the text and the exception of each failure that is logged:
#: ``wsgi_after.testing.strict()``.
failure_hooks: list[Callable[[str, BaseException | None], object]] = []

#: What leaves a callback: somebody outside wants to end this. The pytest plugin adds its own.
let_out: tuple[type[BaseException], ...] = (KeyboardInterrupt,)
