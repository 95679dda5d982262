"""What a test run prints: a line for each file, and at its end the counts and the servers.

The tests run in several processes (pytest-xdist), each file in one of them. With ``-q`` or ``-v``,
pytest's own output stays.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import pytest

#: Lines of the section "Nothing lost", and their counts: of this process; at the end, of all.
_counted: dict[str, Counter[str]] = defaultdict(Counter)


def count(what: str, **counts: int) -> None:
    """Print these counts at the end of the test run: ``count("load", sent=20, lost=0)``.

    Counts with the same text before the first comma are added up. Call this before the assertions
    on the counts, so that the counts of a failure are printed, too.
    """
    _counted[what.partition(",")[0]].update(counts)


class Reporter:
    """The plugin that prints.

    :param servers: the names of the servers, as they are in the ids of tests.
    """

    def __init__(self, config: pytest.Config, servers: list[str]) -> None:
        self.config = config
        self.servers = sorted(servers, key=len, reverse=True)
        self.of_server: dict[str, Counter[str]] = defaultdict(Counter)
        self.left: Counter[str] = Counter()  # tests of a file that have not ended
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: Counter[str] = Counter()

    @property
    def terminal(self) -> Any:
        return self.config.pluginmanager.get_plugin("terminalreporter")

    @property
    def by_file(self) -> bool:
        """Whether this plugin prints a line for each file."""
        return self.terminal is not None and self.config.get_verbosity() == 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.left.update(item.nodeid.partition("::")[0] for item in session.items)
        if self.by_file:
            self.terminal.showfspath = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        if not self.left:  # each process has collected the same tests
            self.left.update(test.partition("::")[0] for test in ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """Print no letter: the line of the file shows the outcomes."""
        if self.by_file and report.skipped:
            return "skipped", "", "SKIPPED"
        if self.by_file and report.passed:
            return ("passed" if report.when == "call" else ""), "", ""
        if self.by_file and report.failed:
            return ("failed" if report.when == "call" else "error"), "", "FAILED"
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += report.duration
        if report.when == "call" or not report.passed:
            self.outcomes[file][report.outcome] += 1
            if server := self.server_of(report.nodeid):
                self.of_server[server][report.outcome] += 1
        if report.when != "teardown":
            return
        self.left[file] -= 1
        if self.by_file and not self.left[file]:
            told = self.told(self.outcomes[file])
            self.terminal.ensure_newline()
            self.terminal.write_line(f"{file:<60} {told}, {self.seconds[file]:.1f} s")

    def server_of(self, test: str) -> str | None:
        """The server that a test drives, from its id: ``test_x[gunicorn gthread-generator]``."""
        _, _, parameters = test.partition("[")
        found = (name for name in self.servers if re.search(rf"\b{re.escape(name)}\b", parameters))
        return next(found, None) if test.startswith("tests/servers/") else None

    @staticmethod
    def told(counts: Counter[str]) -> str:
        return ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in counts.items())

    def pytest_sessionfinish(self) -> None:
        """Pass the counts to the process that prints."""
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["counted"] = {what: dict(c) for what, c in _counted.items()}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        for what, counts in getattr(node, "workeroutput", {}).get("counted", {}).items():
            _counted[what].update(counts)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the sections, with ``-q`` too."""
        servers = [f"{name}: {self.told(found)}" for name, found in sorted(self.of_server.items())]
        counted = [f"{what}: {self.told(counts)}" for what, counts in sorted(_counted.items())]
        for title, lines in {"Servers": servers, "Nothing lost": counted}.items():
            if lines:
                terminalreporter.section(title)
                for line in lines:
                    terminalreporter.line(line)
