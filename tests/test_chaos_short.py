"""The soak of benchmarks/chaos.py, in small: a few restarts under a few dozen clients."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.exhaustive

CHAOS = Path(__file__).resolve().parent.parent / "benchmarks" / "chaos.py"


def test_nothing_is_lost_or_left_over(figure: Callable[[str], None]) -> None:
    """Clients that resume miss nothing of an epoch; the server ends in time, and clean."""
    done = subprocess.run(
        [sys.executable, str(CHAOS), "--seconds=7", "--clients=60", "--grace=1.5", "--seed=1"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    lines = [line.strip().partition(" ") for line in done.stdout.splitlines()]
    counts = {what: number for number, _, what in lines}
    # It would be no test if nothing had happened.
    for what in ("restarts", "resumed", "events checked", "gaps announced: epoch"):
        assert int(counts[what].replace(",", "")) > 0, what
    figure(f"{counts['events checked']} events checked, {counts['restarts']} restarts")
