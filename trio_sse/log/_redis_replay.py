"""Replay: from the tail if it goes back far enough, else from Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import final

import trio

from ._protocol import Gap, Page, Record
from ._redis_entries import (
    Held,
    Vector,
    advanced,
    parse_place,
    place_id,
    vector_of,
    with_id,
    without_id,
)
from ._redis_fetch import Fetcher
from ._redis_merge import Merge
from ._redis_reader import Shown, look
from ._redis_scripts import Keys


@final
class RedisReplay:
    """A `Replay` by a vector, one number for each shard.

    Where all of it lies before the tail, and where some of it does, the shards that are
    behind are read from Redis, in blocks, up to where the tail begins. From there on this
    log's own order is followed. A vector that this log never was at, because another node
    gave it, has some of what follows already: that is left out, and what others have had
    at that time is given at once, past ``upto`` if need be, so that there is a position
    again up to which all was read and nothing past it.

    Args:
        merge: the log's tail.
        fetcher: for what is older.
        keys: of all shards.
        max_events: that a shard keeps: what is older is gone, even if Redis still has it.
        last_event_id: what the reader has had.
    """

    def __init__(
        self,
        merge: Merge,
        fetcher: Fetcher,
        keys: Sequence[Keys],
        max_events: int,
        last_event_id: str,
    ) -> None:
        self._merge = merge
        self._fetcher = fetcher
        self._keys = keys
        self._max_events = max_events
        self._epoch = merge.epoch
        # What was had: all of a vector, while there is no position; else all up to that,
        # and `_id` is the id there.
        self._vector: Vector | None = None
        self._id = ""
        self.position = -1
        self._gap: Gap | None = None  # still to be told
        # From Redis, in the order in which it will be given.
        self._fetched = deque[tuple[int, Held]]()
        place = parse_place(last_event_id, len(keys))
        if place is not None and place[0] == merge.epoch:
            self._vector = place[1]
            self._settle()

    def _settle(self) -> None:
        """Have a position if there is one: in the tail, or at its beginning."""
        merge, vector = self._merge, self._vector
        assert vector is not None
        if self._behind(vector) or not _covers(merge.vector, vector):
            return
        before, reached = merge.locate(vector)
        if before == reached:
            self.position = reached
            self._id = merge.place(reached)

    def _behind(self, vector: Vector) -> list[int]:
        """The shards of which something lies before the tail that ``vector`` has not."""
        start = self._merge.start
        return [shard for shard, number in enumerate(vector) if number < start[shard]]

    async def ready(self) -> None:
        """As `Replay.ready`: what Redis has to be asked for is asked for here."""
        merge = self._merge
        while True:
            if self._vector is not None:
                await self._wait_until_known()
            if self._vector is None or self._epoch != merge.epoch:
                await self._begin_anew()
            if 0 <= self.position < merge.tail.trimmed:
                self._vector, self.position = vector_of(self._id), -1
            vector = self._vector
            if self.position >= 0 or self._fetched or not (vector and self._behind(vector)):
                return
            await self._fetch()

    async def read(self, limit: int, upto: int) -> Page:
        """As `Replay.read`, but for what is said above of ``upto``."""
        await trio.lowlevel.checkpoint()  # whoever asks again for what is not there yet
        records: Sequence[Record] = []
        while not records:
            await self.ready()
            if self.position >= 0:
                records = self._from_tail(limit, upto)
                break
            records = self._from_fetched(limit) if self._fetched else self._missed(limit)
            self._settle()
        gap, self._gap = self._gap, None
        return Page(gap, records)

    def _from_tail(self, limit: int, upto: int) -> Sequence[Record]:
        if upto <= self.position:
            return []
        records = self._merge.tail.read(self.position, min(limit, upto - self.position))
        if records:
            self.position = records[-1].position
            self._id = records[-1].id
        return records

    def _missed(self, limit: int) -> Sequence[Record]:
        """What others had in the tail up to where all of the vector is."""
        merge, vector = self._merge, self._vector
        assert vector is not None
        before, reached = merge.locate(vector)
        here = merge.at(before)
        found = list[Record]()
        for record in merge.tail.read(before, reached - before):
            there = vector_of(record.id)
            shard = next(i for i, number in enumerate(there) if number != here[i])
            here = there
            if there[shard] <= vector[shard]:
                continue
            if len(found) == limit:
                break
            vector = advanced(vector, shard, there[shard])
            event_id = place_id(merge.epoch, vector)
            data = with_id(without_id(record.data), event_id)
            found.append(Record(record.position, event_id, record.topics, data))
        self._vector = vector
        return found

    async def _wait_until_known(self) -> None:
        """Wait until this node has read all that was had, if there is such a thing at all."""
        merge = self._merge
        while (
            self._epoch == merge.epoch
            and self.position < 0
            and self._vector is not None
            and not _covers(merge.vector, self._vector)
        ):
            for shard, number in enumerate(self._vector):
                if number > merge.vector[shard] and not await self._exists(shard, number):
                    self._vector = None
                    return
            if not _covers(merge.vector, self._vector) and self._epoch == merge.epoch:
                await merge.moved.park()
        if self._vector is not None and self.position < 0 and self._epoch == merge.epoch:
            self._settle()

    async def _exists(self, shard: int, number: int) -> bool:
        keys, epoch = self._keys[shard], self._merge.epochs[shard]
        shown = await self._look(keys)
        return bool(shown.epoch == epoch and shown.newest >= number)

    async def _look(self, keys: Keys) -> Shown:
        shown: Shown = await self._fetcher.ask(lambda link: look(link, keys))
        return shown

    def _floor(self, shard: int) -> int:
        """The newest event of ``shard`` that is forgotten by number."""
        return max(0, self._merge.vector[shard] - self._max_events)

    async def _begin_anew(self) -> None:
        """What was had is not of this epoch: go on from the oldest that is held."""
        merge = self._merge
        self.position = -1
        self._fetched.clear()
        while True:
            self._vector, self._epoch = None, merge.epoch
            oldest = await self._oldest()
            if self._epoch == merge.epoch:
                break
        self._vector = tuple(map(min, oldest, merge.start))
        self._gap = Gap("epoch", place_id(self._epoch, self._vector))
        self._settle()

    async def _oldest(self) -> list[int]:
        """Of each shard the event before the oldest that is held, as far as the tail."""
        start, found = self._merge.start, list[int]()
        for shard, keys in enumerate(self._keys):
            number = start[shard]
            if self._floor(shard) < number:
                shown = await self._look(keys)
                number = max(self._floor(shard), min(number, shown.oldest - 1))
            found.append(number)
        return found

    async def _fetch(self) -> None:
        """Get the next from before the tail, of all shards that are behind."""
        merge, vector = self._merge, self._vector
        assert vector is not None
        start = merge.start
        pages = list[tuple[int, Sequence[Held]]]()
        lost = False
        for shard in self._behind(vector):
            number, end = vector[shard], start[shard]
            had = max(number, min(self._floor(shard), end))
            page: Sequence[Held] = await self._page(shard, had, end) if had < end else []
            had = max(had, page[0].number - 1 if page else end)
            lost = lost or had > number
            vector = advanced(vector, shard, had)
            pages.append((shard, page))
        if self._epoch != merge.epoch:  # what was read may be of either
            return
        if lost:
            reason = "trimmed" if self._gap is None else self._gap.reason
            self._gap = Gap(reason, place_id(self._epoch, vector))
        self._vector = vector
        self._fetched.extend(_in_order(pages))
        self._settle()

    def _from_fetched(self, limit: int) -> Sequence[Record]:
        vector, records = self._vector, list[Record]()
        assert vector is not None
        if len(vector) == 1:
            return self._from_one(limit)
        while self._fetched and len(records) < limit:
            shard, held = self._fetched.popleft()
            vector = advanced(vector, shard, held.number)
            records.append(self._record(vector, held))
        self._vector = vector
        return records

    async def _page(self, shard: int, number: int, end: int) -> Sequence[Held]:
        """The next events of a shard, none past ``end``; none at all if there are none."""
        merge, keys = self._merge, self._keys[shard]
        newest = merge.vector[shard]
        page = await self._fetcher.after(merge.epoch, keys, number, newest)
        if not page:  # so far from the oldest that there is that it is better asked for
            shown = await self._look(keys)
            number = max(number, shown.oldest - 1)
            if number < end:
                page = await self._fetcher.after(merge.epoch, keys, number, newest)
        if page and page[-1].number > end:
            page = [held for held in page if held.number <= end]
        if page and page[-1].number - page[0].number >= len(page):  # up to the first hole
            first = page[0].number
            page = [held for index, held in enumerate(page) if held.number == first + index]
        return page

    def _record(self, vector: Vector, held: Held) -> Record:
        event_id = place_id(self._epoch, vector)
        position = sum(vector) + self._merge.offset()
        return Record(position, event_id, held.topics, with_id(held.wire, event_id))

    def _from_one(self, limit: int) -> Sequence[Record]:
        """As above: with one shard everyone gets the same, which is made once."""
        offset, records = self._merge.offset(), list[Record]()
        for _ in range(min(limit, len(self._fetched))):
            _, held = self._fetched.popleft()
            if held.record is None:
                event_id = f"{self._epoch}.{held.number}"
                data = with_id(held.wire, event_id)
                held.record = Record(held.number + offset, event_id, held.topics, data)
            records.append(held.record)
            self._vector = (held.number,)
        return records


def _covers(vector: Vector, other: Vector) -> bool:
    return all(map(int.__ge__, vector, other))


def _in_order(pages: Sequence[tuple[int, Sequence[Held]]]) -> Sequence[tuple[int, Held]]:
    """Several shards' events by time, without changing the order within one."""
    if len(pages) == 1:
        [(shard, page)] = pages
        return [(shard, held) for held in page]
    timed = list[tuple[int, int, Held]]()
    for shard, page in pages:
        latest = 0
        for held in page:
            latest = max(latest, held.time)
            timed.append((latest, shard, held))
    timed.sort(key=lambda item: item[0])
    return [(shard, held) for _, shard, held in timed]
