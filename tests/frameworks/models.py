"""Apps with a database, through SQLAlchemy: users for Flask, rows for Pyramid."""

from __future__ import annotations

import zope.sqlalchemy
from flask_login import LoginManager, UserMixin, current_user, login_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Integer, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def with_a_user(app, database="sqlite://"):
    """Give a Flask app one user, whom Flask-Login loads from a database.

    :return: the database, and a function for a view, which logs the user in and counts the visit.
    """
    app.config["SQLALCHEMY_DATABASE_URI"] = database
    db = SQLAlchemy(app)

    class User(UserMixin, db.Model):
        id = db.Column(Integer, primary_key=True)
        visits = db.Column(Integer, default=0)

    def visit():
        login_user(db.session.scalars(select(User)).one())
        current_user.visits += 1
        db.session.commit()

    LoginManager(app).user_loader(lambda id: db.session.get(User, int(id)))
    with app.app_context():
        db.create_all()
        db.session.add(User())
        db.session.commit()
    return db, visit


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)


def with_dbsession(config, sessions):
    """Give the requests of a Pyramid app a session, within their transaction."""

    def dbsession(request):
        session = sessions()
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    config.include("pyramid_tm")
    config.add_request_method(dbsession, reify=True)
