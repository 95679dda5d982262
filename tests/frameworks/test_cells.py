"""What a callback finds in Flask and in Pyramid: the tables of their pages, cell by cell.

Also their recipes for a ``scoped_session`` of SQLAlchemy without an extension.
"""

from __future__ import annotations

import io
import sys
from functools import partial
from importlib import import_module
from threading import local
from timeit import timeit

import pytest
import transaction
from conftest import Exchange
from documents import blocks
from flask import Flask, g, request, session
from flask_login import current_user
from flask_sqlalchemy import SQLAlchemy
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from pyramid.threadlocal import get_current_request
from servers.tables import table
from sqlalchemy import Integer, func, select, text
from webtest import TestApp
from werkzeug.test import EnvironBuilder

from wsgi_after import AfterResponseMiddleware
from wsgi_after.executor import BoundedThreadPoolExecutor
from wsgi_after.flask import AfterResponse, AfterResponseClient, after_this_response
from wsgi_after.moment import KEY as MOMENT
from wsgi_after.moment import Slot

from .models import Row, with_a_user, with_dbsession

tenant = local()


@pytest.fixture(autouse=True)
def clean_thread():
    """Leave the thread without a tenant and without a transaction."""
    yield
    vars(tenant).clear()
    transaction.abort()


def sent(**extra):
    """The environ of a request with a form and an upload."""
    data = {"name": "ada", "file": (io.BytesIO(b"content"), "name.txt")}
    return {**EnvironBuilder(method="POST", data=data).get_environ(), **extra}


def serve(app, set_up):
    """Serve a request and run its callbacks, in one of the set-ups."""
    if set_up in ("middleware alone", "both"):
        app = AfterResponseMiddleware(app)
    if set_up == "pool":
        with BoundedThreadPoolExecutor(max_workers=1) as pool:
            Exchange(AfterResponseMiddleware(app, executor=pool), sent()).finish()
    elif set_up == "moment":
        slot = Slot()
        Exchange(app, sent(**{MOMENT: slot})).finish()
        slot.run()
    else:
        Exchange(app, sent()).finish()


def finds(look):
    """Whether a look finds something: it does not if it returns nothing, or raises."""
    try:
        return "yes" if look() else "no"
    except (AttributeError, RuntimeError, ValueError):
        return "no"


FLASK = table("flask.rst", "g")


@pytest.mark.parametrize("set_up", FLASK)
def test_each_cell_of_flasks_page_is_what_a_callback_finds(set_up, tmp_path):
    app = Flask("shop")
    app.secret_key = "secret"
    db, visit = with_a_user(app, f"sqlite:///{tmp_path}/shop.db")
    if set_up != "middleware alone":
        AfterResponse(app)
    looks = {
        "request": lambda: request.endpoint == "order",
        "g": lambda: g.name == "ada",
        "session": lambda: session["cart"] == "full",
        "form": lambda: request.form["name"] == "ada",
        "upload": lambda: request.files["file"].read() == b"content",
        "current_user": lambda: current_user.visits == 1,
        "rows": lambda: db.session.scalar(text("SELECT count(*) FROM user")) == 1,
        "thread-local": lambda: tenant.name == "ada",
    }
    found = {}

    def look():
        found.update({name: finds(there) for name, there in looks.items()})

    @app.post("/")
    def order():
        visit()
        session["cart"], g.name, tenant.name = "full", request.form["name"], "ada"
        plain = set_up == "plain entry"
        register = request.environ["wsgi.after"] if plain else after_this_response
        register(look)
        return "Ordered"

    try:
        if set_up == "test client":
            app.test_client_class = AfterResponseClient
            data = {"name": "ada", "file": (io.BytesIO(b"content"), "name.txt")}
            app.test_client().post("/", data=data)
        else:
            serve(app, set_up)
        with app.app_context():
            checked_out = db.engine.pool.checkedout()
    finally:
        with app.app_context():
            db.engine.dispose()
    assert (found, checked_out) == (FLASK[set_up], 0)


def test_the_session_of_a_callback_that_fails_does_not_reach_the_next(tmp_path, caplog):
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/shop.db"
    db = SQLAlchemy(app)
    AfterResponse(app)

    class Order(db.Model):
        id = db.Column(Integer, primary_key=True)

    def store(id):
        db.session.add(Order(id=id))
        db.session.commit()

    @app.post("/")
    def order():
        store(1)
        after_this_response(store, 1)  # this spoils its session
        after_this_response(store, 2)
        return "Ordered"

    with app.app_context():
        db.create_all()
    serve(app, "extension")
    with app.app_context():
        stored = db.session.scalars(select(Order.id).order_by(Order.id)).all()
    with app.app_context():  # a new one: the session of the first has returned its connection
        db.engine.dispose()
    [told] = caplog.records
    assert (stored, told.exc_info[0].__name__) == ([1, 2], "IntegrityError")


