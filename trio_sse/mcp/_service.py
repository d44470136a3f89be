"""What ``trio-sse mcp`` runs: an `McpApp`, and what watches it."""

from __future__ import annotations

from typing import Final, final

from .._access import Access
from .._respond import Receive, Scope, Send
from ..console import Console
from ..service import Watching
from ..session import Session
from ._app import McpApp


@final
class McpService:
    """An `McpApp` with health, metrics and a console beside it.

    ``/healthz`` says 200, or 503 while draining; ``/metrics`` is for Prometheus; ``/`` is
    the console, which shows the sessions and can end them. All else is the application's.

    Args:
        app: whose hub is watched.
        access: who may look at the console (its ``subscribe_token``), and who may end
            sessions there (its ``publish_token``). By default the application's own.
        clients_path: where clients are served, for the console to tell.
        console: whether there is one.

    Raises:
        ValueError: ``clients_path`` is where something of this is.
    """

    def __init__(
        self,
        app: McpApp,
        *,
        access: Access | None = None,
        clients_path: str = "/mcp",
        console: bool = True,
    ) -> None:
        self.app: Final = app
        self._watching = Watching(
            app.hub,
            Console(
                app.hub,
                app.access if access is None else access,
                clients_path=clients_path,
                about=self._about,
            )
            if console
            else None,
        )
        if self._watching.find(clients_path) is not None:
            raise ValueError(
                f"{clients_path} is taken by the console, health or metrics: serve clients "
                "elsewhere, as at /mcp"
            )

    def __repr__(self) -> str:
        return f"<McpService of {self.app!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        watching = self._watching.find(scope["path"]) if scope["type"] == "http" else None
        await (watching or self.app)(scope, receive, send)

    def _about(self, session: Session) -> str:
        """What a client says it is, and the revision that is spoken with it."""
        mcp_session = self.app.session_of(session)
        if mcp_session is None:  # the revision without sessions, or a console
            version = session.request.headers.get("mcp-protocol-version")
            return f"listens · {version}" if version else ""
        client = mcp_session.client_info
        if client is None:
            return mcp_session.protocol_version
        return f"{client.name} {client.version} · {mcp_session.protocol_version}"
