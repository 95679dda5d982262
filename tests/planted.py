"""Faults planted in the package, one at a time: the tests have to find each.

``python -m tests.planted`` copies the checkout, plants a fault there, runs the tests of the core,
and says which test found it. ``-k flush`` takes only the faults that have the word in their
sentence, ``--tests`` other tests.

The faults are of the contract: what a rewrite of the core could get wrong. The texts are of the
code as it is now. Adapt them when it changes; the sentences stay.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PATIENCE = 300.0  # seconds; a fault that makes a test hang is found

#: The tests of the core: the quick ones, which find most, first.
TESTS = [
    f"tests/test_{name}.py"
    for name in (
        "body",
        "callbacks",
        "middleware",
        "file_wrapper",
        "native_file_wrapper",
        "flush",
        "hand_off",
        "where",
        "nested",
        "security",
        "conformance",
        "known_bugs",
        "prepare",
        "prepare_current",
        "prepare_patterns",
        "executor",
        "observability",
        "leaks",
        "contract",
        "matrix",
        "fuzz",
        "lint",
        "testing",
        "races",
        "model",
    )
]


class Fault(NamedTuple):
    """A fault, and how to plant it.

    :param module: a path in the package.
    :param old: lines that it has once, with any indentation.
    :param new: lines for their place.
    """

    sentence: str
    module: str
    old: str
    new: str


FAULTS = [
    # The list.
    Fault(
        "The list of an ended request is used again.",
        "middleware.py",
        "if not isinstance(present, EndedCallbackList):",
        "if True:",
    ),
    Fault(
        "App-wide callbacks come last.",
        "middleware.py",
        "callbacks.append(partial(fn, environ))",
        "callbacks.append(lambda fn=fn: callbacks.append(partial(fn, environ)))",
    ),
    Fault(
        "A keyword argument named fn does not get to the callback.",
        "callbacks.py",
        "def __call__(self, fn: F, /, *args: Any, **kwargs: Any) -> F:",
        "def __call__(self, fn: F, *args: Any, **kwargs: Any) -> F:",
    ),
    # Where callbacks run.
    Fault(
        "Callbacks run in a thread of their own.",
        "finish.py",
        "raised = run(callbacks, None, error, PATIENCE)",
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(copy_context().run, run, callbacks, None, error, PATIENCE)
        raised = job.result()
        """,
    ),
    Fault(
        "Callbacks run in a copy of the context.",
        "finish.py",
        "raised = run(callbacks, None, error, PATIENCE)",
        "raised = copy_context().run(run, callbacks, None, error, PATIENCE)",
    ),
    # Once, and in order.
    Fault(
        "A second close() closes the app's iterable again.",
        "body.py",
        """
        self._callbacks = None
        if callbacks is not None:
            try:
                finish(callbacks, getattr(self._iterable, "close", None))
        """,
        """
        if callbacks is not None:
            try:
                finish(callbacks, getattr(self._iterable, "close", None))
        """,
    ),
    Fault(
        "A callback stays in the list while it runs.",
        "run.py",
        """
            callback = callbacks[0]
            del callbacks[0]
        # An executor took the job, said that it did not, and runs it elsewhere.
        except IndexError:
            break
        try:
            outcome = callback()
        """,
        """
            callback = callbacks[0]
        except IndexError:
            break
        try:
            try:
                outcome = callback()
            finally:
                del callbacks[:1]
        """,
    ),
    Fault(
        "What a running callback registers runs next, not last.",
        "run.py",
        "outcome = callback()",
        """
        left = len(callbacks)
        outcome = callback()
        if len(callbacks) > left:
            list.insert(callbacks, 0, list.pop(callbacks))
        """,
    ),
    Fault(
        "The list stays open when its callbacks have run.",
        "run.py",
        """
        if not ours:
            break
        """,
        "break",
    ),
    Fault(
        "insert() after the end is silent.",
        "callbacks.py",
        "append = extend = insert = _refuse",
        """
        append = extend = _refuse
        insert = list.insert
        """,
    ),
    Fault(
        "An append that was looked up before the end, and is called after it, is silent.",
        "callbacks.py",
        """
        append_to_list(self, fn)
        # The method may have been looked up while the list was open: after.append(make()), and the
        # request ends while make() runs.
        if type(self) is EndedCallbackList:
            self._take_back(fn)
        """,
        "append_to_list(self, fn)",
    ),
    Fault(
        "What a thread registers just before an empty list ends is lost.",
        "body.py",
        """
        if not callbacks:
            callbacks._environ = callbacks._error = None
        """,
        """
        if True:
            callbacks._environ = callbacks._error = None
        """,
    ),
    Fault(
        "What a thread registers just after the last callback ran is lost.",
        "run.py",
        """
        if not callbacks:  # else another thread registered before the mark
            break
        """,
        "break",
    ),
    Fault(
        "Registering raises although the callback has run.",
        "callbacks.py",
        "if late:",
        "if True:",
    ),
    # Whatever happened.
    Fault(
        "The KeyboardInterrupt of a callback replaces the exception of the app.",
        "run.py",
        """
        if raised is not None:
            _log(_FAILED, callback, began, request, callbacks, error)
        """,
        """
        if False:
            pass
        """,
    ),
    Fault(
        "The callbacks are lost where the app's close() raises.",
        "finish.py",
        "finish(callbacks, error=raised_by_close)",
        "callbacks.clear()",
    ),
    Fault(
        "The callbacks are lost where the app returns what is not iterable.",
        "body.py",
        """
        if body_class is None:
            finish(callbacks)
        """,
        "if body_class is None:",
    ),
    # Contained.
    Fault(
        "A SystemExit of a callback is let out of close().",
        "run.py",
        "except (Exception, SystemExit) as error:",
        "except Exception as error:",
    ),
    Fault(
        "A KeyboardInterrupt of a callback costs the others their run.",
        "run.py",
        """
            else:
                raised = error
        ended = monotonic()
        """,
        """
            else:
                raised = error
                callbacks.clear()
        ended = monotonic()
        """,
    ),
    Fault(
        "The log does not name the request.",
        "run.py",
        "name, label = describe(callback), _label(request, callbacks)",
        'name, label = describe(callback), "a request"',
    ),
    Fault(
        "The log has no traceback.",
        "run.py",
        "log(logger.error, message, name, label, exc_info=error, extra=extra)",
        "log(logger.error, message, name, label, extra=extra)",
    ),
    Fault(
        "A callback that returns a coroutine is not reported.",
        "run.py",
        "if outcome is not None and isinstance(outcome, Coroutine):",
        "if False:",
    ),
    Fault(
        "A handler of the log that fails gets its exception out of close().",
        "logs.py",
        """
        except Exception:
            traceback.print_exc()
        """,
        """
        except ZeroDivisionError:
            traceback.print_exc()
        """,
    ),
    Fault(
        "A path with a line break forges a line of the log.",
        "logs.py",
        """return f"{method} {path}".encode("unicode_escape").decode("ascii")""",
        """return f"{method} {path}" """,
    ),
    Fault(
        "What a signal handler raises between two callbacks costs the rest their run.",
        "run.py",
        """
        except BaseException as error:
            if raised is None and not isinstance(error, (Exception, SystemExit)):
        """,
        """
        except BaseException as error:
            callbacks.clear()
            if raised is None and not isinstance(error, (Exception, SystemExit)):
        """,
    ),
    # Never closed.
    Fault(
        "The finalizer does not warn.",
        "finish.py",
        """
        if callbacks:
            warnings.warn(
        """,
        """
        if False:
            warnings.warn(
        """,
    ),
    Fault(
        "The finalizer warns although nothing was registered.",
        "finish.py",
        """
        if callbacks:
            warnings.warn(
        """,
        """
        if True:
            warnings.warn(
        """,
    ),
    Fault(
        "The callbacks are lost where the finalizer's warning is an error.",
        "finish.py",
        """
        finally:
            callbacks._write = None  # no flush from here: whose thread this is, is not known
        """,
        """
        except ZeroDivisionError:
            pass
        else:
            callbacks._write = None  # no flush from here: whose thread this is, is not known
        """,
    ),
    Fault(
        "The finalizer runs while the server still holds the iterator.",
        "body.py",
        """
        callbacks._completed = False
        try:
            # Not "yield from": that would close the app's iterable together with this generator.
            for chunk in self._iterable:
        """,
        """
        callbacks._completed = False
        iterable = self._iterable
        del self
        try:
            for chunk in iterable:
        """,
    ),
    Fault(
        "The callbacks of a file that is never closed are lost.",
        "file_wrapper.py",
        "finish_unclosed(self, self._callbacks)",
        "pass",
    ),
    # Invisible.
    Fault(
        "The server's start_response always gets three arguments.",
        "callbacks.py",
        "write = self._write = start_response(*args, **kwargs)"
        " if kwargs else start_response(*args)",
        """
        args += () if kwargs else (None,) * (3 - len(args))
        write = self._write = start_response(*args, **kwargs)
        """,
    ),
    Fault(
        "An iterable that has a length loses it.",
        "body.py",
        'if hasattr(kind, "__len__"):',
        "if False:",
    ),
    Fault(
        "A second pass over the body is empty.",
        "body.py",
        "for chunk in self._iterable:",
        """
        if self._iterator is None:
            self._iterator = iter(self._iterable)
        for chunk in self._iterator:
        """,
    ),
    Fault(
        "The app's iterable is closed where the server drops the iterator.",
        "body.py",
        """
        for chunk in self._iterable:
            yield chunk
        """,
        "yield from self._iterable",
    ),
    Fault(
        "The body has no __next__().",
        "body.py",
        "def __next__(self) -> bytes:",
        "def next(self) -> bytes:",
    ),
    Fault(
        "The app's iterable is asked for its iterator before the server asks.",
        "body.py",
        """
        body._iterator = None
        body._callbacks = callbacks
        """,
        """
        body._iterator = iter(result)
        body._callbacks = callbacks
        """,
    ),
    Fault(
        "A bytes body is sent byte by byte.",
        "body.py",
        "if kind is bytes:  # a bug of the app which uWSGI and bjoern let pass",
        "if False:",
    ),
    Fault(
        "The server cannot send a file by itself any more.",
        "file_wrapper.py",
        """
        if target is None:
            return False
        """,
        "return False",
    ),
    Fault(
        "The file wrapper's own close() is not called.",
        "file_wrapper.py",
        "finish(callbacks, close)",
        "finish(callbacks)",
    ),
    Fault(
        "The app does not find the server's class under wsgi.file_wrapper.",
        "file_wrapper.py",
        """
        if isinstance(file_wrapper, type) and (
            file_wrapper.__dictoffset__ or hasattr(file_wrapper, "__slots__")
        ):
        """,
        "if False:",
    ),
    # Nothing kept.
    Fault(
        "The environ is kept after the end.",
        "run.py",
        "callbacks._environ = callbacks._error = callbacks._write = None"
        "  # type: ignore[attr-defined]",
        "callbacks._error = callbacks._write = None",
    ),
    Fault(
        "The exception of the app is kept after the end.",
        "run.py",
        "callbacks._environ = callbacks._error = callbacks._write = None"
        "  # type: ignore[attr-defined]",
        "callbacks._environ = callbacks._write = None",
    ),
    Fault(
        "The list stays the current one when the app has returned.",
        "middleware.py",
        """
            raise
        finally:
            reset_current(token)
        """,
        """
            raise
        finally:
            pass
        """,
    ),
    # What a callback can know.
    Fault(
        "The error is the last one, not the first.",
        "finish.py",
        "if error is not None and callbacks.error is None:",
        "if error is not None:",
    ),
    Fault(
        "completed stays False.",
        "body.py",
        """
            raise
        callbacks._completed = True
        """,
        """
            raise
        pass
        """,
    ),
    Fault(
        "completed stays True where a second pass is cut short.",
        "body.py",
        """
        callbacks._completed = False
        try:
            # Not "yield from": that would close the app's iterable together with this generator.
        """,
        "try:",
    ),
    Fault(
        "A call of start_response that the server refused is recorded.",
        "callbacks.py",
        """
        write = self._write = start_response(*args, **kwargs) if kwargs else start_response(*args)
        # The exc_info is not kept: its frames refer to the environ.
        self._started = args if len(args) == 2 else status_and_headers(args, kwargs)
        """,
        """
        self._started = args if len(args) == 2 else status_and_headers(args, kwargs)
        write = self._write = start_response(*args, **kwargs) if kwargs else start_response(*args)
        """,
    ),
    # Before the headers go out.
    Fault(
        "Response callbacks run for the first call of start_response only.",
        "prepare.py",
        "pending = self._open = self._functions.copy()",
        "pending = self._open = self._functions",
    ),
    Fault(
        "A response callback that comes too late is silent.",
        "prepare.py",
        """
        if not isinstance(preparation, Preparation):
            preparation = stand_in(callbacks, preparation)
        preparation.register(fn)
        """,
        """
        try:
            if not isinstance(preparation, Preparation):
                preparation = stand_in(callbacks, preparation)
            preparation.register(fn)
        except RuntimeError:
            pass
        """,
    ),
    # Handed over.
    Fault(
        "Callbacks that the executor refuses are lost.",
        "finish.py",
        """
        if refusal is None:
            return error
        """,
        "return error",
    ),
    Fault(
        "An interruption out of submit() is swallowed.",
        "finish.py",
        "if error is None and not isinstance(refusal, (Exception, SystemExit)):",
        "if False:",
    ),
    Fault(
        "A job that was cancelled runs again.",
        "hand_off.py",
        "callbacks.clear()",
        "run_callbacks(callbacks, label)",
    ),
    Fault(
        "A job that is lost is not reported.",
        "hand_off.py",
        "if error is not None:",
        "if error is not None and ran:",
    ),
    Fault(
        "The pickled copy of a list takes the state of the request along.",
        "callbacks.py",
        "return list, (list(self),)",
        "return super().__reduce_ex__(protocol)",
    ),
    Fault(
        "On uWSGI, a job has the environ of the next request.",
        "middleware.py",
        "environ = environ.copy()  # or the job would read another client's request",
        "pass",
    ),
    Fault(
        "The environ is kept until a job has run.",
        "hand_off.py",
        "callbacks._environ = callbacks._write = None",
        "callbacks._write = None",
    ),
    # Held headers.
    Fault(
        "The flush comes although the app raised.",
        "finish.py",
        "if write is None or callbacks.error is not None:",
        "if write is None:",
    ),
    Fault(
        "The flush comes although the body was cut short.",
        "finish.py",
        "if callbacks._completed is not True:",
        "if False:",
    ),
    Fault(
        "The flush comes on servers that hold no headers.",
        "finish.py",
        "if server.holds_headers:",
        "if True:",
    ),
    Fault(
        "The flush comes although there are no callbacks.",
        "finish.py",
        """
        if not callbacks:
            callbacks.__class__ = EndedCallbackList
            # Looked at once more: another thread may have registered before the mark of the end.
        """,
        """
        if not callbacks:
            if recognise(callbacks._environ, callbacks._server_start_response).holds_headers:
                flush(callbacks)
            callbacks.__class__ = EndedCallbackList
        """,
    ),
    # Not in this thread.
    Fault(
        "The callbacks of a large file run in the thread of waitress that serves all sockets.",
        "file_wrapper.py",
        "file_close._thread = threading.get_ident()",
        "pass",
    ),
]


