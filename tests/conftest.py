"""What all tests share: parts that may be missing, and figures worth printing."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from _parts import PARTS, require

_FIGURE = "figure"


def pytest_configure() -> None:
    """A shell has what it runs in the background ignore Ctrl-C; what is started here must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked with the name of a part runs where that part is."""
    for marker, programs in PARTS.items():
        if item.get_closest_marker(marker) is not None:
            for names, how_to_get in programs.items():
                require(names, how_to_get)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Call it with a line that the run's summary is to show, as a count of what was tried."""
    return lambda text: record_property(_FIGURE, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for report in terminalreporter.getreports("")
        + terminalreporter.getreports("passed")
        + terminalreporter.getreports("failed")
        if isinstance(report, pytest.TestReport) and report.when == "call"
    ]
    figures = [
        (report.nodeid, value)
        for report in reports
        for name, value in report.user_properties
        if name == _FIGURE
    ]
    if figures:
        terminalreporter.section("figures")
    for nodeid, value in figures:
        terminalreporter.line(f"{nodeid}: {value}")
