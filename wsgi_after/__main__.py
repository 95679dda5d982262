"""Serve an app, send it one request, and print what happened when.

::

    python -m wsgi_after                      # a demo, whose callback takes half a second
    python -m wsgi_after MODULE:APP [PATH]    # your app
    python -m wsgi_after probe URL            # another server: see wsgi_after.probe

If the package is installed, ``wsgi-after`` is the same command. Use it to see whether callbacks are
registered, how long they take, and that the client does not wait for them.

Caution: the embedded server is werkzeug's, which ends every response before it calls ``close()``.
Not every server does so with every response.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import socket
import string
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial, reduce
from http.client import HTTPConnection, HTTPException, IncompleteRead
from importlib import import_module
from operator import itemgetter
from threading import Event, Thread, Timer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from . import AfterResponseMiddleware, CallbackList
from .integration import OpenRequest, is_aside, set_sharing

try:
    from werkzeug.serving import WSGIRequestHandler, make_server
except ImportError:
    sys.exit("wsgi-after: The command needs werkzeug: pip install werkzeug.")

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HOST = "127.0.0.1"
TIMEOUT = 30.0  # seconds, for all that the command waits for
LONGEST_TIMEOUT = 3600.0  # seconds
HOLD = 0.9  # seconds that a client has to read the response in, before it counts as waiting

DESCRIPTION = """\
Serve a WSGI application, send it one request, and print when the client had the
response, and when the callbacks in environ["wsgi.after"] ran.
"""

EPILOG = """\
Without MODULE:APP a demo is served, whose callback takes half a second. APP may
be a function that makes the application: MODULE:FACTORY, "MODULE:FACTORY(1)".
"wsgi-after probe URL" asks a server that runs already: see wsgi-after probe -h.

The server is werkzeug's, on 127.0.0.1. It ends a response before it calls
close(), which is when callbacks run, so the client does not wait for them. Not
every server does so with every response.

exit status:
  0  the timeline was printed, whether the client waited or not
  1  there is none: a sentence on stderr says why
  2  the arguments were not understood
