"""Fan-out by group commit, and how a session that comes back joins it.

One task reads the log and hands every session what concerns it. It takes all that came
since its last pass and what publishers are just bringing, joins it once for each distinct
audience, and gives each session one batch: the busier the hub, the fewer writes per event,
and no timer anywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Final, final

import trio

from .log import EventLog, Gap, Record
from .outbox import Batch
from .session import Session
from .wire import Event, encode

PASS_EVENTS: Final = 256
"""How many events a pass takes: between two passes, clients are written to."""
PASS_BYTES: Final = 256 << 10
"""And how many bytes, unless one event alone has more."""
MAX_BACKLOG: Final = 4 * PASS_EVENTS
"""How many published events may wait for the dispatcher before publishers wait for it."""
GATHER_FROM: Final = 100e-6
"""Seconds: where a pass takes less, it is made again sooner than others have had a turn."""
YIELD_EVERY: Final = 256
"""How many sessions are served before other tasks have a turn."""
REPLAYS_AT_ONCE: Final = 4
"""How many sessions that catch up read a page before other tasks have a turn."""

Topics = frozenset[str] | None
"""What is subscribed to; ``None`` is everything."""


@final
class Audience:
    """The sessions that subscribe to exactly the same topics: they get the same bytes."""

    __slots__ = ("sessions", "topics")

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.sessions: dict[Session, None] = {}  # in the order they joined


@final
class Audiences:
    """Who hears what."""

    def __init__(self) -> None:
        self._all: dict[Topics, Audience] = {}
        self._by_topic: dict[str, dict[Audience, None]] = {}

    def add(self, session: Session) -> None:
        audience = self._all.get(session.topics)
        if audience is None:
            audience = self._all[session.topics] = Audience(session.topics)
            for topic in session.topics or ():
                self._by_topic.setdefault(topic, {})[audience] = None
        audience.sessions[session] = None

    def has(self, session: Session) -> bool:
        audience = self._all.get(session.topics)
        return audience is not None and session in audience.sessions

    def discard(self, session: Session) -> None:
        audience = self._all.get(session.topics)
        if audience is None or session not in audience.sessions:
            return
        del audience.sessions[session]
        if not audience.sessions:
            del self._all[session.topics]
            for topic in session.topics or ():
                del self._by_topic[topic][audience]
                if not self._by_topic[topic]:
                    del self._by_topic[topic]

    def everyone(self) -> tuple[Session, ...]:
        """All sessions that have joined."""
        return tuple(s for audience in self._all.values() for s in audience.sessions)

    def sort(self, records: Sequence[Record]) -> list[tuple[tuple[Session, ...], Sequence[Record]]]:
        """``records`` by who is to hear them: the sessions as they are now, each in order."""
        sorted_: dict[Audience, list[Record]] = {}
        for record in records:
            for topic in record.topics:
                for audience in self._by_topic.get(topic, ()):
                    heard = sorted_.setdefault(audience, [])
                    if not heard or heard[-1] is not record:
                        heard.append(record)
        found: list[tuple[tuple[Session, ...], Sequence[Record]]] = [
            (tuple(audience.sessions), heard) for audience, heard in sorted_.items()
        ]
        everything = self._all.get(None)
        if everything is not None and records:
            found.append((tuple(everything.sessions), records))
        return found


@final
class Dispatcher:
    """The one task that reads the log for all.

    Attributes:
        position: every session that has joined was given what lies up to here.
        appending: events on their way into the log; see `appended`.
        replaying: sessions that are to join, or to end, once they have had what they missed.
        events: dispatched so far.
        replayed: events that `replay` gave to sessions.
        gaps: times that a session was told of a gap.
        passes: how often it went round.
        seconds: how long that took.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._audiences = Audiences()
        self.position = 0
        self.replaying: dict[Session, None] = {}
        self.events = 0
        self.replayed = 0
        self.gaps = 0
        self.passes = 0
        self.seconds = 0.0
        self._epoch = ""
        self.appending = 0
        self._stopped = False
        self._in_pass = False
        self._turns = 0
        self._since = 0.0
        self._pass_took = 0.0
        self._passed = trio.lowlevel.ParkingLot()  # who waits for the end of a pass
        # First come, first served: a page each, however many there are.
        self._replays = trio.Semaphore(REPLAYS_AT_ONCE)

    @property
    def place(self) -> str:
        """The last event ID of who has had all up to `position`."""
        return self._log.place(self.position)

    def join(self, session: Session) -> None:
        """From the next pass on, ``session`` is given what follows `position`."""
        self._audiences.add(session)

    def has_joined(self, session: Session) -> bool:
        """Whether it was given all up to `position`. Not known while a pass is under way."""
        return not self._in_pass and self._audiences.has(session)

    def leave(self, session: Session) -> None:
        self._audiences.discard(session)
        self._has_replayed(session)

    def _has_replayed(self, session: Session) -> None:
        self.replaying.pop(session, None)
        if not self.replaying:
            self._wake()

    async def wait_replayed(self) -> None:
        """Wait until no session is `replaying`."""
        while self.replaying and not self._stopped:
            await self._passed.park()

    def start_at(self, position: int) -> None:
        """Give out what follows ``position``."""
        self.position = position
        self._epoch = self._log.epoch

    @property
    def has_room(self) -> bool:
        """Whether publishers are not too far ahead."""
        return self.appending + self._log.newest - self.position < MAX_BACKLOG or self._stopped

    async def wait_for_room(self) -> None:
        """Wait until that is so."""
        while not self.has_room:
            await self._passed.park()

    def appended(self) -> None:
        """One that was `appending` is in the log, or will not get there."""
        self.appending -= 1
        if not self.appending:
            self._wake()

    def _wake(self) -> None:
        if self._passed:  # which it seldom is
            self._passed.unpark_all()

    async def wait_settled(self) -> int:
        """Wait until all that was published was given out, what is being appended too.

        Returns:
            The position up to which that is.
        """
        while (self.appending or self._in_pass or self.position < self._log.newest) and (
            not self._stopped
        ):
            await self._passed.park()
        return self.position

    async def wait_past(self, position: int) -> None:
        """Wait until all up to ``position`` was given out."""
        while self.position < position or self._in_pass:
            await self._passed.park()

    async def run(self) -> None:
        """Dispatch, for ever."""
        try:
            while True:
                await self._log.wait(self.position)
                records = await self._log.read(self.position, PASS_EVENTS)
                if self.appending and self._pass_took > GATHER_FROM:
                    records = await self._gather(records)
                records = _up_to(PASS_BYTES, records)
                await self._pass(records)
                self._wake()
                if self.position < self._log.newest:  # it does not wait now: others' turn
                    await trio.lowlevel.checkpoint()
        finally:
            self._stopped = True
            self._passed.unpark_all()

    async def _gather(self, records: Sequence[Record]) -> Sequence[Record]:
        """``records``, and what those who are publishing bring, while they bring something.

        At most for as long as the last pass took, without the turns of others in it: what
        comes a little later waits as long. A lone event is not kept for a moment.
        """
        until = time.perf_counter() + self._pass_took
        # Read as it comes: a small log has forgotten it soon.
        gathered, size, quiet = [*records], sum(len(record.data) for record in records), 0
        # Two turns, for in the first it may have come before this task, and in the next after.
        while self.appending and quiet < 2 and time.perf_counter() < until:
            if not gathered or len(gathered) >= PASS_EVENTS or size >= PASS_BYTES:
                break
            await trio.lowlevel.checkpoint()
            end = gathered[-1].position
            more = await self._log.read(end, PASS_EVENTS - len(gathered))
            if self._lost_up_to(more) > end:  # the next pass tells of it
                break
            gathered += more
            size += sum(len(record.data) for record in more)
            quiet = 0 if more else quiet + 1
        return gathered

    async def _pass(self, records: Sequence[Record]) -> None:
        self._in_pass = True
        self._since, before = time.perf_counter(), self.seconds
        gap = self._gap(records)
        self.position = records[-1].position if records else max(self.position, self._log.trimmed)
        # Who is served is settled now, together with the position: a session that joins
        # during the pass has had these records, or they were published before it came.
        work = self._audiences.sort(records)
        if gap is not None:  # whatever was in it, it may have concerned any of them
            everyone = self._audiences.everyone()
            self.gaps += len(everyone)
            notice = gap_notice(gap, "", self._log)
            await self._hand_out(everyone, Batch.control(notice))
        for sessions, heard in work:
            await self._hand_out(sessions, Batch(heard))
        self.events += len(records)
        self.passes += 1
        self.seconds += time.perf_counter() - self._since
        self._pass_took = self.seconds - before
        self._in_pass = False

    async def _hand_out(self, sessions: Sequence[Session], batch: Batch) -> None:
        now = trio.current_time()
        for session in sessions:
            session.deliver(batch, now)
            self._turns += 1
            if self._turns % YIELD_EVERY == 0:
                self.seconds += time.perf_counter() - self._since
                await trio.lowlevel.checkpoint()
                self._since = time.perf_counter()

    async def replay(self, session: Session, last_event_id: str) -> None:
        """Give ``session`` what followed ``last_event_id``, in pages, then let it join.

        What cannot be given is announced by an ``event: gap``. The session joins in
        the same step in which it is found to have had all that the others have had:
        there is no gap between replay and live, no duplicate, and nothing is held in
        memory meanwhile. Those who catch up take turns, so that however many they are,
        what is new is late by a few pages at most.
        """
        replay = await self._log.replay(last_event_id)
        while True:
            if replay.position > self.position:
                await self.wait_past(replay.position)
            if replay.position == self.position:
                self.join(session)
                self._has_replayed(session)
                return
            # Up to where the others are: all up to there is in the log by then.
            # Not held while the client is waited for, or the log: that may take long.
            await replay.ready()
            async with self._replays:
                gap, records = await replay.read(PASS_EVENTS, self.position)
            if gap is not None:
                self.gaps += 1
                notice = gap_notice(gap, last_event_id, self._log)
                await session.deliver_paced(Batch.control(notice))
            await trio.lowlevel.checkpoint()
            heard: Sequence[Record] = [r for r in records if _concerns(r, session.topics)]
            while heard:
                some = _up_to(PASS_BYTES, heard)
                await session.deliver_paced(Batch(some))
                self.replayed += len(some)
                heard = heard[len(some) :]

    def _gap(self, records: Sequence[Record]) -> Gap | None:
        """What is missing between `position` and ``records``, which were read there.

        What of them was trimmed since is no gap: it is at hand.
        """
        end = self._lost_up_to(records)
        if end <= self.position:
            return None
        same, self._epoch = self._log.epoch == self._epoch, self._log.epoch
        return Gap("trimmed" if same else "epoch", self._log.place(end))

    def _lost_up_to(self, records: Sequence[Record]) -> int:
        """The end of what the log has forgotten, without ``records`` that were read of it."""
        trimmed = self._log.trimmed
        return min(trimmed, records[0].position - 1) if records else trimmed


def _concerns(record: Record, topics: Topics) -> bool:
    return topics is None or not topics.isdisjoint(record.topics)


def _up_to(size: int, records: Sequence[Record]) -> Sequence[Record]:
    """As many of the first ``records`` as have ``size`` bytes, and at least one."""
    total = 0
    for index, record in enumerate(records):
        total += len(record.data)
        if total > size and index:
            return records[:index]
    return records


def gap_notice(gap: Gap, last_event_id: str, log: EventLog) -> bytes:
    """``event: gap``: something was missed, and this is where the stream goes on.

    Its id is that place: a client that loses the connection now is not told again.
    """
    data = {
        "reason": gap.reason,
        "last_event_id": last_event_id,
        "resumed_after": gap.place,
        "newest": log.place(log.newest),
    }
    return encode(Event(json.dumps(data), type="gap", id=gap.place))
