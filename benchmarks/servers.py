"""Start a server on a free port of 127.0.0.1, and end it."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from .report import ROOT

HOST = "127.0.0.1"


@contextmanager
def serving(command, **environ):
    """Run ``python -m COMMAND`` until the end of the block; yield its port.

    A command that begins with ``uwsgi`` is the program of that name beside this Python.
    """
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    command = [part.format(host=HOST, port=port) for part in command]
    start = [sys.executable, "-m", *command]
    if command[0] == "uwsgi":
        start = [str(Path(sys.executable).with_name("uwsgi")), *command[1:]]
    with TemporaryFile() as log:
        process = subprocess.Popen(
            start, cwd=ROOT, env={**os.environ, **environ}, stdout=log, stderr=log
        )
        try:
            wait_until_ready(process, port, log)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(process, port, log):
    """Return when the port answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((HOST, port)).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                log.seek(0)
                sys.exit(f"The server did not start:\n{log.read().decode()}")
            time.sleep(0.05)
