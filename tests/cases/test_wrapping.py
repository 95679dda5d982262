"""Rules 8 and 9: copies of the environ share the list; wrapped bodies and files are invisible."""

from __future__ import annotations

import copy
import io
import pickle
from collections import deque
from importlib.util import find_spec

import pytest
from commands import serving
from conftest import FILE_WRAPPERS, Exchange, Immediately, hello, make_environ
from servers.client import fetch
from servers.harness import require

from wsgi_after import AfterResponseMiddleware

KEY = "wsgi.after"
COPIES = {
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "dict": dict,
    "deepcopy of a list": lambda environ: copy.deepcopy([dict(environ)])[0],
}


@pytest.mark.parametrize("executor", [None, Immediately()])
@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_the_environ_has_the_requests_one_list(copied, executor, events):
    def app(environ, start_response):
        environ[KEY](events.append, 1)
        other = COPIES[copied](environ)
        other[KEY](events.append, 2)
        environ[KEY](events.append, 3)
        environ[KEY](lambda: COPIES[copied](environ)[KEY](events.append, 4))
        return hello(environ, start_response)

    def passes_a_copy_on(environ, start_response):
        return AfterResponseMiddleware(app)(COPIES[copied](environ), start_response)

    Exchange(AfterResponseMiddleware(passes_a_copy_on, executor=executor)).finish()
    assert events == [1, 2, 3, 4]


class Response:
    """A body with attributes, a length, and an equality of its own."""

    status_code = 200

    def __init__(self, *chunks):
        self.chunks = chunks

    def __iter__(self):
        return iter(self.chunks)

    def __len__(self):
        return len(self.chunks)

    def __eq__(self, other):
        return isinstance(other, Response) and self.chunks == other.chunks

    def __hash__(self):
        return hash(self.chunks)


class Html(bytes):
    """Bytes that remember that they are escaped."""


class Unsized:
    """A body that has no length, and cannot be pickled."""

    count = 3

    def __iter__(self):
        return iter([b"chunk"])

    def __reduce__(self):
        raise TypeError("it holds a connection")


BODIES = {
    "list": lambda: [b"a", b"", b"b"],
    "empty list": list,
    "tuple": lambda: (b"a", b"b"),
    "deque": lambda: deque([b"a", b"b"]),
    "dict": lambda: {b"a": 1},
    "generator": lambda: (chunk for chunk in [b"a"]),
    "iterator": lambda: iter([b"a", b"b"]),
    "response": lambda: Response(b"a", b"b"),
    "empty response": Response,
    "unsized": Unsized,
    "bytes": lambda: b"abc",
    "subclass of bytes": lambda: Html(b"abc"),
    "bytearray": lambda: bytearray(b"abc"),
    "memoryview": lambda: memoryview(b"abc"),
}

#: What a middleware outside may do with a body.
LOOKS = {
    "len": len,
    "length on the type": lambda body: hasattr(type(body), "__len__"),
    "truth of what has a length": lambda body: hasattr(type(body), "__len__") and bool(body),
    "equal": lambda body: body == copy.copy(body),
    "equal to another": lambda body: (body == Response(b"a", b"b"), body == [], body != b"abc"),
    "hash": hash,
    "copy": lambda body: plain(copy.copy(body)),
    "deepcopy": lambda body: plain(copy.deepcopy(body)),
    "pickle": lambda body: plain(pickle.loads(pickle.dumps(body))),
    "attribute": lambda body: body.status_code,
    "method": lambda body: body.count(b"a"),
    "attributes of a generator": lambda body: (body.gi_frame is None, callable(body.send)),
    "no attribute": lambda body: body.no_such_name,
}


def plain(made):
    """The type and the contents of a copy."""
    return type(made), vars(made) if hasattr(made, "__dict__") else made and b"".join(made)


def outcome(look, body):
    try:
        return look(body)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", BODIES)
def test_a_body_is_to_those_outside_as_the_apps_own(kind, look, events):
    def app(environ, start_response):
        environ[KEY](events.append, "callback")
        start_response("200 OK", [])
        return bare

    bare = BODIES[kind]()
    body = Exchange(AfterResponseMiddleware(app)).result
    assert outcome(LOOKS[look], body) == outcome(LOOKS[look], bare)
    assert events == []
    assert type(body) not in {list, tuple, bytes}
    body.close()
    assert events == ["callback"]


