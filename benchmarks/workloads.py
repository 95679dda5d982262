"""The apps that are measured, and the loop of a minimal server that sends requests to them.

Imports next to nothing: under valgrind each import takes seconds.
"""

from io import BytesIO
from itertools import repeat  # range() would make an integer for each turn after the 256th

BODY = b"Hello, world!\n"
CHUNKS = 1000

# As many keys as a server passes on for a browser's request.
ENVIRON = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/hello",
    "QUERY_STRING": "name=world",
    "RAW_URI": "/hello?name=world",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_SOFTWARE": "benchmark",
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_PORT": "40000",
    "HTTP_HOST": "127.0.0.1:8000",
    "HTTP_USER_AGENT": "Mozilla/5.0",
    "HTTP_ACCEPT": "text/html",
    "HTTP_ACCEPT_LANGUAGE": "en",
    "HTTP_ACCEPT_ENCODING": "gzip",
    "HTTP_COOKIE": "session=1",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.input": None,
    "wsgi.errors": None,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


def write(chunk):
    """Drop the chunk: the cost of the socket is not measured."""


def start_response(status, headers, exc_info=None):
    """Return ``write``."""
    return write


class Gunicorn:
    """The response of a server that is recognised, so it is known who waits for what."""

    def start_response(self, status, headers, exc_info=None):
        """Return ``write``."""
        return write


Gunicorn.start_response.__module__ = "gunicorn.http.wsgi"


def handle(app, environ, start_response):
    """Serve one request, like the example server of PEP 3333."""
    result = app(environ.copy(), start_response)
    try:
        for chunk in result:
            write(chunk)
    finally:
        if hasattr(result, "close"):
            result.close()


def serve(app, times, environ=ENVIRON, start_response=start_response):
    """Serve ``times`` requests, one after the other."""
    for _ in range(times):
        handle(app, environ, start_response)


def hold(app, times, environ=ENVIRON, start_response=start_response):
    """Begin ``times`` requests, before the first one ends. Return a function that ends them."""
    environs = [environ.copy() for _ in range(times)]  # the server keeps them until the end
    results = [app(of_one, start_response) for of_one in environs]

    def end():
        for result in results:
            for chunk in result:
                write(chunk)
            if hasattr(result, "close"):
                result.close()
        environs.clear()

    return end


def callback():
    """The callback that is registered: it does nothing, so the cost is the machinery's."""


def list_app(environ, start_response):
    """A list of one chunk: what most apps return."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return [BODY]


def list_app_with_one_callback(environ, start_response):
    """The same, with one callback."""
    environ["wsgi.after"].append(callback)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return [BODY]


def list_app_with_three_callbacks(environ, start_response):
    """The same, with three."""
    environ["wsgi.after"].append(callback)
    environ["wsgi.after"].append(callback)
    environ["wsgi.after"].append(callback)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return [BODY]


class Response:
    """A response object, like those that frameworks return."""

    def __init__(self, chunks):
        self.chunks = chunks

    def __iter__(self):
        return iter(self.chunks)

    def close(self):
        """Nothing to do."""


def object_app(environ, start_response):
    """A response object of one chunk."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return Response([BODY])


def set_cookie(response):
    """A response callback."""
    response.set_cookie("lang", "de")


def app_with_response_callback(environ, start_response):
    """A cookie, set by a response callback."""
    environ["wsgi.after"].on_prepare(set_cookie)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return [BODY]


def cookie_app():
    """The same cookie, set by the app itself."""
    from werkzeug.http import dump_cookie

    def app(environ, start_response):
        headers = [("Content-Type", "text/plain"), ("Content-Length", "14")]
        start_response("200 OK", [*headers, ("Set-Cookie", dump_cookie("lang", "de"))])
        return [BODY]

    return app


def flask_app():
    """What a Flask app returns to the server: werkzeug's iterable, from a real response."""
    from flask import Response

    def app(environ, start_response):
        return Response(BODY, content_type="text/plain")(environ, start_response)

    return app


def django_app():
    """What a Django app returns to the server: the response, whose ``close()`` sends a signal."""
    from django.conf import settings
    from django.http import HttpResponse

    if not settings.configured:
        settings.configure()

    def app(environ, start_response):
        response = HttpResponse(BODY, content_type="text/plain")
        start_response("200 OK", list(response.items()))
        return response

    return app


def flask_application():
    """A whole Flask app with one view."""
    from flask import Flask

    app = Flask("benchmark")
    app.add_url_rule("/hello", view_func=lambda: "Hello, world!\n", endpoint="hello")
    return app


