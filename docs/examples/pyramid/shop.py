"""Orders: a row in the transaction of the request, a mail and another row after the response."""

from email.message import EmailMessage
from smtplib import SMTP

import transaction
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.response import Response
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    mailed: Mapped[bool] = mapped_column(default=False)


def session_of(registry, manager) -> Session:
    """A session that ends, and gives its connection back, with the transaction."""
    session = registry["sessions"]()
    zope.sqlalchemy.register(session, transaction_manager=manager)
    return session


def new_order(request):
    order = Order(email=request.POST["email"])
    request.session_of_db.add(order)
    request.session_of_db.flush()  # for its id
    request.after(confirm, request.registry, order.id)
    return Response(f"Order {order.id}: thank you.\n", status=201, content_type="text/plain")


def confirm(registry, order_id):
    """A callback: the transaction of the request is over, so it begins one of its own."""
    manager = transaction.TransactionManager(explicit=True)
    with manager:
        order = session_of(registry, manager).get(Order, order_id)
        if order is None:  # the transaction of the request has failed
            return
        send_mail(registry.settings, order)
        order.mailed = True


def send_mail(settings, order):
    message = EmailMessage()
    message["From"], message["To"] = "shop@example.com", order.email
    message["Subject"] = "Your order"
    message.set_content(f"We have order {order.id}.")
    with SMTP(settings["mail.host"], int(settings["mail.port"])) as smtp:
        smtp.send_message(message)


def orders(request):
    found = request.session_of_db.scalars(select(Order).order_by(Order.id))
    return {"orders": [{"id": o.id, "email": o.email, "mailed": o.mailed} for o in found]}


def main(global_config, **settings):
    """Make the application: called by PasteDeploy with what the ini file says."""
    engine = create_engine(settings["sqlalchemy.url"])
    Base.metadata.create_all(engine)
    with Configurator(settings=settings) as config:
        config.registry["sessions"] = sessionmaker(engine)
        config.include("pyramid_tm")
        config.include("wsgi_after.pyramid")
        config.add_request_method(
            lambda request: session_of(request.registry, request.tm), "session_of_db", reify=True
        )
        config.add_route("new_order", "/orders/new", request_method="POST")
        config.add_view(new_order, route_name="new_order")
        config.add_route("orders", "/orders")
        config.add_view(orders, route_name="orders", renderer="json")
        return config.make_wsgi_app()
