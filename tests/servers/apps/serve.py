"""Servers that have no command of their own: ``python serve.py NAME PORT``."""

import sys


def wsgiref(application, port):
    from wsgiref.simple_server import make_server

    make_server("127.0.0.1", port, application).serve_forever()


def werkzeug(application, port):
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # as "flask run" sets it

    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=Handler)
    server.serve_forever()


def gevent(application, port):
    from gevent.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", port), application).serve_forever()


def eventlet(application, port):
    from eventlet import listen, wsgi

    # With debug, the default, error pages are tracebacks, which name every function on the way.
    wsgi.server(listen(("127.0.0.1", port)), application, debug=False)


def waitress(application, port):
    from wsgi_after.waitress import serve

    serve(application, listen=f"127.0.0.1:{port}")


def tornado(application, port):
    from tornado.httpserver import HTTPServer
    from tornado.ioloop import IOLoop
    from tornado.wsgi import WSGIContainer

    HTTPServer(WSGIContainer(application)).listen(port, "127.0.0.1")
    IOLoop.current().start()


def bjoern(application, port):
    import bjoern

    bjoern.run(application, "127.0.0.1", port)


def fastwsgi(application, port):
    import fastwsgi

    fastwsgi.run(application, "127.0.0.1", port)


if __name__ == "__main__":
    name = sys.argv[1]
    if name == "gevent":
        from gevent import monkey

        monkey.patch_all()
    elif name == "eventlet":
        from eventlet import monkey_patch

        monkey_patch()
    import kinds

    globals()[name](kinds.application, int(sys.argv[2]))
