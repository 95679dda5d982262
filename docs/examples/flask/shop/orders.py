from flask import Blueprint, request

from wsgi_after.flask import after_this_response

from .mails import send_mail
from .models import Order, db

blueprint = Blueprint("orders", __name__)


@blueprint.post("/orders")
def create():
    order = Order(email=request.form["email"])
    db.session.add(order)
    db.session.commit()
    after_this_response(confirm, order.id)  # the id: the order belongs to the view's session
    return {"id": order.id}, 201


@blueprint.get("/orders/<int:id>")
def show(id):
    return {"mailed": db.get_or_404(Order, id).mailed}


def confirm(id):
    order = db.session.get(Order, id)
    send_mail(order.email, f"Your order {id}")
    order.mailed = True
    db.session.commit()
