"""The official conformance suite, against a server of ours: every scenario that is scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from mcp_real import conformance
from mcp_real.conformance import RUNS, Scenario, run_suite
from mcp_real.harness import SERVED_BY, require_node, served

pytestmark = [pytest.mark.mcp_real, pytest.mark.timeout(300)]


@pytest.mark.parametrize("by", SERVED_BY)
@pytest.mark.parametrize("which", RUNS)
def test_every_scenario_passes(
    by: str, which: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    node = require_node()
    with served(by, tmp_path) as server:
        scenarios = run_suite(node, which, f"{server.origin}/mcp", tmp_path)
    table = "\n".join(scenario.line() for scenario in scenarios)
    scored = [each for each in scenarios if each.scored]
    rest = [each for each in scenarios if not each.scored]
    figure(
        f"{sum(each.passed for each in scored)} of {len(scored)} scored scenarios passed, "
        f"{sum(each.passed for each in rest)} of {len(rest)} others, "
        f"{sum(each.checks['SUCCESS'] for each in scenarios)} checks"
    )
    print(f"\n{which} under {by}\n{table}")  # noqa: T201  # for who asks with -rA
    assert [each.name for each in scenarios if not each.passed and not each.excuse] == [], table
    polling = [each for each in scenarios if each.name == conformance.POLLING]
    # It only warns of what is missing, and tells as information what it could not try.
    assert [each.checks["SUCCESS"] for each in polling] == ([] if which == "2026-07-28" else [3])


@pytest.mark.parametrize(
    ("statuses", "passed"),
    [
        ({"SUCCESS": 2, "INFO": 3}, True),
        ({"INFO": 3}, False),
        ({}, False),
    ],
)
def test_a_scenario_passes_by_what_was_checked(statuses: dict[str, int], passed: bool) -> None:
    assert Scenario("ping", True, Counter(statuses), []).passed == passed


@pytest.mark.parametrize("status", ["FAILURE", "WARNING", "SKIPPED", "new in some version"])
def test_whatever_is_not_a_success_is_told(tmp_path: Path, status: str) -> None:
    folder = tmp_path / "server-sse-polling-2026-11-22T18-52-32-220Z"
    folder.mkdir()
    path = folder / "checks.json"
    path.write_text(
        f'[{{"status": "SUCCESS", "id": "a"}},'
        f' {{"status": "{status}", "id": "b", "description": "it polls"}}]'
    )
    scenario = conformance.read_result(path, ["sse-polling"])
    assert (scenario.name, scenario.scored, scenario.passed) == ("sse-polling", True, False)
    assert scenario.line().splitlines() == [
        "FAILED    1  sse-polling",
        f"             {status} b: it polls",
    ]


def test_only_what_is_not_scored_can_be_excused() -> None:
    for scored, excused in ((True, False), (False, True)):
        scenario = Scenario("tasks-lifecycle", scored, Counter(), ["FAILURE x: y"])
        assert bool(scenario.excuse) == excused
