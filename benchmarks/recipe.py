"""The recipe on werkzeug's ``ClosingIterator`` that people copy, written from its description.

With a list for each request, as its better copies have it (the common one has one list for the
process, and runs the callbacks of one request in another).
"""

import traceback

from werkzeug.wsgi import ClosingIterator


class ClosingIteratorRecipe:
    """Puts a list in the environ, and runs what is in it when the response is closed."""

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        """Call the app; its callbacks run in ``close()``."""
        callbacks = environ["wsgi.after"] = []

        def flush():
            for callback in callbacks:
                try:
                    callback()
                except Exception:
                    traceback.print_exc()

        iterable = self.app(environ, start_response)
        try:
            return ClosingIterator(iterable, [flush])
        except Exception:
            traceback.print_exc()
            return iterable
