"""Nonsense from an app: the server gets exactly what it gets from the bare app.

Each example is sent to the app alone, and to the app behind the middleware. Everything that the
server can see is compared, by identity where the object is the app's own.
"""

from __future__ import annotations

from functools import partial
from wsgiref.util import FileWrapper

from conftest import Immediately, Loses, Refuses, make_environ
from hypothesis import given
from hypothesis import strategies as st

from wsgi_after import AfterResponseMiddleware


class Odd:
    """An object that means nothing to WSGI."""


anything = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    *(st.builds(Odd), st.just(Odd)),
    st.lists(st.one_of(st.none(), st.integers(), st.binary()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)
header = st.one_of(anything, st.tuples(anything, anything), st.tuples(st.text(), st.text()))
statuses = st.one_of(anything, st.sampled_from(["200 OK", "204", "\n", "304 x", "", "9" * 10_000]))
headers = st.one_of(
    anything,
    st.lists(header, max_size=4),
    st.lists(header, max_size=4).map(tuple),
    st.sampled_from([0, 1, 10_000]).map(lambda number: [("Content-Length", "1")] * number),
)
arguments = st.one_of(
    st.tuples(statuses, headers),
    st.tuples(statuses, headers, anything),
    st.lists(anything, max_size=4).map(tuple),
)


class Closable:
    def __init__(self, chunks):
        self.chunks = chunks

    def __iter__(self):
        return iter(self.chunks)

    def close(self):
        raise OSError("close")


SERVERS = {
    "unknown": {},
    "uWSGI": {"uwsgi.version": b"2"},
    "mod_wsgi": {"mod_wsgi.version": (4, 9, 4)},
    "waitress": {"waitress.client_disconnected": None},
}
MAKE = [list, tuple, iter, Closable, lambda given: (chunk for chunk in given)]


class Strict(Exception):
    """What a server raises for arguments that it refuses."""


def see(application, environ, strict):
    """Call an app as a server does; return everything that the server sees, in order."""
    seen = []

    def start_response(*args, **kwargs):
        seen.append(("start_response", [id(arg) for arg in args], sorted(kwargs)))
        if strict and not (args and isinstance(args[0], str)):
            raise Strict
        return partial(seen.append)

    def attempt(fn):
        try:
            return fn()
        except Exception as error:
            return seen.append(type(error))

    def read():
        for chunk in result:
            seen.append(chunk if isinstance(chunk, (int, str)) else id(chunk))

    result = attempt(lambda: application(environ, start_response))
    seen.append(hasattr(type(result), "__len__") and attempt(lambda: len(result)))
    attempt(read)
    if hasattr(result, "close"):
        attempt(result.close)
    return seen


@given(
    args=arguments,
    keywords=st.booleans(),
    # A result of bytes is a bug of the app; it is sent as one chunk, as uWSGI and bjoern do.
    body=st.one_of(
        anything.filter(lambda result: type(result) is not bytes), st.lists(anything, max_size=4)
    ),
    make=st.sampled_from(MAKE),
    server=st.sampled_from([*SERVERS]),
    executor=st.sampled_from([None, Immediately(), Refuses(), Loses()]),
    method=st.one_of(st.sampled_from(["GET", "HEAD"]), anything),
    path=anything,
    strict=st.booleans(),
)
def test_the_server_sees_of_any_nonsense_what_it_sees_without_the_middleware(
    args, keywords, body, make, server, executor, method, path, strict
):
    events = []

    def app(environ, start_response):
        environ["wsgi.after"].append(partial(events.append, "ran"))
        if keywords and len(args) == 2:
            start_response(status=args[0], headers=args[1])
        else:
            start_response(*args)
        return make(body) if type(body) is list else body

    def environ(**extra):
        extra |= {**SERVERS[server], "REQUEST_METHOD": method, "PATH_INFO": path}
        return make_environ(**extra, **{"wsgi.file_wrapper": FileWrapper})

    bare = see(app, environ(**{"wsgi.after": []}), strict)
    seen = see(AfterResponseMiddleware(app, executor=executor), environ(), strict)
    # On a server that holds headers, an empty response is flushed: it also sees write(b"").
    if server in ("uWSGI", "waitress") and b"" in seen and b"" not in bare:
        seen.remove(b"")
    assert seen == bare
    assert events == ([] if isinstance(executor, Loses) else ["ran"])
