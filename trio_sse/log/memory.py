"""The log that forgets at the end of the process."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import final

import trio

from ..errors import KeyReused
from ..wire import Event, encode
from ._protocol import Record
from ._replay import SequenceReplay
from ._tail import Tail


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
        self._epoch = secrets.token_hex(4)
        self._tail = Tail(max_events, max_bytes, forgotten=self._forget_key)
        # What was published with an idempotency key, while it is held.
        self._by_key: dict[str, Record] = {}
        self._keys: dict[int, str] = {}

    def __repr__(self) -> str:
        return (
            f"<MemoryLog {self._epoch} positions {self.trimmed + 1} to {self.newest}, "
            f"{self._tail.bytes} bytes>"
        )

    @property
    def epoch(self) -> str:
        return self._epoch

    @property
    def newest(self) -> int:
        return self._tail.newest

    @property
    def trimmed(self) -> int:
        return self._tail.trimmed

    @property
    def problem(self) -> None:
        """Always ``None``."""

    def place(self, position: int) -> str:
        return f"{self._epoch}.{position}"

    async def append(self, event: Event, topics: Sequence[str], *, key: str | None = None) -> str:
        """As `EventLog.append`; if cancelled, the event was not appended."""
        await trio.lowlevel.checkpoint()
        if key is not None and (known := self._by_key.get(key)) is not None:
            if (encode(event, id=known.id), tuple(topics)) != (known.data, known.topics):
                raise KeyReused(key, known.id)
            return known.id
        position = self.newest + 1
        event_id = f"{self._epoch}.{position}"
        record = Record(position, event_id, tuple(topics), encode(event, id=event_id))
        if key is not None:
            self._by_key[key] = record
            self._keys[position] = key
        self._tail.add(record)
        return event_id

    def _forget_key(self, record: Record) -> None:
        if self._keys and (key := self._keys.pop(record.position, None)) is not None:
            del self._by_key[key]

    async def read(self, after: int, limit: int) -> Sequence[Record]:
        """As `EventLog.read`; never a checkpoint."""
        return self._tail.read(after, limit)

    async def wait(self, after: int) -> None:
        await self._tail.wait(after)

    async def replay(self, last_event_id: str) -> SequenceReplay:
        await trio.lowlevel.checkpoint()
        return SequenceReplay(self, last_event_id)

    async def __aenter__(self) -> MemoryLog:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Nothing to release: the memory goes with the object."""
