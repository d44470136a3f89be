"""Put the figures of `logs.py` into docs/logs.md, between two marks.

    python benchmarks/logs_report.py

What stands between the marks is made here, all of it; the rest of the page is not touched.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from logs import RESULTS
from processes import HERE

_PAGE: Final = HERE.parent / "docs" / "logs.md"
_BEGIN: Final = "<!-- Made by benchmarks/logs_report.py from here on. -->"
_END: Final = "<!-- Made by benchmarks/logs_report.py up to here. -->"
_TARGETS: Final = {"sqlite": 200_000, "redis": 100_000}
"""Events a second that are to be replayed from what is stored."""

Column = tuple[str, str, str, str]
"""What it is called; where it is: of which measurement, under which name; how it is written."""

_PUBLISH: Final[list[Column]] = [
    ("one publisher: median, ms", "alone", "p50_ms", ".2f"),
    ("99 %, ms", "alone", "p99_ms", ".2f"),
    ("events/s", "alone", "per_s", ",.0f"),
    ("{publishers} publishers: median, ms", "together", "p50_ms", ".2f"),
    ("99 %, ms", "together", "p99_ms", ".2f"),
    ("events/s", "together", "per_s", ",.0f"),
]
_KEEP: Final[list[Column]] = [
    ("replayed events/s", "replay", "per_s", ",.0f"),
    ("µs CPU each", "replay", "cpu_us", ".1f"),
    ("bytes kept for an event", "kept", "bytes_per_event", ".0f"),
]
_LIVE: Final[list[Column]] = [
    ("alone: median, ms", "live_without", "p50_ms", ".1f"),
    ("99 %, ms", "live_without", "p99_ms", ".1f"),
    ("while as many connect: 99 %, ms", "live_arriving", "p99_ms", ".1f"),
    ("while they replay: median, ms", "live_beside", "p50_ms", ".1f"),
    ("99 %, ms", "live_beside", "p99_ms", ".1f"),
    ("replayed events/s, all together", "beside", "per_s", ",.0f"),
    ("KiB a session that replays", "beside", "kib_per_session", ".0f"),
]


def section(results: dict[str, Any]) -> str:
    """All that stands between the marks."""
    sizes, machine = results["sizes"], results["machine"]
    replay = sizes["replay"]
    shared = " and Redis, too" if machine["server_cores"] == machine["load_cores"] else ""
    setting = (
        f"From {machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, "
        f"{machine['python']}, {results['began']}, at {machine['revision']}{_rounds(results)}. "
        f"Events have 128 bytes of data. Python has one core to itself{shared}; the disk is the "
        "machine's own. Make your own with `python benchmarks/logs.py` and `python "
        "benchmarks/logs_report.py`."
    )
    stored = (
        f"To replay {sizes['stored']:,} stored events, in pages as a session gets them, by a "
        "process that has just opened the log; and what it takes to keep them:"
    )
    beside = (
        f"{replay['sessions']:,} sessions that connect at once and replay {replay['events']:,} "
        f"events each, beside {replay['live']} that hear {replay['rate']:.0f} new ones a second, "
        "on one core. How late those are, from when an event was due to be posted to each "
        "arrival: alone, while as many sessions connect that replay nothing, and beside those "
        "that do. But for the log in memory the server was started anew before, and had nothing "
        "at hand:"
    )
    return "\n\n".join(
        [
            _BEGIN,
            setting,
            "To publish, from the call to the answer, inside the server; HTTP comes on top:",
            _table(results, _PUBLISH),
            stored,
            _table(results, _KEEP) + _verdict(results),
            beside,
            _table(results, _LIVE),
            _END,
        ]
    )


def _rounds(results: dict[str, Any]) -> str:
    counts = {n for engine in results["engines"].values() for n in engine["rounds"].values()}
    least, most = min(counts), max(counts)
    if most == 1:
        return ", one round"
    return f", medians of {most} rounds" if least == most else f", {least} to {most} rounds each"


def _table(results: dict[str, Any], columns: list[Column]) -> str:
    heads = " | ".join(head for head, *_ in columns).format(**results["sizes"])
    lines = [f"| log | {heads} |", "| --- |" + " ---: |" * len(columns)]
    for engine in results["engines"].values():
        cells = [_cell(engine, *where) for _, *where in columns]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {engine['title']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(engine: dict[str, Any], what: str, name: str, form: str) -> str:
    value = engine.get(what, {}).get(name)
    return "-" if value is None else format(value, form)


def _verdict(results: dict[str, Any]) -> str:
    """Whether replay is as fast as it is meant to be."""
    said: list[str] = []
    for name, engine in results["engines"].items():
        target = _TARGETS.get(name.partition("-")[0])
        if target is not None and "replay" in engine and engine["replay"]["per_s"] < target:
            said.append(f"{engine['title']}: below the {target:,} events/s that are the target")
    return "".join(f"\n\n{each}." for each in said)


def put(page: str, made: str) -> str:
    """``page`` with ``made`` between its marks.

    Raises:
        ValueError: it does not have them.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page has no {_BEGIN!r} ... {_END!r} to write between")
    return before + made + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--page", type=Path, default=_PAGE, help="where to write")
    options = parser.parse_args()
    made = section(json.loads(options.results.read_text()))
    options.page.write_text(put(options.page.read_text(), made))
    print(f"written: {options.page}")


if __name__ == "__main__":
    main()
