"""Where a client learns who authorises it: protected-resource metadata (RFC 9728)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, final
from urllib.parse import urlsplit, urlunsplit

from .._respond import Send, respond

_WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"


@final
class ResourceMetadata:
    """The document, and where it is.

    Attributes:
        path: below the host's root, wherever the application is mounted (section 3.1).
        url: the whole, which a refusal names.

    Raises:
        ValueError: ``resource`` is missing or is not an absolute URL.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        parts = urlsplit(str(document.get("resource", "")))
        if not parts.scheme or not parts.netloc:
            raise ValueError(
                "McpApp(resource_metadata=...): 'resource' is the URL of the MCP endpoint, "
                "as in {'resource': 'https://example.org/mcp', 'authorization_servers': [...]}"
            )
        self.path = _WELL_KNOWN + parts.path.rstrip("/")
        self.url = urlunsplit((parts.scheme, parts.netloc, self.path, parts.query, ""))
        self._body = json.dumps({"bearer_methods_supported": ["header"], **document}).encode()

    async def answer(self, method: str, send: Send) -> None:
        """Answer to anyone: who asks has no token yet, and may be any page."""
        headers = [(b"access-control-allow-origin", b"*")]
        if method in ("GET", "HEAD"):
            await respond(
                send,
                200,
                self._body,
                content_type="application/json",
                headers=[*headers, (b"cache-control", b"max-age=3600")],
                head=method == "HEAD",
            )
        else:
            status = 204 if method == "OPTIONS" else 405
            headers += [
                (b"allow", b"GET, HEAD, OPTIONS"),
                (b"access-control-allow-headers", b"authorization, mcp-protocol-version"),
            ]
            await respond(send, status, headers=headers)
