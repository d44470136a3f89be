"""What a hub asks of an event log, whichever engine keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, final

from ..wire import Event


@final
@dataclass(frozen=True, slots=True)
class Record:
    """One published event, as sessions get it.

    Attributes:
        position: its place; greater than that of every record before it.
        id: ``<epoch>.<position>``.
        topics: what it was published to; empty for what was sent to one session.
        data: the event, encoded with its id. Bytes that are shared, never copied.
    """

    position: int
    id: str
    topics: tuple[str, ...]
    data: bytes


class Cursor(NamedTuple):
    """A last event ID, taken apart."""

    epoch: str
    position: int

    @classmethod
    def parse(cls, last_event_id: str) -> Cursor | None:
        """The cursor that ``last_event_id`` is, or ``None`` if it is not one of ours."""
        epoch, dot, position = last_event_id.rpartition(".")
        if not dot or not position.isascii() or not position.isdigit() or len(position) > 40:
            return None
        return cls(epoch, int(position))

    def __str__(self) -> str:
        return f"{self.epoch}.{self.position}"


class EventLog(Protocol):
    """An append-only sequence with a bounded memory.

    The hub enters it before anything else and leaves it after everything else. One hub
    uses it, from one Trio run. A reader that wants what follows a position calls `read`,
    and `wait` when there is nothing.
    """

    @property
    def epoch(self) -> str:
        """What the positions belong to; no whitespace, no line break."""
        ...

    @property
    def newest(self) -> int:
        """The position of the newest record known here; 0 if there never was one."""
        ...

    @property
    def trimmed(self) -> int:
        """The position of the newest record that is no longer held; 0 if all are.

        A reader whose position is below this has missed something.
        """
        ...

    async def append(self, event: Event, topics: Sequence[str]) -> str:
        """Put ``event`` at the end; its id. It is as durable then as the engine promises.

        If cancelled, the event may or may not have been appended, except where the
        engine promises more.
        """
        ...

    async def read(self, after: int, limit: int) -> Sequence[Record]:
        """Up to ``limit`` records that follow position ``after``, oldest first, at once.

        Empty if there is none. A checkpoint. If some have been trimmed already, those
        that are left: compare ``after`` with `trimmed` after the call to know.
        """
        ...

    async def wait(self, after: int) -> None:
        """Return when `newest` is greater than ``after``."""
        ...

    async def __aenter__(self) -> EventLog: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...
