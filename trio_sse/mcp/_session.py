"""An MCP session: the SDK's kernel in the nursery of one of our sessions.

`McpSession.run` is the session's handler. The kernel reads what clients send from an inbox,
runs each request in a task of its own inside the session's nursery, and writes to an
outlet, which is the transport's: it knows which message belongs on which response. When the
session ends, for whatever reason, the kernel and all requests are cancelled and joined, then
the outlet is closed: nothing that belongs to the session outlives it.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast, final

import anyio
import trio
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.server.runner import ServerRunner, aclose_shielded
from mcp.shared.dispatcher import DispatchContext
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import MessageMetadata, ServerMessageMetadata, SessionMessage
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    ClientCapabilities,
    Implementation,
    JSONRPCMessage,
    JSONRPCNotification,
    LoggingLevel,
    RequestId,
)

from ..session import EndReason, Request, Session
from ._hooks import Call
from ._messages import Rejected, dump
from ._overlay import LEVELS, Offers, SessionServer

if TYPE_CHECKING:
    from ._core import Core

Fate = Literal["sent", "kept", "lost", "unwanted"]
"""What became of a message: on an open stream; kept for the next one; nowhere; not wanted."""


class Outlet(Protocol):
    """Where a session's messages go. A transport's; used by the session's tasks alone."""

    async def send(self, message: JSONRPCMessage, related: RequestId | None) -> None:
        """Give ``message`` its place, in order, waiting for room.

        Args:
            related: the request (by the id that the kernel was given) that it is a part of;
                ``None`` if it is a response, which has an id, or belongs to the session.

        Raises:
            trio.ClosedResourceError: there is no place for it, and will be none.
        """
        ...

    def send_nowait(self, text: str) -> Fate:
        """Give a message (JSON, on one line) of the session's own its place, at once."""
        ...

    def close(self) -> None:
        """The session is over: end all responses after what they have. Idempotent."""
        ...


_INLINE: Final = frozenset({"initialize"})
"""What is answered before the next message is looked at."""


