"""Older events, asked for by many: a few at a time, each page once."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, final

import trio

from ._redis_entries import Entry, Held, TopicsReader
from ._redis_link import Link, Pause, Trouble, open_link
from ._redis_scripts import Keys
from ._redis_target import Target

logger = logging.getLogger("trio_sse")

_CACHE_BYTES: Final = 16 << 20
_OVERHEAD: Final = 400
"""Bytes of an entry in memory beside what is stored, roughly."""
_PAGE_BYTES: Final = 256 << 10
_PAGE_EVENTS: Final = 256

Ask = Callable[[Link], Awaitable[Any]]


@final
class _Question:
    """Something to ask Redis, until it is answered; several may wait for the answer."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.waiting = 0
        self.answer: Any = None
        self.answered = trio.Event()


@final
class Fetcher:
    """Who asks Redis for those who come back, in the order in which they want it.

    Sessions that come back together want the same: a block of entries is asked for once,
    and kept for a while.

    Args:
        target: where Redis is.
        timeout: seconds for an answer.

    Attributes:
        asked: questions that were put to Redis.
        problem: why they are not answered at the moment.
    """

    def __init__(self, target: Target, timeout: float) -> None:
        self._target = target
        self._timeout = timeout
        self._questions = deque[_Question]()
        self._came = trio.lowlevel.ParkingLot()
        self._blocks = OrderedDict[tuple[str, str, int], Sequence[Held]]()
        self._fetching: dict[tuple[str, str, int], _Question] = {}
        self._bytes = 0
        self._average = 4096.0  # bytes of an entry, lately; guessed high at first
        self._topics = TopicsReader()
        self.asked = 0
        self.problem: str | None = None

    async def run(self) -> None:
        """For ever. Run a few of these: so many questions are on their way at once."""
        pause = Pause()
        while True:
            while not self._questions:
                self.problem = None  # nobody has one
                await self._came.park()
            try:
                async with open_link(self._target, self._timeout) as link:
                    await self._serve(link, pause)
            except Trouble as exc:
                if self.problem is None:
                    logger.warning("the log's older events cannot be read: %s", exc)
                self.problem = str(exc)
            await pause.wait()

    async def _serve(self, link: Link, pause: Pause) -> None:
        while True:
            while not self._questions:
                self.problem = None  # nobody has one
                await self._came.park()
            question = self._questions.popleft()
            if not question.waiting:
                continue
            try:
                question.answer = await question.ask(link)
            except Trouble:
                self._questions.appendleft(question)  # until there is an answer
                self._came.unpark()  # another may be luckier
                raise
            self.asked += 1
            self.problem = None
            pause.reset()
            question.answered.set()

    async def ask(self, ask: Ask) -> Any:
        """What ``ask`` returns, however long Redis is away."""
        return await self._wait(self._put(ask))

    def _put(self, ask: Ask) -> _Question:
        question = _Question(ask)
        self._questions.append(question)
        self._came.unpark()
        return question

    async def _wait(self, question: _Question) -> Any:
        question.waiting += 1
        try:
            await question.answered.wait()
        finally:
            question.waiting -= 1
        return question.answer

    async def after(self, epoch: str, keys: Keys, number: int, newest: int) -> Sequence[Held]:
        """The next events of a shard after ``number``, or what is left of them.

        Args:
            epoch: blocks of another are forgotten.
            keys: the shard's.
            number: what was had.
            newest: that the shard is known to have.
        """
        size = self._size()
        first = number - number % size + 1
        key = (epoch, keys.events, first * 1024 + size)
        block = self._blocks.get(key)
        if block is None:
            question = self._fetching.get(key)
            if question is None or question.answered.is_set():
                question = self._put(self._block(keys, first, first + size - 1))
                self._fetching[key] = question
            try:
                block = await self._wait(question)
            finally:
                if self._fetching.get(key) is question and (
                    question.answered.is_set() or not question.waiting
                ):
                    del self._fetching[key]
            assert block is not None
            if first + size - 1 <= newest:
                self._keep(key, block)
        else:
            self._blocks.move_to_end(key)
            await trio.lowlevel.checkpoint()
        if len(block) == size:
            return block[number - first + 1 :]
        return [held for held in block if held.number > number]

    def _size(self) -> int:
        """How many entries a block has: a power of two, so that the same ones are asked for."""
        size = _PAGE_EVENTS
        while size > 1 and size * self._average > _PAGE_BYTES:
            size //= 2
        return size

    def _keep(self, key: tuple[str, str, int], block: Sequence[Held]) -> None:
        if key in self._blocks or not block:
            return
        stored = sum(len(held.wire) for held in block)
        self._average += (stored / len(block) - self._average) / 4
        self._blocks[key] = block
        self._bytes += stored + len(block) * _OVERHEAD
        while self._bytes > _CACHE_BYTES and len(self._blocks) > 1:
            _, oldest = self._blocks.popitem(last=False)
            self._bytes -= sum(len(held.wire) for held in oldest) + len(oldest) * _OVERHEAD

    def _block(self, keys: Keys, first: int, last: int) -> Ask:
        async def ask(link: Link) -> list[Held]:
            found = await link.entries(keys.events, first, last)
            return [Held(Entry.of(raw), self._topics) for raw in found]

        return ask