def planted(fault: Fault, package: Path) -> str:
    """The source of the module with the fault in it.

    :raises ValueError: if the old lines are not there just once, or the new ones do not compile.
    """
    lines = (package / fault.module).read_text(encoding="utf-8").splitlines()
    old, new = (textwrap.dedent(text).strip("\n") for text in (fault.old, fault.new))
    size = len(old.splitlines())
    found = [
        at
        for at in range(len(lines) - size + 1)
        if textwrap.dedent("\n".join(lines[at : at + size])) == old
    ]
    if len(found) != 1:
        raise ValueError(f"{fault.sentence} {fault.module} has the old lines {len(found)} times.")
    (at,) = found
    first = old.splitlines()[0]
    indentation = lines[at].removesuffix(first)
    lines[at : at + size] = textwrap.indent(new, indentation).splitlines()
    source = "\n".join([*lines, ""])
    compile(source, fault.module, "exec")
    return source


def found_by(tests: list[str], fault: Fault | None = None) -> str | None:
    """The first test that fails in a copy of the checkout with this fault."""
    with TemporaryDirectory() as directory:
        copy = Path(directory, "copy")
        copytree(ROOT, copy, ignore=ignore_patterns(".*", "__pycache__", "build", "*.egg-info"))
        if fault is not None:
            source = planted(fault, ROOT / "wsgi_after")
            (copy / "wsgi_after" / fault.module).write_text(source, encoding="utf-8")
        return first_failure(copy, tests)


