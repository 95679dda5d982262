"""capture(), strict(), their fixtures, and the page that shows them."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from contextvars import copy_context
from functools import partial
from importlib.metadata import entry_points

import pytest
from conftest import Exchange, Immediately, Marker, hello, in_a_thread, make_environ, registers
from documents import blocks

from wsgi_after import after_this_response
from wsgi_after.lint import LintMiddleware
from wsgi_after.testing import capture, strict


def get(*callbacks, path="/path", app=hello, executor=None):
    """Make a request that registers these callbacks; return its environ."""
    environ = make_environ(PATH_INFO=path)
    Exchange(registers(*callbacks, app=app, executor=executor), environ).finish()
    return environ


def fail(error):
    def callback(*args):
        raise error

    return callback


# capture().


@pytest.mark.parametrize("executor", [None, Immediately()])
def test_callbacks_are_collected_with_their_request_and_run_by_run(executor, events):
    first, second = partial(events.append, 1), partial(events.append, 2)
    with capture() as captured:
        get(first, path="/first", executor=executor)
        get(path="/without", executor=executor)
        get(first, second, path="/second", executor=executor)
    assert [(r.request, r.callbacks) for r in captured] == [
        ("GET /first", [first]),
        ("GET /second", [first, second]),
    ]
    assert (captured.callbacks, events) == ([first, first, second], [])
    captured.run()
    captured.run()
    assert (captured.callbacks, events) == ([], [1, 1, 2])
    assert repr(captured[0]) == "<GET /first: <CallbackList []>>"


def test_a_callback_knows_its_request_and_registers_more_in_run(events):
    def callback():
        after = environ["wsgi.after"]
        events.append((after.status, after.completed, after.error))
        after_this_response(events.append, "nested")

    with capture() as captured:
        environ = get(callback)
    environ["wsgi.after"](events.append, "before run()")  # by a thread of the app, for instance
    captured.run()
    assert events == [("200 OK", True, None), "before run()", "nested"]
    with pytest.raises(RuntimeError, match="have run already"):
        environ["wsgi.after"].append(callback)


def test_of_a_request_whose_app_raised_too(events):
    error = ValueError("app")
    with capture() as captured, pytest.raises(ValueError, match="app"):
        get(partial(events.append, 1), app=fail(error))
    assert captured[0].after.error is error
    captured[0].run()
    assert (events, captured[0].after.error) == ([1], None)


def test_an_environ_that_is_sent_again_gets_a_list_of_its_own():
    environ = make_environ()
    with capture() as captured:
        for callback in (len, str):
            Exchange(registers(callback), environ).finish()
    assert [request.callbacks for request in captured] == [[len], [str]]


def test_a_callback_that_makes_a_request_has_its_callbacks_run_by_run_too(events):
    with capture() as captured:
        get(partial(get, partial(events.append, "inner"), path="/inner"))
        captured.run()
    assert [request.request for request in captured] == ["GET /path", "GET /inner"]
    assert events == ["inner"]


def test_what_run_lets_out_leaves_the_other_requests_to_the_next_run(events):
    with capture() as captured:
        get(fail(KeyboardInterrupt()), partial(events.append, 1))
        get(partial(events.append, 2))
    with pytest.raises(KeyboardInterrupt):
        captured.run()
    assert events == [1]
    captured.run()
    assert events == [1, 2]


def test_of_nested_blocks_the_innermost_gets_the_request_and_outside_it_is_as_ever(events):
    with capture() as outer:
        get(len, path="/before")
        with capture() as inner:
            get(len, path="/within")
        get(len, path="/after")
    get(partial(events.append, "ran"))
    assert [[r.request for r in each] for each in (outer, inner)] == [
        ["GET /before", "GET /after"],
        ["GET /within"],
    ]
    assert events == ["ran"]


def test_a_thread_that_has_entered_no_block_belongs_to_the_last_of_the_process():
    with capture() as captured:
        in_a_thread(partial(get, len))
    assert len(captured) == 1


def test_threads_that_have_entered_blocks_of_their_own_do_not_mix():
    found = []

    def other():
        with capture() as captured:
            get(len, path="/other")
            context.run(get, len, path="/one")
        found.append([request.request for request in captured])

    with capture() as captured:
        context = copy_context()
        in_a_thread(other)
    assert ([r.request for r in captured], *found) == (["GET /one"], ["GET /other"])


def test_a_context_that_outlives_its_block_belongs_to_none(events):
    with capture() as captured:
        context = copy_context()
    context.run(get, partial(events.append, "ran"))
    assert (captured, events) == ([], ["ran"])


def test_nothing_is_kept_once_they_ran():
    environ = make_environ(marker=Marker())
    marker = weakref.ref(environ["marker"])
    with capture() as captured:
        Exchange(registers(len), environ).finish()
        del environ
        captured.run()
        gc.collect()
    assert marker() is None


def test_a_list_that_lint_watches_is_watched_when_they_run():
    def app(environ, start_response):
        environ["wsgi.after"].append(partial(after_this_response, len))
        return hello(environ, start_response)

    with capture() as captured:
        get(app=LintMiddleware(app))
    with pytest.warns(UserWarning, match="does not take these arguments"):
        captured.run()


# strict().


def test_one_failure_is_raised_as_itself_after_the_others_ran(events, caplog):
    """Whatever the logger's level."""
    caplog.set_level("CRITICAL", "wsgi_after")
    error = ValueError("callback")
    with pytest.raises(ValueError, match="callback") as caught, strict():
        events.append(get(fail(error), partial(events.append, "ran"))["PATH_INFO"])
    assert caught.value is error
    assert events == ["ran", "/path"]


