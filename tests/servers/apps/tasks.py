"""What the workers of a queue run, and where the queue is: in an environment variable."""

import os

REDIS = os.environ.get("TEST_REDIS", "")


def write(path, text):
    with open(path, "a") as file:
        file.write(f"{text}\n")


def write_pid(path, text):
    write(path, f"{text} {os.getpid()}")


def make_celery():
    from celery import Celery

    app = Celery("tasks", broker=REDIS)
    app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
    app.task(write, name="tasks.write", shared=False)
    return app


if REDIS:
    celery = make_celery()
