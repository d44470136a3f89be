"""The memory channel between a session and the request that carries it.

It differs from Trio's own in three things, and in nothing else: it is bounded in bytes
as well as in events, a full one is a question of policy, and the receiver takes all
that is queued as one write. As with Trio's: the sender closes, the receiver drains
and then gets `trio.EndOfChannel`; the receiver closes, and what is sent is for nobody.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Protocol, final, get_args

import trio

from .log import Record
from .wire import Event, encode

Overflow = Literal["close", "drop-oldest", "drop-newest", "conflate"]
"""What a full outbox does with what is published; see `OutboxLimits`."""

CONTROL_ROOM: Final = 16 << 10
"""Bytes beyond its bound that an outbox takes of comments and notices."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxLimits:
    """The bounds of a session's outbox, and what happens at them.

    An empty outbox accepts any one write, so that an event larger than ``max_bytes``
    still passes.

    Args:
        max_events: how many events may wait for a slow client.
        max_bytes: and how many bytes.
        overflow: ``"close"`` ends the session as too slow; the client comes back with
            its last event ID and misses nothing. The others lose events, count them
            and tell the client in an ``event: gap``: ``"drop-oldest"``,
            ``"drop-newest"``, and ``"conflate"``, which keeps the latest event of each
            set of topics (and closes where even those are too many).

    Raises:
        ValueError: for a bound below 1 or an unknown policy.
    """

    max_events: int = 1024
    max_bytes: int = 1 << 20
    overflow: Overflow = "close"

    def __post_init__(self) -> None:
        if self.max_events < 1 or self.max_bytes < 1:
            raise ValueError(
                f"OutboxLimits(max_events={self.max_events}, max_bytes={self.max_bytes}): "
                "an outbox holds something, as in OutboxLimits(max_events=100)"
            )
        if self.overflow not in get_args(Overflow):
            raise ValueError(
                f"OutboxLimits(overflow={self.overflow!r}): "
                f"one of {', '.join(map(repr, get_args(Overflow)))}"
            )


@final
class Batch:
    """Encoded events that travel together, shared by all the sessions that get them.

    Attributes:
        count: of the records.
        size: bytes of the data.
        last_id: of the last record; empty if there is none, or it has none.
    """

    __slots__ = ("count", "data", "framed", "last_id", "records", "size")

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.data = records[0].data if len(records) == 1 else b"".join([r.data for r in records])
        self.count = len(records)
        self.size = len(self.data)
        self.last_id = records[-1].id
        # What a direct writer makes of `data`; kept here so that it is made once.
        self.framed: bytes | None = None

    @classmethod
    def control(cls, data: bytes) -> Batch:
        """Bytes that are no event of the application's: never counted or dropped.

        They pass a full outbox; more than `CONTROL_ROOM` of them are too many.
        """
        batch = cls.__new__(cls)
        batch.records = ()
        batch.data = data
        batch.count = 0
        batch.size = len(data)
        batch.last_id = ""
        batch.framed = None
        return batch

    def split(self) -> list[Batch]:
        """The same, one record each."""
        return [self] if len(self.records) < 2 else [Batch((r,)) for r in self.records]


class Writer(Protocol):
    """Writes to the client at once, past the request task."""

    def write(self, batch: Batch) -> bytes:
        """Hand ``batch`` to the kernel; what it did not take, ready to be sent as it is."""
        ...

    def frame(self, data: bytes) -> bytes:
        """``data`` as `write` would have sent it."""
        ...


class Tally:
    """Counts that the outboxes of one hub share."""

    __slots__ = ("delivered", "delivered_bytes", "dropped")

    def __init__(self) -> None:
        self.delivered = 0
        self.delivered_bytes = 0
        self.dropped = 0


