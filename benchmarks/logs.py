"""What each event log costs: to publish into, to replay from, and to keep.

    python benchmarks/logs.py                    # all engines, medians of three
    python benchmarks/logs.py --quick            # small, once: does it all work?
    python benchmarks/logs.py --only sqlite-full,redis

Each measurement is a process of its own on one core; Redis has the others. SQLite's file,
and what Redis syncs, are below ``--directory``: where that is decides what a sync costs.
`logs_report.py` puts the results into the documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio
from logs_replay import Sizes as ReplaySizes
from logs_replay import replay_beside_live
from nodes_parts import Fsync, free_port, redis
from processes import HERE, cores, machine

from trio_sse import Event, EventLog, open_log
from trio_sse.dispatch import PASS_EVENTS

RESULTS: Final = HERE / "logs.json"
_DATA: Final = "x" * 128
_ROOM: Final = 1_000_000
"""Events that each log may keep: more than come here."""


class Engine(NamedTuple):
    """A log, and how it is set up.

    Attributes:
        title: for the tables.
        url: with a place for ``{path}``, the file, or ``{port}``, Redis'.
        options: for `open_log`.
        fsync: what Redis does; ``None`` where there is none.
    """

    title: str
    url: str
    options: dict[str, Any]
    fsync: Fsync | None = None


ENGINES: Final = {
    "memory": Engine("memory", "memory", {"max_bytes": 1 << 30}),
    "sqlite-full": Engine(
        "SQLite, `full`", "sqlite:{path}", {"sync": "full", "max_bytes": 1 << 30}
    ),
    "sqlite-normal": Engine(
        "SQLite, `normal`", "sqlite:{path}", {"sync": "normal", "max_bytes": 1 << 30}
    ),
    "sqlite-off": Engine("SQLite, `off`", "sqlite:{path}", {"sync": "off", "max_bytes": 1 << 30}),
    "redis": Engine("Redis, in memory", "redis://127.0.0.1:{port}/0", {}, "no"),
    "redis-everysec": Engine("Redis, `everysec`", "redis://127.0.0.1:{port}/0", {}, "everysec"),
    "redis-always": Engine("Redis, `always`", "redis://127.0.0.1:{port}/0", {}, "always"),
}


class Sizes(NamedTuple):
    """How much of everything."""

    alone: int
    together: int
    publishers: int
    stored: int
    replay: ReplaySizes


FULL: Final = Sizes(2_000, 20_000, 100, 100_000, ReplaySizes(1_000, 10_000, 100, 40.0, 4.0))
QUICK: Final = Sizes(200, 1_000, 20, 5_000, ReplaySizes(50, 500, 20, 40.0, 1.0))


class Place(NamedTuple):
    """Where one engine's log is, while it is measured."""

    engine: Engine
    url: str
    directory: Path
    redis_pid: int | None

    def open(self) -> EventLog:
        return open_log(self.url, max_events=_ROOM, **self.engine.options)


@asynccontextmanager
async def placed(
    engine: Engine, directory: Path, others: Sequence[int]
) -> AsyncGenerator[Place, None]:
    """An empty log of ``engine``; if that is another process, it has the cores ``others``."""
    path = directory / "events.db"
    port = free_port()
    url = engine.url.format(path=path, port=port)
    if engine.fsync is None:
        yield Place(engine, url, directory, None)
        return
    server = redis(directory, port, engine.fsync)
    await server.start()
    os.sched_setaffinity(server.pid, others)
    try:
        yield Place(engine, url, directory, server.pid)
    finally:
        with trio.move_on_after(10, shield=True):
            await server.kill()


async def publish(log: EventLog, count: int, publishers: int) -> dict[str, float]:
    """``count`` events by so many that each wait for their answer."""
    latencies: list[float] = []
    left = count

    async def publish_some() -> None:
        nonlocal left
        while left:
            left -= 1
            began = time.perf_counter()
            await log.append(Event(_DATA), ["news"])
            latencies.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(publishers):
            nursery.start_soon(publish_some)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    latencies.sort()
    return {
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
        "per_s": count / took,
        "cpu_us": cpu / count * 1e6,
    }


async def read_all(log: EventLog, last_event_id: str) -> dict[str, float]:
    """All that followed ``last_event_id``, in pages as a session gets them."""
    replay = await log.replay(last_event_id)
    found, upto, position = 0, log.newest, None
    began, cpu = time.perf_counter(), time.process_time()
    while replay.position < upto:
        gap, records = await replay.read(PASS_EVENTS, upto)
        assert gap is None, gap
        for record in records:
            assert position is None or record.position == position + 1
            position = record.position
        found += len(records)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"events": found, "per_s": found / took, "cpu_us": cpu / found * 1e6}


