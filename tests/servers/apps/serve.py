"""Servers that have no command of their own: ``python serve.py NAME PORT``."""

import sys


def wsgiref(port):
    from wsgiref.simple_server import make_server

    from kinds import application

    make_server("127.0.0.1", port, application).serve_forever()


def werkzeug(port):
    from kinds import application
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=Handler)
    server.serve_forever()


if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]))
