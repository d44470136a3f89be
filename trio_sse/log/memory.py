"""The log that forgets at the end of the process: a ring in memory."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Final, final

import trio

from ..wire import Event, encode
from ._protocol import Cursor, Record

_RECORD_OVERHEAD: Final = 250
"""Bytes that a record takes beside its data: measured with tracemalloc, rounded up."""


@final
class MemoryLog:
    """Keeps the newest events, bounded in number and in bytes.

    Args:
        max_events: at least 1.
        max_bytes: of memory, roughly; at least one event is kept whatever its size.

    Raises:
        ValueError: for bounds below 1.
    """

    def __init__(self, *, max_events: int = 100_000, max_bytes: int = 64 << 20) -> None:
        if max_events < 1 or max_bytes < 1:
            raise ValueError(
                f"MemoryLog(max_events={max_events}, max_bytes={max_bytes}): a log keeps "
                "something, as in MemoryLog(max_events=1000)"
            )
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._epoch = secrets.token_hex(4)
        # Record number i of the list has position _trimmed + 1 + i - _start: what lies
        # before _start is forgotten, and is cut off when it is half of the list.
        self._records: list[Record | None] = []
        self._start = 0
        self._trimmed = 0
        self._bytes = 0
        self._readers = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return (
            f"<MemoryLog {self._epoch} positions {self._trimmed + 1} to {self.newest}, "
            f"{self._bytes} bytes>"
        )

    @property
    def epoch(self) -> str:
        return self._epoch

    @property
    def newest(self) -> int:
        return self._trimmed + len(self._records) - self._start

    @property
    def trimmed(self) -> int:
        return self._trimmed

    async def append(self, event: Event, topics: Sequence[str]) -> str:
        """As `EventLog.append`; if cancelled, the event was not appended."""
        await trio.lowlevel.checkpoint()
        position = self.newest + 1
        event_id = str(Cursor(self._epoch, position))
        data = encode(event, id=event_id)
        self._records.append(Record(position, event_id, tuple(topics), data))
        self._bytes += len(data) + _RECORD_OVERHEAD
        self._trim()
        self._readers.unpark_all()
        return event_id

    def _trim(self) -> None:
        while (kept := len(self._records) - self._start) > 1 and (
            kept > self._max_events or self._bytes > self._max_bytes
        ):
            oldest = self._records[self._start]
            assert oldest is not None
            self._records[self._start] = None
            self._bytes -= len(oldest.data) + _RECORD_OVERHEAD
            self._start += 1
            self._trimmed += 1
        if self._start > len(self._records) // 2:
            del self._records[: self._start]
            self._start = 0

    async def read(self, after: int, limit: int) -> Sequence[Record]:
        await trio.lowlevel.checkpoint()
        start = self._start + max(0, after - self._trimmed)
        return [record for record in self._records[start : start + limit] if record is not None]

    async def wait(self, after: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.newest <= after:
            await self._readers.park()

    async def __aenter__(self) -> MemoryLog:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Nothing to release: the memory goes with the object."""
