"""A server of MCP that is told to stop, with real sockets: bounded, and everybody is answered."""

from __future__ import annotations

import json
import signal
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from mcp_real.harness import served

from trio_sse import Decoder

PATIENCE = 40.0
STATELESS = "2026-07-28"
SESSIONS = "2025-11-25"
ACCEPT = {"accept": "application/json, text/event-stream"}


def message(method: str, id: int | None = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params} | (
        {} if id is None else {"id": id}
    )


def stateless(method: str, **params: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """A request of 2026-07-28: its headers and its body."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": STATELESS,
        "io.modelcontextprotocol/clientCapabilities": {},
        "progressToken": "p",
    }
    headers = {**ACCEPT, "mcp-protocol-version": STATELESS, "mcp-method": method}
    if "name" in params:
        headers["mcp-name"] = params["name"]
    return headers, message(method, **params, _meta=meta)


class Stream:
    """A response that is an event stream, and what it says."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.headers["content-type"] == "text/event-stream"
        self._chunks = response.aiter_raw()
        self._decoder = Decoder()
        self._pending: list[dict[str, Any]] = []

    def _take(self, chunk: bytes) -> None:
        self._pending += [json.loads(each.data) for each in self._decoder.feed(chunk) if each.data]

    async def next(self) -> dict[str, Any]:
        while not self._pending:
            self._take(await anext(self._chunks))
        return self._pending.pop(0)

    async def rest(self) -> list[dict[str, Any]]:
        """Until the proper end: anything else raises."""
        async for chunk in self._chunks:
            self._take(chunk)
        return self._pending


class Visitor:
    """Opens what is to be open when the server is told to stop."""

    def __init__(self, client: httpx.AsyncClient, stack: AsyncExitStack) -> None:
        self._client = client
        self._stack = stack
        self._session: dict[str, str] = {}

    async def initialise(self) -> None:
        about = {"name": "shutdown", "version": "1"}
        hello = message("initialize", protocolVersion=SESSIONS, capabilities={}, clientInfo=about)
        answer = await self._client.post("/mcp", json=hello, headers=ACCEPT)
        self._session = {
            **ACCEPT,
            "mcp-session-id": answer.headers["mcp-session-id"],
            "mcp-protocol-version": SESSIONS,
        }
        initialised = message("notifications/initialized", None)
        done = await self._client.post("/mcp", json=initialised, headers=self._session)
        assert done.status_code == 202

    async def open(self, method: str, headers: dict[str, str], body: Any = None) -> Stream:
        entering = self._client.stream(method, "/mcp", headers=headers, json=body)
        return Stream(await self._stack.enter_async_context(entering))

    async def listen(self) -> Stream:
        wanted = {"toolsListChanged": True}
        stream = await self.open("POST", *stateless("subscriptions/listen", notifications=wanted))
        acknowledged = await stream.next()
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        return stream

    async def own_stream(self) -> Stream:
        return await self.open("GET", {**self._session, "accept": "text/event-stream"})

    async def call(self, id: int, tool: str, **arguments: str) -> Stream:
        """A call of the session, of which the first message has come."""
        meta = {"progressToken": id}
        body = message("tools/call", id, name=tool, arguments=arguments, _meta=meta)
        stream = await self.open("POST", self._session, body)
        assert "method" in await stream.next()
        return stream

    async def call_stateless(self, tool: str, **arguments: str) -> Stream:
        stream = await self.open("POST", *stateless("tools/call", name=tool, arguments=arguments))
        assert "method" in await stream.next()
        return stream


def stall(port: int) -> socket.socket:
    """A client that asks for more than anybody can hold, and reads none of it."""
    headers, body = stateless("tools/call", name="test_flood", arguments={})
    data = json.dumps(body).encode()
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(
        f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"{head}content-length: {len(data)}\r\n\r\n".encode()
        + data
    )
    return sock


@pytest.mark.timeout(120)
async def test_a_shutdown_is_bounded_and_answers_everybody(tmp_path: Path) -> None:
    with served("trio_sse.serve", tmp_path) as server, stall(server.port):
        async with (
            AsyncExitStack() as stack,
            httpx.AsyncClient(base_url=server.origin, timeout=PATIENCE) as client,
        ):
            visitor = Visitor(client, stack)
            await visitor.initialise()
            listen = await visitor.listen()
            own = await visitor.own_stream()
            short = await visitor.call(7, "test_cut")
            endless = await visitor.call(8, "test_wait", name="a")
            endless_stateless = await visitor.call_stateless("test_wait", name="b")
            server.process.send_signal(signal.SIGTERM)
            said: dict[str, list[dict[str, Any]]] = {}

            async def read(name: str, stream: Stream) -> None:
                said[name] = await stream.rest()

            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read, "listen", listen)
                    nursery.start_soon(read, "own", own)
                    nursery.start_soon(read, "short", short)
                    nursery.start_soon(read, "endless", endless)
                    nursery.start_soon(read, "endless stateless", endless_stateless)
        status = await trio.to_thread.run_sync(server.process.wait, PATIENCE)
    assert status == 0
    [listened] = said["listen"]
    assert (listened["id"], listened["result"]["resultType"]) == (1, "complete")
    assert said["own"] == []
    assert said["short"][-1]["result"]["content"][0]["text"] == "answered after the cut"
    assert [each.get("id") for each in said["short"]] == [None, 7]
    for name, id in (("endless", 8), ("endless stateless", 1)):
        [answer] = said[name]
        assert answer["id"] == id
        assert "error" in answer
