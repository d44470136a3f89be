"""One order from several shards: the newest records, and where each shard stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, final

import trio

from ._protocol import Record
from ._redis_entries import (
    Entry,
    TopicsReader,
    Vector,
    advanced,
    common_epoch,
    place_id,
    vector_of,
    with_id,
    without_id,
)
from ._tail import RECORD_OVERHEAD, Tail

_PATIENCE: Final = 5.0
"""Seconds that the dispatcher is waited for before what it has not read is dropped."""


@final
class Merge:
    """What was read from Redis, in the order in which this log gives it out.

    A position is the number of records before it, this one counted, and an offset that
    changes only when the log starts anew: so one shard's positions are its numbers.

    Attributes:
        epochs: of each shard.
        vector: how far each was read.
        max_events: that the tail keeps.
        max_bytes: likewise.
        moved: is unparked at every change.
    """

    def __init__(
        self, epochs: Sequence[str], vector: Vector, max_events: int, max_bytes: int
    ) -> None:
        self.epochs = list(epochs)
        self.vector = vector
        self.epoch = common_epoch(epochs)
        self.topics = TopicsReader()
        self.moved = trio.lowlevel.ParkingLot()
        self.max_events = max_events
        self.max_bytes = max_bytes
        self._before = self._here()  # the id of what lies before the tail
        self._times = deque[int]()  # when each of the tail's records was stored
        self.tail = Tail(max_events, max_bytes, start=sum(vector), forgotten=self._forget)
        # Who gives the records out has these already, and is waited for; -1: nobody does.
        self._taken = -1
        self._takers = trio.lowlevel.ParkingLot()

    def _here(self) -> str:
        return place_id(self.epoch, self.vector)

    def _forget(self, record: Record) -> None:
        self._before = record.id
        self._times.popleft()

    # What the log gives out.

    def took(self, position: int, *, follows: bool = False) -> None:
        """Somebody was given all up to ``position``; ``follows``: and waits for the next."""
        if follows or self._taken >= 0:
            self._taken = max(self._taken, position)
            self._takers.unpark_all()

    def place(self, position: int) -> str:
        """The id at ``position``, from what lies before the tail to the newest."""
        tail = self.tail
        if position >= tail.newest:
            return self._here()
        if position <= tail.trimmed:
            return self._before
        return tail.read(position - 1, 1)[0].id

    def at(self, position: int) -> Vector:
        """What `place` stands for."""
        return self.vector if position >= self.tail.newest else vector_of(self.place(position))

    @property
    def start(self) -> Vector:
        """How far each shard had been read before the tail's first record."""
        return self.at(self.tail.trimmed)

    def offset(self) -> int:
        """What a position is greater by than the sum of its vector."""
        return self.tail.newest - sum(self.vector)

    def locate(self, vector: Vector) -> tuple[int, int]:
        """Between which positions a vector lies that is not before the tail, nor ahead.

        Returns:
            The last position of which it has all, and the first that has all of it: the
            same if this log was ever there itself.
        """
        if len(vector) == 1:
            position = vector[0] + self.offset()
            return position, position
        low, high = self.tail.trimmed, self.tail.newest
        return (
            self._bisect(
                low, high, lambda here: any(a > b for a, b in zip(here, vector, strict=True))
            )
            - 1,
            self._bisect(
                low, high, lambda here: all(a >= b for a, b in zip(here, vector, strict=True))
            ),
        )

    def _bisect(self, low: int, high: int, holds: Callable[[Vector], bool]) -> int:
        """The first position from ``low`` to ``high`` for which it holds, else ``high`` + 1."""
        high += 1
        while low < high:
            middle = (low + high) // 2
            if holds(self.at(middle)):
                high = middle
            else:
                low = middle + 1
        return low

    def id_of(self, shard: int, number: int, epoch: str) -> str:
        """The id of an event, as this log gave it out or would have."""
        if len(self.vector) > 1 and epoch == self.epochs[shard]:
            tail = self.tail
            low = tail.trimmed + 1
            position = self._bisect(low, tail.newest, lambda here: here[shard] >= number)
            if position <= tail.newest and self.at(position)[shard] == number:
                return self.place(position)
        epochs = [*self.epochs[:shard], epoch, *self.epochs[shard + 1 :]]
        return place_id(common_epoch(epochs), advanced(self.start, shard, number))

    def entries_of(self, shard: int) -> dict[int, tuple[int, tuple[str, ...], bytes]]:
        """What the tail has of ``shard``, by number: time, topics, event without id."""
        found = dict[int, tuple[int, tuple[str, ...], bytes]]()
        for time, record in zip(self._times, self.tail.read(0, self.max_events), strict=True):
            number = vector_of(record.id)[shard]
            if number not in found:  # those of other shards that follow it have it too
                found[number] = time, record.topics, without_id(record.data)
        return found

    # What the readers bring.

    async def make_room(self, entries: Sequence[Entry]) -> None:
        """Wait until ``entries`` can be added without dropping what is still to be given out."""
        size = sum(len(entry.stored) + RECORD_OVERHEAD for entry in entries)
        while self._taken >= 0:
            unread = self.tail.read(self._taken, self.max_events)
            held = sum(len(record.data) + RECORD_OVERHEAD for record in unread)
            if not unread or (
                len(unread) + len(entries) <= self.max_events and held + size <= self.max_bytes
            ):
                return
            await self._takers.park()

    def add(self, shard: int, entry: Entry) -> None:
        """The next of ``shard``."""
        topics, wire = self.topics.read(entry.stored)
        self.vector = advanced(self.vector, shard, entry.number)
        event_id = self._here()
        self._times.append(entry.time)
        self.tail.add(Record(self.tail.newest + 1, event_id, topics, with_id(wire, event_id)))

    async def skip(self, shard: int, number: int) -> None:
        """``shard`` has forgotten what came up to ``number``, unread."""
        await self._given_out()
        lost = number - self.vector[shard]
        self.vector = advanced(self.vector, shard, number)
        self._restart(self.tail.newest + lost)

    async def renew(self, shard: int, epoch: str, number: int) -> None:
        """``shard`` goes on after ``number`` in another epoch, whatever it had been at."""
        await self._given_out()
        self.epochs[shard] = epoch
        self.epoch = common_epoch(self.epochs)
        self.vector = advanced(self.vector, shard, number)
        self._restart(self.tail.newest + 1)

    def _restart(self, position: int) -> None:
        self._before = self._here()
        self._times.clear()
        self.tail.restart(position)
        self.moved.unpark_all()

    async def _given_out(self) -> None:
        """Wait a while for all that is held to be given out: it is about to be dropped."""
        with trio.move_on_after(_PATIENCE):
            while 0 <= self._taken < self.tail.newest:
                await self._takers.park()
