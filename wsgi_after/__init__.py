"""Run code after the response: a middleware for any WSGI app, on any server.

``application = AfterResponseMiddleware(application)`` gives each request a list,
``environ["wsgi.after"]``. Append callables without arguments, the callbacks. They run

* in the request's own thread, after the server has called ``close()`` on the response, and the
  app's own iterable has been closed;
* exactly once, in order of registration, including those that a running callback registers;
* whatever happened: no body, a body cut short, an exception of the app;
* contained: an exception of one is logged, and the others run;
* even if the server drops the response without closing it: then at garbage collection.

Server and client see what they would have seen without the middleware.
"""

from ._core.body import Body
from ._core.callbacks import CallbackList
from ._core.middleware import AfterResponseMiddleware
from ._core.run import run_callbacks
from .exits import watch_exits
from .functions import (
    after_this_request,
    after_this_response,
    after_this_response_or_now,
    current_list,
)

__all__ = [
    "AfterResponseMiddleware",
    "CallbackList",
    "after_this_request",
    "after_this_response",
    "after_this_response_or_now",
    "current_list",
    "run_callbacks",
]

__version__ = "1.0.0rc1"

# Logs, tracebacks and pickled jobs show the public path.
for _name in __all__:
    globals()[_name].__module__ = __name__

watch_exits(Body)
