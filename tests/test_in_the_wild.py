"""What public projects wrote by hand, in the shape of their code, by what this package has for it.

Each view is three lines, and has none of the queues, locals and signal handlers of the original.
"""

from __future__ import annotations

from functools import partial

import pytest
from conftest import Exchange

from wsgi_after import (
    AfterResponseMiddleware,
    after_this_response,
    after_this_response_or_now,
    current_list,
)


class Task:
    """A task of a queue, with Celery's names."""

    def __init__(self, events, name="task"):
        self.events, self.name = events, name

    def delay(self, *args, **kwargs):
        self.events.append((self.name, *args, *sorted(kwargs.items())))


def answers(status, view, error=None):
    """Send one request to a view; return what its callbacks did."""

    def app(environ, start_response):
        view(environ["wsgi.after"])
        if error is not None:
            raise error
        start_response(status, [("Content-Length", "0")])
        return []

    Exchange(AfterResponseMiddleware(app)).finish()


def test_frappe_runs_what_was_added_to_the_request_behind_its_response(events):
    """Its manager of callbacks runs them in order, and one that fails does not stop the next."""

    def view(after):
        after(events.append, "first")
        after(lambda: 1 / 0)
        after(events.append, "last")

    answers("200 OK", view)
    assert events == ["first", "last"]


@pytest.mark.parametrize(("status", "done"), [("200 OK", 1), ("400 Bad", 0), ("500 Error", 0)])
def test_osf_enqueues_once_per_request_and_only_after_a_success(status, done, events):
    """It keeps a queue by thread, with a flag once_per_request, and looks at the status."""

    def view(after):
        update = partial(events.append, ("node", 1))
        after.on_success(after.once, update)
        after.on_success(after.once, update)

    answers(status, view)
    assert len(events) == done


@pytest.mark.parametrize(("status", "done"), [("201 Created", ["changed"]), ("409 Conflict", [])])
def test_kinto_tells_subscribers_of_changes_that_were_committed(status, done, events):
    def view(after):
        after.on_success(events.append, "changed")

    answers(status, view)
    assert events == done


def test_warehouse_sends_tasks_when_the_request_succeeded(events):
    task = Task(events, "email")

    def view(after):
        after.on_success(task.delay, "ada", subject="hello")

    answers("303 See Other", view)
    assert events == [("email", "ada", ("subject", "hello"))]


def test_indico_sends_one_mail_for_several_changes(events):
    """Its signal handlers keep a set of what has changed in the globals of the request."""

    def view(after):
        for event in (7, 7, 8):
            after.once(events.append, ("notify", event))

    answers("200 OK", view)
    assert events == [("notify", 7), ("notify", 8)]


@pytest.mark.parametrize("fails", [False, True])
def test_django_post_request_task_drops_doubles_and_what_an_error_makes_void(fails, events):
    task = Task(events)

    def view(after):
        after.on_success(after.once, task.delay, 1)
        after.once(after.on_success, task.delay, 1)
        after.on_success(after.once, task.delay, 2)

    answers("500 Error" if fails else "200 OK", view)
    assert events == ([] if fails else [("task", 1), ("task", 2)])


def test_the_blue_alliance_defers_cache_writes_from_anywhere_below_the_view(events):
    """Its middleware keeps the callbacks by request; the code below has no environ."""

    def clear_cache():
        after_this_response(events.append, "cleared")
        events.append("view")

    answers("200 OK", lambda after: clear_cache())
    assert events == ["view", "cleared"]


@pytest.mark.parametrize("in_request", [True, False])
def test_a_library_writes_behind_the_response_or_at_once_in_a_script(in_request, events):
    """As the search indexes of several projects do, which are also built by a command."""

    def save():
        after_this_response_or_now(events.append, "indexed")
        events.append("saved")

    if in_request:
        answers("200 OK", lambda after: save())
    else:
        save()
    assert events == (["saved", "indexed"] if in_request else ["indexed", "saved"])
    assert current_list() is None
