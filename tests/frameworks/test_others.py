"""Frameworks without a module of their own, under the plain middleware, on a real server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import served

from wsgi_after import AfterResponseMiddleware, after_this_response

Register = Callable[[], None]


def bottle(register: Register) -> Any:
    import bottle

    app = bottle.Bottle()

    @app.get("/hello")
    def hello() -> str:
        register()
        return "hello"

    return app


def falcon(register: Register) -> Any:
    import falcon

    class Hello:
        def on_get(self, request: Any, response: Any) -> None:
            register()
            response.text = "hello"

    app = falcon.App()
    app.add_route("/hello", Hello())
    return app


def cherrypy(register: Register) -> Any:
    import cherrypy

    class Root:
        @cherrypy.expose
        def hello(self) -> str:
            register()
            return "hello"

    cherrypy.config.update({"environment": "embedded", "log.screen": False})
    return cherrypy.Application(Root(), "")


def webob(register: Register) -> Any:
    from webob.dec import wsgify

    @wsgify
    def app(request: Any) -> str:
        register()
        return "hello"

    return app


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("framework", [bottle, falcon, cherrypy, webob])
def test_the_client_has_all_of_the_response_while_the_callback_waits(
    framework: Callable[[Register], Any], events: list[str]
) -> None:
    client_has_it, ended = threading.Event(), threading.Event()

    def callback() -> None:
        assert client_has_it.wait(30)
        events.append("callback")
        ended.set()

    def register() -> None:
        events.append("view")
        after_this_response(callback)

    with (
        served(AfterResponseMiddleware(framework(register))) as port,
        socket.create_connection(("127.0.0.1", port), 30) as connection,
    ):
        connection.sendall(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while not received.endswith(b"\r\n\r\nhello"):
            chunk = connection.recv(4096)
            assert chunk, received
            received += chunk
        events.append("client")
        client_has_it.set()
        assert ended.wait(30)
    assert events == ["view", "client", "callback"]
