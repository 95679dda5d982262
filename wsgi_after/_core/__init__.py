"""The way of one request, from top to bottom; ``docs/design.rst`` has it as a picture.

``middleware`` puts the list and calls the app, ``body`` and ``files`` are what the server gets,
``finish`` decides where the callbacks run, ``run`` runs them. ``callbacks`` is the list itself.
"""
