"""HTTP+SSE, the transport of 2024-11-05: one event stream, and a URL to post messages to.

A session is one of the hub's, for as long as its stream, and the server's kernel runs in its
nursery: what ends the one ends the other, and every request with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final
from urllib.parse import quote

import trio
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
)

from ..asgi import check_accept
from ..errors import SessionEnded
from ..session import EndReason, Request, Session
from ..wire import Event, encode
from ._core import Core
from ._exchange import Exchange
from ._messages import Rejected, dump, kernel_id, to_message
from ._session import Fate, McpSession, session_not_found

_NAME: Final = re.compile(r"\{(\w+)\}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LegacySse:
    """Where clients of 2024-11-05 find an event stream, and where they post to.

    Args:
        sse_path: of the event stream, below the place where the application is mounted;
            ``{name}`` stands for any one segment.
        message_path: what messages are posted to; ``{name}`` is filled in as it was in the
            stream's path.
        base_url: what comes before ``message_path`` in the URL that clients are told:
            ``"https://example.org/api"`` for full URLs, ``"/api"`` for where a proxy has put
            it, or a function of the request for the stream. By default the path of the place
            where the application is mounted. Clients refuse another origin than the stream's.
        append_query: whether that URL has the query of the request for the stream, too.

    Raises:
        ValueError: ``message_path`` has a name that ``sse_path`` has not.
    """

    sse_path: str = "/sse"
    message_path: str = "/message"
    base_url: str | Callable[[Request], str] | None = None
    append_query: bool = False

    def __post_init__(self) -> None:
        missing = set(_NAME.findall(self.message_path)) - set(_NAME.findall(self.sse_path))
        if missing:
            raise ValueError(
                f"LegacySse(message_path={self.message_path!r}): {sorted(missing)} would be "
                "filled in from sse_path, as in "
                "LegacySse(sse_path='/{tenant}/sse', message_path='/{tenant}/message')"
            )


@final
class LegacyTransport:
    """Answers the two requests of HTTP+SSE."""

    def __init__(self, core: Core, options: LegacySse) -> None:
        self._core = core
        self._options = options
        parts = _NAME.split(options.sse_path.rstrip("/"))  # every other one is a name
        names = [
            f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        ]
        self._sse_path = re.compile("".join(names) + "/?$")
        # By session id; changed by `answer_sse` only.
        self._outlets: dict[str, _Outlet] = {}

    def __repr__(self) -> str:
        return f"<LegacyTransport {self._options.sse_path!r}, {len(self._outlets)} sessions>"

    async def answer_sse(self, exchange: Exchange) -> None:
        """Open a session, and carry it until it ends or the client leaves.

        Raises:
            Rejected: 503; there is no room, or the application is shutting down.
            Refused: 406; or a register hook said so.
        """
        check_accept(exchange.headers.get("accept", ""), "text/event-stream")
        core = self._core
        core.check_accepting()
        if len(core.sessions) >= core.limits.max_sessions:
            raise Rejected(503, "no room for more sessions", headers=((b"retry-after", b"5"),))
        outlet = _Outlet(core, exchange.request)
        async with core.hub.open_session(
            exchange.request,
            topics=(),
            handler=outlet.run,
            resume=False,
            id=core.session_id(exchange.request),
        ) as (session, receive_end):
            endpoint = Event(self._message_url(exchange, session.id), type="endpoint")
            self._outlets[session.id] = outlet
            try:
                with outlet.mcp_session.held():
                    await exchange.stream(
                        receive_end,
                        head=encode(endpoint),
                        keep_alive=core.limits.keep_alive,
                        when_gone=lambda: session.client_gone(False),
                    )
            except BaseException:
                # Not the client's leaving, which is absorbed: the server's, or a defect.
                session.end(EndReason.CANCELLED)
                raise
            finally:
                del self._outlets[session.id]

    async def answer_message(self, exchange: Exchange, decoded: object) -> None:
        """Hand a message to its session. 202: it has it, and its answer will have a place.

        Raises:
            Rejected: 400, 404, 429 or 503, and the session knows nothing of the message.
        """
        outlet = self._find(exchange)
        message = to_message(decoded)
        if isinstance(message, JSONRPCRequest):
            self._core.check_accepting()
        with outlet.mcp_session.held():
            await outlet.take(message, exchange.request)
        await exchange.answer(202)

    def _find(self, exchange: Exchange) -> _Outlet:
        query = exchange.request.query
        session_id, *_ = query.get("sessionId") or query.get("session_id") or [""]
        if not session_id:
            raise Rejected(400, "which session? The stream's first event has the URL to post to")
        outlet = self._outlets.get(session_id)
        if (
            outlet is None
            or not outlet.mcp_session.is_open
            or outlet.mcp_session.request.identity != exchange.request.identity
        ):
            raise session_not_found()
        return outlet

    def _message_url(self, exchange: Exchange, session_id: str) -> str:
        options, request = self._options, exchange.request
        base = options.base_url
        if base is None:
            base = quote(exchange.scope.get("root_path", ""))
        elif not isinstance(base, str):
            base = base(request)
        match = self._sse_path.search(request.path)
        filled = match.groupdict() if match else {}
        path = _NAME.sub(lambda name: filled.get(name[1], ""), options.message_path)
        query = f"sessionId={quote(session_id, safe='')}"
        if options.append_query and request.query_string:
            query += f"&{request.query_string}"
        return f"{base.rstrip('/')}{quote(path)}?{query}"


@final
class _Outlet:
    """One session's stream, as its kernel writes to it, and the requests it has not answered."""

    def __init__(self, core: Core, request: Request) -> None:
        self._patience = core.limits.patience
        self._session: Session
        # Requests that are not answered: the kernel's id of each, and the client's.
        self._ids: dict[RequestId, RequestId] = {}
        self.mcp_session = McpSession(core, request, self)

    async def run(self, session: Session) -> None:
        """The session's handler."""
        self._session = session
        await self.mcp_session.run(session)

    async def take(self, message: JSONRPCMessage, request: Request) -> None:
        """Hand ``message`` to the kernel.

        Raises:
            Rejected: 400 for an id that is in use, 429 for too many, 404 for a session that
                has ended. The kernel has nothing of it.
        """
        metadata = ServerMessageMetadata(request_context=request)
        if isinstance(message, JSONRPCNotification):
            await self.mcp_session.take(_with_kernel_id(message), metadata)
        elif not isinstance(message, JSONRPCRequest):
            await self.mcp_session.take(message, metadata)
        else:
            id = kernel_id(message.id)
            if id in self._ids:
                raise Rejected(400, "a request with this id is not answered yet", id=message.id)
            self.mcp_session.begin_request()
            self._ids[id] = message.id
            metadata.on_request_unanswered = partial(self._unanswered, id)
            try:
                await self.mcp_session.take(message.model_copy(update={"id": id}), metadata)
            except BaseException:
                self._finish(id)
                raise

    async def send(self, message: JSONRPCMessage, related: RequestId | None) -> None:
        """As `_session.Outlet.send`. There is one stream, for all there is."""
        await trio.lowlevel.checkpoint_if_cancelled()  # a handler is cancelled, not told
        if not isinstance(message, JSONRPCResponse | JSONRPCError) or message.id is None:
            await self._send(dump(message))
            return
        id = message.id
        try:
            if id in self._ids:
                message = message.model_copy(update={"id": self._ids[id]})
            await self._send(dump(message))
        finally:
            self._finish(id)

    async def _send(self, text: str) -> None:
        event = Event(text, type="message")
        try:
            self._session.send_nowait(event)
            await trio.lowlevel.checkpoint()
            return
        except trio.WouldBlock:
            pass
        except SessionEnded as exc:
            raise trio.ClosedResourceError from exc
        with trio.move_on_after(self._patience) as waiting:
            try:
                await self._session.send(event)
            except SessionEnded as exc:
                raise trio.ClosedResourceError from exc
        if waiting.cancelled_caught:
            self._session.end(EndReason.TOO_SLOW)
            raise trio.ClosedResourceError("the client takes nothing")

    def send_nowait(self, text: str) -> Fate:
        """As `_session.Outlet.send_nowait`. A client that does not keep up is ended."""
        try:
            self._session.send_nowait(Event(text, type="message"))
        except SessionEnded:
            return "lost"
        except trio.WouldBlock:
            self._session.end(EndReason.TOO_SLOW)
            return "lost"
        return "sent"

    def close(self) -> None:
        """Nothing is left to close: the stream is the session's own, and ends with it."""

    async def _unanswered(self, id: RequestId) -> None:
        """The client has cancelled the request, which then has no answer."""
        self._finish(id)
        await trio.lowlevel.checkpoint()

    def _finish(self, id: RequestId) -> None:
        if self._ids.pop(id, None) is not None:
            self.mcp_session.finish_request()


def _with_kernel_id(message: JSONRPCNotification) -> JSONRPCNotification:
    params: dict[str, Any] = message.params or {}
    id = params.get("requestId")
    if message.method != "notifications/cancelled" or not isinstance(id, str):
        return message
    return message.model_copy(update={"params": {**params, "requestId": kernel_id(id)}})
