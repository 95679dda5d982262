"""What is gone when a callback of Flask's runs: the error that comes of it says what to do.

Flask has closed uploads, the server may have dropped the body of the request, and the database
session that loaded a row is over.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from flask import g, session
from werkzeug.datastructures import iter_multi_items
from werkzeug.exceptions import BadRequest

if TYPE_CHECKING:
    from flask import Request

UPLOAD = (
    "An uploaded file was used after the response, when Flask had closed it. Save or read it in "
    "the view, and pass the path or the bytes to the callback."
)
READ = (
    "Read it in the view, by request.get_data(), request.get_json() or request.form: then the "
    "callback finds it, too."
)
BODY = (
    "The body of the request was read after the response, in another thread than that of the "
    f"request, while the server may read the next request there. {READ}"
)
BLAMED = (
    "The client may have sent everything. If the view did not read the body, it was read after the "
    f"response, when the server had dropped it. {READ}"
)
DETACHED = (
    "A database session that ended with the view had loaded this object. Pass its id to the "
    "callback, and load it there."
)


@contextmanager
def explained(request: Request, own_thread: bool) -> Iterator[None]:
    """Within a request's contexts: have errors about what is gone say so.

    :param own_thread: whether this is the thread of the request, where some servers still have the
        body.
    """
    explain_streams(request, own_thread)
    forget_detached_user()
    try:
        yield
    except Exception as error:
        if isinstance(error, BadRequest):
            error.add_note(BLAMED)
        elif type(error).__name__ == "DetachedInstanceError":  # of SQLAlchemy
            error.add_note(DETACHED)
        raise


def explain_streams(request: Request, own_thread: bool) -> None:
    """Replace streams of the request that are gone."""
    known = vars(request)  # what the view, or Flask, has made of it
    for _, file in iter_multi_items(known.get("files") or ()):
        if getattr(file.stream, "closed", False):
            file.stream = Gone(UPLOAD)
    has_body = request.content_length or "HTTP_TRANSFER_ENCODING" in request.environ
    if has_body and not own_thread and "stream" not in known:
        known["stream"] = Gone(BODY)


class Gone:
    """A stream that can no longer be read. It raises an error that says what to do.

    :param text: what to do about it.
    """

    closed = True

    def __init__(self, text: str) -> None:
        self._text = text

    def close(self) -> None:
        """Do nothing: it is closed."""

    def __iter__(self) -> Iterator[bytes]:
        return self.read()

    def read(self, *args: object) -> NoReturn:
        """Raise the error; not a ``ValueError``, for which werkzeug returns an empty form."""
        raise RuntimeError(self._text)

    readline = readlines = readinto = seek = tell = read


def forget_detached_user() -> None:
    """Have Flask-Login load its user again, if the database session that loaded it is over.

    A user whose id is not in ``session`` stays, because Flask-Login could not find it again.
    """
    if "_login_user" in g and "_user_id" in session and "sqlalchemy" in sys.modules:
        state = sys.modules["sqlalchemy"].inspect(g._login_user, raiseerr=False)
        if getattr(state, "detached", False):
            del g._login_user
