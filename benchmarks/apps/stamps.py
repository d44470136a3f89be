"""What every server publishes in a blast: events that say when they were made, and which."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import final
from urllib.parse import parse_qs


@final
class Blast:
    """``POST /blast?n=500&size=128&rate=0``: n events, all at once or so many a second."""

    def __init__(self, query: str) -> None:
        fields = {name: float(values[0]) for name, values in parse_qs(query).items()}
        self._events = int(fields.get("n", 500))
        self._size = int(fields.get("size", 128))
        self._rate = fields.get("rate", 0.0)
        self._began = time.monotonic()

    def numbers(self) -> Iterator[int]:
        return iter(range(1, self._events + 1))

    def data(self, number: int) -> str:
        """As many characters as asked for, none of which needs escaping anywhere."""
        return f"t={time.time_ns()} s={number} ".ljust(self._size, "x")

    def early_by(self, number: int) -> float:
        """Seconds until this event is due; 0 or less if it is."""
        if not self._rate:
            return 0.0
        return self._began + (number - 1) / self._rate - time.monotonic()
