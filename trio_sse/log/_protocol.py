"""What a hub asks of an event log, whichever engine keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, final

from ..wire import Event


@final
@dataclass(frozen=True, slots=True)
class Record:
    """One published event, as sessions get it.

    Attributes:
        position: its place; greater than that of every record before it.
        id: the last event ID of who has had all up to this one.
        topics: what it was published to; empty for what was sent to one session.
        data: the event, encoded with its id. Bytes that are shared, never copied.
    """

    position: int
    id: str
    topics: tuple[str, ...]
    data: bytes


class Cursor(NamedTuple):
    """A last event ID, taken apart: where one sequence is numbered for all who read it."""

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


class Gap(NamedTuple):
    """Something that a reader should have had is not there.

    Attributes:
        reason: ``"trimmed"`` if the log has forgotten it, ``"epoch"`` if the last event
            ID is not one of this log's, or of an earlier life of it.
        place: the last event ID at which the stream goes on.
    """

    reason: Literal["trimmed", "epoch"]
    place: str


class Page(NamedTuple):
    """What one `Replay.read` found.

    Attributes:
        gap: what is missing before ``records``, if something is.
        records: oldest first.
    """

    gap: Gap | None
    records: Sequence[Record]


class Replay(Protocol):
    """What followed one last event ID, read in pages, each at its reader's own time."""

    @property
    def position(self) -> int:
        """All up to here was read, or had been before, and nothing past it.

        -1 as long as there is no such place: before the first page if the last event ID
        was not one of the log's, or while its log's order and this one's differ.
        """
        ...

    async def ready(self) -> None:
        """Wait, while the engine is away or slow, until `read` will not have to.

        Whoever lets only a few read at once lets all of them wait here.
        """
        ...

    async def read(self, limit: int, upto: int) -> Page:
        """The next page: as `EventLog.read`, and no record past position ``upto``.

        Afterwards `position` is that of the last of them, or ``upto`` if there is no
        more up to there, or a greater one: the last event ID came from where more was
        known. Waits as `ready` does. Nothing is lost if it is cancelled.
        """
        ...


class EventLog(Protocol):
    """An append-only sequence with a bounded memory.

    The hub enters it before anything else and leaves it after everything else. One hub
    uses it, from one Trio run; what other hubs append to the same store comes in too.

    Positions are this object's own: they order what it gives out. A last event ID is
    good for every log that shares the store.
    """

    @property
    def epoch(self) -> str:
        """What last event IDs belong to; no whitespace, no line break."""
        ...

    @property
    def newest(self) -> int:
        """The position of the newest record that `read` gives; 0 if there never was one."""
        ...

    @property
    def trimmed(self) -> int:
        """The position of the newest record that `read` no longer gives; 0 if it has all.

        A reader whose position is below this has missed something.
        """
        ...

    @property
    def problem(self) -> str | None:
        """What keeps it from taking events at the moment; ``None`` if nothing does."""
        ...

    def place(self, position: int) -> str:
        """The last event ID of who has had all up to ``position``, `trimmed` to `newest`."""
        ...

    async def append(self, event: Event, topics: Sequence[str], *, key: str | None = None) -> str:
        """Put ``event`` at the end; its id. It is as durable then as the engine promises.

        Afterwards `newest` counts it. If cancelled, the event may or may not have been
        appended, except where the engine promises more.

        Args:
            event: with data, without an id.
            topics: at least one.
            key: an idempotency key. If an event with this key is remembered, that is
                the event, and nothing is appended. It is remembered at least as long as
                that event is held.

        Raises:
            KeyReused: the key belongs to another event, or to the same on other topics.
            ValueError: the engine cannot keep all of ``topics`` in one order.
            LogUnavailable: the engine is away, or has no room. The event was not
                appended, unless the engine says otherwise: repeat it, with a key.
        """
        ...

    async def read(self, after: int, limit: int) -> Sequence[Record]:
        """Up to ``limit`` records that follow position ``after``, oldest first, at once.

        Fewer if they are large, but at least one if there is one. If some have been
        trimmed already, those that are left: compare ``after`` with `trimmed` after the
        call to know. What is at hand it may give without a checkpoint: it is called for
        each event.
        """
        ...

    async def wait(self, after: int) -> None:
        """Return when `newest` is greater than ``after``."""
        ...

    async def replay(self, last_event_id: str) -> Replay:
        """What followed ``last_event_id``; from the oldest held if it is not one of ours."""
        ...

    async def __aenter__(self) -> EventLog: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None: ...
