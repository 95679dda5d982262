"""A slot of a request, which an adapter of the server runs when the response is out."""

from __future__ import annotations

import gc
import socket
import sys
import threading
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from types import SimpleNamespace

import pytest
from conftest import Exchange, Refuses, at_once, hello, make_environ, registers
from documents import blocks, executed

from wsgi_after import AfterResponseMiddleware
from wsgi_after._core import hand_off, process
from wsgi_after.moment import KEY, Slot, disable, set_finder
from wsgi_after.testing import capture

user = ContextVar("user", default="nobody")


def request(*callbacks, slot=None, where="", **options):
    """Serve one request, with its slot in the environ; return its list."""
    environ = make_environ(where=where, **({} if slot is None else {KEY: slot}))
    Exchange(registers(*callbacks, **options), environ).result.close()
    return environ["wsgi.after"]


def test_the_callbacks_run_when_the_slot_is_run_with_the_context_of_close(events):
    def note():
        events.append(("callback", threading.get_ident(), user.get()))

    slot = Slot()
    token = user.set("who closes")
    after = request(note, slot=slot)
    user.reset(token)
    events.append(("closed", after.ended))
    slot.run()
    assert [*events, after.ended] == [
        ("closed", False),
        ("callback", threading.get_ident(), "who closes"),
        True,
    ]


@pytest.mark.parametrize("error", [OSError("no file"), KeyboardInterrupt()])
def test_a_sign_of_life_comes_before_each_callback_and_its_failure_is_logged(error, events, caplog):
    """What it raises does not stop the callbacks, not even an interrupt."""

    def alive():
        events.append("alive")
        raise error

    goes_on = isinstance(error, KeyboardInterrupt)
    slot = Slot(before_each=alive)
    request(partial(events.append, 1), partial(events.append, 2), slot=slot)
    with pytest.raises(KeyboardInterrupt) if goes_on else nullcontext():
        slot.run()
    assert events == ["alive", 1, "alive", 2]
    assert [record.levelname for record in caplog.records] == ["ERROR"] * (1 if goes_on else 2)


def test_all_jobs_of_a_slot_run_before_what_goes_on_is_raised(events):
    def interrupt():
        events.append("interrupt")
        raise KeyboardInterrupt

    slot = Slot()
    request(interrupt, slot=slot)
    request(partial(events.append, "next"), slot=slot)
    with pytest.raises(KeyboardInterrupt):
        slot.run()
    assert events == ["interrupt", "next"]


def test_an_executor_comes_before_the_moment_and_that_before_close(events):
    slot, jobs = Slot(), []
    queue = SimpleNamespace(submit=lambda *job: jobs.append(job))
    request(partial(events.append, "executor"), slot=slot, executor=queue)
    request(partial(events.append, "moment"), slot=slot, executor=Refuses())
    with capture() as captured:
        request(partial(events.append, "captured"), slot=slot)
    events.append("closed")
    slot.run()
    assert (events, len(jobs), len(captured)) == (["closed", "moment"], 1, 1)


def in_the_call_of_another(slot, note):
    def outer(environ, start_response):
        request(note, slot=slot)
        return hello(environ, start_response)

    request(app=outer)


def made_before_a_fork(slot, callback):
    with pytest.MonkeyPatch.context() as child:
        child.setattr(process, "forks", process.forks + 1)
        request(callback, slot=slot)


@pytest.fixture(autouse=True)
def state(monkeypatch):
    monkeypatch.setattr(hand_off, "moments", True)
    monkeypatch.setattr(hand_off, "find_slot", None)


@pytest.mark.parametrize(
    "way",
    [
        in_the_call_of_another,
        made_before_a_fork,
        lambda slot, note: at_once(1, lambda _: request(note, slot=slot)),  # in another thread
        lambda slot, note: (slot.run(), request(note, slot=slot)),
        lambda slot, note: request(note, slot=slot, moment=False),
        lambda slot, note: (disable(), request(note, slot=slot)),
    ],
)
def test_the_callbacks_run_in_close_where_no_moment_is_coming(way, events, caplog):
    slot = Slot()
    way(slot, partial(events.append, "callback"))
    events.append("closed")
    slot.run()
    assert (events, caplog.records) == (["callback", "closed"], [])


def test_a_slot_that_is_dropped_runs_its_callbacks_with_a_warning(events):
    slot = Slot()
    request(partial(events.append, "callback"), slot=slot)
    with pytest.warns(ResourceWarning):
        del slot
        gc.collect()
    assert events == ["callback"]


def test_a_finder_is_asked_where_the_environ_has_no_slot(events):
    slots = {"found": Slot(), "nowhere": None}
    set_finder(lambda environ: slots[environ["where"]])
    request(partial(events.append, "found"), where="found")
    request(partial(events.append, "nowhere"), where="nowhere")
    slots["found"].run()
    assert events == ["nowhere", "found"]


def test_a_forked_child_does_not_run_what_its_parent_left_to_a_slot(events, monkeypatch):
    slot = Slot()
    request(partial(events.append, "callback"), slot=slot)
    with monkeypatch.context() as child:
        child.setattr(process, "forks", process.forks + 1)
        slot.run()
        assert events == []
    slot.run()
    assert events == ["callback"]


# What the page for servers shows.

PAGE = blocks("for-a-server.rst")


@pytest.mark.parametrize("path", ["/", "/fails"])
def test_no_client_waits_on_the_server_that_the_page_shows(path, events):
    def served(environ, start_response):
        environ["wsgi.after"](lambda: events.append((read.wait(10), threading.get_ident())))
        if environ["PATH_INFO"] == "/fails":
            raise OSError("on purpose")
        start_response("200 OK", [])
        return iter([b"stream"])

    read = threading.Event()
    names = executed(PAGE["slot_server.py"])
    handler = type("Quiet", (names["Handler"],), {"log_message": lambda *args: None})
    with names["Server"](("127.0.0.1", 0), handler) as server:
        server.set_app(AfterResponseMiddleware(served))
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with socket.create_connection(server.server_address, timeout=10) as client:
            client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answered = client.makefile("rb").read()
        read.set()
        thread.join()
    assert answered.startswith(b"HTTP/1.0 500" if path == "/fails" else b"HTTP/1.0 200")
    assert events == [(True, thread.ident)]


@pytest.mark.parametrize("by_its_process", [False, True])
def test_the_page_says_how_to_do_without(by_its_process, events, monkeypatch):
    app = registers(partial(events.append, "callback"))
    monkeypatch.setitem(sys.modules, "shop", SimpleNamespace(app=app))
    *lines, disabled = PAGE["without.py"].splitlines()
    made = executed("\n".join([*lines, disabled] if by_its_process else lines))
    slot = Slot()
    environ = make_environ(**{KEY: slot})
    Exchange(app if by_its_process else made["application"], environ).finish()
    events.append("closed")
    slot.run()
    assert events == ["callback", "closed"]


def test_what_a_callback_sets_in_the_context_of_close_stays_set_there(events):
    """A server's thread keeps its context from one request to the next: a callback can clean it."""

    def serve(slot):
        user.set("of the request")
        request(lambda: events.append(user.get()), lambda: user.set("clean"), slot=slot)
        slot.run()
        events.append(user.get())

    copy_context().run(serve, Slot())
    assert events == ["of the request", "clean"]


def test_where_the_server_has_left_the_context_of_close_callbacks_find_a_copy(events):
    slot = Slot()

    def close():
        user.set("of the request")
        request(lambda: events.append(user.get()), slot=slot)

    copy_context().run(close)
    slot.run()
    assert (events, user.get()) == (["of the request"], "nobody")
