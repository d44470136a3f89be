"""Run this project's server and its peers side by side, on the same load, in one run.

    python benchmarks/run.py                      # everything, medians of five: an hour
    python benchmarks/run.py --quick              # small, once: does it all work?
    python benchmarks/run.py --only blast,raw     # scenarios and servers by name

The server has one core to itself, the load generator the others. Each run checks that
every stream got every event, once, in order; one in which something was amiss is marked
and counts for nothing. What a peer lacks to run is said, and the peer is left out.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import report
from processes import HERE, Failed, machine
from scenarios import SCENARIOS, Found, Scenario
from servers import KINDS, Kind
from sseload import built

_RESULTS: Final = HERE / "results.json"


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C: processes are ended
    scenarios, kinds = _chosen(options.only)
    try:
        built()
    except Failed as failure:
        sys.exit(f"{failure}")
    skipped = _skipped(kinds)
    kinds = [kind for kind in kinds if kind.name not in skipped]
    results: dict[str, Any] = {
        "machine": machine(),
        "began": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "quick": options.quick,
        "rounds": 1 if options.quick else options.rounds,
        "servers": {k.name: {"title": k.title, "about": k.about()} for k in kinds},
        "skipped": skipped,
        "scenarios": {
            s.name: {"title": s.title, "sizes": s.quick if options.quick else s.sizes}
            for s in scenarios
        },
        "runs": [],
    }
    try:
        _run_all(results, scenarios, kinds)
    except KeyboardInterrupt:
        print("interrupted: what there is is written", file=sys.stderr)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{report.tables(results)}\nwritten to {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    parser.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help="scenarios and servers, separated by commas: "
        + ", ".join([*(s.name for s in SCENARIOS), *(k.name for k in KINDS)]),
    )
    parser.add_argument("--out", type=Path, default=_RESULTS, help="the JSON file to write")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


def _chosen(only: str) -> tuple[list[Scenario], list[Kind]]:
    """What ``--only`` leaves: naming no scenario means all of them; likewise servers."""
    names = {name for name in only.split(",") if name}
    scenarios = [s for s in SCENARIOS if s.name in names] or list(SCENARIOS)
    kinds = [k for k in KINDS if k.name in names] or list(KINDS)
    unknown = names - {s.name for s in SCENARIOS} - {k.name for k in KINDS}
    if unknown:
        sys.exit(f"--only: unknown: {', '.join(sorted(unknown))}")
    return scenarios, kinds


def _skipped(kinds: Sequence[Kind]) -> dict[str, str]:
    """The servers that cannot be run here, and what each lacks."""
    skipped: dict[str, str] = {}
    for kind in kinds:
        lacks = kind.lacks()
        if lacks is not None:
            skipped[kind.name] = lacks
            print(f"without {kind.title}: it needs {lacks}", flush=True)
    return skipped


def _run_all(results: dict[str, Any], scenarios: list[Scenario], kinds: list[Kind]) -> None:
    """Every round measures every server once, so that what changes meanwhile hits all."""
    steps = [
        (number, scenario, kind)
        for number in range(1, results["rounds"] + 1)
        for scenario in scenarios
        for kind in kinds
        if scenario.is_for(kind)
    ]
    for done, (number, scenario, kind) in enumerate(steps, 1):
        print(f"[{done}/{len(steps)}] {scenario.name} {kind.name} … ", end="", flush=True)
        began = time.monotonic()
        try:
            found = scenario.run(kind, results["scenarios"][scenario.name]["sizes"])
        except (Failed, OSError) as failure:
            found = Found(problems=[str(failure)])
        results["runs"].append(
            {"scenario": scenario.name, "server": kind.name, "round": number, **asdict(found)}
        )
        print(f"{_one_line(found)} ({time.monotonic() - began:.0f} s)", flush=True)


def _one_line(found: Found) -> str:
    figures = " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in found.figures.items()
    )
    amiss = "".join(f" !! {problem}" for problem in found.problems)
    return figures + amiss + "".join(f" ({remark})" for remark in found.remarks)


if __name__ == "__main__":
    main()
