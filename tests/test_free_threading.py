"""Without the GIL, a thread goes on between any two instructions of another.

``interleave.py`` explores that on any build. ``contested.py`` attacks with threads that begin at
the same instant: here a few rounds, on a GIL build as a control; the script runs millions.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import contested
import pytest
from conftest import collector_off
from interleave import interleavings
from reporting import count

from wsgi_after import claims
from wsgi_after._core import body

ROUNDS = 300
FILE = contested.__file__


@pytest.mark.parametrize("name", contested.ATTACKS)
def test_what_threads_contest_happens_once(name):
    faults = contested.run(contested.ATTACKS[name], ROUNDS)
    count(f"contested: {name}", rounds=ROUNDS, wrong=len(faults))
    assert faults == []


#: Those in which nothing waits for a thread of its own.
EXPLORED = [name for name in contested.ATTACKS if "submit" not in name and "drop" not in name]


def explore(attack, *, everywhere, file=FILE, switches=1):
    """How many orders there are, and what was wrong in them."""
    orders, faults, wrong = 0, [], None

    def make():
        nonlocal wrong
        actions, wrong = attack()
        return tuple(actions)

    with collector_off(), contested.quiet(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "WITHOUT_GIL", everywhere)
        for _ in interleavings(make, file, switches, everywhere=everywhere):
            orders += 1
            faults += [fault for fault in [wrong()] if fault]
    return orders, faults


@pytest.mark.parametrize("name", EXPLORED)
def test_whichever_two_instructions_another_thread_comes_between_it_happens_once(name):
    orders, faults = explore(contested.ATTACKS[name], everywhere=True)
    count(f"between any two instructions: {name}", orders=orders, wrong=len(faults))
    assert faults == []


class Flagged:
    """What ``claim()`` needs of a body."""

    _closed = False


def test_a_claim_is_granted_once_and_leaves_nothing_behind():
    flagged = Flagged()
    granted = [claims.claim(flagged), claims.claim(flagged)]
    assert (granted, flagged._closed, claims.closers) == ([True, False], True, {})


def test_a_claim_is_refused_while_another_thread_makes_its_own():
    flagged = Flagged()
    claims.closers[id(flagged)] = other = object()
    granted = claims.claim(flagged)
    assert (granted, flagged._closed) == (False, False)
    assert claims.closers.pop(id(flagged)) is other


class Planted:
    """Closes once where threads switch at calls only: what the GIL gives."""

    def __init__(self):
        self.events = []
        self.is_closed = False

    def close(self):
        if self.is_closed:
            return
        self.is_closed = True
        self.events.append("closed")


class PlantedSum:
    """Adds up where threads switch at calls only."""

    def __init__(self):
        self.total = 0

    def add(self, number):
        self.total = self.total + number


def closed_twice():
    planted = Planted()
    return [planted.close, planted.close], lambda: contested.unless(planted.events, ["closed"])


def lost_one():
    planted = PlantedSum()
    return [partial(planted.add, 1), partial(planted.add, 2)], lambda: planted.total != 3


@pytest.mark.parametrize("fault", [closed_twice, lost_one])
def test_a_fault_that_only_the_gil_hides_is_found_between_instructions_alone(fault):
    found = [bool(explore(fault, everywhere=mode, file=__file__)[1]) for mode in (False, True)]
    assert found == [False, True]


def test_importing_the_package_does_not_enable_the_gil():
    """A free-threaded build does, for an extension module that does not say it needs none."""
    code = (
        "import sys; enabled = getattr(sys, '_is_gil_enabled', bool); before = enabled()\n"
        "import wsgi_after, wsgi_after.executor, wsgi_after.integration, wsgi_after.testing\n"
        "print(enabled() == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