def test_several_failures_are_raised_as_a_group():
    errors = [ValueError("first"), SystemExit(2)]
    with pytest.raises(BaseExceptionGroup) as caught, strict():
        get(*map(fail, errors))
    assert caught.value.exceptions == tuple(errors)
    assert "2 callbacks failed" in caught.value.message


def test_without_a_failure_nothing_is_raised_and_outside_they_are_contained():
    with strict() as failures:
        get(len)
        assert [type(failure) for failure in failures] == [TypeError]
        failures.clear()
        get(list)
    get(fail(ValueError("contained")))
    assert failures == []


async def coroutine_function(): ...


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (coroutine_function, "returned a coroutine"),
        (lambda: (_ for _ in ()), "returned a generator"),
        (1, "'int' object is not callable"),
    ],
)
def test_what_has_not_run_counts_as_a_failure(entry, match):
    with pytest.raises((RuntimeError, TypeError), match=match), strict():
        get(entry)


def test_an_exception_of_the_block_goes_on():
    with pytest.raises(KeyError), strict() as failures:
        raise get(fail(ValueError("callback")))["no such key"]
    assert [str(failure) for failure in failures] == ["callback"]


def test_of_nested_strict_blocks_the_innermost_raises_in_threads_too():
    with strict(), pytest.raises(ValueError, match="callback"), strict():
        in_a_thread(partial(get, fail(ValueError("callback"))))


# The fixtures, and the page.

INSTALLED = any(e.name == "wsgi_after" for e in entry_points(group="pytest11"))
PLUGIN = [] if INSTALLED else ["-p", "wsgi_after.pytest_plugin"]
ERRORS = ["ResourceWarning", "pytest.PytestUnraisableExceptionWarning"]


def run_pytest(directory, **modules):
    """Run pytest on these modules; return how many tests passed, failed and so on."""
    for name, text in modules.items():
        (directory / f"{name}.py").write_text(text, encoding="utf-8")
    # Other warnings come from what Pyramid and WebTest import.
    warn = ["-Wignore", *("-Werror::" + name for name in ERRORS)]
    argv = [sys.executable, "-m", "pytest", "-q", *warn, *("-p", "no:cacheprovider"), *PLUGIN]
    finished = subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False)
    words = finished.stdout.strip().splitlines()[-1].replace(",", "").split()
    assert words[-2] == "in", finished.stdout + finished.stderr
    return {word: int(count) for count, word in zip(words[:-2:2], words[1:-2:2], strict=True)}


def test_every_example_of_the_page_passes(tmp_path):
    modules = {name.removesuffix(".py"): text for name, text in blocks("testing.rst").items()}
    assert list(modules) == [
        *("test_order", "test_fixtures", "test_pyramid", "test_flask", "test_django"),
        "test_live",
    ]
    assert run_pytest(tmp_path, **modules) == {"passed": 9}


FAILING = """
import pytest, unittest
from wsgi_after import AfterResponseMiddleware, run_callbacks

def close(*callbacks):
    def app(environ, start_response):
        environ["wsgi.after"].extend(callbacks)
        return []
    AfterResponseMiddleware(app)({}, None).close()

@pytest.mark.parametrize("outcome", [pytest.fail, pytest.skip])
def test_it_ends_in_the_callback(outcome):
    ran = []
    with pytest.raises(outcome.Exception):
        close(outcome, lambda: ran.append("the others"))
    assert ran == ["the others"]
    close(outcome)

def test_one(wsgi_after_strict):
    run_callbacks([lambda: 1 / 0])

@pytest.mark.usefixtures("wsgi_after_strict")
def test_two():
    run_callbacks([lambda: 1 / 0, lambda: 1 / 0])

@pytest.fixture
def late(wsgi_after_strict):
    yield
    run_callbacks([lambda: 1 / 0])

def test_in_teardown(late):
    pass

class TestCase(unittest.TestCase):
    def test_without(self):
        run_callbacks([lambda: 1 / 0])
"""


def test_a_failing_callback_fails_the_test_and_a_later_one_its_teardown(tmp_path):
    """``pytest.fail()`` in a callback does so without a fixture; other errors are contained."""
    counts = run_pytest(tmp_path, test_failing=FAILING)
    assert counts == {"passed": 2, "failed": 3, "skipped": 1, "error": 1}


pytest_plugins = ["wsgi_after.pytest_plugin"]


def test_the_fixtures_in_this_process(wsgi_after_capture, wsgi_after_strict):
    get(fail(ValueError("expected")))
    wsgi_after_capture.run()
    assert [str(failure) for failure in wsgi_after_strict] == ["expected"]
    wsgi_after_strict.clear()
