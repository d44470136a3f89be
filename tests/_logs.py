"""Event logs that behave as some engine or some misfortune would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

import trio

from trio_sse import Event, MemoryLog, Record
from trio_sse.log import Replay, SequenceReplay


class MemoryLogWith:
    """A `MemoryLog` with something in the way: what is called before and after a read.

    It is an engine that needs time, as one with a disk or a network does.
    """

    def __init__(self, *, steps: int = 0, max_events: int = 100_000) -> None:
        self.inner = MemoryLog(max_events=max_events)
        self.steps = steps
        self.reads: list[tuple[int, int]] = []
        self.append_failure: Exception | None = None
        self.read_failure: Exception | None = None
        self.enter_failure: Exception | None = None
        self.problem: str | None = None
        self.before_read: Callable[[], object] = lambda: None
        self._readers = trio.lowlevel.ParkingLot()

    def break_(self, failure: Exception) -> None:
        """From now on reading fails, also for who waits for something to read."""
        self.read_failure = self.read_failure or failure
        self._readers.unpark_all()

    @property
    def epoch(self) -> str:
        return self.inner.epoch

    @property
    def newest(self) -> int:
        return self.inner.newest

    @property
    def trimmed(self) -> int:
        return self.inner.trimmed

    def place(self, position: int) -> str:
        return self.inner.place(position)

    async def replay(self, last_event_id: str) -> Replay:
        await trio.lowlevel.checkpoint()
        return SequenceReplay(self, last_event_id)

    async def append(self, event: Event, topics: Sequence[str], *, key: str | None = None) -> str:
        if self.append_failure is not None:
            raise self.append_failure
        event_id = await self.inner.append(event, topics, key=key)
        self._readers.unpark_all()
        return event_id

    async def read(self, after: int, limit: int) -> Sequence[Record]:
        self.reads.append((after, limit))
        self.before_read()
        records = await self.inner.read(after, limit)
        for _ in range(self.steps):
            await trio.lowlevel.checkpoint()
        if self.read_failure is not None:
            raise self.read_failure
        return records

    async def wait(self, after: int) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.newest <= after and self.read_failure is None:
            await self._readers.park()

    async def __aenter__(self) -> MemoryLogWith:
        if self.enter_failure is not None:
            raise self.enter_failure
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        pass