def django_application():
    """A whole Django app with one view, and the middleware of ``startproject``."""
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpResponse
    from django.urls import path

    class Urls:
        """In place of a module of routes."""

        urlpatterns = (
            path("hello", lambda request: HttpResponse(BODY, content_type="text/plain")),
        )

    if not settings.configured:  # each contender calls this
        settings.configure(
            ROOT_URLCONF=Urls,
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="benchmark",
            SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
            INSTALLED_APPS=[
                "django.contrib.auth",
                "django.contrib.contenttypes",
                "django.contrib.sessions",
                "django.contrib.messages",
            ],
            MIDDLEWARE=[
                "django.middleware.security.SecurityMiddleware",
                "django.contrib.sessions.middleware.SessionMiddleware",
                "django.middleware.common.CommonMiddleware",
                "django.middleware.csrf.CsrfViewMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "django.contrib.messages.middleware.MessageMiddleware",
                "django.middleware.clickjacking.XFrameOptionsMiddleware",
            ],
        )
        django.setup()
    return WSGIHandler()


class FileWrapper:
    """A ``wsgi.file_wrapper`` that is a Python class, like gunicorn's."""

    def __init__(self, file, size=8192):
        self.file = file
        self.size = size
        self.close = file.close

    def __getitem__(self, key):
        data = self.file.read(self.size)
        if data:
            return data
        raise IndexError


def file_wrapper(file, size=8192):
    """A ``wsgi.file_wrapper`` that is a function, like uWSGI's."""
    return file


class File:
    """A file of one chunk, which costs next to nothing itself."""

    def __init__(self):
        self.chunks = [BODY]

    def read(self, size):
        """The chunk, then nothing."""
        return self.chunks.pop() if self.chunks else b""

    def close(self):
        """Nothing to do."""


def file_app(environ, start_response):
    """A file, given to the server's wrapper."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return environ["wsgi.file_wrapper"](File())


def app_of_chunks(count):
    """A generator of so many chunks."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        for _ in range(count):
            yield BODY

    return app


def app_with_callbacks(count):
    """A list of one chunk, with so many callbacks."""

    def app(environ, start_response):
        append = environ["wsgi.after"].append
        for _ in repeat(None, count):
            append(callback)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
        return [BODY]

    return app


def app_that_loops(count):
    """The same without a list to register in: the loop makes as many calls."""
    nothing = [].__len__

    def app(environ, start_response):
        for _ in repeat(None, count):
            nothing()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
        return [BODY]

    return app


# What a workload needs of its middleware.
LIST, APP_WIDE, PREPARE = "a list in the environ", "app-wide callbacks", "response callbacks"


class Workload:
    """An app to measure.

    :param app: makes it. Imports what it needs only then: under valgrind each import takes seconds.
    :param bare: makes the app to call without a middleware, which offers nothing that it needs.
    :param chunks: how many there are, if the figures are for one chunk.
    :param needs: what the middleware must have.
    :param start_response: the server's.
    :param environ: what else the server puts there, without ``wsgi.``.
    """

    def __init__(
        self,
        title,
        app,
        bare=None,
        chunks=1,
        needs=None,
        start_response=start_response,
        **environ,
    ):
        self.title = title
        self.app = app
        self.bare = bare or app
        self.chunks = chunks
        self.needs = needs
        self.start_response = start_response
        self.environ = {**ENVIRON, **{f"wsgi.{key}": value for key, value in environ.items()}}


def plain():
    """The app that most workloads vary."""
    return list_app


WORKLOADS = {
    "list": Workload("list of one chunk", plain),
    "list-1": Workload("list, 1 callback", lambda: list_app_with_one_callback, plain, needs=LIST),
    "list-3": Workload(
        "list, 3 callbacks", lambda: list_app_with_three_callbacks, plain, needs=LIST
    ),
    "gunicorn": Workload(
        "list, 1 callback, gunicorn",
        lambda: list_app_with_one_callback,
        plain,
        needs=LIST,
        start_response=Gunicorn().start_response,
    ),
    "object": Workload("response object", lambda: object_app),
    "flask": Workload("Flask's response", flask_app),
    "django": Workload("Django's response", django_app),
    "flask-request": Workload("Flask, whole request", flask_application),
    "django-request": Workload("Django, whole request", django_application, input=BytesIO()),
    "stream": Workload("1000 chunks, per chunk", lambda: app_of_chunks(CHUNKS), chunks=CHUNKS),
    "wrapper": Workload("list, file_wrapper a class", plain, file_wrapper=FileWrapper),
    "function": Workload("list, file_wrapper a function", plain, file_wrapper=file_wrapper),
    "file": Workload("file in a file_wrapper", lambda: file_app, file_wrapper=FileWrapper),
    "app-wide": Workload("list, 1 app-wide callback", plain, needs=APP_WIDE),
    "prepare": Workload(
        "cookie by response callback", lambda: app_with_response_callback, cookie_app, needs=PREPARE
    ),
}


def workload(name):
    """The workload of a name: those above, and ``chunks-N`` and ``callbacks-N``."""
    kind, _, number = name.partition("-")
    if kind == "chunks":
        return Workload(name, lambda: app_of_chunks(int(number)))
    if kind == "callbacks":
        count = int(number)
        return Workload(
            name, lambda: app_with_callbacks(count), lambda: app_that_loops(count), needs=LIST
        )
    return WORKLOADS[name]
