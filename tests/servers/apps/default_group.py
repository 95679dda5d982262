"""An app for mod_wsgi's default application group, which is a sub-interpreter.

``/where`` says where the app runs, and ``/dropped`` leaves a response to the cycle collector. Any
other path is a kind of response of ``kinds``, with callbacks that report themselves, one that
raises, and a header that ``after_this_request`` adds. Needs Python 3.13 or later.
"""

import json
import sys
from threading import get_ident

import _interpreters
from kinds import KINDS, beside_about, list_with_length, plain, query_of, say

from wsgi_after import AfterResponseMiddleware, after_this_request


def where(environ, start_response):
    found = {
        "python": "{}.{}".format(*sys.version_info),
        "application group": environ["mod_wsgi.application_group"],
        "process group": environ["mod_wsgi.process_group"],
        "main interpreter": _interpreters.get_current() == _interpreters.get_main(),
    }
    body = json.dumps(found).encode()
    start_response("200 OK", plain(str(len(body))))
    return [body]


def fail():
    raise ArithmeticError("raised on purpose, in a callback")


def add_header(response):
    response.headers["X-Prepared"] = "yes"


def app(environ, start_response):
    query = query_of(environ)
    thread = get_ident()

    def tell(event):
        say(query, event if get_ident() == thread else f"{event}, in another thread")

    after = environ["wsgi.after"]
    after(tell, "first")
    after(fail)
    after(tell, "last")
    after_this_request(add_header)
    return KINDS[environ["PATH_INFO"][1:]](environ, start_response)


def two_callbacks(environ, start_response):
    for event in ("first", "last"):
        environ["wsgi.after"](say, query_of(environ), event)
    return list_with_length(environ, start_response)


def dropped(environ, start_response):
    """Send a response, and leave another one to the cycle collector, which ``kinds`` turned off."""
    unclosed = AfterResponseMiddleware(two_callbacks)(environ, lambda *args: None)
    cycle = [unclosed]
    cycle.append(cycle)
    start_response("200 OK", plain("7"))
    return [b"dropped"]


in_middleware = AfterResponseMiddleware(app)


@beside_about
def application(environ, start_response):
    others = {"/where": where, "/dropped": dropped}
    return others.get(environ["PATH_INFO"], in_middleware)(environ, start_response)
