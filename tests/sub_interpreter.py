"""Serve requests in a sub-interpreter, and print what happens, a line for each event.

``python sub_interpreter.py KIND NAME [NUMBER]``: KIND is ``legacy``, the kind that mod_wsgi makes,
``isolated``, which allows less and has its own lock from Python 3.12 on, or ``concurrent``: one of
``concurrent.interpreters``, which Python 3.14 has. NAME is one of APPS, or a function of this
module, and runs in NUMBER sub-interpreters, by default one; from Python 3.13 on, at once.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
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


def say(event, write=os.write):
    """Print the event at once, even while the interpreter ends and this module loses its names."""
    write(1, f"{event}\n".encode())


def main(kind, name, number="1"):
    """Run a function in new sub-interpreters, then end them."""
    if (3, 12) <= sys.version_info < (3, 12, 4):
        use_extension_modules()
    make = concurrent_interpreter if kind == "concurrent" else interpreter
    made = [make(kind) for _ in range(int(number))]
    code = CODE.format(path=sys.path, name=name)
    if len(made) == 1 or sys.version_info < (3, 13):
        for run, _ in made:
            run(code)
    else:
        with ThreadPoolExecutor(len(made)) as threads:
            list(threads.map(lambda each: each[0](code), made))
    for _, end in made:
        say("the interpreter ends")
        end()
        say("the interpreter has ended")


def interpreter(kind):
    """Return what runs code in a new sub-interpreter, and what ends it."""
    if sys.version_info >= (3, 13):
        id_ = _interpreters.create(kind)
    else:
        id_ = _interpreters.create(isolated=kind == "isolated")

    def run(code):
        failure = _interpreters.run_string(id_, code)
        if failure is not None:  # before Python 3.13, run_string() raises
            raise RuntimeError(failure.errdisplay)

    return run, lambda: _interpreters.destroy(id_)


def concurrent_interpreter(kind):
    """The same, with ``concurrent.interpreters``."""
    from concurrent import interpreters

    made = interpreters.create()
    return made.exec, made.close


def use_extension_modules():
    """Call first in the main interpreter what the sub-interpreter will call.

    Otherwise CPython aborts at the end of the sub-interpreter, whatever that has imported:
    https://github.com/python/cpython/issues/119213.
    """
    import werkzeug.sansio.response  # noqa: F401

    with ThreadPoolExecutor() as executor:
        executor.submit(int)


def run(name):
    """Run a function of this module in this interpreter, which is not the main one."""
    assert _interpreters.get_current() != _interpreters.get_main()
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, category, *rest: say(f"warned: {category.__name__}")
    logging.getLogger("wsgi_after").addHandler(Says())
    if name in APPS:
        serve(APPS[name])
    else:
        globals()[name]()


class Says(logging.Handler):
    """Prints the level of each record, and its exception."""

    def emit(self, record):
        error = f" {record.exc_info[1]!r}" if record.exc_info else ""
        say(f"logged: {record.levelname}{error}")


def start_response(status, headers, exc_info=None):
    say(f"{status} {headers}")


def call(app, **options):
    """Call an app in the middleware, as a server does, and return what the server gets."""
    from wsgi_after import AfterResponseMiddleware

    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    return AfterResponseMiddleware(app, **options)(environ, start_response)


def serve(app, **options):
    """Serve one request."""
    body = call(app, **options)
    for chunk in body:
        say(chunk.decode())
    say("close()")
    body.close()
    say("served")


def hello(environ, start_response):
    """An app with two callbacks, which streams two chunks."""
    get_ident = threading.get_ident
    thread = get_ident()
    after = environ["wsgi.after"]

    def first():
        where = "in its thread" if get_ident() == thread else "elsewhere"
        say(f"callback after {after.status}, {where}")

    after.append(first)
    after(say, "second callback")
    start_response("200 OK", [])
    return (chunk for chunk in (b"hello", b"world"))


def drop_in_a_cycle(app=hello):
    """Start a response, and leave it to the cycle collector."""
    cycle = [call(app)]
    cycle.append(cycle)


# The apps. Each serves one request.


def after(step):
    """An app that calls ``step(environ)`` before it answers."""

    def app(environ, start_response):
        step(environ)
        return hello(environ, start_response)

    return app


def registers_without_the_environ(environ):
    from wsgi_after import after_this_response

    after_this_response(after_this_response, say, "registered by a callback")


def prepares(environ):
    from wsgi_after import after_this_request

    after_this_request(lambda response: response.headers.set("X-Prepared", "yes"))


APPS = {
    "ordinary": hello,
    "error_in_callback": after(lambda environ: environ["wsgi.after"](int, "one")),
    "without_the_environ": after(registers_without_the_environ),
    "prepared": after(prepares),
}


# What else a server does.


def pool():
    from wsgi_after.executor import BoundedThreadPoolExecutor

    with BoundedThreadPoolExecutor() as executor:
        call(hello, executor=executor).close()


def many():
    """Serve so many requests that interpreters take turns, or run at once."""
    from wsgi_after import AfterResponseMiddleware

    ran = []

    def app(environ, start_response):
        environ["wsgi.after"](ran.append, environ["number"])
        start_response("200 OK", [])
        return [b"hello"]

    application = AfterResponseMiddleware(app)
    for number in range(1_000):
        body = application({"number": number}, lambda *args: None)
        list(body)
        body.close()
    say(f"each of 1,000 callbacks ran once: {ran == list(range(1_000))}")


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
    assert "colorsys" not in sys.modules
    gc.disable()
    # A callback may call anything, and that may import.
    drop_in_a_cycle(after(lambda environ: environ["wsgi.after"](__import__, "colorsys")))


if __name__ == "__main__":
    main(*sys.argv[1:])
