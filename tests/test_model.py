"""A model of the contract, and requests at random that have to agree with it.

The state machine plays the server: several requests at once, each read, closed, dropped or
registered with in any order. Beside each request goes the same app without the middleware: what the
server sees has to be the same; and :class:`Model` says which callbacks have run, in which order.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import warnings
from functools import partial

from conftest import make_environ
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule
from test_matrix import ClassIterator, SeparateIterator, SizedClass, generator

from wsgi_after import AfterResponseMiddleware

logging.getLogger("wsgi_after").addHandler(logging.NullHandler())


def setup_module():
    """Leave what other tests and imports made out of each collection: it costs 50 ms."""
    gc.collect()
    gc.freeze()


def teardown_module():
    gc.unfreeze()


class Boom(Exception):
    pass


class BaseBoom(BaseException):
    pass


FAILS = {"boom": Boom, "exit": SystemExit, "base": BaseBoom, "interrupt": KeyboardInterrupt}
KINDS = {
    "list": lambda log, place: [b"1", b"2", b"3"],
    "tuple": lambda log, place: (b"1", b"2", b"3"),
    "empty": lambda log, place: [],
    "generator": generator,
    "class iterator": ClassIterator,
    "separate iterator": SeparateIterator,
    "sized class": SizedClass,
    "not iterable": lambda log, place: None,
}
PLACES = ["nowhere", "call", "started", "first chunk", "mid-body", "inner close"]
DOES = ["nothing", "registers", "removes", "clears", *FAILS]


class Model:
    """What is registered, and what has to have run: the contract, told once more."""

    def __init__(self):
        self.pending, self.ran, self.ended = [], [], False

    def register(self, name, does):
        self.pending.append((name, does))

    def end(self):
        """Run all; what is let out, if anything."""
        out = None
        while self.pending and not self.ended:
            name, does = self.pending.pop(0)
            self.ran.append(name)
            if does == "registers":
                self.register(f"{name}, nested", "nothing")
            elif does == "removes" and self.pending:
                del self.pending[0]
            elif does == "clears":
                self.pending.clear()
            elif does in ("base", "interrupt"):
                out = out or FAILS[does]
        self.ended = True
        return out


def callback(after, ran, name, does):
    ran.append(name)
    if does == "registers":
        after.append(partial(callback, after, ran, f"{name}, nested", "nothing"))
    elif does == "removes" and after:
        after.remove(after[0])
    elif does == "clears":
        after.clear()
    elif does in FAILS:
        raise FAILS[does]


def attempt(fn, *args):
    """What the server gets: a value, or the type of what was raised."""
    try:
        return fn(*args)
    except BaseException as error:
        return type(error)


class Request:
    """One request, with the middleware and without."""

    def __init__(self, kind, place, fails, registered):
        self.model, self.ran = Model(), []
        self.kind, self.place, self.fails = kind, place, fails
        self.logs, self.results, self.passes = ([], []), [None, None], [None, None]
        self.environ = make_environ()
        for name, does in registered:
            self.model.register(name, does)

        def app(log, environ, start_response):
            after = environ["wsgi.after"]
            for name, does in registered:
                after.append(partial(callback, after, self.ran, name, does))
            if place == "call":
                raise FAILS[fails]
            start_response("200 OK", [("X-Name", "value")])
            if place == "started":
                raise FAILS[fails]
            return KINDS[kind](log, place)

        bare = partial(app, self.logs[0])
        application = AfterResponseMiddleware(partial(app, self.logs[1]))
        calls = [(bare, {**self.environ, "wsgi.after": []}), (application, self.environ)]
        for number, (called, environ) in enumerate(calls):
            starts = partial(self.start_response, self.logs[number])
            self.results[number] = attempt(called, environ, starts)
        self.after = self.environ["wsgi.after"]
        self.is_open = place not in ("call", "started") and kind != "not iterable"
        if not self.is_open:
            out = self.model.end()
            if kind == "not iterable" and place not in ("call", "started") and out:
                self.results[0] = out
            assert self.results[0] is self.results[1]
        self.check()

    @staticmethod
    def start_response(log, *args):
        log.append(args)

    def step(self, fn, out=None):
        """Do the same to both; the same comes out, unless a callback lets something out."""
        bare, wrapped = (attempt(fn, number) for number in (0, 1))
        assert wrapped == (bare if out is None or isinstance(bare, type) else out)
        self.check()

    def check(self):
        assert self.logs[1] == self.logs[0]
        assert self.ran == self.model.ran

    def read(self, fresh):
        def chunk(number):
            if fresh or self.passes[number] is None:
                self.passes[number] = iter(self.results[number])
            return next(self.passes[number], "end")

        self.step(chunk)

    def close(self):
        out = self.model.end()
        self.step(lambda number: getattr(self.results[number], "close", lambda: None)(), out)
        self.is_open = False

    def drop(self):
        attempt(getattr(self.results[0], "close", lambda: None))
        self.model.end()
        hook, sys.unraisablehook = (
            sys.unraisablehook,
            lambda args: None,
        )  # what a finalizer lets out
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.results[:] = self.passes[:] = [None, None]
            self.after = self.environ = None  # the list has the error, which has the body
            gc.collect(0)
            if self.ran != self.model.ran or self.logs[1] != self.logs[0]:
                gc.collect()  # an error of the body holds the frames that held it
        sys.unraisablehook = hook
        self.check()
        self.is_open = False


class Server(RuleBasedStateMachine):
    """Any number of requests at once."""

    def __init__(self):
        super().__init__()
        self.made = []

    requests = Bundle("requests")
    callbacks = st.lists(st.sampled_from(DOES), max_size=4)

    @rule(
        target=requests,
        kind=st.sampled_from([*KINDS]),
        place=st.sampled_from(PLACES),
        fails=st.sampled_from([*FAILS]),
        does=callbacks,
    )
    def request(self, kind, place, fails, does):
        named = [(f"callback {number}", each) for number, each in enumerate(does)]
        self.made.append(Request(kind, place, fails, named))
        return self.made[-1]

    @rule(request=requests, fresh=st.booleans())
    def read(self, request, fresh):
        if request.is_open:
            request.read(fresh)

    @rule(request=requests)
    def close(self, request):
        if request.is_open:
            request.close()

    @rule(request=requests)
    def close_again(self, request):
        if request.results[1] is not None and request.model.ended:
            attempt(getattr(request.results[1], "close", None))
            assert request.ran == request.model.ran

    @rule(request=requests)
    def close_in_another_thread(self, request):
        if request.is_open:
            errors = []

            def run():
                try:
                    request.close()
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            assert errors == []

    @rule(request=requests, does=st.sampled_from(DOES))
    def register(self, request, does):
        name = f"late {len(request.model.ran) + len(request.model.pending)}"
        entry = partial(callback, request.after, request.ran, name, does)
        if request.model.ended:
            assert attempt(request.after.append, entry) is RuntimeError
        else:
            request.after.append(entry)
            request.model.register(name, does)

    @rule(request=consumes(requests))
    def drop(self, request):
        if request.is_open:
            request.drop()

    def teardown(self):
        for request in self.made:
            if request.is_open:
                request.close()


TestServer = Server.TestCase
# Half the examples of the profile: one is a run of requests, each with many steps.
TestServer.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=20)
