"""A shop which answers an order at once, and sends the mail after the response."""

from flask import Flask, current_app, request

from wsgi_after.flask import AfterResponse

from . import models, orders

after_response = AfterResponse()


def create_app():
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.db"
    app.config["SMTP_PORT"] = 8025  # where aiosmtpd listens
    app.config.from_prefixed_env()  # FLASK_SMTP_PORT=2525 sets SMTP_PORT
    models.db.init_app(app)
    after_response.init_app(app)
    app.after_response(log)
    app.register_blueprint(orders.blueprint)
    with app.app_context():
        models.db.create_all()
    return app


def log():
    status = request.environ["wsgi.after"].status
    current_app.logger.warning("%s %s: %s", request.method, request.path, status)
