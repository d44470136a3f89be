"""The conformance suite's runs, and what is read out of their results."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_real.harness import Node, run

POLLING: Final = "server-sse-polling"
RUNS: Final[dict[str, tuple[str, list[str]]]] = {
    "2025-11-25": ("conformance", ["--requirements", "2025-11-25"]),
    "2026-07-28": ("conformance", ["--requirements", "2026-07-28"]),
    "0.1.16": ("conformance-0.1", ["--suite", "all"]),
}
"""Which of the two versions runs, and what."""
NOT_OURS: Final = {
    "tasks-": "the tasks extension is the kernel's to implement, which does not",
}
"""What may fail among the scenarios that are not scored, by how its name begins."""


@dataclass(frozen=True)
class Scenario:
    """What became of one."""

    name: str
    scored: bool
    checks: Counter[str]
    amiss: list[str]

    @property
    def excuse(self) -> str | None:
        if self.scored:
            return None
        return next((why for name, why in NOT_OURS.items() if self.name.startswith(name)), None)

    @property
    def passed(self) -> bool:
        """Something was checked, and nothing failed, was skipped or warned of."""
        return bool(self.checks["SUCCESS"]) and not self.amiss

    def line(self) -> str:
        mark = "passed" if self.passed else "EXCUSED" if self.excuse else "FAILED"
        about = "" if self.scored else " (not scored)"
        lines = [f"{mark:8}{self.checks['SUCCESS']:3}  {self.name}{about}"]
        return "\n".join([*lines, *(f"             {each}" for each in self.amiss)])


def run_suite(node: Node, which: str, url: str, folder: Path) -> list[Scenario]:
    """Run one of `RUNS` and read its results. What it prints and exits with is not believed."""
    package, args = RUNS[which]
    script = str(node.modules / package / "dist" / "index.js")
    command = node.command(script, "server", "--url", url, *args, "-o", str(folder))
    said = run(command, cwd=folder)
    wanted, more = _wanted(node, which)
    found = [read_result(path, wanted) for path in sorted(folder.glob("server-*/checks.json"))]
    names = Counter(scenario.name for scenario in found)
    assert names == Counter(wanted + more), f"other scenarios ran than should have:\n{said}"
    return found


def _wanted(node: Node, which: str) -> tuple[list[str], list[str]]:
    """The scenarios that are scored, and those that only run."""
    package, _ = RUNS[which]
    if which == "0.1.16":
        script = str(node.modules / package / "dist" / "index.js")
        listed = run(node.command(script, "list", "--server"))
        return re.findall(r"^ +- (\S+)", listed, re.MULTILINE), []
    text = (node.modules / package / "requirements" / f"{which}.yaml").read_text()
    [scored] = re.findall(r"^server:\n((?: +- .*\n)+)", text, re.MULTILINE)
    not_scored = re.findall(r"- scenario: (\S+)\n +leg: server", text)
    return re.findall(r"- (\S+)", scored), not_scored


def read_result(path: Path, scored: list[str]) -> Scenario:
    checks = json.loads(path.read_text())
    # The directory is named server-<scenario>-<date>T<time>.
    name = re.sub(r"-\d{4}-\d\d-\d\dT.*$", "", path.parent.name.removeprefix("server-"))
    amiss = [
        f"{check['status']} {check['id']}: {check.get('errorMessage', check['description'])}"
        for check in checks
        if check["status"] not in ("SUCCESS", "INFO")
    ]
    return Scenario(name, name in scored, Counter(c["status"] for c in checks), amiss)
