"""Measure `trio_sse.mcp` beside the SDK's own ASGI app, on the same workers, in one run.

    python benchmarks/mcp_run.py                     # everything, medians of three
    python benchmarks/mcp_run.py --quick             # small, once: does it all work?
    python benchmarks/mcp_run.py --only memory,opened --add    # some, to what there is
    python benchmarks/mcp_report.py                  # results into docs/mcp-benchmarks.md

Each scenario has each server anew, on a core to itself, with the load on the others. An
answer that is not what it should be ends that measurement, which then counts for nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from mcp_report import RESULTS, tables
from processes import HERE, Failed, cores, free_port, json_output, machine, running, wait_for_port

_PATIENCE: Final = 120.0


@dataclass(frozen=True)
class Kind:
    """What carries the server, and what serves that: `mcp_server.py`'s first two words."""

    app: str
    worker: str
    title: str

    @property
    def name(self) -> str:
        return f"{self.app}@{self.worker}"


KINDS: Final = (
    Kind("ours", "serve", "trio_sse.mcp on trio_sse.serve"),
    Kind("ours-sse", "serve", "the same, every answer as SSE"),
    Kind("sdk", "serve", "SDK on trio_sse.serve"),
    Kind("sdk-json", "serve", "the same, every answer as JSON"),
    Kind("ours", "hypercorn", "trio_sse.mcp on hypercorn-trio"),
    Kind("sdk", "hypercorn", "SDK on hypercorn-trio"),
    Kind("sdk", "uvicorn", "SDK on uvicorn, uvloop"),
    Kind("sdk-json", "uvicorn", "the same, every answer as JSON"),
)


@dataclass(frozen=True)
class Scenario:
    """What `mcp_load.py` is asked for; ``quick`` is what is different in small."""

    name: str
    title: str
    asked: dict[str, Any]
    quick: dict[str, Any]

    def sizes(self, *, quick: bool) -> dict[str, Any]:
        return {**self.asked, **(self.quick if quick else {})}


def _calls(revision: str, connections: int) -> Scenario:
    asked = {"what": "calls", "revision": revision, "connections": connections, "seconds": 4.0}
    title = f"Calls, {revision}, {connections} connections"
    return Scenario(f"calls-{revision[:4]}-{connections}", title, asked, {"seconds": 0.5})


def _memory(name: str, title: str, *, streams: bool) -> Scenario:
    asked = {"what": "memory", "sessions": 1000, "streams": streams}
    return Scenario(name, title, asked, {"sessions": 100})


def _notified(revision: str) -> Scenario:
    asked = {"what": "notified", "revision": revision, "sessions": 1000, "rounds": 5}
    title = f"Notifications to 1,000, {revision}"
    return Scenario(f"notified-{revision[:4]}", title, asked, {"sessions": 50, "rounds": 2})


SCENARIOS: Final = (
    *(_calls(revision, n) for revision in ("2025-11-25", "2026-07-28") for n in (16, 256)),
    Scenario("opened", "Opening a session", {"what": "opened", "sessions": 300}, {"sessions": 20}),
    _memory("memory", "Memory of a session", streams=False),
    _memory("memory-streams", "Memory of a session with its stream", streams=True),
    _notified("2025-11-25"),
    _notified("2026-07-28"),
)


def measure(kind: Kind, asked: dict[str, Any]) -> dict[str, float]:
    """One scenario with one server.

    Raises:
        Failed: the server or the load did not do what they should.
    """
    port = free_port()
    server_core, load_cores = cores()
    command = [sys.executable, str(HERE / "mcp_server.py"), kind.app, kind.worker, str(port)]
    with running(command, core=server_core, cwd=HERE) as (process, log):
        wait_for_port(process, log, port)
        asked = {**asked, "port": port, "pid": process.pid}
        load = [sys.executable, str(HERE / "mcp_load.py"), json.dumps(asked)]
        return json_output(load, core=load_cores, seconds=_PATIENCE)


def main() -> None:
    options = _options()
    chosen = [s for s in SCENARIOS if not options.only or s.name in options.only]
    if options.add and options.out.exists():
        results = json.loads(options.out.read_text())
    else:
        results = _new_results(options)
    for scenario in chosen:
        sizes = scenario.sizes(quick=options.quick)
        results["scenarios"][scenario.name] = {"title": scenario.title, "sizes": sizes}
    try:
        for _ in range(options.rounds):
            for scenario in chosen:
                _measure_all(scenario, results, quick=options.quick)
    except KeyboardInterrupt:
        print("interrupted: what there is is written", file=sys.stderr)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{tables(results)}\nwritten to {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help=", ".join(s.name for s in SCENARIOS)
    )
    parser.add_argument("--add", action="store_true", help="to the results that there are")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    unknown = {*(options.only or ())} - {s.name for s in SCENARIOS}
    if unknown or options.rounds < 1:
        parser.error(f"unknown: {', '.join(sorted(unknown))}" if unknown else "at least 1 round")
    return options


def _new_results(options: argparse.Namespace) -> dict[str, Any]:
    packages = ("mcp", "trio", "hypercorn", "uvicorn", "uvloop", "httptools")
    return {
        "machine": machine(),
        "began": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "quick": options.quick,
        "versions": {package: version(package) for package in packages},
        "servers": {kind.name: {"title": kind.title} for kind in KINDS},
        "scenarios": {},
        "runs": [],
    }


def _measure_all(scenario: Scenario, results: dict[str, Any], *, quick: bool) -> None:
    """All servers one after the other, so that what changes meanwhile hits all."""
    before = [run["round"] for run in results["runs"] if run["scenario"] == scenario.name]
    number = 1 + max(before, default=0)
    revision = machine()["revision"]
    for kind in KINDS:
        figures: dict[str, float] = {}
        problems: list[str] = []
        try:
            figures = measure(kind, scenario.sizes(quick=quick))
        except Failed as failure:
            problems.append(str(failure))
        results["runs"].append(
            {
                "scenario": scenario.name,
                "server": kind.name,
                "round": number,
                "revision": revision,
                "figures": figures,
                "problems": problems,
                "remarks": ["the load was busy"] if figures.get("load_busy", 0) > 0.8 else [],
            }
        )
        told = " ".join(f"{name}={value:.4g}" for name, value in figures.items())
        print(f"{scenario.name} {kind.name}: {told}{' !! '.join(['', *problems])}", flush=True)


if __name__ == "__main__":
    main()