async def measure(place: Place, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Everything about one engine, by itself."""
    found: dict[str, dict[str, float]] = {}
    log = place.open()
    async with log:
        first = await log.append(Event(_DATA), ["news"])
        await publish(log, 50, 10)  # what is done once is done
        found["alone"] = await publish(log, sizes.alone, 1)
        found["together"] = await publish(log, sizes.together, sizes.publishers)
        rest = sizes.stored - 1 - 50 - sizes.alone - sizes.together
        before = _size(place)
        await publish(log, rest, sizes.publishers)
        found["kept"] = {"bytes_per_event": (_size(place) - before) / rest}
        if place.url == "memory":
            found["replay"] = await read_all(log, first)
    if place.url != "memory":  # by one that has nothing of it at hand yet
        async with place.open() as log:
            found["replay"] = await read_all(log, first)
    assert found["replay"]["events"] == sizes.stored - 1, found["replay"]
    return found


def _size(place: Place) -> int:
    """Bytes that the log takes now, where it is kept."""
    if place.redis_pid is not None:
        return _resident(place.redis_pid)
    if place.engine.url == "memory":
        return _resident(os.getpid())
    return sum(path.stat().st_size for path in place.directory.glob("events.db"))


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("there is no VmRSS")


# One measurement is one process; this is what starts them.


def _one(name: str, what: str, sizes: Sizes, directory: Path) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    argv = [sys.executable, __file__, "--measure", f"{name}:{what}", "--directory", str(directory)]
    if sizes is QUICK:
        argv.append("--quick")
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {what} failed with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure(name: str, what: str, sizes: Sizes, directory: Path) -> dict[str, Any]:
    engine = ENGINES[name]
    own, others = cores()

    async def run() -> dict[str, Any]:
        async with placed(engine, directory, others) as place:
            if what == "log":
                os.sched_setaffinity(0, own)
                return await measure(place, sizes)
            flags = [f"--log-{key.removeprefix('max_')}={v}" for key, v in engine.options.items()]
            flags += ["--log", place.url, f"--log-events={_ROOM}"]
            return await replay_beside_live(flags, sizes.replay, restart=engine.url != "memory")

    return trio.run(run)


def _median(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, however deep."""
    return {
        name: _median([each[name] for each in rounds])
        if isinstance(value, dict)
        else statistics.median(each[name] for each in rounds)
        for name, value in rounds[0].items()
    }


def main() -> None:
    options = _options()
    sizes = QUICK if options.quick else FULL
    if options.measure:
        name, _, what = options.measure.partition(":")
        with tempfile.TemporaryDirectory(prefix="logs-", dir=options.directory) as directory:
            print(json.dumps(_measure(name, what, sizes, Path(directory))))
        return
    names = [name for name in options.only.split(",") if name] or [*ENGINES]
    if unknown := [name for name in names if name not in ENGINES]:
        sys.exit(f"--only: unknown: {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    rounds = 1 if options.quick else options.rounds
    found: dict[str, Any] = {}
    if options.out.exists() and options.only:  # the others' figures stay
        found = json.loads(options.out.read_text())["engines"]
    for name in names:
        found.setdefault(name, {"title": ENGINES[name].title, "rounds": {}})
        for what in options.what.split(","):
            began = time.monotonic()
            figures = _median([_one(name, what, sizes, options.directory) for _ in range(rounds)])
            found[name].update(figures)
            found[name]["rounds"][what] = rounds
            print(f"{name} {what}, {time.monotonic() - began:.0f} s: {figures}", flush=True)
    results = {
        "machine": machine(),
        "began": time.strftime("%Y-%m-%d", time.gmtime()),
        "quick": options.quick,
        "sizes": sizes._asdict() | {"replay": sizes.replay._asdict()},
        "engines": {name: found[name] for name in ENGINES if name in found},
    }
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"written to {options.out}; python benchmarks/logs_report.py puts it into docs/logs.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--only", default="", metavar="NAMES", help=", ".join(ENGINES))
    parser.add_argument("--what", default="log,live", help="log, live, or both")
    parser.add_argument("--directory", type=Path, default=None, help="where files are made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file to write")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.directory = (options.directory or Path(tempfile.gettempdir())).resolve()
    return options


if __name__ == "__main__":
    main()
