"""The app as an ASGI app, by a2wsgi."""

from a2wsgi import WSGIMiddleware
from kinds import application

application = WSGIMiddleware(application)
