"""wsgi_after.django_tasks, the backend for Django's tasks: of Django itself, or of the backport."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import copy_context
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
from commands import ask, environment, run, serving
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client, RequestFactory
from django.test.utils import override_settings
from django.utils import timezone, translation
from documents import blocks

from wsgi_after import AfterResponseMiddleware, after_this_response
from wsgi_after.django import AfterResponseMiddleware as Entry
from wsgi_after.django import after_response
from wsgi_after.testing import capture, strict

from .conftest import exchange

try:
    from django import tasks
except ImportError:  # before Django 6.0
    import django_tasks as tasks

from wsgi_after.django import AfterResponseBackend

checks, exceptions, signals = (
    import_module(f"{tasks.__name__}.{name}") for name in ("checks", "exceptions", "signals")
)
InvalidTask = getattr(exceptions, "InvalidTask", None) or exceptions.InvalidTaskError
ENTRY = "wsgi_after.django.AfterResponseMiddleware"
BACKEND = "wsgi_after.django.AfterResponseBackend"

happened = []  # what tasks do; a task must be a function of a module


@tasks.task
def note(*args, **kwargs):
    happened.append((*args, *kwargs.items()))


@tasks.task
async def note_asynchronously(text):
    happened.append(text)


@tasks.task(takes_context=True)
def note_context(context, text):
    happened.append((text, context.attempt, context.task_result.status))


@tasks.task
def fail(kind):
    raise {"ValueError": ValueError, "SystemExit": SystemExit, "interrupt": KeyboardInterrupt}[
        kind
    ]("on purpose")


@tasks.task
async def fail_asynchronously():
    raise ValueError("on purpose")


@tasks.task
def return_what_is_no_json():
    return object()


@tasks.task
def enqueue_another():
    happened.append(note.enqueue("nested").status)


@pytest.fixture
def events():
    """All that happened, including what tasks did."""
    happened.clear()
    yield happened
    happened.clear()


@pytest.fixture
def handler(handler):
    """Make an application with the backend for tasks, which gets these options."""

    def make(view, options=None, **extra):
        return handler(view, **{"TASKS": configured(OPTIONS=options or {}), **extra})

    return make


def configured(**parameters):
    """The setting ``TASKS`` with these parameters."""
    return {"default": {"BACKEND": BACKEND, **parameters}}


@pytest.fixture
def signalled(events, monkeypatch):
    """Record the signals of tasks: status, and the hours of enqueued_at, started_at, finished_at.

    Each call of ``timezone.now()`` moves the clock on by one hour.
    """
    began = datetime(2027, 1, 1)
    hours = iter(range(1, 24))
    monkeypatch.setattr(timezone, "now", lambda: began + timedelta(hours=next(hours)))

    def hour(time):
        return None if time is None else time.hour

    def receive(name, sender, task_result, **kwargs):
        result = task_result
        assert (sender, result.last_attempted_at) == (AfterResponseBackend, result.started_at)
        times = map(hour, (result.enqueued_at, result.started_at, result.finished_at))
        events.append((name, result.status.name, *times))

    receivers = {name: partial(receive, name) for name in ("enqueued", "started", "finished")}
    for name, receiver in receivers.items():
        getattr(signals, f"task_{name}").connect(receiver)
    yield
    for name, receiver in receivers.items():
        getattr(signals, f"task_{name}").disconnect(receiver)


@pytest.fixture
def results():
    """The results of the tasks that finish."""
    finished = []

    def receiver(task_result, **kwargs):
        finished.append(task_result)

    signals.task_finished.connect(receiver)
    yield finished
    signals.task_finished.disconnect(receiver)


def enqueues(*enqueued):
    """A view that calls these functions."""

    def view(request):
        for enqueue in enqueued:
            enqueue()
        return HttpResponse("hello", headers={"Content-Length": "5"})

    return view


# In a request.


@pytest.mark.usefixtures("request_finished_too")
def test_a_task_runs_after_the_response_in_one_order_with_the_other_callbacks(handler, events):
    def view(request):
        after_response(request, events.append, "first")
        result = note.enqueue("second", and_="more")
        after_this_response(events.append, "third")
        events.append(result.status)
        return HttpResponse("hello")

    request = exchange(handler(view))
    assert [*request.result] == [b"hello"]
    events.append("response")
    request.result.close()
    assert events == [
        *("READY", "response", "first", ("second", ("and_", "more")), "third", "request_finished")
    ]


@pytest.mark.usefixtures("signalled")
@pytest.mark.parametrize(
    ("task", "ran", "end"),
    [
        (note, [("text",)], "SUCCESSFUL"),
        (note_asynchronously, ["text"], "SUCCESSFUL"),
        (note_context, [("text", 1, "RUNNING")], "SUCCESSFUL"),
        (fail_asynchronously, [], "FAILED"),  # it takes no argument
    ],
    ids=["function", "coroutine function", "takes_context", "wrong arguments"],
)
def test_signals_tell_times_and_statuses(handler, events, task, ran, end):
    request = exchange(handler(enqueues(partial(task.enqueue, "text"))))
    events.append("response")
    request.finish()
    assert events == [
        ("enqueued", "READY", 1, None, None),
        "response",
        ("started", "RUNNING", 1, 2, None),
        *ran,
        ("finished", end, 1, 2, 3),
    ]


def test_the_result_that_enqueue_returns_stays_as_it_was(handler, events, results):
    given, returned = [[1]], []

    def view(request):
        returned.append(note.enqueue(given))
        returned[0].args[0].append("changed")
        given.append("changed")
        return HttpResponse("hello")

    exchange(handler(view)).finish()
    assert events == [([[1]],)]
    [mine], [theirs] = returned, results
    assert (mine.id, mine.task, mine.backend) == (theirs.id, note, "default")
    assert (mine.status, mine.worker_ids, mine.finished_at) == ("READY", [], None)
    assert (theirs.status, len(theirs.worker_ids), theirs.return_value) == ("SUCCESSFUL", 1, None)


@pytest.mark.parametrize(
    ("enqueue", "error", "text"),
    [
        (partial(fail.enqueue, "ValueError"), ValueError, "ValueError: on purpose"),
        (partial(fail.enqueue, "SystemExit"), SystemExit, "SystemExit: on purpose"),
        (fail_asynchronously.enqueue, ValueError, "ValueError: on purpose"),
        (return_what_is_no_json.enqueue, TypeError, "Unsupported type: <class 'object'>"),
    ],
    ids=["Exception", "SystemExit", "coroutine function", "no JSON"],
)
def test_a_failure_is_in_the_result_and_in_both_logs(
    handler, events, results, caplog, enqueue, error, text
):
    exchange(handler(enqueues(enqueue, partial(note.enqueue, "other")))).finish()
    assert events == [("other",)]
    failed, _ = results
    [task_error] = failed.errors
    assert (failed.status, task_error.exception_class) == ("FAILED", error)
    assert text in task_error.traceback.splitlines()[-1]
    with pytest.raises(ValueError, match="failed"):
        failed.return_value  # noqa: B018
    records = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.name for record in records] == [tasks.__name__, "wsgi_after"]
    assert [record.exc_info[0] for record in records if record.exc_info] == [error, error]
    assert failed.id in records[0].getMessage()
    function = failed.task.module_path
    assert records[1].getMessage().startswith(f"Callback {function} of GET /")


@pytest.mark.usefixtures("signalled")
def test_a_keyboard_interrupt_goes_on_behind_the_others_and_is_not_recorded(handler, events):
    view = enqueues(partial(fail.enqueue, "interrupt"), partial(note.enqueue, "other"))
    request = exchange(handler(view))
    events.clear()
    with pytest.raises(KeyboardInterrupt):
        request.finish()
    assert events == [
        ("started", "RUNNING", 1, 3, None),
        ("started", "RUNNING", 2, 4, None),
        ("other",),
        ("finished", "SUCCESSFUL", 2, 4, 5),
    ]


def test_a_task_that_a_task_enqueues_runs_last(handler, events):
    exchange(handler(enqueues(enqueue_another.enqueue, partial(note.enqueue, "other")))).finish()
    assert events == ["READY", ("other",), ("nested",)]


def test_each_thread_runs_the_tasks_of_its_requests(handler, events):
    """Django makes a backend for each thread."""
    app = handler(enqueues(note_thread.enqueue))
    for name in ("first", "second", "third"):
        thread = threading.Thread(target=lambda: exchange(app).finish(), name=name)
        thread.start()
        thread.join()
    assert events == ["first", "second", "third"]


@tasks.task
def note_thread():
    happened.append(threading.current_thread().name)


def test_an_asynchronous_view_enqueues_too(handler, events):
    async def view(request):
        events.append((await note.aenqueue("aenqueue")).status)
        events.append(note.enqueue("enqueue").status)
        return HttpResponse("hello")

    exchange(handler(view)).finish()
    assert events == ["READY", "READY", ("aenqueue",), ("enqueue",)]


def test_a_receiver_of_task_enqueued_that_raises_prevents_the_task(handler, events):
    def view(request):
        with pytest.raises(ZeroDivisionError):
            note.enqueue("text")
        return HttpResponse("hello")

    def receiver(**kwargs):
        raise ZeroDivisionError

    app = handler(view)
    signals.task_enqueued.connect(receiver)
    try:
        exchange(app).finish()
    finally:
        signals.task_enqueued.disconnect(receiver)
    assert events == []


@pytest.mark.usefixtures("events")
def test_what_the_backend_does_not_support_is_refused_as_django_does():
    with override_settings(TASKS=configured(QUEUES=["default", "mail"])):
        note.using(queue_name="mail")
        for unsupported in ({"priority": 1}, {"run_after": timezone.now()}, {"queue_name": "x"}):
            with pytest.raises(InvalidTask, match=r"support|not valid"):
                note.using(**unsupported)
        with pytest.raises(InvalidTask, match="module level"):
            tasks.task(lambda: None)
        with pytest.raises(InvalidTask, match="first argument of 'context'"):
            tasks.task(takes_context=True)(fail.func)
        with pytest.raises(TypeError, match="Unsupported type"):
            note.enqueue(object())
        with pytest.raises(NotImplementedError):
            note.get_result("id")
    mail = note.using(queue_name="default")
    with override_settings(TASKS=configured(QUEUES=["mail"])), pytest.raises(InvalidTask):
        mail.enqueue()  # it is validated again
    backend = AfterResponseBackend("default", {})
    supported = [name for name in dir(backend) if name.startswith("supports_")]
    assert [name for name in supported if getattr(backend, name)] == ["supports_async_task"]


# What a task finds.


def test_a_task_has_the_language_and_the_time_zone_of_its_request(handler, events):
    def view(request):
        translation.activate("de")
        timezone.activate("Asia/Tokyo")
        return enqueues(note_language.enqueue, note_language_asynchronously.enqueue)(request)

    try:
        exchange(handler(view, USE_TZ=True)).finish()
    finally:
        translation.deactivate()
        timezone.deactivate()
    assert events == [("de", "Asia/Tokyo")] * 2


@tasks.task
def note_language():
    happened.append((translation.get_language(), timezone.get_current_timezone_name()))


@tasks.task
async def note_language_asynchronously():
    note_language.call()


def rows():
    with connection.cursor() as cursor:
        cursor.execute("SELECT text FROM notes ORDER BY rowid")
        return [text for (text,) in cursor.fetchall()]


@tasks.task
def insert(text):
    connection.cursor().execute("INSERT INTO notes VALUES (%s)", [text])


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
@pytest.mark.parametrize("atomic", ["ATOMIC_REQUESTS", "atomic()"])
def test_only_on_commit_waits_for_the_transaction(handler, sqlite, events, atomic, commits):
    sqlite("default", ATOMIC_REQUESTS=atomic == "ATOMIC_REQUESTS")
    connection.cursor().execute("CREATE TABLE notes (text TEXT)")

    def view(request):
        with transaction.atomic() if atomic == "atomic()" else nullcontext():
            insert.call("row")
            note_rows.enqueue("enqueue")
            transaction.on_commit(partial(note_rows.enqueue, "on_commit"))
            events.append("view")
            if not commits:
                raise ValueError
        return HttpResponse("hello")

    exchange(handler(view)).finish()
    row = ["row"] * commits
    assert events == ["view", ("enqueue", row), *[("on_commit", row)] * commits]


@tasks.task
def note_rows(text):
    happened.append((text, rows()))


# With executor=.


def test_an_executor_may_pickle_tasks(handler, events, results):
    executor = SimpleNamespace(submit=lambda *job: jobs.append(pickle.dumps(job)))
    jobs, returned = [], []

    def view(request):
        returned.append(note.using(queue_name="mail").enqueue(["text"], number=7))
        note_context.enqueue("context")
        return HttpResponse("hello")

    app = handler(view, TASKS=configured(QUEUES=["default", "mail"]))
    exchange(AfterResponseMiddleware(app, executor=executor)).finish()
    fn, *args = pickle.loads(jobs[0])
    fn(*args)
    assert events == [(["text"], ("number", 7)), ("context", 1, "RUNNING")]
    [sent, _] = results
    assert (sent.id, sent.enqueued_at) == (returned[0].id, returned[0].enqueued_at)
    assert (sent.task.queue_name, sent.status) == ("mail", "SUCCESSFUL")


# Outside a request.


@pytest.mark.usefixtures("signalled")
def test_outside_a_request_a_task_runs_at_once(handler, events):
    view = enqueues(lambda: events.append(enqueue_another.enqueue().status))
    handler(view)
    view(RequestFactory().get("/"))
    assert events == [
        ("enqueued", "READY", 1, None, None),
        ("started", "RUNNING", 1, 2, None),
        ("enqueued", "READY", 3, None, None),
        "READY",
        ("finished", "SUCCESSFUL", 1, 2, 4),
        ("started", "RUNNING", 3, 5, None),  # in order, as in a request
        ("nested",),
        ("finished", "SUCCESSFUL", 3, 5, 6),
        "SUCCESSFUL",
    ]


@pytest.mark.usefixtures("events")
def test_a_failure_outside_a_request_is_contained_as_in_one(handler, caplog):
    handler(HttpResponse)
    assert fail.enqueue("SystemExit").status == "FAILED"
    assert (
        caplog.records[-1]
        .getMessage()
        .startswith(f"Callback {__name__}.fail of an enqueue() outside a request raised SystemExit")
    )
    with pytest.raises(KeyboardInterrupt):
        fail.enqueue("interrupt")


@pytest.mark.usefixtures("signalled")
def test_outside_a_request_an_option_has_enqueue_raise(handler, events):
    handler(HttpResponse, options={"outside_request": "raise"})
    with pytest.raises(RuntimeError, match=rf"The task {__name__}\.note was enqueued outside"):
        note.enqueue("text")
    assert events == []


def test_a_streaming_body_is_outside(handler, events):
    def view(request):
        return StreamingHttpResponse(note.enqueue(text).status for text in ["text"])

    assert exchange(handler(view)).finish() == [b"SUCCESSFUL"]
    assert events == [("text",)]


def test_a_thread_that_outlives_its_request_is_outside_then(handler, events):
    """Even though it took the context of the request with it."""
    contexts = []
    exchange(handler(lambda request: contexts.append(copy_context()) or HttpResponse())).finish()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(contexts[0].run, note.enqueue, "text").result()
    assert (events, result.status) == ([("text",)], "SUCCESSFUL")


def test_another_value_of_the_option_is_refused(handler):
    handler(HttpResponse, options={"outside_request": "ignore"})
    with pytest.raises(ImproperlyConfigured, match='"run" or "raise" was expected'):
        note.enqueue("text")


# The check.


class Mine(Entry):
    """A subclass of the entry."""


COMMON = "django.middleware.common.CommonMiddleware"


@pytest.mark.parametrize(
    ("middleware", "options", "ids"),
    [
        ([COMMON, ENTRY], {"outside_request": "raise"}, []),
        ([f"{__name__}.Mine"], {}, []),
        ([], {}, ["wsgi_after.W001"]),
        ([COMMON, "no.such.Middleware"], {}, ["wsgi_after.W001"]),
        ([f"{__name__}.enqueues"], {"outside": "x"}, ["wsgi_after.W001", "wsgi_after.W002"]),
    ],
)
def test_the_check_warns_of_mistakes(middleware, options, ids):
    with override_settings(MIDDLEWARE=middleware, TASKS=configured(OPTIONS=options)):
        warnings = list(checks.check_tasks())
    assert [(warning.id, warning.level) for warning in warnings] == [(id, 30) for id in ids]
    assert all(f'Add "{ENTRY}"' in warning.hint for warning in warnings[:1])


# Tests.


def test_capture_shows_the_tasks_and_runs_them(handler, events):
    handler(enqueues(partial(note.enqueue, "text", number=7)))
    with capture() as captured:
        Client().get("/")
    [callback] = captured.callbacks
    assert (callback.func, callback.args, callback.keywords) == (
        *(note.func, ("text",), {"number": 7}),
    )
    assert (callback.task_result.task, callback.task_result.status) == (note, "READY")
    assert events == []
    captured.run()
    assert (events, callback.task_result.status) == ([("text", ("number", 7))], "SUCCESSFUL")


def test_a_task_that_fails_fails_a_strict_test(handler):
    handler(enqueues(partial(fail.enqueue, "ValueError")))
    with pytest.raises(ValueError, match="on purpose"), strict():
        Client().get("/")


# Who does not use it.


def test_a_django_without_tasks_imports_the_rest():
    """The backend is imported only when it is asked for."""
    code = """
