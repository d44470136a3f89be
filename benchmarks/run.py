"""Run this project's server and its peers side by side, on the same load, in one run.

    python benchmarks/run.py                      # everything, medians of five: an hour
    python benchmarks/run.py --quick              # small, once: does it all work?
    python benchmarks/run.py --only blast,raw     # scenarios and servers by name
    python benchmarks/run.py --add --only many    # more of it, beside what was measured

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
        "servers": {k.name: {"title": k.title, "about": k.about()} for k in kinds},
        "skipped": skipped,
        "scenarios": {
            s.name: {"title": s.title, "sizes": s.quick if options.quick else s.sizes}
            for s in scenarios
        },
        "runs": [],
    }
    if options.add:
        results = _added_to(json.loads(options.out.read_text()), results)
    try:
        _run_all(results, 1 if options.quick else options.rounds, scenarios, kinds)
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
    parser.add_argument(
        "--add", action="store_true", help="keep what the file has, from the same machine"
    )
    parser.add_argument("--out", type=Path, default=_RESULTS, help="the JSON file to write")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    if options.add and not options.out.exists():
        parser.error(f"--add: there is no {options.out} yet; measure without it first")
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


def _added_to(older: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """``results``, of which nothing was run yet, beside what was measured before."""
    same = ("cpu", "cores", "server_cores", "load_cores", "kernel", "python", "revision")
    for name in same:
        was, now = older["machine"][name], results["machine"][name]
        if was != now:
            sys.exit(f"--add: the {name} was {was}, and is {now}: what is compared is of one")
    for name, scenario in results["scenarios"].items():
        if older["scenarios"].get(name, scenario) != scenario:
            sys.exit(f"--add: {name} was measured with other sizes")
    return {
        **older,
        "servers": {**older["servers"], **results["servers"]},
        "skipped": {**older["skipped"], **results["skipped"]},
        "scenarios": {**older["scenarios"], **results["scenarios"]},
    }


def _run_all(
    results: dict[str, Any], rounds: int, scenarios: list[Scenario], kinds: list[Kind]
) -> None:
    """Every round measures every server once, so that what changes meanwhile hits all."""
    done_before = max((run["round"] for run in results["runs"]), default=0)
    steps = [
        (number, scenario, kind)
        for number in range(done_before + 1, done_before + rounds + 1)
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
