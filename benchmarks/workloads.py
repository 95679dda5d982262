"""The apps that are measured, and the loop of a minimal server that sends requests to them.

Imports nothing: under valgrind each import takes seconds.
"""

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
    """Drop the chunk: what the socket costs is no concern here."""


def start_response(status, headers, exc_info=None):
    """Return ``write``."""
    return write


def handle(app):
    """One request, as the example server of PEP 3333 has it."""
    environ = ENVIRON.copy()
    result = app(environ, start_response)
    try:
        for chunk in result:
            write(chunk)
    finally:
        if hasattr(result, "close"):
            result.close()


def serve(app, times):
    """``times`` requests, one after the other."""
    for _ in range(times):
        handle(app)


def callback():
    """What is registered: nothing to do, so that the cost is the machinery's."""


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
    """A response object, as the frameworks return."""

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


def stream_app(environ, start_response):
    """A generator of many chunks."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(CHUNKS):
        yield BODY


class Workload:
    """An app to measure.

    ``bare`` is what stands for it where nothing offers a list to register in. ``chunks`` is not 1
    if the figures are those of one chunk.
    """

    def __init__(self, title, app, bare=None, chunks=1):
        self.title = title
        self.app = app
        self.bare = bare or app
        self.chunks = chunks


WORKLOADS = {
    "list": Workload("list of one chunk", list_app),
    "list-1": Workload("list, 1 callback", list_app_with_one_callback, list_app),
    "list-3": Workload("list, 3 callbacks", list_app_with_three_callbacks, list_app),
    "object": Workload("response object", object_app),
    "stream": Workload("1000 chunks, per chunk", stream_app, chunks=CHUNKS),
}
