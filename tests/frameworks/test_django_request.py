"""What a callback finds of its request in Django, in each set-up that docs/django.rst names."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace

import django
import pytest
from django.contrib import messages
from django.core.cache import cache
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.core.signals import request_finished
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import Client, RequestFactory, TestCase
from django.urls import get_urlconf, set_urlconf
from django.utils import timezone, translation
from documents import blocks
from servers.tables import table

from wsgi_after import AfterResponseMiddleware, CallbackList
from wsgi_after import after_this_response as core_after
from wsgi_after._frameworks.django_cleanup import Cleanup
from wsgi_after.django import AfterResponseMiddleware as Entry
from wsgi_after.django import after_commit, after_response
from wsgi_after.executor import BoundedThreadPoolExecutor
from wsgi_after.integration import put_last
from wsgi_after.moment import KEY as MOMENT
from wsgi_after.moment import Slot
from wsgi_after.testing import capture

from .conftest import exchange

ENTRY = "wsgi_after.django.AfterResponseMiddleware"
WITH_ID = f"{__name__}.WithRequestId"
SESSIONS = {"SESSION_ENGINE": "django.contrib.sessions.backends.cache"}
SESSION = "django.contrib.sessions.middleware.SessionMiddleware"
MESSAGES = "django.contrib.messages.middleware.MessageMiddleware"
ids = SimpleNamespace(current=None)


class WithRequestId(Entry):
    """The entry of a project whose middleware forgets the id of a request when its view is over."""

    @contextmanager
    def around(self, request):
        ids.current = request.id
        try:
            yield
        finally:
            ids.current = None


def state_of_request(get_response):
    def middleware(request):
        request.id, request.user = "one", SimpleNamespace(username="ada")
        request.session["cart"] = "full"
        translation.activate("de")
        timezone.activate("Asia/Tokyo")
        return get_response(request)

    return middleware


def upload():
    made = TemporaryUploadedFile("order.txt", "text/plain", 7, None)
    made.write(b"content")
    made.seek(0)
    return made


def serve(app, slot=None):
    """Serve one request, and run its callbacks.

    :param slot: the slot of a server that has a moment.
    """
    exchange(app, **({MOMENT: slot} if slot else {})).finish()
    if slot:
        slot.run()


CELLS = table("django.rst", "request id")


@pytest.mark.parametrize("set_up", CELLS)
def test_each_cell_of_the_page_is_what_a_callback_finds(handler, sqlite, set_up):
    """One request fills all cells of a set-up."""
    sqlite("default")
    found, opened = {}, []

    def callback(request):
        found["language"] = translation.get_language() == "de"
        found["zone"] = timezone.get_current_timezone_name() == "Asia/Tokyo"
        found["upload"] = False
        with suppress(ValueError):
            found["upload"] = request.FILES["order"].read() == b"content"
        found["session"] = request.session["cart"] == "full"
        found["connection"] = connection.connection is opened[0]
        found["user"] = request.user.username == "ada"
        found["request id"] = ids.current == "one"

    def view(request):
        connection.ensure_connection()
        opened.append(connection.connection)
        request._load_post_and_files()
        request.FILES["order"] = upload()
        after = core_after if set_up == "wsgi.py alone" else partial(after_response, request)
        after(callback, request)
        return HttpResponse("hello")

    entry = [] if set_up == "wsgi.py alone" else [WITH_ID]
    app = handler(view, *entry, SESSION, f"{__name__}.state_of_request", **SESSIONS)
    pool = BoundedThreadPoolExecutor(max_workers=1, max_pending=1)
    slot = Slot() if set_up == "moment" else None
    try:
        if set_up == "test client":
            Client().get("/")
        elif set_up in ("entry", "moment"):
            serve(app, slot)
        else:
            serve(AfterResponseMiddleware(app, executor=pool if set_up == "pool" else None))
        assert pool.drain(30)
    finally:
        translation.deactivate()
        timezone.deactivate()
    assert {name: "yes" if kept else "no" for name, kept in found.items()} == CELLS[set_up]


PROJECT = """
import json, logging
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
    LOG_REQUEST_ID_HEADER="HTTP_X_REQUEST_ID",
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes",
                    "django.contrib.sessions", "simple_history"],
    MIDDLEWARE=["entry.ProjectEntry",
                "django.contrib.sessions.middleware.SessionMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "log_request_id.middleware.RequestIDMiddleware",
                "simple_history.middleware.HistoryRequestMiddleware"])
