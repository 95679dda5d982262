"""Random requests, several at once, that must agree with a model of the contract.

The state machine plays the server. It sends requests to random apps (``model/apps.py``) with random
callbacks (``callbacks.py``), in stacks of other middlewares (``stacks.py``), with executors
(``executors.py``). It reads, closes, drops and registers in any order and thread. Each request also
goes to the bare app, where the server must see the same, and to a second statement of the contract
(``reference.py``), which must agree on what runs, when, in which order, what it can know, and what
is logged.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import sys
import warnings
from collections import Counter
from contextvars import copy_context

import pytest
import sentry_sdk
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from model.apps import FAILS, KINDS, PLACES, STARTS, Plan
from model.callbacks import DOES, WAYS, WAYS_IN_CONTEXT, clock
from model.executors import EXECUTORS, pool
from model.faults import FAULTS, Faulty
from model.requests import CANCELS, FILE_WRAPPERS, Log, Request, Stack, end_garbage
from model.stacks import AROUND, INSIDE, STACK
from reporting import count

import wsgi_after._core.run
from wsgi_after import CallbackList

log = Log()
counts: Counter[str] = Counter(examples=0)
numbers = itertools.count()  # of requests: no two have the same path


class Nowhere(sentry_sdk.transport.Transport):
    def capture_envelope(self, envelope):
        pass


def traces_to_nowhere():
    """A client without integrations: what these patch stays patched."""
    return sentry_sdk.Client(
        "https://key@sentry.invalid/1",
        transport=Nowhere,
        default_integrations=False,
        auto_enabling_integrations=False,
        traces_sample_rate=1.0,
    )


@contextlib.contextmanager
def finalizers_may_fail():
    """Ignore what finalizers warn of and raise."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook


@pytest.fixture(scope="module", autouse=True)
def everything_is_seen():
    """Capture the log, use the model's clock, and let other middlewares send nothing."""
    with finalizers_may_fail(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(wsgi_after._core.run, "monotonic", clock)
        # OpenTelemetry would log at each close in another thread.
        patch.setattr(logging.getLogger("opentelemetry.context"), "disabled", True)
        logging.getLogger("wsgi_after").addHandler(log)
        sentry_sdk.get_global_scope().set_client(traces_to_nowhere())
        yield
        gc.collect()  # end what a failed run left here, not in a test of another module
        end_garbage()
    logging.getLogger("wsgi_after").removeHandler(log)
    sentry_sdk.get_global_scope().set_client(None)
    pool.drain()
    count("model", **counts)


@contextlib.contextmanager
def garbage_of_its_own():
    """Collect on demand, and only objects made in here: those that hypothesis keeps cost 100 ms.

    What an example leaves is collected at its end, and not in another test.
    """
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        end_garbage()
        gc.unfreeze()
        gc.enable()


class Server(RuleBasedStateMachine):
    """Any number of requests at once."""

    requests = Bundle("requests")
    does = st.sampled_from(DOES)

    def __init__(self):
        super().__init__()
        self.made = []
        log.of.clear()
        self.until_the_end = contextlib.ExitStack()
        self.until_the_end.enter_context(finalizers_may_fail())
        self.until_the_end.enter_context(garbage_of_its_own())

    drawn = st.fixed_dictionaries(
        {
            "plan": st.builds(
                Plan,
                kind=st.sampled_from([*KINDS]),
                starts=st.sampled_from(STARTS),
                writes=st.booleans(),
                restarts=st.none() | st.sampled_from(PLACES),
                fails=st.dictionaries(
                    st.sampled_from(PLACES), st.sampled_from([*FAILS]), max_size=2
                ),
            ),
            "registers": st.lists(st.tuples(st.sampled_from([*WAYS_IN_CONTEXT]), does), max_size=4),
            "app_wide": st.lists(does, max_size=2),
            "around": st.lists(st.sampled_from([*STACK, *AROUND]), max_size=2),
            "inside": st.lists(st.sampled_from([*STACK, *INSIDE]), max_size=2),
            "executor": st.sampled_from([*EXECUTORS]),
            "file_wrapper": st.sampled_from([*FILE_WRAPPERS]),
        }
    )

    @initialize(target=requests, drawn=drawn)
    def first_request(self, drawn):
        return self.request(drawn)

    @rule(target=requests, drawn=drawn)
    def request(self, drawn):
        return self.send(Stack(**drawn))

    @rule(target=requests, request=requests)
    def another(self, request):
        """Send a request to the same application, however far the first one is."""
        return self.send(request.stack)

    def send(self, stack):
        request = Request(next(numbers), log, stack)
        self.made.append(request)
        return request

    @rule(
        request=requests,
        how=st.sampled_from(["all", "all by next", "same", "fresh", "next"]),
        thread=st.booleans(),
    )
    def read(self, request, how, thread):
        if request.is_open:
            request.read(how, thread)

    @rule(request=requests, thread=st.booleans())
    def close(self, request, thread):
        """Close a request, which may be closed already."""
        if request.is_open:
            request.close(thread)

    @rule(request=requests)
    def run_job(self, request):
        request.run_job()

    @rule(request=requests, way=st.sampled_from([*WAYS]), does=does)
    def register(self, request, way, does):
        request.register(way, does)

    @rule(request=requests, how=st.sampled_from([*CANCELS]))
    def cancel(self, request, how):
        request.cancel(how)

    @rule(request=requests)
    def drop(self, request):
        if request.is_open:
            request.drop()

    @invariant()
    def settled(self):
        """If the collection for one request ended another one, both sides of that show it."""
        for request in self.made:
            request.settle()

    def teardown(self):
        try:
            for request in self.made:
                self.settled()
                if request.is_open:
                    request.close()
                request.run_job()
        finally:
            counts.update(examples=1, requests=len(self.made))
            for request in self.made:
                counts.update(request.count())
                request.forget()
            self.until_the_end.close()


TestServer = Server.TestCase
# An example is a run of 20 steps, with as many requests as they make: about 15 ms.
TestServer.settings = settings(
    max_examples=settings().max_examples * 2 // 3, stateful_step_count=20
)


def run_with(middleware, monkeypatch, **options):
    """Examples are neither kept nor shrunk: it is enough that one fails."""
    monkeypatch.setattr("model.requests.AfterResponseMiddleware", middleware)
    for name, value in middleware.reads:
        monkeypatch.setattr(CallbackList, name, property(lambda after, value=value: value))
    generate = settings(
        TestServer.settings,
        phases=[Phase.generate],
        database=None,
        report_multiple_bugs=False,
        **options,
    )
    counted = counts.copy()
    try:
        copy_context().run(run_state_machine_as_test, Server, settings=generate)
    finally:
        counts.clear()
        counts.update(counted, runs_with_planted_faults=1)


def test_the_model_finds_nothing_in_what_only_looks_like_a_fault(monkeypatch):
    run_with(Faulty, monkeypatch, max_examples=66)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_model_finds(fault, monkeypatch):
    with pytest.raises(AssertionError):
        run_with(FAULTS[fault], monkeypatch, max_examples=2000)  # some are found in a hundred
