"""What the three transports of one application share."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final
from weakref import WeakValueDictionary

from mcp.server.lowlevel import Server

from ..errors import HubClosed
from ..hub import Hub
from ..session import Request
from ._hooks import RequestHooks
from ._messages import Rejected

if TYPE_CHECKING:
    from ._session import McpSession

_SESSION_ID: Final = re.compile(r"[\x21-\x7e]+")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class McpLimits:
    """What an application bounds, beside its hub.

    Args:
        max_sessions: in all; the next one is refused with 503.
        max_body: bytes of one request's body; more are refused with 413.
        body_timeout: seconds that it may take to arrive; 408.
        max_in_flight: requests of one session that are not answered yet; the next one gets 429.
        max_requests: requests without a session that are not answered yet, in all; 503.
        max_listens: clients without a session that listen, in all; 503.
        max_streams: responses of one session that are event streams; the next one gets 429.
        max_kept_events: events of one session that are kept for a client that comes back
            with its last event ID; 0 keeps none, and offers no resumption.
        max_kept_bytes: the same, in bytes.
        idle: seconds without any request after which a session is ended; ``None`` for never.
        keep_alive: seconds after which a silent event stream gets a comment.
        patience: seconds that a handler waits for a client that takes nothing, before that
            response is given up; the client may come back and resume.

    Raises:
        ValueError: for what is not positive.
    """

    max_sessions: int = 10_000
    max_body: int = 4 << 20
    body_timeout: float = 10.0
    max_in_flight: int = 64
    max_requests: int = 1024
    max_listens: int = 1024
    max_streams: int = 64
    max_kept_events: int = 512
    max_kept_bytes: int = 1 << 20
    idle: float | None = 1800.0
    keep_alive: float = 15.0
    patience: float = 10.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name == "max_kept_events" and value == 0:
                continue
            if value is None and name == "idle":
                continue
            if value is None or not 0 < value < math.inf:
                raise ValueError(
                    f"McpLimits({name}={value}): a positive, finite number, "
                    f"as in McpLimits(max_sessions=1000)"
                )


@final
class Core:
    """One application's server, hub, limits and hooks, and its sessions by id.

    Attributes:
        server: the SDK's low-level server.
        hub: where sessions live, of all transports.
        sessions: those whose kernel runs. Changed by `McpSession` alone.
        by_request: all that there are, by the identity of the request that they keep.
    """

    def __init__(
        self,
        server: Server[Any],
        hub: Hub,
        limits: McpLimits,
        hooks: RequestHooks,
        new_session_id: Callable[[Request], str] | None,
    ) -> None:
        self.server = server
        self.hub = hub
        self.limits = limits
        self.hooks = hooks
        self.sessions: dict[str, McpSession] = {}
        self.by_request: WeakValueDictionary[int, McpSession] = WeakValueDictionary()
        self._new_session_id = new_session_id
        self._is_open = False
        self._lifespan_state: Any = None

    @property
    def lifespan_state(self) -> Any:
        """What the server's own lifespan yields.

        Raises:
            HubClosed: the application is not open.
        """
        if not self._is_open:
            raise HubClosed("the MCP application is not open: `async with app:`, or a lifespan")
        return self._lifespan_state

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None, None]:
        """Keep the server's lifespan entered, and the hub open if nobody else does."""
        async with AsyncExitStack() as stack:
            self._lifespan_state = await stack.enter_async_context(
                self.server.lifespan(self.server)
            )
            if self.hub.state == "new":
                await stack.enter_async_context(self.hub)
            self._is_open = True
            stack.callback(self._close)
            yield

    def _close(self) -> None:
        self._is_open = False

    def session_id(self, request: Request) -> str | None:
        """The id that the application wants the session to have; ``None`` for a random one."""
        if self._new_session_id is None:
            return None
        id = self._new_session_id(request)
        if not _SESSION_ID.fullmatch(id):
            raise ValueError(
                f"new_session_id returned {id!r}: a session id is visible ASCII characters"
            )
        return id

    def check_accepting(self) -> None:
        """Do nothing if new requests are accepted.

        Raises:
            Rejected: 503; the hub drains or is closed.
        """
        if not self._is_open or self.hub.state != "open":
            raise Rejected(503, "the server is shutting down", headers=((b"retry-after", b"5"),))