django.setup()
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection, models
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from log_request_id.filters import RequestIDFilter
from simple_history.models import HistoricalRecords
from wsgi_after import AfterResponseMiddleware
from wsgi_after.django import after_response
from wsgi_after.executor import BoundedThreadPoolExecutor

class Order(models.Model):
    state = models.CharField(max_length=9)
    history = HistoricalRecords(app="auth")

    class Meta:
        app_label = "auth"

class Keep(logging.Handler):
    def emit(self, record):
        ids.append(record.request_id)

ids = []
handler = Keep()
handler.addFilter(RequestIDFilter())
logging.getLogger("shop").addHandler(handler)

def view(request):
    request.user.username
    after_response(request, callback)
    return HttpResponse("hello")

def callback():
    logging.getLogger("shop").warning("mail")
    Order.objects.create(state="mailed")

urlpatterns = [path("", view)]
call_command("migrate", run_syncdb=True, verbosity=0)
with connection.schema_editor() as editor:
    for model in Order, Order.history.model:
        if model._meta.db_table not in connection.introspection.table_names():
            editor.create_model(model)
client = Client()
client.force_login(User.objects.create(username="ada"))
client.get("/", headers={"X-Request-Id": "one"})
pool = BoundedThreadPoolExecutor(max_workers=1, max_pending=1)
environ = client._base_environ(PATH_INFO="/", HTTP_X_REQUEST_ID="two")
body = AfterResponseMiddleware(get_wsgi_application(), executor=pool)(environ, lambda *args: None)
body.close()
assert pool.drain(30)
users = Order.history.order_by("history_id").values_list("history_user__username", flat=True)
print(json.dumps([ids, list(users)]))
"""


if django.VERSION >= (5, 2):  # django-simple-history needs that

    def test_the_entry_of_the_page_brings_along_what_two_packages_keep(tmp_path):
        (tmp_path / "entry.py").write_text(blocks("django.rst")["entry.py"], encoding="utf-8")
        command = [sys.executable, "-c", PROJECT]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.stdout.splitlines()[-1:] == ['[["one", "two"], ["ada", "ada"]]'], ended.stderr


@pytest.mark.usefixtures("request_finished_too")
@pytest.mark.parametrize("set_up", ["alone", "wrapped", "moment"])
def test_the_request_is_let_go_of_behind_the_callbacks_of_callbacks(handler, events, set_up):
    def view(request):
        request.close = lambda: events.append("request.close")
        after_response(request, lambda: after_response(request, events.append, "nested"))
        after_response(request, events.append, "first")
        return HttpResponse("hello")

    app = handler(view)
    request_finished.connect(fail)
    try:
        if set_up == "alone":
            with pytest.raises(ZeroDivisionError):
                serve(app)
        else:
            serve(AfterResponseMiddleware(app), Slot() if set_up == "moment" else None)
    finally:
        request_finished.disconnect(fail)
    assert events == ["first", "nested", "request.close", "request_finished"]


def fail(**kwargs):
    raise ZeroDivisionError


def test_around_is_not_asked_for_what_django_itself_does(handler, events):
    @contextmanager
    def around(callback, after):
        events.append("around")
        yield

    def view(request):
        request.environ["wsgi.after"].append(lambda: events.append("callback"))
        return HttpResponse("hello")

    serve(AfterResponseMiddleware(handler(view), around=around))
    assert events == ["around", "callback"]


@pytest.mark.usefixtures("request_finished_too")
def test_with_an_executor_or_in_a_capture_or_without_callbacks_it_stays_in_close(handler, events):
    def view(request):
        after_response(request, events.append, "callback")
        return HttpResponse("hello")

    jobs = []
    executor = SimpleNamespace(submit=lambda fn, *args: jobs.append(partial(fn, *args)))
    serve(AfterResponseMiddleware(handler(view), executor=executor))
    [job] = jobs
    job()
    with capture():
        serve(AfterResponseMiddleware(handler(view)))
    serve(AfterResponseMiddleware(handler(lambda request: HttpResponse(""))))
    assert events == ["request_finished", "callback", "request_finished", "request_finished"]


@pytest.mark.usefixtures("request_finished_too")
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_response_from_the_cache_does_not_run_callbacks_again(handler, events, wrapped):
    def view(request):
        after_response(request, lambda: events.append("callback"))  # a lambda cannot be pickled
        return HttpResponse("hello")

    module = "django.middleware.cache"
    around = f"{module}.UpdateCacheMiddleware", ENTRY, f"{module}.FetchFromCacheMiddleware"
    caches = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    app = handler(view, *around, CACHES=caches)
    app = AfterResponseMiddleware(app) if wrapped else app
    cache.clear()
    assert [exchange(app).finish() for _ in range(2)] == [[b"hello"]] * 2
    cache.clear()
    assert events == ["callback", "request_finished", "request_finished"]


def test_the_list_of_a_server_gets_it_too_but_none_that_has_ended(events):
    ended, own = CallbackList([int]), [int]
    ended.clear()
    assert (put_last(ended, int), put_last(own, str), own) == (False, True, [int, str])


def test_what_a_cache_pickles_needs_nothing_of_this_package(handler):
    handler(HttpResponse)
    request = RequestFactory().get("/")
    request.environ["wsgi.after"] = []
    response = Entry(lambda request: HttpResponse("hello"))(request)
    pickled = pickle.dumps(response)
    response.close()
    pickle.loads(pickled).close()
    assert b"wsgi_after" not in pickled


def test_where_another_thread_runs_a_callback_it_finds_the_urls_of_its_request(handler, events):
    def view(request):
        set_urlconf("urls of the tenant")
        request.environ["wsgi.after"].append(lambda: events.append(get_urlconf()))
        return HttpResponse("hello")

    pool = BoundedThreadPoolExecutor(max_workers=1, max_pending=2)
    app = AfterResponseMiddleware(handler(view), executor=pool)
    try:
        serve(app)
    finally:
        set_urlconf(None)
    pool.submit(lambda: events.append(get_urlconf()))
    assert pool.drain(30)
    assert events == ["urls of the tenant", None]


# What cannot be kept is reported.


def test_a_closed_upload_is_named_where_it_is_read(handler, caplog):
    def view(request):
        request._load_post_and_files()
        request.FILES["order"] = upload()
        after_response(request, lambda: request.FILES["order"].read())
        after_response(request, int, "no number")
        return HttpResponse("hello")

    pool = BoundedThreadPoolExecutor(max_workers=1, max_pending=1)
    serve(AfterResponseMiddleware(handler(view), executor=pool))
    assert pool.drain(30)
    caplog.records.pop()
    serve(handler(view))  # not closed: no note
    [closed, other] = [record.exc_info[1] for record in caplog.records]
    [note] = closed.__notes__
    assert not hasattr(other, "__notes__")
    assert note.startswith("The upload 'order' is closed")
    assert "Read the upload in the view" in note


def test_a_session_or_a_message_that_is_changed_after_the_response_is_reported(handler, caplog):
    def mail(request):
        request.session["mailed"] = True
        messages.success(request, "mailed")

    def view(request):
        request.session["cart"] = []
        messages.success(request, "ordered")
        after_response(request, request.session.get, "cart")
        after_response(request, mail, request)
        return HttpResponse("hello")

    serve(handler(view, ENTRY, SESSION, MESSAGES, **SESSIONS))
    told = [record.getMessage().rpartition(" after the response")[0] for record in caplog.records]
    assert [text.rpartition(".mail ")[2] for text in told] == [
        "changed request.session",
        "changed the messages",
    ]


# Coroutine functions.


def test_a_coroutine_function_runs_and_a_plain_append_reports_it(handler, events, caplog):
    async def callback(*args):
        events.append(args)

    def view(request):
        after_response(request, callback, 1)
        request.environ["wsgi.after"].append(callback)
        return HttpResponse("hello")

    serve(handler(view))
    assert events == [(1,)]
    assert "coroutine" in caplog.text


GEVENT = """
from gevent import monkey
monkey.patch_all()
import asyncio, gevent, django
from django.conf import settings
settings.configure(SECRET_KEY="x", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"],
                   MIDDLEWARE=["wsgi_after.django.AfterResponseMiddleware"])