def test_teardown_of_an_unused_session_costs_less_than_a_tenth_of_the_smallest_query():
    apps = Flask("without"), Flask("with")
    for app in apps:
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        app.get("/")(lambda: [after_this_response(int) for _ in range(100)] and "")
        AfterResponse(app)
    db = SQLAlchemy(apps[1])

    def callbacks(app):
        return partial(Exchange.finish, Exchange(app, EnvironBuilder().get_environ()))

    def fastest(measured):
        """How many seconds a hundred take, in the fastest of ten runs."""
        return min(timeit(measured, number=1) for measured in measured)

    def query():
        for _ in range(100):
            db.session.scalar(select(1))
            db.session.remove()

    def share():
        without, with_one = (fastest([callbacks(app) for _ in range(10)]) for app in apps)
        with apps[1].app_context():
            return (with_one - without) / fastest([query] * 10)

    shares = [share() for _ in range(5)]
    with apps[1].app_context():
        db.engine.dispose()
    assert min(shares) < 0.1  # a busy machine may slow some of them down


PYRAMID = table("pyramid.rst", "row, default")


def pyramid_app(set_up, sessions, callback, **settings):
    def view(request):
        assert request.params["name"] == "ada"
        request.dbsession.scalar(select(func.count(Row.id)))
        request.session["cart"], tenant.name = "full", "ada"
        request.environ["wsgi.after"](callback, request)
        return Response("Ordered")

    with Configurator(settings=settings) as config:
        with_dbsession(config, sessions)
        if set_up != "middleware alone":
            config.include("wsgi_after.pyramid")
        config.set_session_factory(SignedCookieSessionFactory("secret"))
        config.set_security_policy(Remote())
        config.add_route("order", "/")
        config.add_view(view, route_name="order")
        return config.make_wsgi_app()


class Remote:
    """Takes the user from the server's ``REMOTE_USER``."""

    def identity(self, request):
        return request.environ.get("REMOTE_USER", "ada")

    def authenticated_userid(self, request):
        return self.identity(request)


@pytest.mark.parametrize("set_up", PYRAMID)
def test_each_cell_of_pyramids_page_is_what_a_callback_finds(set_up, sessions, caplog):
    looks = {
        "get_current_request": lambda request: get_current_request() is request,
        "session": lambda request: request.session["cart"] == "full",
        "form": lambda request: request.params["name"] == "ada",
        "upload": lambda request: request.POST["file"].file.read() == b"content",
        "user": lambda request: request.authenticated_userid == "ada",
        "thread-local": lambda request: tenant.name == "ada",
    }
    found = {}

    def callback(request):
        for name, look in looks.items():
            found[name] = finds(partial(look, request))
        request.dbsession.add(Row())

    for kind in "default", "explicit":
        hook = {"tm.manager_hook": "pyramid_tm.explicit_manager"} if kind == "explicit" else {}
        app = pyramid_app(set_up, sessions, callback, **hook)
        if set_up == "WebTest":
            files = [("file", "name.txt", b"content")]
            TestApp(app).post("/", {"name": "ada"}, upload_files=files)
        else:
            serve(app, set_up)
        transaction.abort()  # as the next request of the thread does
        with sessions.begin() as rows:
            stored = rows.query(Row).delete()
        told = [record.exc_info[1] for record in caplog.records]
        caplog.clear()
        assert [type(error).__name__ for error in told] in ([], ["NoTransaction"])
        noted = [hasattr(error, "__notes__") for error in told]
        assert noted == [set_up != "middleware alone"] * len(told)
        found[f"row, {kind}"] = "stored" if stored else "logged" if told else "lost"
    assert found == PYRAMID[set_up]


# SQLAlchemy without an extension.


@pytest.fixture(params=["flask.rst", "pyramid.rst"])
def tags(request, tmp_path, monkeypatch):
    """The recipe of a page, as a module, with its table."""
    (tmp_path / "tags.py").write_text(blocks(request.param)["tags.py"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tags = import_module("tags")
    tags.Base.metadata.create_all(tags.engine)
    yield tags
    del sys.modules["tags"]


@pytest.mark.parametrize("pooled", [False, True])
def test_the_recipe_for_a_scoped_session_survives_errors(tags, pooled, caplog):
    """Each name is stored once. Storing it again is an error, which spoils the session."""
    with BoundedThreadPoolExecutor(max_workers=1, max_pending=99) as pool:
        executor = pool if pooled else None
        if hasattr(tags, "app"):
            app = AfterResponseMiddleware(tags.app, executor=executor)
        else:
            app = tags.main({}, **{"wsgi_after.executor": executor})
        for number in range(10):
            environ = EnvironBuilder(path=f"/{number // 2}").get_environ()
            Exchange(app, environ).finish()
    with tags.engine.connect() as connection:
        stored = connection.scalars(select(tags.Tag.name).order_by("name")).all()
    checked_out = tags.engine.pool.checkedout()
    tags.engine.dispose()
    errors = [record.exc_info[0].__name__ for record in caplog.records]
    assert (stored, errors) == (["0", "1", "2", "3", "4"], ["IntegrityError"] * 5)
    assert checked_out == 0
