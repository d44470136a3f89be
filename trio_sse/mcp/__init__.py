"""The Model Context Protocol over HTTP, on Trio: the official SDK's servers on our sessions.

``McpApp(server)`` is an ASGI application. The SDK (extra ``mcp``) has the types, the
dispatch and the protocol's rules; sessions, streams, lifetimes, replay, limits and shutdown
are those of `trio_sse`.
"""

from __future__ import annotations

from .._names import name_after as _name_after
from ._app import McpApp as McpApp
from ._app import Notified as Notified
from ._core import McpLimits as McpLimits
from ._hooks import Call as Call
from ._hooks import RequestHooks as RequestHooks
from ._legacy import LegacySse as LegacySse
from ._overlay import Offers as Offers
from ._service import McpService as McpService
from ._session import McpSession as McpSession

__all__ = [
    "Call",
    "LegacySse",
    "McpApp",
    "McpLimits",
    "McpService",
    "McpSession",
    "Notified",
    "Offers",
    "RequestHooks",
]
_name_after(__name__, globals())