"""


NOT_WRAPPED = """\
{} is not wrapped, so this command has put AfterResponseMiddleware around it.
On a server, nothing would run its callbacks: wrap it where it is made.
"""


class CommandError(Exception):
    """One sentence for the user, who can do something about it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments``, by default those of the process; return its exit status.

    :raises SystemExit: from argparse, after ``--help`` or arguments it does not understand.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["probe"]:
        from .probe import main as probe  # ssl and json, which nothing else here needs

        return probe(arguments[1:])
    options = parser().parse_args(arguments)
    try:
        app = demo if options.app is None else load(options.app)
        exchange = Exchange(app, options.app or "The demo", options.timeout)
        with serving(exchange, options.port) as port:
            # Whatever was typed, a blank or a letter beyond ASCII, goes out escaped.
            path = quote(options.path, string.punctuation, errors="surrogateescape")
            exchange.request(port, f"/{path.removeprefix('/')}")
    except CommandError as error:
        print(f"wsgi-after: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("wsgi-after: Interrupted.", file=sys.stderr)
        return 130  # what shells report for SIGINT
    if options.app is not None and not exchange.is_wrapped:
        print(NOT_WRAPPED.format(options.app))
    print("\n".join(exchange.report()))
    return 0


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(
        prog="wsgi-after",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "app",
        metavar="MODULE:APP",
        nargs="?",
        help="the application APP in the module MODULE, such as hello:application; the module may "
        "be in the current directory",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        default="/",
        help="the path of the request, such as '/orders?page=2' (default: /)",
    )
    parser.add_argument("--port", type=port, default=0, help="to serve on (default: a free one)")
    parser.add_argument(
        "--timeout",
        type=timeout,
        metavar="SECONDS",
        default=TIMEOUT,
        help="to wait for the response and the callbacks together, at most "
        f"{LONGEST_TIMEOUT:g} (default: {TIMEOUT:g})",
    )
    return parser


def port(argument: str) -> int:
    """A TCP port; 0 stands for a free one."""
    number = int(argument)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not between 0 and 65535")
    return number


def timeout(argument: str) -> float:
    """A number of seconds, neither none nor endless."""
    seconds = float(argument)
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(
            f"{argument} is not above 0 and at most {LONGEST_TIMEOUT:g} seconds"
        )
    return seconds


def demo(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The app that is served if none is named."""
    environ["wsgi.after"].append(partial(time.sleep, 0.5))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return [b"Hello, world!\n"]


def load(name: str) -> WSGIApplication:
    """Import the app that is called ``name``, such as ``"module:app"``; or make it.

    :raises CommandError: if there is no such app.
    """
    module_name, _, expression = name.partition(":")
    attribute, call = parsed(expression)
    if not all(part.isidentifier() for part in f"{module_name}.{attribute}".split(".")):
        raise CommandError(
            f"{name!r} is not of the form MODULE:APP, such as hello:application for the object "
            f"application in hello.py{suggestion(name)}"
        )
    sys.path.insert(0, os.getcwd())  # python -m does this, an installed script does not
    try:
        app: Any = import_module(module_name)
    # SystemExit too: some modules are scripts.
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(
            f"{error.name}."
        ):
            raise CommandError(
                f"There is no module {error.name}, neither in the current directory nor installed"
                f"{suggestion(name)}"
            ) from None
        raise CommandError(f"{module_name} failed to import: {describe(error)}.") from None
    try:
        app = reduce(getattr, attribute.split("."), app)
    except AttributeError:
        raise CommandError(f"The module {module_name} has no attribute {attribute}.") from None
    if call is None and is_factory(app):
        call = partial
    if call is not None:
        try:
            app = call(app)()
        except (Exception, SystemExit) as error:
            raise CommandError(f"{name} raised {describe(error)}.") from None
    if not callable(app):
        raise CommandError(
            f"{name} is not a WSGI application: {type(app).__name__} is not callable."
        )
    return app  # type: ignore[no-any-return]


def parsed(expression: str) -> tuple[str, Callable[[Any], Callable[[], Any]] | None]:
    """The dotted name in ``expression``; if it is a call, what binds its arguments, as gunicorn."""
    try:
        node = ast.parse(expression, mode="eval").body
        if not isinstance(node, ast.Call):
            return expression, None
        args = [ast.literal_eval(argument) for argument in node.args]
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError):  # no expression, or no literal
        return "", None
    return ast.unparse(node.func), lambda factory: partial(factory, *args, **kwargs)


def suggestion(name: str) -> str:
    """The end of an error's sentence, in case ``name`` has a file in place of a module."""
    path, _, attribute = name.partition(":")
    module = path.removesuffix(".py").removeprefix("./").replace(os.sep, ".")
    return "." if module == path else f": did you mean {module}:{attribute or 'application'}?"


def is_factory(fn: Any) -> bool:
    """Whether ``fn`` makes an app: an app cannot be called without arguments."""
    try:
        signature = inspect.signature(fn)
        signature.bind()
    except (TypeError, ValueError):
        return False
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL not in kinds  # it may pass them on


def describe(error: BaseException) -> str:
    """An exception on one line, with the place that raised it."""
    try:
        text = str(error)
    except Exception:
        text = "<no text: its __str__() raised>"
    line = f"{type(error).__name__}: {' '.join(text.split())}".rstrip(": ")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")  # the import system
    ]
    if isinstance(error, SyntaxError):  # says itself where, and no frame does
        return line
    return f"{line} ({frames[-1].filename}, line {frames[-1].lineno})"


class End(partial[None]):
    """The entry of a list that notes when the callbacks have ended."""

    is_aside = True


def number_of(callbacks: list[Any]) -> int:
    """How many callbacks of the app there are."""
    return sum(not is_aside(entry) for entry in callbacks)


class Exchange:
    """One request, its response and its callbacks: what happened when.

    :meth:`request` is the client's side. The rest runs in a thread of the server, which serves
    ``application`` and calls :meth:`handled`. Times are those of ``time.perf_counter()``, in
    seconds.
    """

    def __init__(self, app: WSGIApplication, name: str, timeout: float) -> None:
        self.application = AfterResponseMiddleware(self._call)
        self.application.after_response(self._begin)
        self.error: BaseException | None = None  # of the app
        self.is_wrapped = False  # by a middleware, or an integration, of its own
        self._app = app
        self._name = name
        self._timeout = timeout
        self._callbacks: CallbackList | None = None
        self._registered = 0
        self._status = self._size = 0
        self._sent = self._headers = self._last_byte = self._began = self._ended = 0.0
        # From when to when the server was held up in vain for the client, which waited.
        self._held: tuple[float, float] | None = None
        self._received = Event()  # the client has the last byte
        self._finished = Event()  # the last callback has ended
        self._handled = Event()  # the server is through with the request

    def _call(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._callbacks is None:  # else somebody else has found the port
            self._callbacks = environ["wsgi.after"]
        return self._app(environ, start_response)

    def _begin(self, environ: WSGIEnvironment) -> None:
        callbacks: CallbackList | None = environ.get("wsgi.after")
        if callbacks is not None and callbacks is self._callbacks:
            self.error = callbacks.error
            self._hold()
            self._began = time.perf_counter()
            self._registered = number_of(callbacks)
            callbacks.append(End(self._end, callbacks))

    def _hold(self) -> None:
        """Hold the server up before the callbacks, until the client has the whole response.

        A client that gets it meanwhile does not depend on the server's going on. To compare times
        would prove nothing: its thread may be woken up milliseconds after the last byte arrived,
        when a short callback has ended.
        """
        since = time.perf_counter()
        if self.error is None and not self._received.wait(HOLD):
            self._held = since, time.perf_counter()

    def _end(self, callbacks: CallbackList) -> None:
        if left := number_of(callbacks):  # registered by a callback: let them run first
            self._registered += left
            callbacks.append(End(self._end, callbacks))
        else:
            self._note_end()

    def _note_end(self) -> None:
        self._ended = time.perf_counter()
        self._finished.set()

    def note_sharing(self, after: list[Any], instance: object) -> None:
        """Note that something in the app uses the list, which would have made one without us."""
        if after is self._callbacks and isinstance(  # pragma: no branch
            instance, (AfterResponseMiddleware, OpenRequest)
        ):
            self.is_wrapped = True

    def handled(self, error: BaseException | None = None) -> None:
        """Note that the server is through with a request, which may have ended with ``error``."""
        self.error = self.error or error
        if not self._finished.is_set() and self._has_ended():
            self._note_end()  # somebody cleared the list, so that ours did not run
        self._handled.set()

    def _has_ended(self) -> bool:
        return self._callbacks is not None and self._callbacks.ended

    def request(self, port: int, path: str) -> None:
        """Ask for ``path``, read the response, and wait until the callbacks have ended.

        :raises CommandError: if the app failed, or the time is up.
        """
        deadline = time.perf_counter() + self._timeout
        self._read_response(port, path)
        for event in (self._handled, self._finished):
            if not event.wait(deadline - time.perf_counter()):
                raise CommandError(
                    f"The client had the response, but the callbacks of {self._name} did not end "
                    f"within {self._timeout:g} s. Use --timeout to give them longer."
                )
        self._raise_error()

    def _read_response(self, port: int, path: str) -> None:
        with closing(HTTPConnection(HOST, port)) as connection:
            connection.connect()
            expired = Event()
            # The timeout of a socket would start anew with every chunk.
            timer = Timer(self._timeout, expire, [connection.sock, expired])
            timer.daemon = True
            timer.start()
            try:
                self._exchange(connection, path)
            except (OSError, HTTPException) as error:
                self._raise_error()
                raise CommandError(
                    f"{self._name} did not complete its response within {self._timeout:g} s."
                    if expired.is_set()
                    else f"The response of {self._name} broke off: {error!r}."
                ) from None
            finally:
                timer.cancel()

    def _exchange(self, connection: HTTPConnection, path: str) -> None:
        self._sent = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        self._headers = time.perf_counter()
        self._status = response.status
        while chunk := response.read(65536):
            self._size += len(chunk)
        if response.length:  # what is missing of Content-Length: read() does not complain
            raise IncompleteRead(b"", response.length)
        self._last_byte = time.perf_counter()
        self._received.set()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise CommandError(f"{self._name} raised {describe(self.error)}.") from None

    def report(self) -> Iterator[str]:
        """The lines to print."""
        yield f"Status {self._status}, {self._size} bytes. Milliseconds since the request was sent:"
        yield ""
        events = [
            (self._sent, "request sent"),
            (self._headers, "headers received"),
            (self._last_byte, "last byte received"),
        ]
        verdict = "The app registered no callback, or cancelled what there was."
        if self._registered:
            what = "callback" if self._registered == 1 else f"{self._registered} callbacks"
            events += [(self._began, f"{what} began"), (self._ended, f"{what} ended")]
            waited = "did not wait" if self._held is None else "waited"
            verdict = f"The client {waited} for the {what}."
        told = [(self._without_hold(seconds), event) for seconds, event in events]
        for seconds, event in sorted(told, key=itemgetter(0)):
            yield f"{(seconds - self._sent) * 1000:10.1f}  {event}"
        yield ""
        yield verdict

    def _without_hold(self, seconds: float) -> float:
        """When it would have been, if the server had not been held up."""
        if self._held is None or seconds < self._held[0]:
            return seconds
        return max(self._held[0], seconds - self._held[1] + self._held[0])


def expire(sock: socket.socket, expired: Event) -> None:
    """Break off whatever the client reads."""
    expired.set()
    with suppress(OSError):  # it has just read it all
        sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(exchange: Exchange, port: int) -> Iterator[int]:
    """Serve ``exchange.application`` meanwhile, on ``port``, or on a free one: yields which.

    :raises CommandError: if the port cannot be had.
    """
    # Not left to werkzeug: it would print, and exit.
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise CommandError(f"Cannot serve on port {port}: {error.strerror}.") from None
    with listener:
        server = make_server(
            HOST,
            port,
            exchange.application,
            threaded=True,
            request_handler=request_handler(exchange),
            passthrough_errors=True,
            fd=listener.fileno(),
        )
    thread = Thread(target=server.serve_forever, args=[0.05], daemon=True)
    thread.start()
    set_sharing(exchange.note_sharing)
    try:
        yield server.port
    finally:
        set_sharing(None)
        server.shutdown()
        thread.join()


def request_handler(exchange: Exchange) -> type[WSGIRequestHandler]:
    """What handles a request: without log or traceback, and the exchange gets to know its end."""

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # else the end of a stream is the end of the connection

        def run_wsgi(self) -> None:
            try:
                super().run_wsgi()
            # As wide as this because the exchange decides what to tell the user.
            except BaseException as error:
                exchange.handled(error)
            else:
                exchange.handled()
            self.close_connection = True  # or the client would go on waiting after an error

        def log(self, *args: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    sys.exit(main())
