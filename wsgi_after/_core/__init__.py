"""The way of one request, from the middleware to the log: see ``docs/design.rst``."""
