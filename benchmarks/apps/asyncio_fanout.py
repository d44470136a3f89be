"""The fan-out that the asyncio peers share: a queue for each client, one object for all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Generic, TypeVar, final

from stamps import Blast

T = TypeVar("T")


@final
class Fanout(Generic[T]):
    """Publishes what ``make`` makes of an event's data, once for all clients."""

    def __init__(self, make: Callable[[str], T]) -> None:
        self._make = make
        self._queues: set[asyncio.Queue[T]] = set()
        self._blasts: set[asyncio.Task[None]] = set()

    def subscribe(self) -> asyncio.Queue[T]:
        queue: asyncio.Queue[T] = asyncio.Queue()
        self._queues.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[T]) -> None:
        self._queues.discard(queue)

    def publish(self, data: str) -> None:
        item = self._make(data)
        for queue in self._queues:
            queue.put_nowait(item)

    def publish_json(self, body: bytes) -> None:
        self.publish(json.loads(body)["data"])

    def start_blast(self, query: str) -> None:
        task = asyncio.get_running_loop().create_task(self._blast(Blast(query)))
        self._blasts.add(task)
        task.add_done_callback(self._blasts.discard)

    async def _blast(self, blast: Blast) -> None:
        for number in blast.numbers():
            early = blast.early_by(number)
            if early > 0:
                await asyncio.sleep(early)
            self.publish(blast.data(number))