def first_failure(checkout: Path, tests: list[str]) -> str | None:
    """The first test that fails there, and how."""
    options = ["-x", "-q", "-m", "not servers", "-p", "no:cacheprovider", "--tb=line", "-rfE"]
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as pytest:
        try:
            output, _ = pytest.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(pytest.pid, signal.SIGKILL)
            return f"a hang of {PATIENCE:.0f} seconds"
    if pytest.returncode == 0:
        return None
    failed = re.search("^(?:FAILED|ERROR) (tests/.*::.*)", output, re.MULTILINE)
    if pytest.returncode in {4, 5}:  # it was called wrongly, or found no tests
        raise RuntimeError(output)
    if failed:
        return failed[1]
    # A test let a KeyboardInterrupt out, or the interpreter crashed, or a module was not imported.
    return f"the end of pytest, with {pytest.returncode}: {output[-500:]}"


def main() -> int:
    """Print a line for each fault; 1 if one is not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__)
    parser.add_argument("-k", metavar="WORD", default="", help="faults with this in the sentence")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what pytest is to run")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if options.k.lower() in fault.sentence.lower()]
    for fault in faults:
        planted(fault, ROOT / "wsgi_after")  # at once, rather than after ten minutes
    if failure := found_by(options.tests):
        parser.exit(2, f"Without any fault, there is {failure}\n")
    missed = 0
    for fault in faults:
        test = found_by(options.tests, fault)
        missed += test is None
        print(f"{fault.sentence}\n    {test or 'NOT FOUND'}", flush=True)
    print(f"{len(faults) - missed} of {len(faults)} faults found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
