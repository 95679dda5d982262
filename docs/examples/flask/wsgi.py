"""What a server imports: see docs/flask.rst for the commands."""

from shop import create_app

app = create_app()
