"""MCP over real sockets, under `trio_sse.serve`: what memory cannot show."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp_parts import Parts, call, initialize, rpc
from sockets import FAR, GRACE, Running, Subscriber, connected, eventually, get, post, serving

from trio_sse import Event, Hooks, Hub
from trio_sse.mcp import McpApp, McpLimits

ACCEPT = "Accept: application/json, text/event-stream"


class Served:
    """An application of the parts under a server, and what its hooks heard."""

    def __init__(self, **options: Any) -> None:
        self.parts = Parts()
        self.ended: list[str] = []
        hooks = Hooks()
        hooks.on_unregister(lambda _, reason: self.ended.append(reason.kind))
        self.app = McpApp(self.parts.server, hub=Hub(hooks=hooks), **options)
        self.running: Running

    @asynccontextmanager
    async def on(self, **options: Any) -> AsyncIterator[Served]:
        async with serving(self.app, **options) as self.running:
            yield self
        assert self.running.logged() == []

    async def send(self, message: Any, *headers: str) -> tuple[int, dict[str, str], Any]:
        """A POST on a connection of its own; status, headers, JSON if there is any."""
        async with connected(self.running) as client:
            await client.send(post("/mcp", json.dumps(message).encode(), ACCEPT, *headers))
            response = Subscriber(client, "POST")
            with trio.fail_after(FAR):
                await response.rest()
            body = json.loads(response.body) if response.body.startswith(b"{") else None
            return response.status, response.headers, body

    async def open(self) -> str:
        """A session; the header that names it."""
        status, headers, _ = await self.send(initialize())
        assert status == 200
        name = f"Mcp-Session-Id: {headers['mcp-session-id']}"
        assert (await self.send(note(), name))[0] == 202
        return name

    @asynccontextmanager
    async def stream(
        self, message: Any | None, *headers: str, **options: Any
    ) -> AsyncIterator[Subscriber]:
        """A response that is an event stream; a GET if there is no message."""
        async with connected(self.running, **options) as client:
            if message is None:
                await client.send(get("/mcp", ACCEPT, *headers))
            else:
                await client.send(post("/mcp", json.dumps(message).encode(), ACCEPT, *headers))
            response = Subscriber(client, "GET" if message is None else "POST")
            yield response


def note(method: str = "notifications/initialized") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method}


def found(event: Event) -> Any:
    return json.loads(event.data or "{}")


PROGRESS = {"_meta": {"progressToken": "p"}}


async def test_a_session_from_end_to_end() -> None:
    async with Served().on() as served:
        name = await served.open()
        async with served.stream(None, name) as own:
            primed = await own.event()
            assert (primed.data, own.headers["content-type"]) == ("", "text/event-stream")
            params = call("progress", times=3) | PROGRESS
            async with served.stream(rpc(1, "tools/call", params), name) as answer:
                blocks = [found(block) for block in await answer.rest() if block.data]
                assert [b.get("method", "answer") for b in blocks] == [
                    *["notifications/progress"] * 3,
                    "answer",
                ]
            for number in range(100):
                served.app.notify_all("notifications/x", {"number": number})
            numbers = [found(await own.event())["params"]["number"] for _ in range(100)]
            assert numbers == list(range(100))
            async with connected(served.running) as client:
                await client.send(get("/mcp", name, method="DELETE"))
                await client.until(b"204")
            await own.rest()
            assert own.ended == "complete"
        assert served.ended == ["client-left"]
        assert (await served.send(rpc(1, "ping"), name))[0] == 404


async def test_a_post_that_is_cut_off_is_resumed() -> None:
    async with Served(answers="sse").on() as served:
        name = await served.open()
        async with served.stream(rpc(1, "tools/call", call("wait")), name) as answer:
            place = (await answer.event()).id
            await served.parts.waiting.wait()
            answer.client.reset()
        (session,) = served.app.sessions.values()
        assert session.in_flight == 1
        served.parts.go.set()
        async with served.stream(None, name, f"Last-Event-ID: {place}") as rest:
            blocks = [found(block) for block in await rest.rest() if block.data]
            assert [block["id"] for block in blocks] == [1]


async def test_one_that_takes_nothing_holds_nobody_and_is_cut() -> None:
    """Its handler is held for ``patience``, and no longer."""
    limits = McpLimits(max_kept_bytes=100_000, patience=0.3)
    async with Served(limits=limits, answers="sse").on(send_timeout=0.5) as served:
        name = await served.open()
        (session,) = served.app.sessions.values()
        params = call("progress", times=100_000) | PROGRESS
        stuck = rpc("stuck", "tools/call", params)
        async with served.stream(stuck, name, receive_buffer=2048):
            await eventually(lambda: session.in_flight)
            status, _, _ = await served.send(rpc(2, "ping"), name)
            assert status == 200
            async with served.stream(None, name) as own:
                await own.event()
                served.app.notify_all("notifications/x")
                assert found(await own.event())["method"] == "notifications/x"
            await eventually(lambda: not session.in_flight)


@pytest.mark.parametrize("grace", [2.0])
async def test_shutdown_is_bounded(grace: float) -> None:
    """With a stream that listens, one that is stuck, and a request that does not end."""
    async with Served(answers="sse").on(grace=grace, stop_on_exit=False) as served:
        name = await served.open()
        params = call("progress", times=1_000_000) | PROGRESS
        async with (
            served.stream(rpc("stuck", "tools/call", params), name, receive_buffer=2048),
            served.stream(None, name) as own,
            served.stream(rpc(1, "tools/call", call("wait")), name) as answer,
        ):
            await own.event()
            await served.parts.waiting.wait()
            taken = await served.running.stopped()
            assert taken < grace + GRACE / 2
            (refused,) = [found(block) for block in await answer.rest() if block.data]
            assert refused["id"] == 1
            assert refused["error"]
            await own.rest()
            assert (own.ended, answer.ended) == ("complete", "complete")
        assert served.ended == ["drained"]
        assert served.parts.log == ["begins", "cancelled"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the client's own:
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves its generators to the collector
@pytest.mark.parametrize("answers", ["auto", "json", "sse"])
async def test_the_sdks_own_client(answers: Any) -> None:
    async with Served(answers=answers).on() as served:
        url = f"{served.running.urls[0]}/mcp"
        progress: list[float] = []

        async def on_progress(value: float, _total: Any, _message: Any) -> None:
            progress.append(value)

        with trio.fail_after(FAR):
            async with (
                streamable_http_client(url) as streams,
                ClientSession(streams[0], streams[1]) as session,
            ):
                await session.initialize()
                tools = await session.list_tools()
                assert "echo" in [tool.name for tool in tools.tools]
                result = await session.call_tool(
                    "progress", {"times": 2}, progress_callback=on_progress
                )
                assert result.content[0].text == '"done"'  # type: ignore[union-attr]  # it is
                assert len(served.app.sessions) == 1
        assert progress == ([] if answers == "json" else [0.0, 1.0])
        await eventually(lambda: served.ended)
    assert served.ended == ["client-left"]
