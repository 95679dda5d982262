"""Django's tasks: run them in this process, after the response to the request that enqueued them.

::

    MIDDLEWARE = ["wsgi_after.django.AfterResponseMiddleware", ...]    # in the settings
    TASKS = {"default": {"BACKEND": "wsgi_after.django.AfterResponseBackend"}}

    @task                                                              # of django.tasks
    def send_invoice(number): ...

    def order(request):                                                # a view
        send_invoice.enqueue(7)
        return HttpResponse("Thank you.")

Since version 6.0 Django has ``django.tasks``. For Django 4.2 to 5.2, install ``django-tasks``, the
backport, and import ``django_tasks`` in its place.

Caution: a process that is killed loses the tasks that it has not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from traceback import format_exception
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone
from django.utils.crypto import get_random_string
from django.utils.module_loading import import_string

try:
    from django import tasks
except ImportError:  # before Django 6.0
    import django_tasks as tasks

from . import run_callbacks
from .integration import current_list, register

# Both packages have these modules, and the last one has the normalize_json() that Django uses.
base, signals, backends, immediate = (
    import_module(f"{tasks.__name__}.{name}")
    for name in ("base", "signals", "backends.base", "backends.immediate")
)
BaseTaskBackend: Any = backends.BaseTaskBackend
Status: Any = base.TaskResultStatus

ENTRY = "wsgi_after.django.AfterResponseMiddleware"


class AfterResponseBackend(BaseTaskBackend):  # type: ignore[misc]
    """A backend for ``TASKS``: a task runs after the response to the request that enqueues it.

    Tasks run in one order with the other callbacks of the request. Outside a request,
    ``OPTIONS["outside_request"]`` says what happens: ``"run"``, the default, runs the task inside
    ``enqueue()``, as Django's ``ImmediateBackend`` does; ``"raise"`` raises ``RuntimeError``.

    :raises ImproperlyConfigured: if that option has another value.
    """

    supports_async_task = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.worker_id = get_random_string(32)
        self.outside_request: str = self.options.get("outside_request", "run")
        if self.outside_request not in ("run", "raise"):
            raise ImproperlyConfigured(
                f'TASKS["{alias}"]["OPTIONS"]["outside_request"] is {self.outside_request!r}, '
                'where "run" or "raise" was expected.'
            )

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Register the task with the current request, and return a result that is ``READY``.

        That result does not change, because nothing stores results. The signals pass a result of
        their own, which does. Outside a request, the task has run when this returns, and the result
        says how it ended.

        :raises InvalidTask: Django's own, for what the backend does not support.
        :raises TypeError: if the arguments cannot be written as JSON.
        :raises RuntimeError: outside a request, if the option says so.
        """
        self.validate_task(task)
        result = base.TaskResult(
            task=task,
            id=get_random_string(32),
            status=Status.READY,
            enqueued_at=None,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        callbacks = current_list()
        if getattr(callbacks, "ended", False):  # in a thread that outlived its request
            callbacks = None
        if callbacks is None and self.outside_request == "raise":
            raise RuntimeError(_OUTSIDE.format(task=task.module_path))
        change(result, enqueued_at=timezone.now())
        signals.task_enqueued.send(type(self), task_result=result)
        entry = EnqueuedTask.of(self, result)
        if callbacks is None:
            run_callbacks([entry], "an enqueue() outside a request")
            return result
        register(callbacks, entry)
        return replace(result, errors=[], worker_ids=[])

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """Warn if the middleware is missing, or if an option does not exist."""
        messages = [*super().check(**kwargs)]
        if not any(map(is_entry, settings.MIDDLEWARE)):
            messages.append(checks.Warning(_ABSENT, hint=_ADD, id="wsgi_after.W001"))
        unknown = sorted(self.options.keys() - {"outside_request"})
        if unknown:
            text = f'TASKS["{self.alias}"]["OPTIONS"] has options that do not exist: {unknown}.'
            hint = 'The only one is "outside_request".'
            messages.append(checks.Warning(text, hint=hint, id="wsgi_after.W002"))
        return messages


class EnqueuedTask(partial[object]):
    """A callback that runs a task. ``task_result`` is the result that the signals pass.

    It is a partial of the task's function, so that the log and ``capture()`` show its name.
    """

    backend: AfterResponseBackend
    task_result: Any

    @classmethod
    def of(cls, backend: AfterResponseBackend, result: Any) -> EnqueuedTask:
        """What runs the task of a result."""
        callback = cls(result.task.func, *result.args, **result.kwargs)
        callback.backend = backend
        callback.task_result = result
        return callback

    def __call__(self, /) -> None:
        """Run the task, and tell the signals.

        What the task raises goes on, to be contained and logged as for any callback. The result has
        it already, except for ``KeyboardInterrupt``, which Django's backends do not record either.
        """
        result = self.task_result
        began = timezone.now()
        change(result, status=Status.RUNNING, started_at=began, last_attempted_at=began)
        result.worker_ids.append(self.backend.worker_id)
        signals.task_started.send(type(self.backend), task_result=result)
        context = [base.TaskContext(task_result=result)] if result.task.takes_context else []
        try:
            returned = result.task.call(*context, *self.args, **self.keywords)
            change(result, _return_value=immediate.normalize_json(returned))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            kind = type(error)
            result.errors.append(
                base.TaskError(
                    exception_class_path=f"{kind.__module__}.{kind.__qualname__}",
                    traceback="".join(format_exception(error)),
                )
            )
            self.finish(Status.FAILED)  # here, because the receiver that logs looks at the error
            raise
        self.finish(Status.SUCCESSFUL)

    def finish(self, status: Any) -> None:
        """Note the end of the task, and tell the signal."""
        change(self.task_result, finished_at=timezone.now(), status=status)
        signals.task_finished.send(type(self.backend), task_result=self.task_result)

    def __reduce__(self) -> Any:
        """Pickle the name of the task: its function cannot be found by name, where the task is."""
        result = self.task_result
        values = {field.name: getattr(result, field.name) for field in fields(result) if field.init}
        del values["task"]
        return again, (result.task.module_path, result.task.queue_name, values)


def again(path: str, queue_name: str, values: dict[str, Any]) -> EnqueuedTask:
    """An entry that was pickled, with the backend of this process."""
    task = import_string(path).using(queue_name=queue_name, backend=values["backend"])
    return EnqueuedTask.of(task.get_backend(), base.TaskResult(task=task, **values))


def change(result: Any, **values: object) -> None:
    """Change a result, which is frozen for those who use it; Django's backends do so, too."""
    for name, value in values.items():
        object.__setattr__(result, name, value)


def is_entry(path: str) -> bool:
    """Whether an entry of ``MIDDLEWARE`` is ours, or a subclass."""
    try:
        entry = import_string(path)
    except ImportError:
        return False
    return isinstance(entry, type) and issubclass(entry, import_string(ENTRY))


_OUTSIDE = (
    "The task {task} was enqueued outside a request, so there is no response to run it after. "
    "The usual causes are a command of manage.py, a thread of your own, a streaming body, and "
    f'MIDDLEWARE without "{ENTRY}". To run such tasks at once, remove "outside_request" from '
    "OPTIONS in TASKS."
)
_ABSENT = (
    f'MIDDLEWARE has no "{ENTRY}". Without it, enqueue() finds no request, and '
    "so either runs the task while the client waits, or raises. (If wsgi.py wraps the application, "
    "tasks do run after the response, but database connections that they open stay open.)"
)
_ADD = f'Add "{ENTRY}" to MIDDLEWARE, as the first.'
