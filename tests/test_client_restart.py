"""A server that is restarted under its clients costs them no event."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.config import Config

from trio_sse import Endpoint, Event, Hub, serve
from trio_sse.client import ReadyState, Reconnect, StateChange, Transport, connect, request

pytestmark = pytest.mark.exhaustive

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

CLIENTS = 100
RESTARTS = 10
# A restart takes less than a second, and none of them is healthy for long.
EAGER = Reconnect(initial=0.02, floor=0.01, ceiling=0.2, longest_wait=0.05)
DIRECT = Transport(trust_env=False)


class Readers:
    """So many clients of one server, and what each of them got."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.got: list[list[str]] = [[] for _ in range(CLIENTS)]
        self.gaps = 0
        self.connections = 0
        self.open: set[int] = set()
        self._changed = trio.lowlevel.ParkingLot()

    async def read(self, number: int) -> None:
        def note(change: StateChange) -> None:
            if change.state is ReadyState.OPEN:
                self.open.add(number)
                self.connections += 1
            else:
                self.open.discard(number)
            self._changed.unpark_all()

        async with connect(
            self.url, reconnect=EAGER, transport=DIRECT, on_state_change=note
        ) as source:
            async for event in source:
                if event.type == "gap":
                    self.gaps += 1
                else:
                    self.got[number].append(event.data or "")
                self._changed.unpark_all()

    async def are_open(self, count: int) -> None:
        while len(self.open) < count:
            await self._changed.park()

    async def none_is_open(self) -> None:
        while self.open:
            await self._changed.park()

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
        readers: Readers | None = None
        for round_number in range(RESTARTS + 1):
            async with trio.open_nursery() as server:
                # Ended by cancelling it, it cuts all connections and leaves the hub alone.
                run = functools.partial(serve, shutdown_trigger=trio.sleep_forever)
                [url] = await server.start(run, mounted(Endpoint(hub)), config)
                config.bind = [url.partition("//")[2].strip("/")]
                if readers is None:
                    readers = Readers(url)
                    for number in range(CLIENTS):
                        clients.start_soon(readers.read, number)
                    await readers.are_open(CLIENTS)
                    # A client that has seen no id yet has no place to go on from.
                    await publish(1)
                    await readers.all_have("0")
                # Every other time it goes while half of them are on their way back to it,
                # and what is published next is on its way to the others.
                if round_number % 2:
                    await readers.are_open(CLIENTS // 2)
                    await publish(20)
                else:
                    await publish(20)
                    await readers.all_have(published[-1])
                server.cancel_scope.cancel()
            await publish(3)  # while nobody serves
        clients.cancel_scope.cancel()
    assert readers is not None
    assert readers.gaps == 0
    assert readers.got == [published[:-3]] * CLIENTS
    assert readers.connections > CLIENTS * RESTARTS // 2
    figure(
        f"{CLIENTS} clients, {RESTARTS} restarts, {readers.connections} connections, "
        f"{sum(map(len, readers.got))} events, none lost, none twice"
    )


async def test_ten_restarts_of_the_service_under_a_hundred_clients_cost_no_event(
    nursery: trio.Nursery, figure: Callable[[str], None]
) -> None:
    """A drained service has delivered all that it accepted, so forgetting it costs nothing.

    Each client is told by a gap that the log is another. What is published while a client
    is on its way back to a log in memory would be lost to it, so here nothing is.
    """
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
    command = [sys.executable, "-m", "trio_sse", "serve", "--bind", address, "--no-console"]
    url = f"http://{address}/events"
    readers = Readers(url)
    published: list[str] = []
    for number in range(CLIENTS):
        nursery.start_soon(readers.read, number)
    for _ in range(RESTARTS + 1):
        process = await trio.lowlevel.open_process(command)
        try:
            await readers.are_open(CLIENTS)
            for _ in range(5):
                published.append(str(len(published)))
                body = json.dumps({"data": published[-1]}).encode()
                headers = {"Content-Type": "application/json"}
                response = await request("POST", url, headers=headers, body=body, transport=DIRECT)
                assert response.status == 201, response
        finally:
            process.terminate()
            with trio.move_on_after(30, shield=True):
                assert await process.wait() == 0
        await readers.none_is_open()
    nursery.cancel_scope.cancel()
    assert readers.got == [published] * CLIENTS
    assert readers.gaps == CLIENTS * RESTARTS
    assert readers.connections == CLIENTS * (RESTARTS + 1)
    figure(
        f"{CLIENTS} clients, {RESTARTS} restarts, {readers.connections} connections, "
        f"{sum(map(len, readers.got))} events, none lost, none twice, {readers.gaps} gaps told"
    )
