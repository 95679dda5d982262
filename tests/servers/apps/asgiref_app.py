"""The app as an ASGI app, by asgiref."""

from asgiref.wsgi import WsgiToAsgi
from kinds import application

application = WsgiToAsgi(application)
