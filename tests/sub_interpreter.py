"""Serve requests in a sub-interpreter, and print what happens, a line for each event.

``python sub_interpreter.py KIND NAME``: KIND is ``legacy``, the kind that mod_wsgi makes, or
``isolated``, which allows less and has its own lock from Python 3.12 on. NAME is a function of this
module that runs in the sub-interpreter.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

try:
    import _interpreters
except ImportError:  # before Python 3.13
    import _xxsubinterpreters as _interpreters

CODE = """
import sys
sys.path[:] = {path!r}
import sub_interpreter
sub_interpreter.run({name!r})
"""


def say(event: str, write: Callable[[int, bytes], int] = os.write) -> None:
    """Print the event at once, even while the interpreter ends and this module loses its names."""
    write(1, f"{event}\n".encode())


def main(kind: str, name: str) -> None:
    """Run a function in a new sub-interpreter, then end that interpreter."""
    if (3, 12) <= sys.version_info < (3, 12, 4):
        use_extension_modules()
    if sys.version_info >= (3, 13):
        interpreter = _interpreters.create(kind)
    else:
        interpreter = _interpreters.create(isolated=kind == "isolated")
    failure = _interpreters.run_string(interpreter, CODE.format(path=sys.path, name=name))
    if failure is not None:  # before Python 3.13, run_string() raises
        sys.exit(failure.errdisplay)
    say("the interpreter ends")
    _interpreters.destroy(interpreter)
    say("the interpreter has ended")


def use_extension_modules() -> None:
    """Call first in the main interpreter what the sub-interpreter will call.

    Otherwise CPython aborts at the end of the sub-interpreter, whatever that has imported:
    https://github.com/python/cpython/issues/119213.
    """
    from concurrent.futures import ThreadPoolExecutor

    import werkzeug.sansio.response  # noqa: F401

    with ThreadPoolExecutor() as executor:
        executor.submit(int)


def run(name: str) -> None:
    """Run a function of this module in this interpreter, which is not the main one."""
    assert _interpreters.get_current() != _interpreters.get_main()
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, category, *rest: say(f"warned: {category.__name__}")
    logging.getLogger("wsgi_after").addHandler(Says())
    globals()[name]()


class Says(logging.Handler):
    """Prints the level of each record, and its exception."""

    def emit(self, record: logging.LogRecord) -> None:
        error = f" {record.exc_info[1]!r}" if record.exc_info else ""
        say(f"logged: {record.levelname}{error}")


def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
    say(f"{status} {headers}")


def call(app: Callable[..., Any], **options: Any) -> Any:
    """Call an app in the middleware, as a server does, and return what the server gets."""
    from wsgi_after import AfterResponseMiddleware

    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    return AfterResponseMiddleware(app, **options)(environ, start_response)


def serve(app: Callable[..., Any], **options: Any) -> None:
    """Serve one request; say what the app raises."""
    try:
        body = call(app, **options)
        try:
            for chunk in body:
                say(chunk.decode())
        finally:
            say("close()")
            body.close()
    except LookupError as error:
        say(f"raised: {error}")
    say("served")


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    """An app with two callbacks, which streams two chunks."""
    get_ident = threading.get_ident
    thread = get_ident()
    after = environ["wsgi.after"]

    def first() -> None:
        where = "in its thread" if get_ident() == thread else "elsewhere"
        say(f"callback after {after.status}, {where}")

    after.append(first)
    after(say, "second callback")
    start_response("200 OK", [])
    return (chunk for chunk in (b"hello", b"world"))


def drop_in_a_cycle(app: Callable[..., Any] = hello) -> None:
    """Start a response, and leave it to the cycle collector."""
    cycle = [call(app)]
    cycle.append(cycle)


def ordinary():
    serve(hello)


def serve_after(step: Callable[[Any], object]) -> None:
    """Serve a request whose app calls ``step(environ)`` before it answers."""

    def app(environ, start_response):
        step(environ)
        return hello(environ, start_response)

    serve(app)


def error_in_callback():
    serve_after(lambda environ: environ["wsgi.after"](int, "one"))


def error_in_app():
    def app(environ, start_response):
        hello(environ, start_response)
        raise LookupError("on purpose")

    serve(app)


def error_in_body():
    def app(environ, start_response):
        yield next(hello(environ, start_response))
        raise LookupError("on purpose")

    serve(app)


def without_the_environ():
    from wsgi_after import after_this_response

    serve_after(lambda _: after_this_response(after_this_response, say, "registered by a callback"))


def prepared():
    from wsgi_after import after_this_request

    def add_header(response):
        response.headers["X-Prepared"] = "yes"

    serve_after(lambda _: after_this_request(add_header))


def pool():
    from wsgi_after.executor import BoundedThreadPoolExecutor

    with BoundedThreadPoolExecutor() as executor:
        call(hello, executor=executor).close()


def dropped():
    body = call(hello)
    say("dropped")
    del body
    say("later")


def collected():
    drop_in_a_cycle()
    gc.collect()
    say("collected")
    serve(hello)


def collected_last():
    drop_in_a_cycle()
    gc.collect()


def never_collected():
    def app(environ, start_response):
        environ["wsgi.after"](__import__, "colorsys")  # as anything may that a callback calls
        return hello(environ, start_response)

    assert "colorsys" not in sys.modules
    gc.disable()
    drop_in_a_cycle(app)


if __name__ == "__main__":
    main(*sys.argv[1:])
