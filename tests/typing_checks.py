"""What type checkers must accept, and what they must refuse: test_typing.py runs them.

A line that ends in ``# error`` must be refused; every other line must not.
"""

# pyright: strict, reportUnusedVariable=false
# Django itself has no types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from wsgiref.simple_server import make_server
from wsgiref.validate import validator

from wsgi_after import (
    AfterResponseMiddleware,
    CallbackList,
    after_this_request,
    after_this_response,
    after_this_response_or_now,
    current_list,
    run_callbacks,
)
from wsgi_after import django as django_module
from wsgi_after import flask as flask_module
from wsgi_after.executor import BoundedThreadPoolExecutor

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from django.http import HttpRequest
    from werkzeug.sansio.response import Response


def function_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b""]


class ClassApp:
    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return function_app(environ, start_response)


def accepts_any_application_and_is_one() -> None:
    application: WSGIApplication = AfterResponseMiddleware(function_app)
    application = AfterResponseMiddleware(ClassApp())
    application = AfterResponseMiddleware(AfterResponseMiddleware(function_app))
    application = validator(application)
    make_server("127.0.0.1", 0, application)


def is_called_as_one(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    return AfterResponseMiddleware(function_app)(environ, start_response)


def send_mail(user_id: int) -> bool:
    return True


def decorated_later() -> None: ...


def registering_keeps_the_type(after: CallbackList) -> None:
    after.append(lambda: None)
    registered: bool = after(send_mail, 1)(2)
    registered = after_this_response(send_mail, 1)(2)

    registered = after.on_success(send_mail, 1)(2)
    registered = after.once(send_mail, user_id=1)(2)
    registered = after_this_response_or_now(send_mail, 1)(2)
    after(send_mail, "one")  # error
    after(send_mail)  # error
    after.on_success(send_mail, 1, 2)  # error
    after.once(send_mail, user=1)  # error
    after_this_response(send_mail, "one")  # error
    after_this_response_or_now(send_mail)  # error
    current = current_list()
    current.append(decorated_later)  # error
    if current is not None and current.ok:
        current(decorated_later)

    @after
    def decorated() -> None: ...

    decorated()
    run_callbacks(after, "GET /")
    run_callbacks([decorated])


def attributes_have_types(after: CallbackList) -> bool:
    if after.error is None and after.status is not None and after.headers is not None:
        return after.status < "400" and after.headers[0][0].islower() and bool(after.completed)
    return False


class TwoLines:
    def submit(self, fn: Callable[..., object], *args: object) -> None: ...


def takes_anything_with_submit(pool: BoundedThreadPoolExecutor) -> None:
    AfterResponseMiddleware(function_app, executor=None)
    AfterResponseMiddleware(function_app, executor=pool)
    AfterResponseMiddleware(function_app, executor=ThreadPoolExecutor())
    AfterResponseMiddleware(function_app, executor=TwoLines())
    AfterResponseMiddleware(function_app, executor=4)  # error
    AfterResponseMiddleware(function_app, executor=object())  # error
    length: int = pool.submit(len, "text").result()
    pool.submit(len, 4)  # error


def app_wide(application: AfterResponseMiddleware) -> None:
    @application.after_response
    def log(environ: WSGIEnvironment) -> None: ...

    log({})


def of_flask() -> None:
    app = flask_module.TypedFlask(__name__)

    @app.after_response
    def count() -> None: ...

    count()
    sent: bool = flask_module.after_this_response(send_mail, 1)(2)
    flask_module.after_this_response(send_mail, "one")  # error


def of_django(request: HttpRequest) -> None:
    sent: bool = django_module.after_response(request, send_mail, 1)(2)
    django_module.after_response(request, send_mail, "one")  # error
    django_module.after_response(request, send_mail)  # error


def change(response: Response) -> None:
    response.set_cookie("lang", "de")


async def change_later(response: Response) -> None:
    response.set_cookie("lang", "de")


def response_callbacks(after: CallbackList) -> None:
    registered: None = after.on_prepare(change)(Response())
    registered = after_this_request(change)(Response())
    after.on_prepare(lambda response: response)
    after_this_request(lambda response: response.headers.add("X", "1"))


def refused(application: AfterResponseMiddleware, after: CallbackList) -> None:
    AfterResponseMiddleware(1)  # error
    AfterResponseMiddleware("module:app")  # error
    application({})  # error
    after.append(1)  # error
    after(1)  # error
    after_this_response("text")  # error
    application.after_response(lambda: None)  # error
    run_callbacks(1)  # error
    after_this_request(lambda: None)  # error
    after_this_request(lambda response: "body")  # error
    after.on_prepare(change_later)  # error
    after.on_prepare(3)  # error


def count(callback: Callable[[], object], error: BaseException, after: CallbackList) -> None:
    print(callback, error.args, after.status)


def takes_what_is_called_for_a_failure() -> None:
    AfterResponseMiddleware(function_app, on_error=count)
    AfterResponseMiddleware(function_app, on_error=lambda callback, error, after: None)
    AfterResponseMiddleware(function_app, on_error=send_mail)  # error
    AfterResponseMiddleware(function_app, on_error=4)  # error
