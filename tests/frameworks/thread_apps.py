"""An app of each framework that leaves state in its thread, and cleans it after the response.

``/flask/stream`` is one kind of response of one framework. ``/state`` reports what is left in the
thread that answers.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from contextvars import ContextVar
from threading import get_ident, local

import bottle
import cherrypy
import django
import falcon
import flask
import webob.dec
import webob.exc
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.urls import path
from django.utils import translation
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPFound, HTTPNoContent
from pyramid.response import Response
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from wsgi_after import AfterResponseMiddleware, after_this_response
from wsgi_after.django import after_response
from wsgi_after.flask import AfterResponse
from wsgi_after.flask import after_this_response as after_this_flask_response

engine = create_engine("sqlite://")
Session = scoped_session(sessionmaker(engine))
thread = local()
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
moved: list[str] = []  # kinds of response whose callback ran in another thread


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"

    id: Mapped[int] = mapped_column(primary_key=True)


def use(after, kind):
    """Leave state in the thread; use ``after`` to have it cleaned."""
    thread.tenant = kind
    request_id.set(kind)
    after(clean, kind, get_ident())
    Base.metadata.create_all(engine)
    Session.add_all([Row(id=1), Row(id=1)])
    with suppress(IntegrityError):  # nothing works in this session until it is removed
        Session.flush()
    if kind == "fork":
        child = os.fork()
        if child == 0:
            sys.exit(7)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    if kind == "error":
        raise ValueError


def clean(kind, ident):
    thread.tenant = None
    request_id.set(None)
    Session.remove()
    if get_ident() != ident:
        moved.append(kind)
    if kind == "fork":
        print("cleaned", flush=True)


def state(environ, start_response):
    found = {
        "tenant": getattr(thread, "tenant", None),
        "request_id": request_id.get(),
        "session": session_state(),
        "language": translation.get_language(),
        "moved": moved,
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]


def session_state():
    try:
        Session.scalar(text("SELECT 1"))
    except PendingRollbackError:
        return "broken"
    return "usable"


def stream(kind):
    """A body that needs the state of the thread until it ends."""
    for chunk in (b"one", b"two"):
        assert (thread.tenant, request_id.get()) == (kind, kind)
        yield chunk
        if kind == "error_in_the_stream":
            raise ValueError(kind)


def in_flask():
    app = flask.Flask(__name__)
    AfterResponse(app)

    @app.get("/<kind>")
    def view(kind):
        use(after_this_flask_response, kind)
        if kind == "redirect":
            return flask.redirect("/")
        return ("", 204) if kind == "empty" else flask.Response(stream(kind))

    return app


def in_bottle():
    app = bottle.Bottle()

    @app.get("/<kind>")
    def view(kind):
        use(after_this_response, kind)
        if kind == "redirect":
            bottle.redirect("/")
        return bottle.HTTPResponse(status=204) if kind == "empty" else stream(kind)

    return AfterResponseMiddleware(app)


def in_cherrypy():
    class Root:
        @cherrypy.expose
        def default(self, kind):
            use(after_this_response, kind)
            if kind == "redirect":
                raise cherrypy.HTTPRedirect("/")
            cherrypy.response.status = 204 if kind == "empty" else 200
            cherrypy.response.stream = True
            return [] if kind == "empty" else stream(kind)

    cherrypy.config.update({"environment": "embedded", "log.screen": False})
    return AfterResponseMiddleware(cherrypy.Application(Root(), ""))


def in_falcon():
    class Resource:
        def on_get(self, request, response, kind):
            use(after_this_response, kind)
            if kind == "redirect":
                raise falcon.HTTPFound("/")
            if kind == "empty":
                response.status = 204
            else:
                response.stream = stream(kind)

    app = falcon.App()
    app.add_route("/{kind}", Resource())
    return AfterResponseMiddleware(app)


def in_pyramid():
    def view(request):
        kind = request.matchdict["kind"]
        use(request.after, kind)
        if kind == "redirect":
            return HTTPFound("/")
        return HTTPNoContent() if kind == "empty" else Response(app_iter=stream(kind))

    with Configurator() as config:
        config.include("wsgi_after.pyramid")
        config.add_route("kind", "/{kind}")
        config.add_view(view, route_name="kind")
        return config.make_wsgi_app()


def in_webob():
    @webob.dec.wsgify
    def app(request):
        kind = request.path_info_pop()
        use(after_this_response, kind)
        if kind == "redirect":
            return webob.exc.HTTPFound(location="/")
        return (
            webob.Response(status=204) if kind == "empty" else webob.Response(app_iter=stream(kind))
        )

    return AfterResponseMiddleware(app)


def django_view(request, kind):
    def after(*args):
        after_response(request, *args)

    translation.activate("es")
    after(translation.deactivate)
    use(after, kind)
    if kind == "redirect":
        return HttpResponseRedirect("/")
    return HttpResponse(status=204) if kind == "empty" else StreamingHttpResponse(stream(kind))


urlpatterns = [path("<kind>", django_view)]


def in_django():
    settings.configure(
        ROOT_URLCONF=sys.modules[__name__],
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=["wsgi_after.django.AfterResponseMiddleware"],
    )
    django.setup()
    return get_wsgi_application()


django_app = in_django()
application = DispatcherMiddleware(
    state,
    {
        "/bottle": in_bottle(),
        "/cherrypy": in_cherrypy(),
        "/django": django_app,
        "/django, wrapped": AfterResponseMiddleware(django_app),
        "/falcon": in_falcon(),
        "/flask": in_flask(),
        "/pyramid": in_pyramid(),
        "/webob": in_webob(),
    },
)
