"""Which log, by URL: where the engines meet."""

from __future__ import annotations

from ._protocol import EventLog
from .memory import MemoryLog

ENGINES = "memory"
"""What there is, for error messages."""


def open_log(url: str, *, max_events: int = 100_000, max_bytes: int = 64 << 20) -> EventLog:
    """The log that ``url`` names. The hub that is given it opens it.

    Args:
        url: ``memory``.
        max_events: how many it keeps.
        max_bytes: and how many bytes, roughly.

    Raises:
        ValueError: no such log, or bounds that leave nothing.
    """
    if url == "memory":
        return MemoryLog(max_events=max_events, max_bytes=max_bytes)
    raise ValueError(f"there is no log {url!r}; there is {ENGINES}")
