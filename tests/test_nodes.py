"""Several servers on one log, killed under clients that hop: benchmarks/nodes.py, in small."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.exhaustive

NODES = Path(__file__).resolve().parent.parent / "benchmarks" / "nodes.py"
HAPPENED = {
    "redis": [
        "servers killed",
        "servers drained",
        "times that Redis was killed",
        "hops to another server",
    ],
    "sqlite": [
        "workers killed",
        "services drained, with all workers",
        "services killed, with all workers",
    ],
}


@pytest.mark.parametrize(
    ("log", "shards"),
    [
        pytest.param("redis", 1, marks=pytest.mark.redis),
        pytest.param("redis", 3, marks=pytest.mark.redis),
        ("sqlite", 1),
    ],
)
def test_nothing_is_lost_or_doubled(log: str, shards: int, figure: Callable[[str], None]) -> None:
    """Every client gets every event of its topics, once, in the one order of each topic."""
    arguments = [f"--log={log}", f"--shards={shards}", "--clients=60", "--seconds=1", "--seed=1"]
    done = subprocess.run(
        [sys.executable, str(NODES), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    lines = [line.strip().partition(" ") for line in done.stdout.splitlines()]
    counts = {what: number for number, _, what in lines}
    # It would be no test if nothing had happened.
    for what in (*HAPPENED[log], "connections cut", "events received, and checked"):
        assert int(counts[what].replace(",", "")) > 0, what
    figure(
        f"{counts['events received, and checked']} events checked, "
        f"{counts['connections of clients']} connections, {counts['events lost']} events lost, "
        f"{counts['events received twice']} twice, {counts['events out of order']} out of order"
    )