class Logo(io.BytesIO):
    """A file that an app sends again and again: its ``close()`` rewinds it."""

    def __init__(self, events):
        super().__init__(b"logo")
        self.events = events

    def close(self):
        self.events.append("rewound")
        self.seek(0)


@pytest.mark.parametrize("order", ["one after the other", "at once"])
@pytest.mark.parametrize("kind", FILE_WRAPPERS)
def test_one_file_wrapper_goes_out_again_and_again(kind, order, events):
    wrapper, served = FILE_WRAPPERS[kind]
    made = []

    def app(environ, start_response):
        environ[KEY](events.append, "callback")
        made.append(made[0] if made else environ["wsgi.file_wrapper"](Logo(events)))
        return made[0]

    def send():
        environ = make_environ(**{"wsgi.file_wrapper": wrapper})
        return served(Exchange(AfterResponseMiddleware(app), environ).result)

    if order == "at once":
        for file in [send(), send()]:
            file.close()
        assert sorted(events) == ["callback"] * 2 + ["rewound"] * 2
    else:
        for _ in range(3):
            file = send()
            events.append(b"".join(file))
            file.close()
        assert events == [b"logo", "rewound", "callback"] * 3


@pytest.mark.parametrize("kind", FILE_WRAPPERS)
def test_isinstance_against_the_file_wrapper_answers_as_it_does_bare(kind, events, request_):
    wrapper, _ = FILE_WRAPPERS[kind]

    def answers(found):
        made = found(Logo(events))
        for thing, kinds in [(made, found), (made, (str, found)), ([b"chunk"], found)]:
            yield outcome(lambda thing, kinds=kinds: isinstance(thing, kinds), thing)
        yield callable(found)

    def view(environ):
        assert [*answers(environ["wsgi.file_wrapper"])] == [*answers(wrapper)]

    assert request_(view, **{"wsgi.file_wrapper": wrapper}) == [b"hello"]


APP = """
import io, sys
from wsgi_after import AfterResponseMiddleware

class Logo(io.BytesIO):
    def close(self):
        self.seek(0)

class Html(bytes):
    pass

kept, ran = {}, []
BUFFERS = [b"hello", Html(b"hello"), bytearray(b"hello"), memoryview(b"hello"), b"", bytearray()]
BUFFERS += [[buffer] for buffer in BUFFERS] + [tuple(BUFFERS)]

def isinstance_says(wrapper):
    for thing in wrapper(Logo()), b"text":
        try:
            yield str(isinstance(thing, wrapper)).encode()
        except TypeError as error:
            yield str(error).encode()

def app(environ, start_response):
    mode, kind = environ["PATH_INFO"].strip("/").split("/")
    wrapper = environ["wsgi.file_wrapper"]
    if mode == "wrapped":
        environ["wsgi.after"](ran.append, kind)
    start_response("200 OK", [])
    if kind == "ran":
        return [str(len(ran)).encode()]
    if kind == "isinstance":
        return [*isinstance_says(wrapper)]
    if kind == "again":
        if mode not in kept:
            kept[mode] = wrapper(Logo(b"line\\n" * 20_000))
        return kept[mode]
    return BUFFERS[int(kind)]

wrapped = AfterResponseMiddleware(app)

def application(environ, start_response):
    bare = environ["PATH_INFO"].startswith("/bare")
    return (app if bare else wrapped)(environ, start_response)

if __name__ == "__main__":
    import bjoern
    bjoern.run(application, "127.0.0.1", int(sys.argv[1]))
"""
UWSGI = "uwsgi --master --die-on-term --http-socket 127.0.0.1:8000 --wsgi-file app.py"


@pytest.mark.servers
@pytest.mark.parametrize("command", [UWSGI, f"{UWSGI} --wsgi-accept-buffer", "python app.py 8000"])
def test_real_servers_send_what_they_send_bare(command, tmp_path):
    """One file wrapper several times, and bodies that are not lists of bytes; callbacks run."""
    require([] if "uwsgi" in command or find_spec("bjoern") else ["bjoern"])
    (tmp_path / "app.py").write_text(APP)
    kinds = ["again", "isinstance"] * 2 + [str(n) for n in range(13) if "uwsgi" in command]
    with serving(command, tmp_path) as port:
        bare, wrapped = (
            [fetch(port, f"/{mode}/{kind}") for kind in kinds] for mode in ("bare", "wrapped")
        )
        ran = fetch(port, "/bare/ran").rpartition(b"\r\n")[2]
    assert wrapped == bare
    assert bare[0].endswith(b"line\n" * 20_000)
    assert int(ran) == len(kinds)
