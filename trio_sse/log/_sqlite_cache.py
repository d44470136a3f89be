"""Pages that were read from the file lately: many who come back want the same ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, final

import trio

from ._protocol import Record
from ._tail import RECORD_OVERHEAD

BLOCK: Final = 256
"""Pages end at multiples of this, so that readers with different beginnings meet."""


@final
class PageCache:
    """The pages that were asked for last; who asks for one while it is read waits for it.

    Args:
        max_bytes: of memory, roughly.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0
        # By the position that they follow; the one that was asked for last is last.
        self._pages: dict[int, Sequence[Record]] = {}
        self._reading: dict[int, trio.Event] = {}

    async def read(
        self, after: int, upto: int, load: Callable[[int, int], Awaitable[Sequence[Record]]]
    ) -> Sequence[Record]:
        """Some of what follows ``after``, up to ``upto``, as ``load`` found it.

        Args:
            load: called with both; empty if what follows ``after`` has been trimmed.
        """
        end = after - after % BLOCK + BLOCK
        if upto < end:  # less than a page: not what others will ask for
            return await load(after, upto)
        while (page := self._pages.pop(after, None)) is None:
            if (reading := self._reading.get(after)) is None:
                return await self._load(after, end, load)
            await reading.wait()
        self._pages[after] = page
        return page

    async def _load(
        self, after: int, upto: int, load: Callable[[int, int], Awaitable[Sequence[Record]]]
    ) -> Sequence[Record]:
        self._reading[after] = trio.Event()
        try:
            page = await load(after, upto)
            if page and page[0].position == after + 1:
                self._keep(after, page)
            return page
        finally:
            self._reading.pop(after).set()

    def _keep(self, after: int, page: Sequence[Record]) -> None:
        self._pages[after] = page
        self.bytes += _size(page)
        while self.bytes > self._max_bytes:
            oldest = next(iter(self._pages))
            self.bytes -= _size(self._pages.pop(oldest))


def _size(page: Sequence[Record]) -> int:
    return sum(len(record.data) + RECORD_OVERHEAD for record in page)