import sys
sys.modules["django.tasks"] = sys.modules["django_tasks"] = None
import wsgi_after.django
print([name for name in sys.modules if name == "wsgi_after.django_tasks"])
print(hasattr(wsgi_after.django, "AnotherBackend"))
try:
    wsgi_after.django.AfterResponseBackend
except ImportError as error:
    print(error)
"""
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, env=environment(), text=True)
    halted = "import of django_tasks halted; None in sys.modules"
    assert printed.splitlines() == ["[]", "False", halted]


# The page.

PAGE = blocks("django-tasks.rst")
FILES = {name: text for name, text in PAGE.items() if name.endswith(".py")}
COMMANDS = {name: text.removeprefix("$ ") for name, text in PAGE.items() if name not in FILES}


@pytest.fixture
def project(tmp_path):
    """A directory with the files of the page, changed for the backport as the page says."""
    for name, text in FILES.items():
        if name == "settings.py" and tasks.__name__ == "django_tasks":
            text += '\nINSTALLED_APPS = ["django_tasks"]\n'
        (tmp_path / name).write_text(text.replace("django.tasks", tasks.__name__), "utf-8")
    return tmp_path


def test_everything_on_the_page_is_run_by_a_test():
    assert list(FILES) == [
        *("settings.py", "tasks.py", "urls.py", "strict_settings.py", "orders.py"),
        "test_orders.py",
    ]
    assert list(COMMANDS) == ["install", "runserver", "order", "test"]
    url = "http://127.0.0.1:8000/order?email=alice@example.com"
    assert COMMANDS["order"] == f'curl "{url}"\nThank you.'
    assert COMMANDS["install"] == 'pip install ../wsgi_after "django>=6.0"'  # or the backport


def test_the_page_leads_to_a_mail(project, mail_server):
    settings = (project / "settings.py").read_text("utf-8")
    settings = settings.replace("8025", str(mail_server.port))
    (project / "settings.py").write_text(settings, "utf-8")
    with serving(COMMANDS["runserver"], project) as port:
        query = urlencode({"email": "alice@example.com"})
        assert ask(port, f"/order?{query}") == (200, "Thank you.\n")
        [mail] = mail_server.wait()
    assert (mail["To"], mail["Subject"]) == ("alice@example.com", "Your order")
    assert "wsgi_after.W" not in (project / "log").read_text("utf-8")


def test_the_tests_of_the_page_pass(project):
    assert "Ran 5 tests" in run(COMMANDS["test"], project)


APP = """
from django.apps import AppConfig