@final
class McpSession:
    """A client's session, as the application sees it.

    Attributes:
        id: what the client sends as ``Mcp-Session-Id``, or in the message URL.
        request: the HTTP request that opened it, with its identity.
        connection: the SDK's; its ``state`` is the application's own, and its
            ``send_request`` asks the client something.
        outlet: the transport's.
        offers: tools, resources and prompts of this session alone.
        log_level: the least severe level of log messages that the client wants.
        subscriptions: the URIs of resources that it wants to be told of.
    """

    def __init__(self, core: Core, request: Request, outlet: Outlet) -> None:
        self._core = core
        self.outlet = outlet
        self._session: Session | None = None
        self._inbox = Inbox()
        self._in_flight = 0
        self._held = 0
        self._idle = trio.CancelScope()
        self._dispatcher: JSONRPCDispatcher[TransportContext] = JSONRPCDispatcher(
            self._inbox,
            _KernelWriter(self),
            transport_builder=_transport_context,
            inline_methods=_INLINE,
        )
        self.request = request
        self.connection = Connection.for_loop(self._dispatcher)
        self.offers = Offers(self.notify)
        self.log_level: LoggingLevel = "debug"
        self.subscriptions: set[str] = set()
        core.by_request[id(request)] = self

    def __repr__(self) -> str:
        return f"<McpSession {self.protocol_version} {self._session!r}>"

    @property
    def session(self) -> Session:
        """The hub's session that this is, with its nursery, its reason and its statistics.

        Raises:
            RuntimeError: it has not begun.
        """
        if self._session is None:
            raise RuntimeError("an MCP session has its session once it is registered")
        return self._session

    @property
    def id(self) -> str:
        return self.session.id

    @property
    def is_open(self) -> bool:
        return self._session is not None and self._session.is_open

    @property
    def protocol_version(self) -> str:
        """The revision agreed upon."""
        return self.connection.protocol_version

    @property
    def client_info(self) -> Implementation | None:
        """What the client said it is; ``None`` before it said so."""
        params = self.connection.client_params
        return None if params is None else params.client_info

    @property
    def client_capabilities(self) -> ClientCapabilities | None:
        return self.connection.client_capabilities

    def notify(self, method: str, params: Mapping[str, Any] | None = None) -> Fate:
        """Send a notification to this client, outside of any request.

        Returns:
            ``"sent"``: it is on a stream that the client has open. ``"kept"``: it waits for
            the client to open one. ``"lost"``: the session has ended, or is not initialised.
            ``"unwanted"``: a log message below the level that the client has set.
        """
        return self.notify_text(method, params, dump(notification(method, params)))

    def notify_text(self, method: str, params: Mapping[str, Any] | None, text: str) -> Fate:
        """The same, for a notification that is JSON already."""
        if not self.is_open or not self.connection.initialize_accepted:
            return "lost"
        if not self.wants(method, params):
            return "unwanted"
        return self.outlet.send_nowait(text)

    def wants(self, method: str, params: Mapping[str, Any] | None) -> bool:
        """Whether a notification is none of those that the client has turned off."""
        level = (params or {}).get("level") if method == "notifications/message" else None
        return level not in LEVELS or LEVELS.index(level) >= LEVELS.index(self.log_level)

    def end(self, reason: EndReason | str) -> None:
        """As `trio_sse.Session.end`."""
        self.session.end(reason)

    # What the transports do.

    async def run(self, session: Session) -> None:
        """The session's handler: serve it, until it is ended or was idle for too long."""
        core = self._core
        self._session = session
        self.connection.session_id = session.id
        core.sessions[session.id] = self
        server = SessionServer(core.server, self.offers, self.subscriptions, self._set_log_level)
        runner = ServerRunner(cast("Server[Any]", server), self.connection, core.lifespan_state)
        try:
            with self._idle:
                await self._dispatcher.run(self._observed(runner), runner.on_notify)
            if self._idle.cancelled_caught:
                session.end(EndReason("deadline", f"idle for {core.limits.idle:g} s"))
        finally:
            del core.sessions[session.id]
            self._inbox.close()
            self.outlet.close()
            await aclose_shielded(self.connection)  # noqa: ASYNC102  # it shields, bounded

    def _set_log_level(self, level: LoggingLevel) -> None:
        self.log_level = level

    async def take(self, message: JSONRPCMessage, metadata: MessageMetadata = None) -> None:
        """Hand the kernel a message of the client's; returns once it has it.

        The calling task's context variables are those of the request's handler.

        Raises:
            Rejected: 404; the session has ended.
        """
        await self._inbox.put(SessionMessage(message, metadata))

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Put this around each HTTP request of the session's: meanwhile it is not idle."""
        self._held += 1
        self._idle.deadline = math.inf
        try:
            yield
        finally:
            self._held -= 1
            if not self._held and self._core.limits.idle is not None:
                self._idle.deadline = trio.current_time() + self._core.limits.idle

    @property
    def in_flight(self) -> int:
        """Requests that were begun and are not answered."""
        return self._in_flight

    def begin_request(self, count: int = 1) -> None:
        """Count requests that are to be handed to the kernel. A drain waits for their answers.

        Raises:
            Rejected: 429; there are too many.
        """
        if self._in_flight + count > self._core.limits.max_in_flight:
            raise Rejected(
                429,
                f"{self._in_flight} requests of this session are not answered yet",
                headers=((b"retry-after", b"1"),),
            )
        self._in_flight += count
        self.session.awaits_drain = True

    def finish_request(self) -> None:
        """Count it as answered."""
        self._in_flight -= 1
        if not self._in_flight:
            self.session.awaits_drain = False
            if self._core.hub.state == "draining":
                self.session.end(EndReason.DRAINED)

    def _observed(
        self, runner: ServerRunner[Any]
    ) -> Callable[
        [DispatchContext[TransportContext], str, Mapping[str, Any] | None],
        Awaitable[dict[str, Any]],
    ]:
        async def on_request(
            dctx: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
        ) -> dict[str, Any]:
            metadata = dctx.message_metadata
            assert isinstance(metadata, ServerMessageMetadata)
            call = Call(
                method=method, params=params, request=metadata.request_context, session=self
            )
            return await self._core.hooks.around(
                call, lambda: runner.on_request(dctx, method, params)
            )

        return on_request


