"""A request leaves nothing behind: no memory, thread, descriptor, cycle or environ."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Loses, Refuses, hello, is_freed
from reporting import count

from wsgi_after import AfterResponseMiddleware
from wsgi_after.claims import WITHOUT_GIL

SCRIPT = Path(__file__).with_name("leaks.py")


@pytest.mark.parametrize(
    "requests",
    # A million on CI, where all tests run, but not on each Python: that takes a minute.
    [
        20_000,
        pytest.param(1_000_000 if os.environ.get("CI") else 50_000, marks=pytest.mark.servers),
    ],
)
def test_nothing_is_left_of_requests_of_all_kinds(requests):
    run = subprocess.run(
        [sys.executable, SCRIPT, str(requests)], capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout)
    grown = found["grown"]
    count(
        "leaks",
        requests=found["requests"],
        callbacks_registered=found["registered"],
        lost=found["registered"] - found["ran"],
        environs_kept=found["environs_kept"],
        objects_in_cycles=found["cycles"],
        **{f"{name}_more": number for name, number in grown.items()},
    )
    assert found["requests"] == requests
    assert found["ran"] == found["registered"] > 2 * requests
    assert found["environs_kept"] == 0
    # Without the GIL, the map of a context that two threads shared is left to the collector, once.
    assert found["cycles"] <= (2 if WITHOUT_GIL else 0)
    assert (grown["threads"], grown["descriptors"]) == (0, 0)
    # For all requests together; one environ alone takes 1,500 bytes.
    assert grown["bytes_traced"] < 20_000
    assert grown["bytes_resident"] < 2_000_000


@pytest.mark.parametrize("executor", [Refuses(), Refuses(KeyboardInterrupt), Loses()])
def test_the_environ_is_freed_after_an_executor_refused_or_lost_the_job(executor, monkeypatch):
    # Otherwise pytest would keep the error and its frames.
    monkeypatch.setattr(logging.getLogger("wsgi_after"), "filter", lambda record: False)

    def app(environ, start_response):
        environ["wsgi.after"].append(lambda: environ)
        return hello(environ, start_response)

    assert is_freed(AfterResponseMiddleware(app, executor=executor))
