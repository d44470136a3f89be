"""A server that is restarted under its clients costs them no event."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing
from hypercorn.config import Config

from trio_sse import Endpoint, Event, Hub, serve
from trio_sse.client import Reconnect, connect

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

CLIENTS = 100
RESTARTS = 10
# A restart takes less than a second, and none of them is healthy for long.
EAGER = Reconnect(initial=0.02, floor=0.01, ceiling=0.2, longest_wait=0.05)


class Readers:
    """So many clients of one server, and what each of them got."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.got: list[list[str]] = [[] for _ in range(CLIENTS)]
        self.connections = [0] * CLIENTS
        self._changed = trio.lowlevel.ParkingLot()

    async def read(self, number: int) -> None:
        async with connect(self.url, reconnect=EAGER) as source:
            async for event in source:
                self.got[number].append(event.data or "")
                self.connections[number] = source.statistics().connections
                self._changed.unpark_all()

    async def all_have(self, event: str) -> None:
        while not all(got and got[-1] == event for got in self.got):
            await self._changed.park()


def mounted(endpoint: Endpoint) -> Callable[..., Awaitable[None]]:
    """Without a lifespan of its own, so that the hub is the test's to open."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await endpoint(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return app


async def serving(hub: Hub, config: Config, *, task_status: trio.TaskStatus[str]) -> None:
    """Until cancelled, which cuts all connections and leaves the hub as it is."""
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(
            functools.partial(serve, shutdown_trigger=trio.sleep_forever),
            mounted(Endpoint(hub)),
            config,
        )
        task_status.started(urls[0])


async def test_ten_restarts_under_a_hundred_clients_cost_no_event(
    nursery: trio.Nursery, figure: Callable[[str], None]
) -> None:
    """The hub outlives the server, and events go on while there is none."""
    published: list[str] = []

    async def publish(count: int) -> None:
        for _ in range(count):
            published.append(str(len(published)))
            await hub.publish(Event(published[-1]))

    async with Hub() as hub, trio.open_nursery() as clients:
        config = Config()
        config.bind = ["127.0.0.1:0"]
        url = ""
        readers: Readers | None = None
        for round_number in range(RESTARTS + 1):
            async with trio.open_nursery() as server:
                url = await server.start(serving, hub, config)
                config.bind = [url.partition("//")[2].strip("/")]
                if readers is None:
                    readers = Readers(url)
                    for number in range(CLIENTS):
                        clients.start_soon(readers.read, number)
                    while len(hub.sessions) < CLIENTS:
                        await trio.testing.wait_all_tasks_blocked()
                    # A client that has seen no id yet has no place to go on from.
                    await publish(1)
                    await readers.all_have("0")
                await publish(round_number)  # on the way when the server goes, or not sent yet
                if round_number % 2:
                    await readers.all_have(published[-1])
                if round_number < RESTARTS:
                    server.cancel_scope.cancel()
                else:
                    await publish(3)
                    await readers.all_have(published[-1])
                    clients.cancel_scope.cancel()
                    server.cancel_scope.cancel()
            await publish(3)  # while nobody serves
        published = published[:-3]
    assert readers is not None
    assert readers.got == [published] * CLIENTS
    assert min(readers.connections) >= RESTARTS // 2
    figure(
        f"{CLIENTS} clients, {RESTARTS} restarts, {sum(readers.connections)} connections, "
        f"{sum(map(len, readers.got))} events, none lost, none twice"
    )
