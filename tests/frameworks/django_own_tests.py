"""Run Django's own tests of its tasks, with our backend in place of one of Django's.

::

    python django_own_tests.py DIRECTORY dummy

``DIRECTORY`` is ``tests`` in a source distribution of the Django that is installed. Its tests are
imported unchanged, after one class of Django has been replaced: so their settings and their imports
lead to ours.
"""

from __future__ import annotations

import sys
import unittest
from contextlib import suppress
from importlib import import_module
from typing import Any
from wsgiref.util import setup_testing_defaults

import django
from django.conf import settings

from wsgi_after.integration import open_request

MODULES = ["test_custom_backend", "test_dummy_backend", "test_immediate_backend", "test_tasks"]

RESULTS = "it asks for a result that was stored"
PRIORITY = "it wants priorities"
DEFER = "it wants run_after"
ABSTRACT = "it needs a base class without enqueue()"

#: What is replaced, whether the tests run in a request, and which of them fail, and why.
HOW: dict[str, tuple[str, bool, dict[str, str]]] = {
    "immediate": ("backends.immediate.ImmediateBackend", False, {}),
    "dummy": (
        "backends.dummy.DummyBackend",
        True,
        {
            "test_chained_using": DEFER,
            "test_clear": RESULTS,
            "test_get_incorrect_result": RESULTS,
            "test_get_incorrect_result_async": RESULTS,
            "test_get_missing_result": RESULTS,
            "test_get_result": RESULTS,
            "test_get_result_async": RESULTS,
            "test_invalid_priority": PRIORITY,
            "test_naive_datetime": DEFER,
            "test_refresh_result": RESULTS,
            "test_refresh_result_async": RESULTS,
            "test_using_priority": PRIORITY,
            "test_using_run_after": DEFER,
        },
    ),
    "base": ("backends.base.BaseTaskBackend", True, {"test_no_enqueue": ABSTRACT}),
}


class InRequest:
    """A mixin for a test case: each of its tests runs while a request is being served."""

    failing: dict[str, str]

    def run(self, result=None):
        # Not expectedFailure(): Django does not see it on an asynchronous test.
        self.__unittest_expecting_failure__ = self._testMethodName in self.failing
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        request = open_request(environ)
        with request:
            done = super().run(result)
        with suppress(KeyboardInterrupt):  # a task raises it, and it propagates
            request.closer()()
        return done


def stand_in():
    """Our backend, with ``results`` and ``clear()``: the ``DummyBackend`` tests need both."""
    from wsgi_after.django import AfterResponseBackend

    class Backend(AfterResponseBackend):
        def __init__(self, alias, params):
            super().__init__(alias, params)
            self.results: list[Any] = []

        def enqueue(self, task, args, kwargs):
            result = super().enqueue(task, args, kwargs)
            self.results.append(result)
            return result

        def clear(self):
            self.results.clear()

    return Backend


def cases(module, in_request, failing):
    """The test cases of a module."""
    for case in list(vars(module).values()):
        if isinstance(case, type) and case.__module__ == module.__name__:
            if not issubclass(case, unittest.TestCase):
                continue
            mixin = {"failing": failing}
            yield type(case.__name__, (InRequest, case), mixin) if in_request else case


def main(directory, how):
    """Whether all tests pass, except those that are expected to fail, which all must fail."""
    replaced, in_request, failing = HOW[how]
    sys.path.insert(0, directory)
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        MIDDLEWARE=["wsgi_after.django.AfterResponseMiddleware"],
        USE_TZ=True,
    )
    django.setup()
    package, _, name = f"django.tasks.{replaced}".rpartition(".")
    backend = stand_in()
    setattr(import_module(package), name, backend)
    suite = unittest.TestSuite(
        unittest.defaultTestLoader.loadTestsFromTestCase(case)
        for module in MODULES
        for case in cases(import_module(f"tasks.{module}"), in_request, failing)
    )
    return unittest.TextTestRunner(stream=sys.stdout).run(suite).wasSuccessful()


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
