"""What Redis has that this node has not: read, checked, and put in order."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import trio

from ._redis_entries import Entry
from ._redis_link import Link, Pause, Trouble, open_link
from ._redis_merge import Merge
from ._redis_scripts import LOOK, RENEW, TRIM, Keys
from ._redis_target import Target

logger = logging.getLogger("trio_sse")

_PAGE_EVENTS: Final = 500
_PAGE_BYTES: Final = 256 << 10
_BLOCK: Final = 1.0
"""Seconds that one read waits for something to come. As often, when nothing comes, it is
looked whether the streams are still those that are known."""
_SEARCH: Final = 64
"""How many entries at once are compared to find where histories part."""


class Shown(NamedTuple):
    """What `LOOK` answers."""

    epoch: str
    newest: int
    oldest: int
    held: tuple[bytes, bytes, bytes]

    @classmethod
    def of(cls, answer: Any) -> Shown:
        epoch, newest, oldest, *held = answer
        number = int(oldest.partition(b"-")[0]) if oldest else int(newest) + 1
        return cls(epoch.decode(), int(newest), number, tuple(held))


async def look(link: Link, keys: Keys, number: int = 0) -> Shown:
    """Where a shard stands; it begins an epoch if there is none."""
    return Shown.of(await link.run(LOOK, keys, new_epoch(), number))


def new_epoch() -> str:
    return secrets.token_hex(4)


@final
class Reader:
    """One task that follows some shards; it makes its client anew after any trouble.

    Args:
        target: where Redis is.
        keys: of each shard that it follows.
        merge: what it fills; a few readers may share it.
        timeout: seconds for an answer.
        max_age: seconds after which events are deleted; ``None``: never.
        troubled: is called when it cannot read any more.

    Attributes:
        problem: why it cannot read at the moment.
    """

    def __init__(
        self,
        target: Target,
        keys: Mapping[int, Keys],
        merge: Merge,
        *,
        timeout: float,
        max_age: float | None,
        troubled: Callable[[], object],
    ) -> None:
        self._target = target
        self._keys = keys
        self._shards = {k.events.encode(): shard for shard, k in keys.items()}
        self._merge = merge
        self._timeout = timeout
        self._max_age = max_age
        self._troubled = troubled
        self._trim_at = 0.0
        self._pause = Pause()
        self._average = 512.0  # bytes of an entry, lately
        # Of each shard: the newest entry that was read, to know it again; and the epochs
        # whose entries belong to what this node knows.
        self._newest: dict[int, Entry] = {}
        self._known: dict[int, set[bytes]] = {
            shard: {merge.epochs[shard].encode()} for shard in keys
        }
        self.problem: str | None = None

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                async with open_link(self._target, self._timeout) as link:
                    for shard in self._keys:
                        await self._check(link, shard)
                    while True:
                        await self._turn(link)
                        self._settle()
            except Trouble as exc:
                if self.problem is None:
                    logger.warning("the log cannot be read: %s", exc)
                    self._troubled()
                self.problem = str(exc)
            await self._pause.wait()

    def _settle(self) -> None:
        if self.problem is not None:
            logger.info("the log can be read again: %s", self._target)
            self.problem = None
            self._pause.reset()

    async def _turn(self, link: Link) -> None:
        merge = self._merge
        places = {keys.events: merge.vector[shard] for shard, keys in self._keys.items()}
        found = await link.follow(places, self._count(), _BLOCK)
        entries = _in_order(
            (self._shards[key], Entry.of(raw)) for key, page in found.items() for raw in page
        )
        if entries:
            self._average += (
                sum(len(e.stored) for _, e in entries) / len(entries) - self._average
            ) / 4
            await self._take(link, entries)
        else:
            for shard in self._keys:
                await self._check(link, shard)
        if self._max_age is not None and trio.current_time() >= self._trim_at:
            await self._trim(link, self._max_age)

    def _count(self) -> int:
        fits = int(_PAGE_BYTES / (self._average + 1)) + 1
        return max(1, min(_PAGE_EVENTS, fits, self._merge.max_events // 2))

    async def _take(self, link: Link, entries: Sequence[tuple[int, Entry]]) -> None:
        merge = self._merge
        await merge.make_room([entry for _, entry in entries])
        for shard, entry in entries:
            if entry.field not in self._known[shard]:
                # Written in an epoch that was not known: are these its next events at all?
                await self._check(link, shard)
                self._known[shard].add(entry.field)
                return
            expected = merge.vector[shard] + 1
            if entry.number > expected:
                logger.warning(
                    "events %d to %d of shard %d were trimmed before this node had read them",
                    expected,
                    entry.number - 1,
                    shard,
                )
                await merge.skip(shard, entry.number - 1)
            merge.add(shard, entry)
            self._newest[shard] = entry
        merge.moved.unpark_all()

    # Whether the stream is still the one that was read.

    async def _check(self, link: Link, shard: int) -> None:
        """Find out whether what follows in Redis is what follows here; else start anew."""
        merge, keys = self._merge, self._keys[shard]
        number = merge.vector[shard]
        shown = await look(link, keys, number)
        epoch = shown.epoch
        if self._goes_on(shard, shown):
            common = number
        else:
            if epoch == merge.epochs[shard]:
                answer = await link.run(RENEW, keys, epoch, new_epoch())
                epoch = answer.decode() or (await look(link, keys)).epoch
            common = await self._common(link, shard, shown)
            logger.warning(
                "shard %d of the log has another history: after event %d it was read up to %d; "
                "the epoch is now %s",
                shard,
                common,
                number,
                epoch,
            )
            self._newest.pop(shard, None)
            self._known[shard].clear()
        if epoch != merge.epochs[shard] or common != number:
            self._known[shard].add(epoch.encode())
            await merge.renew(shard, epoch, common)

    def _goes_on(self, shard: int, shown: Shown) -> bool:
        """Whether the last entry that was read is there, or was trimmed in due course."""
        number = self._merge.vector[shard]
        if shown.newest < number:
            return False
        last = self._newest.get(shard)
        if shown.oldest > number or last is None:
            return True
        return shown.held == last.digest()

    async def _common(self, link: Link, shard: int, shown: Shown) -> int:
        """The last event of ``shard`` that Redis has as it was read here."""
        merge, key = self._merge, self._keys[shard].events
        low = edge = max(min(merge.start[shard], shown.newest), shown.oldest - 1)
        high = min(merge.vector[shard], shown.newest)
        ours = merge.entries_of(shard) if high > low else {}
        while high > low:
            first = max(low + 1, high - _SEARCH + 1)
            for raw in reversed(await link.entries(key, first, high)):
                entry = Entry.of(raw)
                if ours.get(entry.number) == (entry.time, *merge.topics.read(entry.stored)):
                    return entry.number
            high = first - 1
        # What lies before the tail cannot be compared. If it was written after an epoch
        # began that is not known here, then all that Redis has is new.
        if shown.epoch != merge.epochs[shard]:
            for raw in await link.entries(key, edge, edge):
                if Entry.of(raw).field == shown.epoch.encode():
                    return shown.oldest - 1
        return edge

    async def _trim(self, link: Link, max_age: float) -> None:
        self._trim_at = trio.current_time() + min(30.0, max_age / 10)
        for keys in self._keys.values():
            await link.run(TRIM, keys, int(max_age * 1000))


def _in_order(entries: Iterable[tuple[int, Entry]]) -> list[tuple[int, Entry]]:
    """Several shards' entries by time, without changing the order within one."""
    found = list(entries)
    if len({shard for shard, _ in found}) < 2:
        return found
    latest = dict[int, int]()
    times = list[int]()
    for shard, entry in found:
        latest[shard] = max(latest.get(shard, 0), entry.time)
        times.append(latest[shard])
    order = sorted(range(len(found)), key=times.__getitem__)
    return [found[index] for index in order]
