"""``Mcp-Param-*``: arguments that a tool wants mirrored into headers, checked against the body."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

from mcp.server.lowlevel import Server
from mcp.shared.inbound import (
    MCP_PARAM_HEADER_PREFIX,
    InboundLadderRejection,
    validate_mcp_param_headers,
)
from mcp_types import JSONRPCRequest

log: Final = logging.getLogger("trio_sse")

_PREFIX: Final = MCP_PARAM_HEADER_PREFIX.lower()
_MAX_PAGES: Final = 100

ListTools = Callable[["str | None"], Awaitable[Mapping[str, Any]]]
"""The server's own answer to ``tools/list``, from a cursor on."""


async def check_param_headers(
    server: Server[Any], message: JSONRPCRequest, headers: Mapping[str, str], list_tools: ListTools
) -> InboundLadderRejection | None:
    """What is wrong with a ``tools/call``, if its headers and its arguments disagree.

    What the tool declares is known from its input schema: from the server's
    ``get_tool_input_schema``, or from what ``tools/list`` tells this very client. A schema
    that cannot be had is no fault of the client's: the call then goes unchecked, and that is
    logged.
    """
    params = message.params or {}
    name, arguments = params.get("name"), params.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, Mapping | None):
        return None  # the server says what is wrong with it
    arguments = cast("Mapping[str, Any]", arguments or {})
    if not arguments and not any(header.startswith(_PREFIX) for header in headers):
        return None
    try:
        schema = await _input_schema(server, name, list_tools)
    except Exception:
        log.exception("the headers of a call of %r go unchecked: its schema cannot be had", name)
        return None
    return None if schema is None else validate_mcp_param_headers(schema, arguments, headers)


async def _input_schema(server: Server[Any], name: str, list_tools: ListTools) -> Any:
    if server.get_tool_input_schema is not None:
        return server.get_tool_input_schema(name)
    if server.get_request_handler("tools/list") is None:
        return None
    cursor: str | None = None
    seen: set[str] = set()
    for _ in range(_MAX_PAGES):
        page = await list_tools(cursor)
        for tool in page.get("tools", ()):
            if tool.get("name") == name:
                return tool.get("inputSchema")
        cursor = page.get("nextCursor")
        if not isinstance(cursor, str):
            return None
        if cursor in seen:
            break
        seen.add(cursor)
    raise ValueError("tools/list has no end")