@final
class _State:
    """What the two ends share; each end does its part, synchronously."""

    __slots__ = (
        "bytes",
        "delivered",
        "delivered_bytes",
        "dropped",
        "events",
        "last_id",
        "limits",
        "queue",
        "receiver_closed",
        "rest",
        "sender_closed",
        "senders",
        "tally",
        "told_of_drops",
        "waiting",
        "writer",
    )

    def __init__(self, limits: OutboxLimits, tally: Tally) -> None:
        self.limits = limits
        self.tally = tally
        # A list, not a deque: an empty deque takes 700 bytes, in every session.
        self.queue: list[Batch] = []
        self.events = 0  # in the queue
        self.bytes = 0  # in the queue
        self.rest = b""  # framed, partly sent already: goes before the queue, untouched
        self.delivered = 0
        self.delivered_bytes = 0
        self.dropped = 0
        self.told_of_drops = 0
        self.last_id = ""  # of the newest event that left, or of what was before the first
        self.sender_closed = False
        self.receiver_closed = False
        self.writer: Writer | None = None
        # The receiver, while it is parked. It then has nothing in its hands and the
        # queue is empty: only then may the writer be used.
        self.waiting: trio.lowlevel.Task | None = None
        self.senders: trio.lowlevel.ParkingLot | None = None  # made when first needed

    def room_for(self, events: int, size: int) -> bool:
        if self.limits.overflow == "drop-newest" and self.told_of_drops != self.dropped:
            # Once something is missing all is, until the client has been told: one
            # hole, at the place where it is announced.
            return False
        return not self.queue or (
            self.events + events <= self.limits.max_events
            and self.bytes + size <= self.limits.max_bytes
        )

    def enqueue(self, batch: Batch) -> None:
        self.queue.append(batch)
        self.events += len(batch.records)
        self.bytes += len(batch.data)
        self.wake_receiver()

    def forget(self) -> None:
        self.queue.clear()
        self.events = self.bytes = 0

    def has_news(self) -> bool:
        """Whether the receiver has a reason to return."""
        return bool(self.queue or self.rest or self.sender_closed or self.receiver_closed)

    def wake_receiver(self) -> None:
        if self.waiting is not None:
            task, self.waiting = self.waiting, None
            trio.lowlevel.reschedule(task)

    def wake_senders(self) -> None:
        if self.senders is not None:
            self.senders.unpark_all()

    def count_delivered(self, batch: Batch) -> None:
        tally = self.tally
        self.delivered_bytes += batch.size
        tally.delivered_bytes += batch.size
        self.delivered += batch.count
        tally.delivered += batch.count
        if batch.last_id:
            self.last_id = batch.last_id

    def take(self) -> bytes:
        """All that is queued, with word of what was dropped where it was dropped."""
        parts: list[bytes] = []
        for batch in self.queue:
            self.count_delivered(batch)
            parts.append(batch.data)
        self.forget()
        missing, self.told_of_drops = self.dropped - self.told_of_drops, self.dropped
        if missing:
            at = len(parts) if self.limits.overflow == "drop-newest" else 0
            parts.insert(at, _told(missing))
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if self.writer is not None and data:
            data = self.writer.frame(data)
        if self.rest:
            data, self.rest = self.rest + data, b""
        self.wake_senders()
        return data

    # The overflow policies: each makes room and keeps count, or says that it cannot.

    def overflow(self, batch: Batch) -> bool:
        """Do with ``batch``, for which there is no room, as the policy says.

        Returns:
            False if the policy gives up: the client is too slow.
        """
        policy = self.limits.overflow
        if policy == "drop-oldest":
            for piece in batch.split():
                self.drop_oldest_for(piece)
        elif policy == "drop-newest":
            for piece in batch.split():
                if self.room_for(1, len(piece.data)):
                    self.enqueue(piece)
                else:
                    self.drop(piece)
        elif policy == "conflate":
            return self.conflate(batch)
        return policy != "close"

    def drop(self, batch: Batch) -> None:
        self.dropped += len(batch.records)
        self.tally.dropped += len(batch.records)

    def drop_oldest_for(self, piece: Batch) -> None:
        keep: list[Batch] = []
        while self.queue and not self.room_for(1, len(piece.data)):
            oldest, *younger = self.queue[0].split()
            self.queue[:1] = younger
            if oldest.records:
                self.events -= 1
                self.bytes -= len(oldest.data)
                self.drop(oldest)
            else:
                keep.append(oldest)
        self.queue[:0] = keep
        self.enqueue(piece)

    def conflate(self, batch: Batch) -> bool:
        latest: dict[object, Batch] = {}
        for queued in (*self.queue, batch):
            for piece in queued.split():
                # What was sent to this session alone has no topics and is kept.
                topics = frozenset(piece.records[0].topics) if piece.records else None
                key: object = topics or piece
                older = latest.pop(key, None)
                if older is not None:
                    self.drop(older)
                latest[key] = piece
        self.queue = list(latest.values())
        self.events = sum(len(piece.records) for piece in self.queue)
        self.bytes = sum(len(piece.data) for piece in self.queue)
        return (
            self.events <= self.limits.max_events and self.bytes <= self.limits.max_bytes
        ) or len(self.queue) == 1


def _told(missing: int) -> bytes:
    data = json.dumps({"reason": "overflow", "dropped": missing})
    return encode(Event(data, type="gap"))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxStatistics:
    """Counts of one outbox; the fields mean what they mean in `SessionStatistics`."""

    queued_events: int
    queued_bytes: int
    sent_events: int
    sent_bytes: int
    dropped_events: int
    last_event_id: str


