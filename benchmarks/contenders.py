"""What is measured side by side: the bare app, and the same app behind each middleware.

A contender is a function that gets a :class:`~benchmarks.workloads.Workload` and returns the app
to call. It imports what it needs only when it is called.
"""


def bare(workload):
    """The app alone: the baseline of all others."""
    return workload.bare


def recipe(workload):
    """Behind the recipe on ``ClosingIterator``: the yardstick."""
    from .recipe import ClosingIteratorRecipe

    return ClosingIteratorRecipe(workload.app)


def ours(workload):
    """Behind the middleware of this package."""
    from wsgi_after import AfterResponseMiddleware

    return AfterResponseMiddleware(workload.app)


CONTENDERS = {"bare": bare, "recipe": recipe, "ours": ours}