def notification(method: str, params: Mapping[str, Any] | None) -> JSONRPCNotification:
    """A notification; without ``params`` it has none."""
    if params is None:
        return JSONRPCNotification(jsonrpc="2.0", method=method)
    return JSONRPCNotification(jsonrpc="2.0", method=method, params=dict(params))


def _transport_context(metadata: MessageMetadata) -> TransportContext:
    assert isinstance(metadata, ServerMessageMetadata)
    return TransportContext(
        kind="streamable-http",
        can_send_request=metadata.can_send_request,
        headers=metadata.request_context.headers,
    )


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    """A message that somebody waits to hand over; the same as no other."""

    context: contextvars.Context
    message: SessionMessage


@final
class Inbox:
    """What the kernel reads from; one message at a time, handed over, never queued.

    Attributes:
        last_context: the context variables of whoever sent the message that came last.
    """

    def __init__(self) -> None:
        # Not one of Trio's channels, which would be a kilobyte and a half for each session.
        self._offered: list[_Offer] = []
        self._closed = False
        self._changed = trio.lowlevel.ParkingLot()
        self.last_context: contextvars.Context | None = None
        self._read: SessionMessage | None = None

    async def put(self, message: SessionMessage) -> None:
        """Hand ``message`` over; if cancelled before it was taken, it is not.

        Raises:
            Rejected: 404; nobody reads any more.
        """
        await trio.lowlevel.checkpoint()
        offer = _Offer(contextvars.copy_context(), message)
        self._offered.append(offer)
        self._changed.unpark_all()
        try:
            while offer in self._offered and not self._closed:
                await self._changed.park()
        finally:
            left = offer in self._offered
            if left:
                self._offered.remove(offer)
        if left:
            raise session_not_found()

    def close(self) -> None:
        self._closed = True
        self._changed.unpark_all()

    async def receive(self) -> SessionMessage | Exception:
        self._forget()
        await trio.lowlevel.checkpoint()
        while not self._offered and not self._closed:
            await self._changed.park()
        if self._closed:
            raise anyio.ClosedResourceError
        offer = self._offered.pop(0)
        self.last_context, self._read = offer.context, offer.message
        self._changed.unpark_all()
        return self._read

    def _forget(self) -> None:
        """Let go of the message that was read last, which may be large.

        Who reads in a loop has done with it, and keeps it until there is another.
        """
        self.last_context = None
        if self._read is not None:
            vars(self._read).clear()
            self._read = None

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        return await self.receive()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Inbox:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()


@final
class _KernelWriter:
    """What the kernel writes to: the outlet, with anyio's errors in place of Trio's."""

    def __init__(self, session: McpSession) -> None:
        self._session = session

    async def send(self, item: SessionMessage, /) -> None:
        metadata, message = item.metadata, item.message
        if isinstance(message, JSONRPCNotification) and not self._session.wants(
            message.method, message.params
        ):
            return
        related = (
            metadata.related_request_id if isinstance(metadata, ServerMessageMetadata) else None
        )
        try:
            if self._session.is_open:
                await self._session.outlet.send(message, related)
            else:
                # What has a place gets it; nobody waits for a client that takes nothing.
                with trio.move_on_after(0):
                    await self._session.outlet.send(message, related)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise anyio.ClosedResourceError from None

    async def aclose(self) -> None:
        """Does nothing: the outlet is closed when the session is over."""

    async def __aenter__(self) -> _KernelWriter:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        pass


def session_not_found() -> Rejected:
    """What a client is told of an id that is unknown, has ended, or is another's."""
    return Rejected(404, "no such session: it has ended, or never was; initialize a new one")