@final
class OutboxSendEnd:
    """The session's end. Used as a context manager: leaving it is what closes it."""

    __slots__ = ("_state",)

    def __init__(self, state: _State) -> None:
        self._state = state

    def start_after(self, last_event_id: str) -> None:
        """What is to come follows ``last_event_id``. To be called before anything is put."""
        self._state.last_id = last_event_id

    def put(self, batch: Batch) -> bool:
        """Deliver ``batch``, or do with it as the overflow policy says.

        Returns:
            False if the policy is to end the session, or there is no end of notices.
        """
        state = self._state
        # First what is most frequent: nobody waits at an end that is closed.
        if state.waiting is not None and state.writer is not None:
            state.rest = state.writer.write(batch)
            state.count_delivered(batch)
            if state.rest:
                state.wake_receiver()
            return True
        if state.receiver_closed or state.sender_closed:
            return True
        if state.room_for(len(batch.records), len(batch.data)):
            state.enqueue(batch)
            return True
        if not batch.records:
            if state.bytes + len(batch.data) > state.limits.max_bytes + CONTROL_ROOM:
                return False
            state.enqueue(batch)
            return True
        return state.overflow(batch)

    def put_nowait(self, batch: Batch) -> None:
        """Deliver ``batch`` if there is room; the policy is not asked.

        Raises:
            trio.WouldBlock: there is none.
        """
        state = self._state
        if not state.room_for(len(batch.records), len(batch.data)):
            raise trio.WouldBlock
        self.put(batch)

    async def send(self, batch: Batch) -> None:
        """Deliver ``batch``, waiting until there is room. If cancelled, it was not."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.wait_for_room(len(batch.records), len(batch.data))
        self.put(batch)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def has_room(self, events: int, size: int) -> bool:
        """Whether so many events and bytes would fit, or nobody receives any more."""
        state = self._state
        return state.receiver_closed or state.sender_closed or state.room_for(events, size)

    async def wait_for_room(self, events: int, size: int) -> None:
        """Wait until that is so. It is no checkpoint if it is already."""
        while not self.has_room(events, size):
            if self._state.senders is None:
                self._state.senders = trio.lowlevel.ParkingLot()
            await self._state.senders.park()

    def discard(self) -> None:
        """Forget what is queued: nobody is going to read it."""
        self._state.forget()

    def __enter__(self) -> OutboxSendEnd:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """What is queued is still received, then comes the end. Idempotent."""
        self._state.sender_closed = True
        self._state.wake_receiver()
        self._state.wake_senders()


@final
class OutboxReceiveEnd:
    """The request's end."""

    __slots__ = ("_state",)

    def __init__(self, state: _State) -> None:
        self._state = state

    async def receive(self) -> bytes:
        """All that is queued, as one write; waits until there is something.

        If cancelled, nothing was taken.

        Raises:
            trio.EndOfChannel: the session has ended and everything was received.
            trio.ClosedResourceError: this end was closed.
        """
        state = self._state
        await trio.lowlevel.checkpoint_if_cancelled()
        if state.waiting is not None:
            raise trio.BusyResourceError("one task receives from a session, and one does already")
        if state.has_news():
            await trio.lowlevel.cancel_shielded_checkpoint()
        while not state.has_news():
            state.waiting = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                state.waiting = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if state.receiver_closed:
            raise trio.ClosedResourceError("this end of the session was closed")
        if state.queue or state.rest:
            return state.take()
        raise trio.EndOfChannel

    @property
    def has_backlog(self) -> bool:
        """Whether anything is queued, or half sent."""
        return bool(self._state.queue or self._state.rest)

    @property
    def closed(self) -> bool:
        """Whether `close` was called: nobody reads here any more."""
        return self._state.receiver_closed

    @property
    def last_event_id(self) -> str:
        """Of the newest event that was taken, or of what was before the first."""
        return self._state.last_id

    def statistics(self) -> OutboxStatistics:
        state = self._state
        return OutboxStatistics(
            queued_events=state.events,
            queued_bytes=state.bytes,
            sent_events=state.delivered,
            sent_bytes=state.delivered_bytes,
            dropped_events=state.dropped,
            last_event_id=state.last_id,
        )

    def write_directly(self, writer: Writer) -> None:
        """From now on what is sent while this end waits goes through ``writer``, at once.

        What `receive` returns is framed by the same writer.
        """
        self._state.writer = writer

    def close(self) -> None:
        """Forget what is queued, and what comes. Idempotent."""
        state = self._state
        state.receiver_closed = True
        state.forget()
        state.rest = b""
        state.wake_receiver()
        state.wake_senders()


def open_outbox(limits: OutboxLimits, tally: Tally) -> tuple[OutboxSendEnd, OutboxReceiveEnd]:
    """A new outbox, both ends."""
    state = _State(limits, tally)
    return OutboxSendEnd(state), OutboxReceiveEnd(state)
