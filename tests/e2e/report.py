"""The scenario as a person reads it: a line with its time for each check as it ends, a table at the end."""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.image import Image


@dataclass(eq=False)
class Scenario:
    """What the checks share, and the report of them. A pytest plugin."""

    image: Image
    archive: Path
    keep: bool  # whether the guests stay up for a person when the checks are over
    began: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)
    _seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _outcome: dict[str, str] = field(default_factory=dict)

    def say(self, outcome: str, seconds: float, name: str, reporter: pytest.TerminalReporter) -> None:
        """Print a line now and once more in the table."""
        line = f"{outcome:<7}{seconds:7.1f} s  {name}"
        self.lines.append(line)
        reporter.ensure_newline()
        reporter.write_line(line, red=outcome == "FAILED")
        reporter.flush()

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Counted as ever, without letters: the lines say it."""
        if report.when == "call" or report.outcome != "passed":
            return report.outcome, "", ""
        return "", "", ""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds set-up, call and clean-up of a check to one line."""
        name = report.nodeid
        self._seconds[name] += report.duration
        if report.outcome != "passed" or report.when == "call":
            words = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}
            if self._outcome.get(name) != "FAILED":
                self._outcome[name] = words[report.outcome]
        if report.when == "teardown":
            self.say(self._outcome[name], self._seconds[name], _words(name), self._reporter)

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    @property
    def _reporter(self) -> pytest.TerminalReporter:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        assert isinstance(reporter, pytest.TerminalReporter)
        return reporter

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table."""
        terminalreporter.section("checks")
        for line in self.lines:
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"{'total':<7}{time.monotonic() - self.began:7.1f} s")


def scenario_of(config: pytest.Config) -> Scenario | None:
    """The scenario of a run of `./dev e2e`, None in any other."""
    found = (plugin for plugin in config.pluginmanager.get_plugins() if isinstance(plugin, Scenario))
    return next(found, None)


def _words(nodeid: str) -> str:
    """`tests/e2e/test_1_x.py::test_a_name[case]` as "a name: case"."""
    name, _, case = nodeid.rpartition("::")[2].partition("[")
    words = name.removeprefix("test_").replace("_", " ")
    return f"{words}: {case.removesuffix(']')}" if case else words
