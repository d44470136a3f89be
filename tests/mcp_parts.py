"""A server for the tests of `trio_sse.mcp`: each tool does one thing to its client."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
import trio
from mcp.server.lowlevel import Server
from mcp.shared.message import ServerMessageMetadata

from trio_sse.mcp import McpApp
from trio_sse.mcp.testing import Client, connect

OPEN = {"type": "object"}
"""A schema that any arguments fit."""


class Parts:
    """A server, and what its handlers did.

    Attributes:
        log: what happened, in order.
        go: what ``wait`` waits for; ``waiting``: set when one does.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.waiting = trio.Event()
        self.go = trio.Event()
        self.server: Server[Any] = Server(
            "parts", version="1", on_list_tools=self.list_tools, on_call_tool=self.call_tool
        )

    async def list_tools(self, _ctx: Any, _params: Any) -> types.ListToolsResult:
        names = [name[5:] for name in dir(self) if name.startswith("tool_")]
        return types.ListToolsResult(
            tools=[types.Tool(name=name, input_schema=OPEN) for name in names]
        )

    async def call_tool(self, ctx: Any, params: types.CallToolRequestParams) -> Any:
        tool = getattr(self, f"tool_{params.name}")
        return text(await tool(ctx, **(params.arguments or {})))

    async def tool_echo(self, _ctx: Any, **arguments: Any) -> Any:
        return arguments

    async def tool_progress(self, ctx: Any, times: int = 3, end: bool = False) -> str:
        """Report progress, and log to the request's own stream."""
        for number in range(times):
            await ctx.session.report_progress(number, times)
        if end:
            await ctx.close_sse_stream()
            await self.tool_wait(ctx)
            await ctx.session.report_progress(times, times)
        return "done"

    async def tool_wait(self, _ctx: Any) -> str:
        """Wait until `go`, and say if it was not to be."""
        self.log.append("begins")
        self.waiting.set()
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.log.append("cancelled")
            raise
        self.log.append("returns")
        return "waited"

    async def tool_stubborn(self, _ctx: Any, seconds: float = 3) -> str:
        """Take a while to be cancelled."""
        self.waiting.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(seconds, shield=True):
                await trio.sleep_forever()
            self.log.append("has ended")

    async def tool_who(self, ctx: Any) -> Any:
        return {"identity": ctx.request.identity, "header": ctx.request.headers.get("x-test")}

    async def tool_fail(self, _ctx: Any) -> Any:
        raise ValueError("on purpose")

    async def tool_sample(self, ctx: Any) -> Any:
        message = types.SamplingMessage(
            role="user", content=types.TextContent(type="text", text="?")
        )
        params = types.CreateMessageRequestParams(messages=[message], max_tokens=9)
        request = types.CreateMessageRequest(params=params)
        result = await ctx.session.send_request(
            request, types.CreateMessageResult, metadata=related(ctx)
        )
        return result.content.text

    async def tool_elicit(self, ctx: Any) -> Any:
        result = await ctx.session.elicit_form(
            "which?", {"type": "object", "properties": {"it": {"type": "string"}}}, ctx.request_id
        )
        return result.content

    async def tool_roots(self, ctx: Any) -> Any:
        result = await ctx.session.send_request(
            types.ListRootsRequest(), types.ListRootsResult, metadata=related(ctx)
        )
        return [str(root.uri) for root in result.roots]

    async def tool_log(self, ctx: Any, levels: list[str]) -> str:
        for level in levels:
            params = types.LoggingMessageNotificationParams(level=level, data=level)  # type: ignore[arg-type]  # a level
            await ctx.session.send_notification(
                types.LoggingMessageNotification(params=params), ctx.request_id
            )
        return "logged"


def related(ctx: Any) -> ServerMessageMetadata:
    """For what is to go on the request's own response."""
    return ServerMessageMetadata(related_request_id=ctx.request_id)


def text(value: Any) -> types.CallToolResult:
    """``value`` as JSON text, as `said` takes it apart."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=json.dumps(value))])


def said(result: dict[str, Any]) -> Any:
    """What a tool returned."""
    return json.loads(result["content"][0]["text"])


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """The parameters of ``tools/call``."""
    return {"name": name, "arguments": arguments}


def initialize(id: int | str = 0, version: str = "2025-11-25") -> dict[str, Any]:
    return rpc(
        id,
        "initialize",
        {
            "protocolVersion": version,
            "capabilities": {},
            "clientInfo": {"name": "a test", "version": "1"},
        },
    )


def rpc(id: int | str, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}}


@asynccontextmanager
async def serving(
    parts: Parts | None = None,
    *,
    version: str = "2025-11-25",
    replies: dict[str, Callable[[dict[str, Any]], Any]] | None = None,
    headers: dict[str, str] | None = None,
    capabilities: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncGenerator[tuple[McpApp, Client, Parts], None]:
    """An open application, a client with a session, and the server's parts."""
    parts = Parts() if parts is None else parts
    async with (
        McpApp(parts.server, **options) as app,
        connect(
            app, version=version, answers=replies, headers=headers, capabilities=capabilities
        ) as client,
    ):
        yield app, client, parts
