"""A small MCP server for the benchmark: ``python mcp_server.py APP WORKER PORT``.

APP is what carries it: ``ours``, ``ours-sse``, ``sdk`` or ``sdk-json``; WORKER is what serves
that: ``serve`` (`trio_sse.serve`), ``hypercorn`` (its trio worker) or ``uvicorn``.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged

_CHANGED: Final = "notifications/tools/list_changed"
_ECHO: Final = types.Tool(
    name="echo",
    description="Answers with its argument",
    input_schema={"type": "object", "properties": {"text": {"type": "string"}}},
)

bus = InMemorySubscriptionBus()
sessions: list[ServerSession] = []
"""Those that are to be notified: the SDK has no list of its own."""


async def list_tools(
    ctx: ServerRequestContext, params: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[_ECHO])


async def call_tool(
    ctx: ServerRequestContext, params: types.CallToolRequestParams
) -> types.CallToolResult:
    text = str((params.arguments or {}).get("text", ""))
    if params.name == "join":
        sessions.append(ctx.session)
    elif params.name == "notify":
        await notify_all()
    elif params.name == "publish":
        await bus.publish(ToolsListChanged())
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


async def notify_all() -> None:
    if isinstance(app, McpApp):
        app.notify_all(_CHANGED)
    else:
        for session in sessions:
            await session.send_tool_list_changed()


server: Server[dict[str, Any]] = Server(
    "benchmark",
    get_tool_input_schema=lambda name: _ECHO.input_schema,  # or tools are listed for each call
    on_list_tools=list_tools,
    on_call_tool=call_tool,
    on_subscriptions_listen=ListenHandler(bus),
)


def make_app(name: str) -> Any:
    if name.startswith("ours"):
        return McpApp(server, answers="sse" if name == "ours-sse" else "auto")
    return server.streamable_http_app(json_response=name == "sdk-json")


def serve_by(worker: str, port: int) -> None:
    if worker == "uvicorn":
        import uvicorn  # noqa: PLC0415  # only where it is what serves

        uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="warning")
        return
    import trio  # noqa: PLC0415  # as above
    from hypercorn.config import Config  # noqa: PLC0415  # as above

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.backlog = 2048
    config.loglevel = "WARNING"
    if worker == "serve":
        import trio_sse  # noqa: PLC0415  # as above

        trio.run(trio_sse.serve, app, config)
    else:
        from hypercorn.trio import serve  # noqa: PLC0415  # as above

        trio.run(serve, app, config)  # type: ignore[arg-type]  # Hypercorn types scopes as TypedDicts


if __name__ == "__main__":
    which, worker, port = sys.argv[1:]
    if which.startswith("ours"):
        from trio_sse.mcp import McpApp
    else:

        class McpApp:  # type: ignore[no-redef]  # the SDK's row does not pay for importing ours
            """Nothing is one."""

    app = make_app(which)
    serve_by(worker, int(port))
