"""Turn the figures of `mcp_run.py` into a page.

    python benchmarks/mcp_report.py            # mcp-results.json into docs/mcp-benchmarks.md

Every figure is the median of the rounds in which nothing was amiss.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from processes import HERE
from report import Figures

RESULTS: Final = HERE / "mcp-results.json"
_DOCS: Final = HERE.parent / "docs"
_COLUMNS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "calls": {
        "per_s": ("calls/s", ",.0f"),
        "cpu_us": ("µs CPU each", ",.0f"),
        "p50_ms": ("median, ms", ".1f"),
        "p99_ms": ("99 %, ms", ".1f"),
        "load_busy": ("load generator's CPU", ".0%"),
    },
    "opened": {
        "p50_ms": ("median, ms", ".2f"),
        "per_s": ("sessions/s", ",.0f"),
        "cpu_us": ("µs CPU each", ",.0f"),
        "load_busy": ("load generator's CPU", ".0%"),
    },
    "memory": {"kib": ("KiB a session", ".1f")},
    "notified": {
        "all_ms": ("ms until all have it", ".1f"),
        "per_s": ("notifications/s", ",.0f"),
        "cpu_us": ("µs CPU each", ",.1f"),
        "load_busy": ("load generator's CPU", ".0%"),
    },
}
_EXPLAINED: Final = {
    "calls": "On each of {connections} connections one call after the other, for {seconds} s, "
    "of a tool that answers with its argument.",
    "opened": "`initialize` and `notifications/initialized` on a new connection, {sessions} "
    "times, one after the other.",
    "memory": "What {sessions} sessions add to the process, in each of which a call was made; "
    "their connections are {open}.",
    "notified": "One notification to {sessions} clients, and the next when all have it, "
    "{rounds} times.",
}
_HOW_TO: Final = """\
```console
$ pip install '.[mcp]' -r benchmarks/requirements.txt
$ python benchmarks/mcp_run.py
$ python benchmarks/mcp_report.py
```"""


@dataclass(frozen=True)
class Target:
    """How many times ``theirs`` ours is to be; with ``less``, theirs of ours."""

    what: str
    scenario: str
    figure: str
    least: float
    theirs: str = "sdk@serve"
    less: bool = False

    def ratio(self, figures: Figures) -> float | None:
        ours = figures.median(self.scenario, "ours@serve", self.figure)
        theirs = figures.median(self.scenario, self.theirs, self.figure)
        return figures.ratio(theirs, ours) if self.less else figures.ratio(ours, theirs)


TARGETS: Final = (
    *(
        Target(f"calls/s, 2025-11-25, {n} connections", f"calls-2025-{n}", "per_s", 2)
        for n in (16, 256)
    ),
    *(
        Target(f"calls/s, 2026-07-28, {n} connections", f"calls-2026-{n}", "per_s", 1)
        for n in (16, 256)
    ),
    Target("memory of a session with its stream", "memory-streams", "kib", 2, less=True),
    Target("memory of a session without", "memory", "kib", 2, less=True),
)
"""Each beside the SDK's own ASGI app on the same worker, as it is by default."""
ALIKE: Final = {
    "every answer as JSON": ("ours@serve", "sdk-json@serve"),
    "every answer as SSE": ("ours-sse@serve", "sdk@serve"),
    "both on hypercorn-trio": ("ours@hypercorn", "sdk@hypercorn"),
    "SDK on uvicorn": ("ours@serve", "sdk@uvicorn"),
    "SDK on uvicorn, as JSON": ("ours@serve", "sdk-json@uvicorn"),
}
"""More pairs, of which nothing is promised: in calls/s, ours of theirs."""


def tables(results: dict[str, Any]) -> str:
    """All of it as Markdown."""
    figures = Figures(results)
    parts = [_targets_table(figures), _alike_table(figures)]
    for name, scenario in results["scenarios"].items():
        what = scenario["sizes"]["what"]
        words = {**scenario["sizes"], "open": "open"}
        if not words.get("streams", True):
            words["open"] = "closed"
        explained = _EXPLAINED[what].format_map({k: _number(v) for k, v in words.items()})
        number = len({r["round"] for r in results["runs"] if r["scenario"] == name})
        explained += f" {'Medians of' if number > 1 else 'In'} {number} round{'s'[: number - 1]}."
        parts += [f"## {scenario['title']}", explained, _table(figures, name, what)]
    return "\n\n".join(parts)


