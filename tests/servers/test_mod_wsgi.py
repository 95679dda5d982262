"""mod_wsgi on the newest Python, in its default application group, which is a sub-interpreter.

Its Python is that of a virtual environment that ``.ci/install-servers`` makes within this one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from .descriptions import apache_with, mod_wsgi
from .harness import Server, control, running

pytestmark = pytest.mark.servers

VENV = Path(sys.prefix) / "mod_wsgi"
KINDS = ["list_with_length", "generator", "small_file", "error_before_return"]
#: Parts of the library that the app does not need: nine tenths of its size.
LEFT_OUT = ("__pycache__", "config-*", "ensurepip", "idlelib", "pip", "site-packages", "test")


def said(*command):
    """What a command of the virtual environment prints."""
    return subprocess.check_output([VENV / "bin" / command[0], *command[1:]], text=True).strip()


def copy_python(where):
    """Copy that Python to where every user may read it: Apache's workers run as another user."""
    code = "import json, sysconfig; print(json.dumps(sysconfig.get_paths()))"
    paths = json.loads(said("python", "-c", code))
    home = where.directory / "python"
    library = home / "lib" / Path(paths["stdlib"]).name
    left_out = shutil.ignore_patterns(*LEFT_OUT)
    shutil.copytree(paths["stdlib"], library, ignore=left_out)
    shutil.copytree(paths["purelib"], library / "site-packages", ignore=left_out)
    (library / "dist-packages").symlink_to("site-packages")  # where Debian's Python looks
    return home


@contextmanager
def started(mode):
    """Run Apache without ``WSGIApplicationGroup``, in its process or in a ``daemon`` process."""

    def commands(where):
        settings = mod_wsgi(where, "default_group.py", daemon=mode == "daemon")
        module = said("mod_wsgi-express", "module-location")
        return [apache_with(where, [f"WSGIPythonHome {copy_python(where)}", *settings], module)]

    needs = ("apache2", str(VENV / "bin/mod_wsgi-express"))
    with running(Server(f"mod_wsgi {mode}", commands, version=str, programs=needs)) as where:
        yield where


both_modes = pytest.mark.parametrize("mode", ["embedded", "daemon"])


def get(where, path):
    """Send a request; return what is known of it, the response, and its body."""
    watch = control().watch()
    with closing(HTTPConnection("127.0.0.1", where.port, timeout=30)) as client:
        client.request("GET", f"{path}?{watch.query}", headers={"Host": "localhost"})
        response = client.getresponse()
        return watch, response, response.read()


@both_modes
def test_requests_end_in_a_sub_interpreter_of_the_newest_python_as_everywhere(mode):
    with started(mode) as where:
        _, _, found = get(where, "/where")
        responses = {}
        for kind in KINDS:
            watch, response, body = get(where, f"/{kind}")
            watch.done.wait(10)
            prepared = response.getheader("X-Prepared")
            responses[kind] = (response.status, prepared, body, watch.events)
        content = (where.directory / "small_file.bin").read_bytes()
        log = where.log.read_text()
    assert json.loads(found) == {
        "python": said("python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"),
        "application group": "localhost|",
        "process group": "kinds" if mode == "daemon" else "",
        "main interpreter": False,
    }
    error_page = responses["error_before_return"][2]
    assert responses == {
        "list_with_length": (200, "yes", b"hello list", ["first", "last"]),
        "generator": (200, "yes", b"hello generator", ["first", "last"]),
        "small_file": (200, "yes", content, ["first", "last"]),
        "error_before_return": (500, None, error_page, ["first", "last"]),
    }
    assert log.count("ArithmeticError: raised on purpose, in a callback") == len(KINDS)


@both_modes
def test_callbacks_of_an_unclosed_response_run_where_the_sub_interpreter_ends(mode):
    with started(mode) as where:
        watch, _, body = get(where, "/dropped")
        assert (body, watch.events) == (b"dropped", [])
        os.kill(where.pid, signal.SIGTERM)
        assert watch.done.wait(10), where.log.read_text()
    assert watch.events == ["first", "last"]
