"""An app for a server: each request has a callback that writes a row."""

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select

from wsgi_after.flask import AfterResponse, after_this_response

app = Flask(__name__)
app.config.from_prefixed_env()
db = SQLAlchemy(app)
AfterResponse(app)


class Row(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    number = db.Column(db.Integer)


with app.app_context():
    db.create_all()


@app.get("/add/<int:number>")
def add(number):
    db.session.scalar(select(1))  # the view's session has a connection, too
    after_this_response(write, number)
    return "Later\n"


def write(number):
    db.session.add(Row(number=number))
    db.session.commit()
    db.session.scalar(select(1))  # and leaves a transaction open
    if number % 10 == 0:
        raise ValueError("on purpose")


@app.get("/state")
def state():
    numbers = db.session.scalars(select(Row.number)).all()
    db.session.remove()
    return {"numbers": sorted(numbers), "checked_out": db.engine.pool.checkedout()}
