"""Turn the figures of `run.py` into a page with tables and plots.

    python benchmarks/report.py            # results.json into docs/benchmarks.md and *.svg

Every figure is the median of the rounds in which nothing was amiss. The text speaks of
ratios; absolute numbers have the machine beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

from processes import HERE
from scenarios import SCENARIOS
from servers import KINDS
from targets import TARGETS, Verdict

_DOCS: Final = HERE.parent / "docs"
_HOW_TO: Final = """\
```console
$ pip install -r benchmarks/requirements.txt
$ python benchmarks/run.py
$ python benchmarks/report.py
```"""
_WHY: Final = """\
## What is not reached, and why

- **The bare loop, one event.** {without_post}To hand an event to a session is 0.2 µs of Python \
beside the system call. The rest of the difference is memory: the state of a thousand sessions is \
in no cache when their turn comes. Fewer objects for each would help, and a POST that costs less, \
which is HTTP parsed in Python.
- **Many sessions.** The bare loop has no state, and its cost grows too: that is the kernel's \
memory for sockets, out of its caches.
- **A publish to nobody.** It is two turns of Trio's scheduler, the publisher's checkpoint and \
the dispatcher's waking. A dispatcher that ran inside the publisher's step would reach it, and \
make publishers wait for sessions."""
_COLUMNS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "blast": {
        "deliveries_per_s": ("deliveries/s", ",.0f"),
        "cpu_us_per_delivery": ("µs CPU each", ".2f"),
    },
    "single": {
        "cpu_us_per_delivery": ("µs CPU for a delivery", ".1f"),
        "cpu_us_per_post": ("µs CPU for a POST, to one", ".0f"),
        "fan_out_p50_ms": ("ms until all have it, median", ".1f"),
    },
    "paced": {"p50_ms": ("median, ms", ".1f"), "p99_ms": ("99 %, ms", ".1f")},
    "connects": {"per_s": ("sessions/s", ",.0f"), "cpu_us": ("µs CPU each", ".0f")},
    "many": {
        "kib_per_session": ("KiB a session", ".1f"),
        "cpu_us_per_delivery": ("µs CPU for a delivery", ".1f"),
        "cpu_us_per_delivery_to_few": ("to a hundred", ".1f"),
        "told_goodbye": ("told goodbye", ".0%"),
        "ended_properly": ("whole responses", ".0%"),
        "exit_s": ("s to exit", ".1f"),
    },
    "stalled": {
        "p99_ms_free": ("99 % without, ms", ".1f"),
        "p99_ms_stalled": ("99 % with, ms", ".1f"),
        "mb_above_idle_stalled": ("MB above idle", ".0f"),
        "closed": ("stalled ones ended", ".0f"),
    },
    "dispatch": {"us": ("µs CPU", ".1f")},
}
_EXPLAINED: Final = {
    "blast": "{events} events of 128 bytes to {sessions} sessions, published inside the server "
    "as fast as it takes them; from then until the last was received. The bare loop writes each "
    "event by itself.",
    "single": "An event of 128 bytes to {sessions} sessions, and the next when all have it. "
    "The POST that publishes it is counted in; beside it what that costs with one session, an "
    "event's delivery included.",
    "paced": "To {sessions} sessions, {events} events; from before the POST to each arrival.",
    "connects": "{sessions} connections, 128 at a time, until the response's head is there.",
    "many": "{sessions} sessions, of which nothing is asked but {events} events, and then "
    "SIGTERM. For comparison, the cost of a delivery to {few} sessions.",
    "stalled": "{stalled} of {sessions} readers read nothing, while {events} events of 1 KiB go "
    "out, {rate} a second. How late the others are, with and without.",
    "dispatch": "`hub.publish` and the dispatcher's pass, without any session.",
}


@final
class Figures:
    """The medians of a run, by scenario, server and name."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results = results
        self.servers: dict[str, dict[str, str]] = results["servers"]
        self.sizes: dict[str, dict[str, int]] = {
            name: scenario["sizes"] for name, scenario in results["scenarios"].items()
        }
        self._runs: list[dict[str, Any]] = results["runs"]

    def median(self, scenario: str, server: str, name: str) -> float | None:
        values = [
            run["figures"][name]
            for run in self._of(scenario, server)
            if not run["problems"] and run["figures"].get(name) is not None
        ]
        return statistics.median(values) if values else None

    def problems(self, scenario: str, server: str) -> list[str]:
        """What was amiss, once for each round."""
        return ["; ".join(run["problems"]) for run in self._of(scenario, server) if run["problems"]]

    def remarks(self, scenario: str, server: str) -> bool:
        """Whether the load generator may have been what limited, in most rounds."""
        runs = self._of(scenario, server)
        return 2 * sum(bool(run["remarks"]) for run in runs) > len(runs)

    def measured(self, scenario: str) -> list[str]:
        """The servers that have runs, in the order of the list."""
        return [kind.name for kind in KINDS if self._of(scenario, kind.name)]

    def absent(self, scenario: str) -> list[str]:
        """Titles of the servers that it is for too, and that have no runs of it."""
        [only] = [each for each in SCENARIOS if each.name == scenario]
        return [
            about["title"]
            for server, about in self.servers.items()
            if server not in (*only.without, *self.measured(scenario))
            and (not only.only or server in only.only)
        ]

    def rounds(self, scenario: str, server: str) -> int:
        """How many count."""
        return sum(not run["problems"] for run in self._of(scenario, server))

    def ratio(self, a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b else None

    def _of(self, scenario: str, server: str) -> list[dict[str, Any]]:
        return [r for r in self._runs if r["scenario"] == scenario and r["server"] == server]


def tables(results: dict[str, Any]) -> str:
    """All of it as Markdown, without the plots."""
    figures = Figures(results)
    parts = [_targets_table(figures)]
    for name, scenario in results["scenarios"].items():
        explained = _EXPLAINED[name].format(**{k: f"{v:,}" for k, v in scenario["sizes"].items()})
        parts += [f"## {scenario['title']}", explained, _table(figures, name)]
    return "\n\n".join(parts)


def _targets_table(figures: Figures) -> str:
    lines = ["| what | target | measured | |", "| --- | --- | --- | --- |"]
    for target in TARGETS:
        if target.scenario in figures.sizes:
            verdict: Verdict = target.judge(figures)
            mark = {True: "reached", False: "**not reached**", None: "not measured"}
            lines.append(
                f"| {target.what} | {target.text} | {verdict.measured} | {mark[verdict.reached]} |"
            )
    return "\n".join(lines)


def _table(figures: Figures, scenario: str) -> str:
    columns = _COLUMNS[scenario]
    heads = " | ".join(head for head, _ in columns.values())
    lines = [f"| server | {heads} | rounds |", "| --- |" + " ---: |" * (len(columns) + 1)]
    notes: list[str] = []
    for server in figures.measured(scenario):
        cells = [
            _cell(figures.median(scenario, server, name), form)
            for name, (_, form) in columns.items()
        ]
        title = figures.servers[server]["title"]
        marks = ""
        if figures.remarks(scenario, server):
            marks += " ¹"
        problems = figures.problems(scenario, server)
        if problems:
            marks += " ²"
            notes.append(f"² {title}, rounds that do not count: {len(problems)} ({problems[0]})")
        cells.append(str(figures.rounds(scenario, server)))
        lines.append(f"| {title}{marks} | {' | '.join(cells)} |")
    if absent := figures.absent(scenario):
        notes.append(f"Not run here: {', '.join(absent)}.")
    if any("¹" in line for line in lines):
        notes.insert(0, "¹ The load generator used more than 80 % of its cores: it may be faster.")
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return "not in time" if value < 0 else format(value, form)


def _page(results: dict[str, Any], plots: Sequence[tuple[str, str]]) -> str:
    machine = results["machine"]
    about = [f"- {s['title']}: {s['about']}" for s in results["servers"].values()]
    about += [f"- not run: {name}, which needs {why}" for name, why in results["skipped"].items()]
    images = [f"![{alt}]({name})" for name, alt in plots]
    return (
        "\n\n".join(
            [
                "# Benchmarks",
                "All servers run the same scenarios in one run, round after round, each on one "
                "core to itself with the load generator on "
                + ("others" if machine["server_cores"] != machine["load_cores"] else "the same")
                + ". The load generator checks on every stream that each event comes once and in "
                "order. Peers are written as their documentation has it, with what they can share "
                "between clients shared. Make your own figures:",
                _HOW_TO,
                _summary(Figures(results)),
                (
                    f"The figures below are medians, from {machine['cpu']}, "
                    f"{machine['cores']} cores, {machine['kernel']}, {machine['python']}, "
                    f"{results['began'].split()[0]}, at {machine['revision']}. "
                    "On other machines the ratios should hold, the numbers will not."
                ),
                *images,
                tables(results),
                _why(Figures(results)),
                "## What ran\n\n" + "\n".join(about),
            ]
        ).replace("\n\n\n", "\n\n")
        + "\n"
    )


def _summary(figures: Figures) -> str:
    """The text: ratios only."""

    def times(scenario: str, name: str, other: str, *, less: bool = False) -> str | None:
        ours = figures.median(scenario, "trio-sse", name)
        theirs = figures.median(scenario, other, name)
        ratio = figures.ratio(theirs, ours) if less else figures.ratio(ours, theirs)
        return (
            None if ratio is None else f"{ratio:.2g} times" if ratio < 10 else f"{ratio:.0f} times"
        )

    said: list[str] = []
    blast = times("blast", "deliveries_per_s", "sse-starlette")
    if blast:
        said.append(f"A blast goes out at {blast} the rate of sse-starlette on uvloop")
    joined = times("blast", "deliveries_per_s", "sse-starlette-joined")
    if joined:
        said.append(f"and at {joined} that of the same with queued events joined by hand")
    single = times("single", "cpu_us_per_delivery", "hypercorn-trio", less=True)
    if single:
        said.append(f"one event costs plain ASGI on hypercorn-trio {single} as much")
    limit = times("single", "cpu_us_per_delivery", "raw", less=True)
    if limit:
        said.append(f"and a bare loop of `socket.send`, which is the limit, {limit} as much")
    return (", ".join(said) + ".") if said else ""


def _why(figures: Figures) -> str:
    """What stands in the way; with what the POST takes of the time, if that was measured."""

    def without_post(server: str) -> float | None:
        whole = figures.median("single", server, "cpu_us_per_delivery")
        post = figures.median("single", server, "cpu_us_per_post")
        if whole is None or post is None:
            return None
        return whole - post / figures.sizes["single"]["sessions"]

    ratio = figures.ratio(without_post("raw"), without_post("trio-sse"))
    said = "" if ratio is None else f"Without the POST that publishes it is {ratio:.2f} times. "
    return _WHY.format(without_post=said)


def _plots(results: dict[str, Any], directory: Path) -> list[tuple[str, str]]:
    """Write the plots; each one's file name and what it shows.

    Without matplotlib there are none, and a line says so.
    """
    try:
        from plots import draw  # noqa: PLC0415  # matplotlib is not needed for the tables
    except ImportError as missing:
        print(f"without plots: {missing}; pip install matplotlib", file=sys.stderr)
        return []
    return draw(Figures(results), directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="?", default=HERE / "results.json")
    parser.add_argument("--docs", type=Path, default=_DOCS, help="where to write")
    options = parser.parse_args()
    results = json.loads(options.results.read_text())
    page = options.docs / "benchmarks.md"
    page.write_text(_page(results, _plots(results, options.docs)))
    print(f"written: {page}")


if __name__ == "__main__":
    main()