class Shop(AppConfig):
    name = "shop"

    def ready(self):
        import tasks
"""


def test_the_check_is_one_of_manage_py_if_an_app_imports_the_tasks(project):
    (project / "shop").mkdir()
    (project / "shop" / "apps.py").write_text(APP, "utf-8")
    with (project / "settings.py").open("a", encoding="utf-8") as file:
        file.write('\nMIDDLEWARE = []\nINSTALLED_APPS = ["shop"]\n')
        if tasks.__name__ == "django_tasks":
            file.write('INSTALLED_APPS += ["django_tasks"]\n')
    assert "(wsgi_after.W001)" in run(
        "python -m django check --pythonpath . --settings settings", project
    )


def test_with_the_other_settings_of_the_page_the_last_of_its_tests_raises(project):
    command = COMMANDS["test"].replace("--settings settings", "--settings strict_settings")
    with pytest.raises(AssertionError, match=r"was enqueued outside a request(.|\n)*errors=1\)"):
        run(command, project)


# Django's own tests.


@pytest.mark.skipif(
    "DJANGO_TESTS" not in os.environ,
    reason="DJANGO_TESTS does not name the directory tests/ of Django's source distribution",
)
@pytest.mark.parametrize("stands_for", ["immediate", "dummy", "base"])
def test_the_tests_that_django_has_for_backends_pass(stands_for):
    script = Path(__file__).with_name("django_own_tests.py")
    command = [sys.executable, "-W", "error", script, os.environ["DJANGO_TESTS"], stands_for]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
