"""Without the GIL, a thread may run between any two instructions of another.

``interleave.py`` explores that on any build. ``contested.py`` attacks with threads that begin at
the same instant. Here it runs a few rounds (on a GIL build, as a control), as a script millions.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import contested
import pytest
from conftest import collector_off
from interleave import interleavings
from reporting import count

from wsgi_after import claims, run_callbacks
from wsgi_after._core import body, run

ROUNDS = 300
FILE = contested.__file__


@pytest.mark.parametrize("name", contested.ATTACKS)
def test_what_threads_contest_happens_once(name):
    faults = contested.run(contested.ATTACKS[name], ROUNDS)
    count(f"contested: {name}", rounds=ROUNDS, wrong=len(faults))
    assert faults == []


#: The attacks in which nothing waits for a thread of its own.
EXPLORED = [name for name in contested.ATTACKS if "submit" not in name and "drop" not in name]


def explore(attack, *, everywhere, file=FILE, switches=1):
    """Run an attack in every order; return how many orders there are, and the faults."""
    orders, faults, wrong = 0, [], None

    def make():
        nonlocal wrong
        actions, wrong = attack()
        return tuple(actions)

    with collector_off(), contested.quiet(), pytest.MonkeyPatch.context() as patch:
        for module in (body, claims, run):
            patch.setattr(module, "WITHOUT_GIL", everywhere)
        for _ in interleavings(make, file, switches, everywhere=everywhere):
            orders += 1
            faults += [fault for fault in [wrong()] if fault]
    return orders, faults


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"everywhere": True}) for name in EXPLORED),
        # With the GIL: while Python code compares entries, another thread may run.
        ("late_once_and_late_once", {"everywhere": False, "switches": 2}),
    ],
)
def test_whichever_two_instructions_another_thread_comes_between_it_happens_once(name, options):
    orders, faults = explore(contested.ATTACKS[name], **options)
    told = "two switches" if "switches" in options else "between any two instructions"
    count(f"{told}: {name}", orders=orders, wrong=len(faults))
    assert faults == []


class Slots:
    """The slots that ``claim()`` needs of a body, and the others of a list."""

    __slots__ = ("_closed", "_notes", "_response_callbacks")

    def __init__(self):
        self._closed, self._notes, self._response_callbacks = False, None, None


@pytest.fixture
def without_gil(monkeypatch):
    """Run the code for builds without the GIL."""
    for module in (body, claims, run):
        monkeypatch.setattr(module, "WITHOUT_GIL", True)


def test_a_claim_is_granted_once(without_gil):
    body = Slots()
    assert [claims.claim(body), claims.claim(body)] == [True, False]


@pytest.mark.parametrize("name", ["notes", "response_callbacks"])
def test_of_two_threads_that_ask_first_both_get_the_same(name, without_gil, monkeypatch):
    asks = getattr(claims, f"{name}_of")
    after, atomically, others = Slots(), claims.atomically, []

    def overtaken(*steps):
        monkeypatch.setattr(claims, "atomically", atomically)
        others.append(asks(after))  # another thread
        return atomically(*steps)

    monkeypatch.setattr(claims, "atomically", overtaken)
    mine = asks(after)
    assert mine is getattr(after, f"_{name}") is others[0]


def test_of_a_list_that_ends_meanwhile_the_notes_are_empty(monkeypatch):
    monkeypatch.setattr(claims, "atomically", lambda *steps: None)
    assert claims.notes_of(Slots()) == {}


def test_what_raises_while_the_lock_is_held_releases_it(without_gil):
    taken = []
    with pytest.raises(IndexError):
        claims.take_first([], taken)
    claims.take_first(["a", "b"], taken)
    assert taken == ["a"]


def test_what_interrupts_the_wait_for_the_lock_leaves_it_to_its_owner(without_gil, monkeypatch):
    class Interrupted:
        def acquire(self):
            raise KeyboardInterrupt

        def release(self):
            raise AssertionError("it is not ours")

    monkeypatch.setattr(claims._Held, "lock", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        claims.take([print], [print])


def test_a_forked_child_does_not_wait_for_the_lock_of_a_thread_that_it_does_not_have(without_gil):
    code = (
        "import os; from wsgi_after import claims; claims.WITHOUT_GIL = True\n"
        "claims._Held.lock.acquire()  # as another thread may\n"
        "child = os.fork()\n"
        "if not child: os._exit(claims.take([print], [print]))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_lock_that_is_renewed_is_another_one_and_free(monkeypatch):
    held = claims._Held.lock
    monkeypatch.setattr(claims._Held, "lock", held)
    claims._Held.renew()
    assert (claims._Held.lock is held, claims._Held.lock.locked()) == (False, False)


def test_what_whoever_ended_the_list_has_taken_is_not_refused(monkeypatch):
    body, after = contested.serve([])
    body.close()
    monkeypatch.setattr("wsgi_after._core.callbacks.take", lambda callbacks, entries: False)
    after.append(print)
    after.extend([print])


def test_a_list_whose_places_are_locked_is_a_list_as_any(without_gil):
    entries = claims.LockedList("abcde")
    del entries[0]
    last, second = entries.pop(), entries.pop(1)
    with pytest.raises(IndexError):
        entries.pop(7)
    left = [*entries]
    entries.clear()
    assert (last, second, left, entries) == ("e", "c", ["b", "d"], [])


def test_an_entry_is_taken_itself_and_not_what_equals_it():
    """If the first of several is gone, none is taken."""
    first, second = [1], [1]
    entries = [first, second]
    assert claims.take(entries, [second])
    assert entries[0] is first
    assert (claims.take(entries, ["a", first]), entries) == (False, [first])


def test_what_a_signal_handler_raises_when_an_entry_was_taken_puts_back_just_that_one(
    without_gil, monkeypatch, caplog
):
    """Meanwhile, another thread has taken the entry before it, and keeps that one."""
    events = []
    callbacks = [partial(events.append, name) for name in "abc"]
    interruptions = [KeyboardInterrupt]

    def interrupted(callbacks, taken):
        if not interruptions:
            return claims.take_first(callbacks, taken)
        callbacks.pop(0)()  # the other thread
        claims.take_first(callbacks, taken)
        raise interruptions.pop()

    monkeypatch.setattr(run, "take_first", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_callbacks(callbacks)
    assert events == ["a", "b", "c"]


def closed_twice():
    events, planted = [], SimpleNamespace(is_closed=False)

    def close():
        if not planted.is_closed:
            planted.is_closed = True
            events.append("closed")

    return [close, close], lambda: contested.unless(events, ["closed"])


def test_a_fault_that_only_the_gil_hides_is_found_between_instructions_alone():
    found = [
        bool(explore(closed_twice, everywhere=mode, file=__file__)[1]) for mode in (False, True)
    ]
    assert found == [False, True]


def test_importing_the_package_does_not_enable_the_gil():
    """A free-threaded build enables it for an extension module that does not declare support."""
    code = (
        "import sys; enabled = getattr(sys, '_is_gil_enabled', bool); before = enabled()\n"
        "import wsgi_after, wsgi_after.executor, wsgi_after.integration, wsgi_after.testing\n"
        "print(enabled() == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
