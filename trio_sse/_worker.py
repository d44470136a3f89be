"""What Hypercorn's connections share, with events that take no memory before they are needed.

Each connection has one, for a request that comes while another is answered. Few come.
"""

from __future__ import annotations

from typing import final

import trio
from hypercorn.trio.worker_context import WorkerContext


@final
class LateEvent:
    """As Hypercorn's `EventWrapper`; its `trio.Event` is made when somebody waits."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: trio.Event | None = None

    async def wait(self) -> None:
        if self._is_set:
            await trio.lowlevel.checkpoint()
            return
        if self._event is None:
            self._event = trio.Event()
        await self._event.wait()

    # Hypercorn awaits these; as its own, they are no checkpoints.

    async def clear(self) -> None:
        self._is_set, self._event = False, None

    async def set(self) -> None:
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def is_set(self) -> bool:
        return self._is_set


@final
class Worker(WorkerContext):
    """Counts requests, and says when there have been enough of them."""

    event_class = LateEvent