def _number(value: object) -> str:
    return f"{value:,g}" if isinstance(value, int | float) else str(value)


def _targets_table(figures: Figures) -> str:
    lines = ["| beside the SDK's app | target | measured | |", "| --- | --- | --- | --- |"]
    for target in TARGETS:
        ratio = target.ratio(figures)
        reached = "not measured" if ratio is None else ""
        if ratio is not None:
            reached = "reached" if ratio >= target.least else "**not reached**"
        wanted = f"{'a ' if target.less else '≥ '}{_wanted(target)}"
        lines.append(f"| {target.what} | {wanted} | {_measured(target, ratio)} | {reached} |")
    return "\n".join(lines)


def _alike_table(figures: Figures) -> str:
    """How the calls of other pairs compare."""
    scenarios = [name for name in figures.sizes if name.startswith("calls-")]
    if not scenarios:
        return ""
    heads = [f"{year}, {number}" for _, year, number in (name.split("-") for name in scenarios)]
    lines = ["Other pairs, ours to the SDK's, by revision and number of connections:\n"]
    lines += [f"| calls/s | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for what, (ours, theirs) in ALIKE.items():
        ratios = [
            figures.ratio(
                figures.median(name, ours, "per_s"), figures.median(name, theirs, "per_s")
            )
            for name in scenarios
        ]
        cells = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _wanted(target: Target) -> str:
    return "half at most" if target.less else f"{target.least:g} times"


def _measured(target: Target, ratio: float | None) -> str:
    if ratio is None:
        return "-"
    # Rounded so that it looks no better than it is.
    if target.less:
        return f"{math.ceil(100 / ratio) / 100:.2f} of it"
    return f"{math.floor(100 * ratio) / 100:.2f} times"


def _table(figures: Figures, scenario: str, what: str) -> str:
    columns = _COLUMNS[what]
    heads = " | ".join(head for head, _ in columns.values())
    lines = [f"| server | {heads} |", "| --- |" + " ---: |" * len(columns)]
    notes: list[str] = []
    for server in figures.measured(scenario):
        cells = [
            _cell(figures.median(scenario, server, name), form)
            for name, (_, form) in columns.items()
        ]
        title = figures.servers[server]["title"]
        problems = figures.problems(scenario, server)
        if problems:
            notes.append(f"¹ {title}: {len(problems)} times: {problems[0]}")
        lines.append(f"| {title}{' ¹' if problems else ''} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _page(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {each}" for name, each in results["versions"].items())
    revisions = list(dict.fromkeys(run["revision"] for run in results["runs"]))
    which = " to ".join(dict.fromkeys([revisions[0], revisions[-1]]))
    return (
        "\n\n".join(
            [
                "# MCP benchmarks",
                (
                    "`trio_sse.mcp` beside the ASGI app of the official Python SDK. The MCP server "
                    "behind them is the same, so is the kernel that runs it; what serves them is "
                    "the same where the table says so. Each server has a core to itself, and is "
                    "started anew for each scenario; the load generator has another, checks every "
                    "answer, and tells how busy it was. Make your own figures:"
                ),
                _HOW_TO,
                (
                    f"These are from {machine['cpu']}, {machine['cores']} cores, "
                    f"{machine['kernel']}, {machine['python']}, {versions}, "
                    f"{results['began'].split()[0]}, at {which}. On other "
                    "machines the ratios should hold, the numbers will not."
                ),
                tables(results),
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--docs", type=Path, default=_DOCS, help="where to write")
    options = parser.parse_args()
    page = options.docs / "mcp-benchmarks.md"
    page.write_text(_page(json.loads(options.results.read_text())))
    print(f"written: {page}")


if __name__ == "__main__":
    main()
