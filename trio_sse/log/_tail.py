"""The newest records, in memory: a ring that readers can wait at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

import trio

from ._protocol import Record

RECORD_OVERHEAD: Final = 250
"""Bytes that a record takes beside its data: measured with tracemalloc, rounded up."""


@final
class Tail:
    """Consecutive records up to the newest, bounded in number and in bytes.

    Args:
        max_events: at least 1.
        max_bytes: of memory, roughly; at least one record is kept whatever its size.
        start: the position before the first that will be added.
        forgotten: is called with each record that falls out.

    Attributes:
        newest: the position of the newest record, or of where there was one.
        trimmed: the position of the newest that has fallen out.
        bytes: of memory, roughly.
    """

    def __init__(
        self,
        max_events: int,
        max_bytes: int,
        *,
        start: int = 0,
        forgotten: Callable[[Record], object] | None = None,
    ) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._forgotten = forgotten
        # Record number i of the list has position trimmed + 1 + i - _start: what lies
        # before _start is forgotten, and is cut off when it is half of the list.
        self._records: list[Record | None] = []
        self._start = 0
        self.newest = self.trimmed = start
        self.bytes = 0
        self._readers = trio.lowlevel.ParkingLot()

    def add(self, record: Record) -> None:
        """Put ``record``, whose position is the next one, at the end; wakes who waits."""
        assert record.position == self.newest + 1
        self._records.append(record)
        self.newest += 1
        self.bytes += len(record.data) + RECORD_OVERHEAD
        self._trim()
        if self._readers:
            self._readers.unpark_all()

    def restart(self, position: int) -> None:
        """Forget all; the next record comes after ``position``, which is not before `newest`."""
        assert position >= self.newest
        self._records.clear()
        self._start = self.bytes = 0
        self.newest = self.trimmed = position
        self._readers.unpark_all()

    def _trim(self) -> None:
        while (kept := len(self._records) - self._start) > 1 and (
            kept > self._max_events or self.bytes > self._max_bytes
        ):
            oldest = self._records[self._start]
            assert oldest is not None
            self._records[self._start] = None
            self.bytes -= len(oldest.data) + RECORD_OVERHEAD
            self._start += 1
            self.trimmed += 1
            if self._forgotten is not None:
                self._forgotten(oldest)
        if self._start > len(self._records) // 2:
            del self._records[: self._start]
            self._start = 0

    def read(self, after: int, limit: int) -> Sequence[Record]:
        """Up to ``limit`` records that follow ``after``, of those that are here."""
        start = self._start + max(0, after - self.trimmed)
        return [record for record in self._records[start : start + limit] if record is not None]

    async def wait(self, after: int) -> None:
        """Return when `newest` is greater than ``after``."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.newest <= after:
            await self._readers.park()
