"""An MCP session that several things happen to at once: the second at every task step.

A session has a request in flight, its own stream open, and something going on; then
something else happens, at each step until nothing is left. Whatever that is, the session
registers once and unregisters once, its request is answered or cancelled, every response
ends, and nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
from mcp_parts import Parts, call, rpc

from trio_sse import Hooks, Hub
from trio_sse.mcp import McpApp
from trio_sse.mcp._streams import Streams
from trio_sse.mcp.testing import Client
from trio_sse.testing import Moment, Stream, explore

pytestmark = pytest.mark.exhaustive


class Life:
    """One session's, and what it leaves behind."""

    def __init__(self) -> None:
        self.parts = Parts()
        self.log: list[str] = []
        self.streams: list[Stream] = []
        self.left: list[Stream] = []
        self.draining = trio.Event()
        hooks = Hooks()
        hooks.on_register(lambda _: self.log.append("register"))
        hooks.on_unregister(lambda _, reason: self.log.append(reason.kind))
        self.app = McpApp(self.parts.server, hub=Hub(hooks=hooks), answers="sse")
        self.client = Client(self.app, "/mcp", {})
        self.nursery: trio.Nursery
        self.is_resumed = False

    async def carry(self, opened: Any) -> None:
        """Open a response, and take it to its end."""
        async with opened as stream:
            self.streams.append(stream)
            try:
                while True:
                    await stream.receive_block()
            except (trio.EndOfChannel, trio.ClosedResourceError):
                pass
            assert stream.is_complete or stream in self.left
            if stream is self.streams[0] and stream.is_complete and not self.is_resumed:
                assert '"id":1' in stream.body.decode()  # nobody took over

    def also(self, second: Callable[[Life], Awaitable[None]]) -> None:
        with suppress(RuntimeError):  # all is over already
            self.nursery.start_soon(second, self)

    def leave(self, number: int) -> None:
        if number < len(self.streams):
            self.left.append(self.streams[number])
            self.streams[number].leave()

    # What may happen.

    async def delete(self) -> None:
        assert (await self.client.delete()).status in (204, 404, 503)

    async def end(self) -> None:
        self.app.end_all("by an operator")

    async def drain(self) -> None:
        await self.app.drain(4)

    async def newer_stream(self) -> None:
        self.nursery.start_soon(self.carry, self.client.listen())

    async def resume(self) -> None:
        self.is_resumed = True
        place = self.streams[0].last_event_id
        self.nursery.start_soon(self.carry, self.client.listen(place))

    async def cancel(self) -> None:
        body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        assert (await self.client.post(body)).status in (202, 404, 503)

    async def ask(self) -> None:
        # 400: the one before it, with the same id, is not answered yet.
        assert (await self.client.post(rpc(2, "ping"))).status in (200, 400, 404, 503)

    async def answer(self) -> None:
        self.parts.go.set()

    async def post_leaves(self) -> None:
        self.leave(0)

    async def get_leaves(self) -> None:
        self.leave(1)


THINGS: list[Callable[[Life], Awaitable[None]]] = [
    Life.delete,
    Life.end,
    Life.drain,
    Life.newer_stream,
    Life.resume,
    Life.cancel,
    Life.ask,
    Life.answer,
    Life.post_leaves,
    Life.get_leaves,
]
ENDS = [Life.delete, Life.end, Life.drain]


def explored(first: Callable[[Life], Any], second: Callable[[Life], Any]) -> Any:
    async def scenario(moment: Moment) -> None:
        life = Life()
        async with life.app, trio.open_nursery() as life.nursery:
            await life.client.initialize()
            (session,) = life.app.sessions.values()
            life.nursery.start_soon(
                life.carry, life.client.open_request("tools/call", call("wait"), id=1)
            )
            await life.parts.waiting.wait()
            while not life.streams:
                await trio.lowlevel.checkpoint()
            life.nursery.start_soon(life.carry, life.client.listen())
            while len(life.streams) < 2:
                await trio.lowlevel.checkpoint()
            moment.inject(life.also, second)
            await first(life)
            if first not in ENDS:
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
            session.end("the end")
            await session.session.wait_ended()
        assert len(life.log) == 2, life.log
        assert life.log[0] == "register"
        assert life.parts.log in (["begins", "returns"], ["begins", "cancelled"])
        assert session.in_flight == 0
        assert isinstance(session.outlet, Streams)
        assert session.outlet.responses == 0
        assert not life.app.sessions
        assert not life.app.hub.sessions

    return explore(scenario)


@pytest.mark.parametrize("first", ENDS, ids=lambda thing: thing.__name__)
@pytest.mark.parametrize("second", THINGS, ids=lambda thing: thing.__name__)
def test_the_end_and_what_else(first: Any, second: Any, figure: Callable[[str], None]) -> None:
    figure(str(explored(first, second)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", THINGS[3:], ids=lambda thing: thing.__name__)
@pytest.mark.parametrize("second", THINGS, ids=lambda thing: thing.__name__)
def test_any_two(first: Any, second: Any, figure: Callable[[str], None]) -> None:
    figure(str(explored(first, second)))