django.setup()
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from wsgi_after.django import after_response

async def callback(number):
    await asyncio.sleep(0.01)
    ran.append(number)

def view(request):
    after_response(request, callback, int(request.GET["number"]))
    return HttpResponse("hello")

ran, urlpatterns = [], [path("", view)]
jobs = [gevent.spawn(Client().get, f"/?number={number}") for number in range(3)]
gevent.joinall(jobs, raise_error=True)
print(sorted(ran))
"""


def test_under_gevent_a_coroutine_function_fails_while_another_one_runs(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", GEVENT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.stdout == "[0]\n", ended.stderr
    assert ended.stderr.count("Callback __main__.callback of GET / failed.") == 2


# After the commit.


def test_after_commit_waits_for_the_outermost_commit_and_the_response(handler, sqlite, events):
    def view(request):
        with transaction.atomic(), transaction.atomic():
            after_commit(request, events.append, "callback")
        events.append("view")
        return HttpResponse("hello")

    sqlite("default", ATOMIC_REQUESTS=True)
    serve(handler(view))
    assert events == ["view", "callback"]


def test_after_commit_does_nothing_after_a_rollback(handler, sqlite, events):
    sqlite("default")

    def view(request):
        with transaction.atomic():
            try:
                with transaction.atomic():
                    after_commit(request, events.append, "of the savepoint")
                    raise KeyError
            except KeyError:
                after_commit(request, events.append, "of the rest")
            if "fail" in request.GET:
                raise ValueError
        return HttpResponse("hello")

    app = handler(view)
    serve(app)
    exchange(app, QUERY_STRING="fail").finish()
    assert events == ["of the rest"]


def test_after_commit_runs_at_once_where_the_response_is_over(handler, sqlite, events):
    sqlite("default")

    async def callback():
        events.append("coroutine function")

    def view(request):
        assert after_commit(request, events.append, "function") == events.append
        after_commit(request, callback)
        return HttpResponse("hello")

    handler(view)
    with transaction.atomic():
        with TestCase.captureOnCommitCallbacks(execute=True):
            Client().get("/")
            assert events == []
        assert events == ["function", "coroutine function"]


@pytest.mark.parametrize("register", [after_response, after_commit])
def test_what_is_not_callable_is_refused_at_once(handler, register):
    request = RequestFactory().get("/")
    request.environ["wsgi.after"] = []
    with pytest.raises(TypeError, match="callable"):
        register(request, "text")


def test_the_cleanup_waits_for_entries_that_came_behind_it(events):
    after = [int]
    cleanup = Cleanup(HttpResponse(), after)
    cleanup()
    assert after == [int, cleanup]


@pytest.mark.parametrize("name", ["AfterResponseMiddleware", "Cookie", "close_connections"])
def test_what_was_pickled_by_a_name_of_the_public_module_is_found_there(name):
    """For example a cookie in a cache, or the job of a queue: parts of the module have moved."""
    assert pickle.loads(f"cwsgi_after.django\n{name}\n.".encode()).__name__ == name


PYTEST_DJANGO = {
    "settings.py": """
