"""What an event source tells about itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import final


@final
class ReadyState(enum.Enum):
    """What ``EventSource.readyState`` is in a browser, with its numbers (9.2.2)."""

    CONNECTING = 0
    """There is no connection now, but there is to be one."""
    OPEN = 1
    """There is a connection."""
    CLOSED = 2
    """There is none, and there will be none."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """What ``on_state_change`` is told.

    Attributes:
        state: what the state is now. `ReadyState.CONNECTING` comes once for each break, so
            again after each attempt that failed.
        cause: why, if something went wrong; ``None`` when the server ended the response
            properly, or the source was closed by its owner.
        wait: the seconds until the next attempt, where there will be one.
    """

    state: ReadyState
    cause: Exception | None = None
    wait: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatistics:
    """What a source has done so far.

    Attributes:
        attempts: to connect, redirects not counted.
        connections: attempts that led to an event stream.
        breaks: in a row, those since the last healthy connection.
        events: handed to the application.
        waiting: events that are decoded and not handed over yet.
        bytes_received: of event streams, transfer and content coding undone.
    """

    attempts: int
    connections: int
    breaks: int
    events: int
    waiting: int
    bytes_received: int
