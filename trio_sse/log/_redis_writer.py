"""Putting events into Redis: all that wait go in one step."""

from __future__ import annotations

import logging
from collections import deque
from typing import Final, final

import trio

from ..errors import LogUnavailable
from ._redis_link import Link, Pause, Trouble, open_link
from ._redis_reader import new_epoch
from ._redis_scripts import APPEND, PROBE, Keys
from ._redis_target import Target

logger = logging.getLogger("trio_sse")

_BATCH_EVENTS: Final = 200
"""How many go at once: Redis serves nobody else meanwhile, about a millisecond."""
_BATCH_BYTES: Final = 1 << 20


@final
class _Item:
    """One event on its way."""

    __slots__ = ("answer", "done", "failure", "key", "stored", "wanted")

    def __init__(self, stored: bytes, key: str | None) -> None:
        self.stored = stored
        self.key = b"" if key is None else b"=" + key.encode("utf-8", "surrogatepass")
        self.wanted = True
        self.answer: tuple[str, int] | None = None
        self.failure: LogUnavailable | None = None
        self.done = trio.Event()

    def fail(self, text: str) -> None:
        self.failure = LogUnavailable(text)
        self.done.set()


@final
class Writer:
    """The one task that appends to a shard.

    Args:
        target: where Redis is.
        keys: the shard's.
        max_events: that the shard keeps.
        timeout: seconds for an answer.

    Attributes:
        problem: why it cannot write at the moment: then `append` says so at once.
        batches: that were stored.
    """

    def __init__(self, target: Target, keys: Keys, *, max_events: int, timeout: float) -> None:
        self._target = target
        self._keys = keys
        self._max_events = max_events
        self._timeout = timeout
        self._waiting = deque[_Item]()
        self._sent = list[_Item]()
        self._wakened = trio.lowlevel.ParkingLot()
        self._probe_due = False
        self._pause = Pause()
        self.problem: str | None = None
        self.batches = 0

    async def append(self, stored: bytes, key: str | None) -> tuple[str, int]:
        """Store an event.

        If cancelled before it was sent, it will not be.

        Returns:
            The shard's epoch and the event's number; that of an event stored before, if
            ``key`` is that one's; and the negative of that if that one is another event.

        Raises:
            LogUnavailable: see there.
        """
        if self.problem is not None:
            raise LogUnavailable(self.problem)
        item = _Item(stored, key)
        self._waiting.append(item)
        self._wakened.unpark_all()
        try:
            await item.done.wait()
        finally:
            item.wanted = False
        if item.failure is not None:
            raise item.failure
        assert item.answer is not None
        return item.answer

    def suspect(self) -> None:
        """Find out whether Redis still takes events; somebody has had trouble."""
        self._probe_due = True
        self._wakened.unpark_all()

    async def run(self) -> None:
        """For ever; whoever still waits when it is cancelled is told."""
        try:
            while True:
                try:
                    async with open_link(self._target, self._timeout) as link:
                        await self._serve(link)
                except Trouble as exc:
                    self._failed(str(exc), refused=exc.refused)
                await self._pause.wait()
        finally:
            self.problem = "the log is closed"
            self._tell(self.problem, refused=False)

    def _failed(self, text: str, *, refused: bool) -> None:
        if self.problem is None:
            logger.warning("the log takes no events: %s", text)
        self.problem = text
        self._tell(text, refused=refused)

    def _tell(self, text: str, *, refused: bool) -> None:
        """End the waiting of all, of those first whose event was on its way."""
        for item in self._sent:
            item.fail(
                text
                if refused
                else "the answer was lost, so the event may have been stored: repeat it with "
                f"its idempotency key ({text})"
            )
        for item in self._waiting:
            item.fail(text)
        self._sent = []
        self._waiting.clear()

    async def _serve(self, link: Link) -> None:
        await link.run(PROBE, self._keys)
        if self.problem is not None:
            logger.info("the log takes events again: %s", self._target)
            self.problem = None
        self._pause.reset()
        while True:
            while not self._waiting and not self._probe_due:
                await self._wakened.park()
            if self._probe_due:
                self._probe_due = False
                await link.run(PROBE, self._keys)
            if batch := self._batch():
                await self._store(link, batch)

    def _batch(self) -> list[_Item]:
        batch, size = list[_Item](), 0
        # Not so many that the first would be trimmed before anyone has read them.
        most = min(_BATCH_EVENTS, max(1, self._max_events // 2))
        while self._waiting and len(batch) < most and size < _BATCH_BYTES:
            item = self._waiting.popleft()
            if item.wanted:
                batch.append(item)
                size += len(item.stored)
        return batch

    async def _store(self, link: Link, batch: list[_Item]) -> None:
        arguments = list[str | bytes | int]()
        for item in batch:
            arguments += (item.stored, item.key)
        self._sent = batch
        epoch, *numbers = await link.run(
            APPEND, self._keys, new_epoch(), self._max_events, *arguments
        )
        self._sent = []
        self.batches += 1
        for item, number in zip(batch, numbers, strict=True):
            item.answer = epoch.decode(), number
            item.done.set()