SECRET_KEY = "x"
ROOT_URLCONF = "shop"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
MIDDLEWARE = ["wsgi_after.django.AfterResponseMiddleware"]
""",
    "shop.py": """
from django.db import transaction
from django.http import HttpResponse
from django.urls import path
from wsgi_after.django import after_commit, after_response

events = []

def order(request):
    with transaction.atomic():
        after_commit(request, events.append, "committed")
        after_response(request, events.append, "after the response")
        if request.GET:
            raise ValueError("the transaction is rolled back")
    return HttpResponse("Thank you.")

urlpatterns = [path("", order)]
""",
    "test_shop.py": """
import pytest
from shop import events

@pytest.fixture(autouse=True)
def clean(client):
    client.raise_request_exception = False
    events.clear()

@pytest.mark.django_db
@pytest.mark.parametrize(("path", "committed"), [("/", ["committed"]), ("/?fails", [])])
def test_in_a_transaction(client, django_capture_on_commit_callbacks, path, committed):
    with django_capture_on_commit_callbacks(execute=True):
        client.get(path)
    assert events == ["after the response", *committed]

@pytest.mark.django_db
def test_that_is_rolled_back(client):
    client.get("/")
    assert events == ["after the response"]

@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("path", "committed"), [("/", ["committed"]), ("/?fails", [])])
def test_without_one(client, path, committed):
    client.get(path)
    assert events == ["after the response", *committed]
""",
}


def test_after_commit_in_pytest_django_with_its_transaction_and_without(tmp_path):
    for name, source in PYTEST_DJANGO.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ds=settings"]
    environ = {**os.environ, "PYTEST_ADDOPTS": "", "DJANGO_SETTINGS_MODULE": "settings"}
    environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120
    )
    assert "5 passed" in done.stdout, done.stdout + done.stderr
