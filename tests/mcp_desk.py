"""An MCP server for tests of the transports: its tools do little, and note what became of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
import trio
from mcp.server import Server, ServerRequestContext
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ServerEvent
from mcp.shared.exceptions import MCPError

from trio_sse import Hub
from trio_sse.testing import Response, Stream, open_stream, request

VERSION = "2026-07-28"
BOTH = "application/json, text/event-stream"
META = "io.modelcontextprotocol/"
ENVELOPE: dict[str, Any] = {f"{META}protocolVersion": VERSION, f"{META}clientCapabilities": {}}

REGION = {"type": "string", "x-mcp-header": "Region"}
TOOLS: dict[str, dict[str, Any]] = {
    "echo": {"text": {"type": "string"}},
    "routed": {"region": REGION, "count": {"type": "integer", "x-mcp-header": "Count"}},
    **{name: {} for name in ("chat", "fail", "flood", "refuse", "whoami", "wait")},
}


class Desk:
    """A server, and what its tools did.

    Attributes:
        notes: what happened, in order.
        begun: how many calls of each tool have begun.
        running: how many have not come to their end, whichever.
        go: what ``wait`` waits for.
    """

    def __init__(self, **options: Any) -> None:
        self.notes: list[str] = []
        self.begun: Counter[str] = Counter()
        self.running = 0
        self.go = trio.Event()
        self.sent = 0
        self.bus = InMemorySubscriptionBus()
        self.listen = ListenHandler(self.bus)
        self.page_size = len(TOOLS)
        self.changed = trio.lowlevel.ParkingLot()
        settings: dict[str, Any] = {
            "on_list_tools": self._list_tools,
            "on_call_tool": self._call_tool,
            "on_subscriptions_listen": self.listen,
            "lifespan": self._lifespan,
            **options,
        }
        self.server: Server[Any] = Server("desk", version="1", **settings)
        self.server.add_request_handler("desk/odd", types.RequestParams, self._odd)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something that a tool did makes ``condition()`` true."""
        while not condition():
            await self.changed.park()

    async def publish(self, *events: ServerEvent) -> None:
        for event in events:
            await self.bus.publish(event)

    def note(self, what: str) -> None:
        self.notes.append(what)
        self.changed.unpark_all()

    @asynccontextmanager
    async def _lifespan(self, _: Server[Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            yield {}
        finally:
            self.note("lifespan over")

    async def _list_tools(
        self, ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        start = int((params.cursor if params else None) or 0)
        names = list(TOOLS)[start : start + self.page_size]
        after = start + self.page_size
        return types.ListToolsResult(
            tools=[
                types.Tool(name=name, input_schema={"type": "object", "properties": TOOLS[name]})
                for name in names
            ],
            next_cursor=str(after) if after < len(TOOLS) else None,
        )

    async def _call_tool(
        self, ctx: ServerRequestContext[Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        self.begun[params.name] += 1
        self.running += 1
        self.note(f"{params.name} begun")
        try:
            text = await self._do(ctx, params.name, params.arguments or {})
        except trio.Cancelled:
            with trio.move_on_after(1, shield=True):  # it has something to clean up
                await trio.sleep(0.001)
            self.note(f"{params.name} cancelled")
            raise
        finally:
            self.running -= 1
            self.changed.unpark_all()
        self.note(f"{params.name} done")
        content = types.TextContent(type="text", text=text)
        return types.CallToolResult(content=[content])

    async def _odd(
        self, ctx: ServerRequestContext[Any], params: types.RequestParams
    ) -> dict[str, Any]:
        return {"odd": math.nan}

    async def _do(
        self, ctx: ServerRequestContext[Any], name: str, arguments: dict[str, Any]
    ) -> str:
        if name == "wait":
            if "say" in arguments:
                await ctx.session.report_progress(0, message=arguments["say"])
            await self.go.wait()
        elif name == "chat":
            for number in range(arguments["times"]):
                await ctx.session.report_progress(number)
        elif name == "flood":
            while True:
                await ctx.session.report_progress(self.sent, message="x" * 10_000)
                self.sent += 1
                self.changed.unpark_all()
        elif name == "fail":
            raise RuntimeError("a secret of the server's")
        elif name == "refuse":
            raise MCPError(code=-32099, message="not today")
        elif name == "whoami":
            assert ctx.request is not None
            return str(ctx.request.identity)
        return str(arguments.get("text", "ok"))


# The client's side.


def message(method: str, id: Any = 1, /, **params: Any) -> dict[str, Any]:
    """A request of 2026-07-28."""
    params["_meta"] = {**ENVELOPE, **params.get("_meta", {})}
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def calling(tool: str, id: Any = 1, /, **arguments: Any) -> dict[str, Any]:
    """A ``tools/call`` of 2026-07-28, with a progress token."""
    meta = {"progressToken": "token"}
    return message("tools/call", id, name=tool, arguments=arguments, _meta=meta)


def headers_for(body: Any, **changed: str | None) -> dict[str, str]:
    """The headers that a request of 2026-07-28 has; ``None`` leaves one out."""
    headers: dict[str, str | None] = {
        "accept": BOTH,
        "content-type": "application/json",
        "mcp-protocol-version": VERSION,
        "mcp-method": body.get("method", ""),
        "mcp-name": (body.get("params") or {}).get("name"),
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    return {name: value for name, value in headers.items() if value is not None}


async def send(app: Any, body: Any, path: str = "/mcp", **changed: str | None) -> Response:
    """Post ``body``; the whole response."""
    return await request(
        app, "POST", path, headers=headers_for(body, **changed), body=json.dumps(body).encode()
    )


@asynccontextmanager
async def sending(
    app: Any, body: Any, path: str = "/mcp", *, window: int = 1 << 16, **changed: str | None
) -> AsyncIterator[Stream]:
    """Post ``body``; the response, once it has begun."""
    async with open_stream(
        app,
        path,
        method="POST",
        headers=headers_for(body, **changed),
        body=json.dumps(body).encode(),
        window=window,
    ) as stream:
        yield stream


async def next_message(stream: Any) -> Any:
    """The next JSON-RPC message of an event stream."""
    return json.loads((await stream.receive_event()).data)


async def messages(stream: Stream) -> list[Any]:
    """Those that are left, to the stream's end."""
    found: list[Any] = []
    try:
        while True:
            found.append(await next_message(stream))
    except trio.EndOfChannel:
        return found


async def sessions_over(hub: Hub) -> None:
    """Wait until every session that has been told to end is over."""
    for session in list(hub.sessions.values()):
        await session.wait_ended()


def text_of(answer: Any) -> str:
    """What a tool said."""
    return str(answer["result"]["content"][0]["text"])
