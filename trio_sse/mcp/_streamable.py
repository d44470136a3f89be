"""Streamable HTTP, the transport of 2025-03-26, 2025-06-18 and 2025-11-25.

A session is opened by the ``initialize`` request and lives on by itself: its requests run in
its nursery, and a POST that leaves does not end them. It ends by DELETE, when it was idle for
too long, when the server drains, or when the application says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal, cast, final

import trio
from mcp.shared.message import ServerMessageMetadata
from mcp_types import (
    DEFAULT_NEGOTIATED_VERSION,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    RequestId,
)
from mcp_types.version import is_version_at_least

from ..asgi import check_accept
from ..session import EndReason
from ._core import Core
from ._exchange import Exchange
from ._messages import Rejected, kernel_id, to_message
from ._session import McpSession, session_not_found
from ._streams import Stream, Streams

Answers = Literal["auto", "json", "sse"]

SESSION_ID: Final = "mcp-session-id"
_SOON: Final = 0.1
"""Seconds within which a call that has nothing else to say is answered as JSON."""
_CANCELLED: Final = -32800
"""The JSON-RPC code of the answer to a request that was cancelled."""
_BATCHES: Final = "2025-03-26"
"""The one revision in which a body may hold several messages."""
_POLLS: Final = "2025-11-25"
"""The revision from which on clients know an event without data, and come back by it."""


@final
class StreamableTransport:
    """See `McpApp` for the parameters."""

    def __init__(
        self,
        core: Core,
        answers: Answers,
        retry: int,
    ) -> None:
        self._core = core
        self._answers: Answers = answers
        self._retry = retry
        self._opening = 0  # sessions that are being registered

    # POST.

    async def answer_post(self, exchange: Exchange, decoded: object, *, stateful: bool) -> None:
        """Answer a POST with one message, or with several where the revision allows it."""
        accept = exchange.headers.get("accept", "")
        check_accept(accept, "application/json")
        if self._answers != "json":
            check_accept(accept, "text/event-stream")
        batch = isinstance(decoded, list)
        items: list[object] = cast("list[object]", decoded) if batch else [decoded]
        if not items:
            raise Rejected(400, "there is no message in the body")
        messages = [to_message(item) for item in items]
        opens = any(isinstance(m, JSONRPCRequest) and m.method == "initialize" for m in messages)
        if any(isinstance(message, JSONRPCRequest) for message in messages):
            self._core.check_accepting()
        if SESSION_ID in exchange.headers:
            session = self._find(exchange)
            if opens:
                raise Rejected(400, "the session is initialised already")
            if batch and session.protocol_version != _BATCHES:
                raise Rejected(400, f"several messages at once are for {_BATCHES} alone")
            with session.held():
                await self._answer_messages(exchange, session, messages, batch=batch)
        elif not stateful:
            await self._answer_stateless(exchange, messages, batch=batch)
        elif not opens:
            raise Rejected(400, "the Mcp-Session-Id header is missing")
        elif batch:
            raise Rejected(400, "initialize comes alone")
        else:
            await self._answer_initialize(exchange, messages[0])

    async def _answer_initialize(self, exchange: Exchange, message: JSONRPCMessage) -> None:
        session = await self._open(exchange, self._core.session_id(exchange.request))
        established = False
        try:
            with session.held():
                stream = await self._hand_over(exchange, session, [message])
                assert stream is not None  # it is a request
                await stream.wait_complete()
                established = session.connection.initialize_accepted and session.is_open
                if established:
                    told = (SESSION_ID.encode(), session.id.encode())
                    await self._answer_call(exchange, session, stream, headers=(told,))
                else:
                    await self._answer_json(exchange, stream, batch=False, status=400)
        finally:
            if not established:
                session.end(EndReason("refused", "it was not initialised"))

    async def _open(self, exchange: Exchange, id: str | None) -> McpSession:
        core = self._core
        if len(core.sessions) + self._opening >= core.limits.max_sessions:
            raise Rejected(503, "no room for more sessions", headers=((b"retry-after", b"5"),))
        session = McpSession(core, exchange.request, Streams(core.hub, core.limits))
        self._opening += 1
        try:
            await core.hub.start_session(exchange.request, handler=session.run, id=id)
        finally:
            self._opening -= 1
        if not session.is_open:
            raise session_not_found()
        return session

    async def _answer_stateless(
        self, exchange: Exchange, messages: Sequence[JSONRPCMessage], *, batch: bool
    ) -> None:
        """Answer without a session that the client knows of: one that ends with the answer."""
        if not any(isinstance(message, JSONRPCRequest) for message in messages):
            await exchange.answer(202)
            return
        session = await self._open(exchange, None)
        try:
            session.connection.protocol_version = exchange.headers.get(
                "mcp-protocol-version", DEFAULT_NEGOTIATED_VERSION
            )
            session.connection.initialized.set()
            with session.held():
                await self._answer_messages(
                    exchange, session, messages, batch=batch, answers_come=False
                )
        finally:
            session.end(EndReason.HANDLER_RETURNED)

    async def _answer_messages(
        self,
        exchange: Exchange,
        session: McpSession,
        messages: Sequence[JSONRPCMessage],
        *,
        batch: bool,
        answers_come: bool = True,
    ) -> None:
        stream = await self._hand_over(exchange, session, messages, answers_come=answers_come)
        if stream is None:
            await exchange.answer(202)
        else:
            await self._answer_call(exchange, session, stream, batch=batch)

    async def _hand_over(
        self,
        exchange: Exchange,
        session: McpSession,
        messages: Sequence[JSONRPCMessage],
        *,
        answers_come: bool = True,
    ) -> Stream | None:
        """Give the kernel ``messages``; the stream on which the answers will be, if any."""
        streams = _streams(session)
        ids = [message.id for message in messages if isinstance(message, JSONRPCRequest)]
        stream = None
        if ids:
            streams.check_free(ids)
            session.begin_request(len(ids))
            stream = streams.open_call(ids, session.finish_request)
        try:
            for message in messages:
                metadata = ServerMessageMetadata(
                    request_context=exchange.request,
                    can_send_request=answers_come and self._answers != "json",
                )
                if stream is not None and isinstance(message, JSONRPCRequest):
                    self._add_callbacks(metadata, session, stream, message.id)
                await session.take(_for_kernel(message), metadata)
                if isinstance(message, JSONRPCRequest):
                    ids.remove(message.id)
        finally:
            for id in ids:
                streams.abandon(id)
        return stream

    def _add_callbacks(
        self, metadata: ServerMessageMetadata, session: McpSession, stream: Stream, id: RequestId
    ) -> None:
        """What the kernel may ask of the transport while it handles the request."""
        streams = _streams(session)
        metadata.on_request_unanswered = partial(_answer_cancelled, streams, id)
        if self._polls(session) and self._answers != "json":
            metadata.close_sse_stream = _asynchronously(stream.part)
            metadata.close_standalone_sse_stream = _asynchronously(streams.own.part)

    def _polls(self, session: McpSession) -> bool:
        """Whether the client can be sent away to come back for the rest."""
        return _streams(session).is_resumable and is_version_at_least(
            session.protocol_version, _POLLS
        )

    async def _answer_call(
        self,
        exchange: Exchange,
        session: McpSession,
        stream: Stream,
        *,
        batch: bool = False,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        if self._answers == "json":
            await stream.wait_complete()
        elif self._answers == "auto":
            with trio.move_on_after(_SOON):
                await stream.wait_begun()
        if self._answers == "json" or (self._answers == "auto" and stream.has_only_answers):
            await self._answer_json(exchange, stream, batch=batch, headers=headers)
        else:
            await self._stream(exchange, session, stream, 0, headers)

    async def _answer_json(
        self,
        exchange: Exchange,
        stream: Stream,
        *,
        batch: bool,
        status: int = 200,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        texts = [text for _, text in stream.events]
        stream.forget()
        if not texts:
            raise session_not_found()  # it ended before there was an answer
        text = f"[{','.join(texts)}]" if batch else texts[-1]
        await exchange.answer_json(status, text.encode(), headers=headers)

    async def _stream(
        self,
        exchange: Exchange,
        session: McpSession,
        stream: Stream,
        after: int | None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        streams = _streams(session)
        if streams.responses >= self._core.limits.max_streams:
            raise Rejected(
                429,
                f"{streams.responses} event streams of this session are open",
                headers=((b"retry-after", b"1"),),
            )
        streams.responses += 1
        try:
            await stream.take_over()
            with stream.carried(after) as receive_end:
                head = b""
                if self._polls(session):
                    place = streams.event_id(stream, stream.taken)
                    head = f"id: {place}\nretry: {self._retry}\ndata:\n\n".encode()
                await exchange.stream(
                    receive_end,
                    head=head,
                    keep_alive=self._core.limits.keep_alive,
                    headers=headers,
                )
        finally:
            streams.responses -= 1

    # GET and DELETE.

    async def answer_get(self, exchange: Exchange) -> None:
        """Carry the session's own stream, or what the client has missed of any."""
        check_accept(exchange.headers.get("accept", ""), "text/event-stream")
        if SESSION_ID not in exchange.headers:
            raise Rejected(
                405,
                "an event stream is of a session: initialize one with POST",
                headers=((b"allow", b"POST"),),
            )
        session = self._find(exchange)
        self._core.check_accepting()
        stream, after = _streams(session).own, None
        if exchange.request.last_event_id:
            stream, after = _streams(session).locate(exchange.request.last_event_id)
        with session.held():
            await self._stream(exchange, session, stream, after)

    async def answer_delete(self, exchange: Exchange) -> None:
        """End the session: when this is answered, nothing of it runs."""
        session = self._find(exchange)
        session.end(EndReason("client-left", "DELETE"))
        await session.session.wait_ended()
        await exchange.answer(204)

    def _find(self, exchange: Exchange) -> McpSession:
        """The session that the request is for.

        Raises:
            Rejected: 404; there is none, it has ended, or it is somebody else's. 400; which?
        """
        id = exchange.headers.get(SESSION_ID)
        if id is None:
            raise Rejected(400, "the Mcp-Session-Id header is missing")
        session = self._core.sessions.get(id)
        if (
            session is None
            or not session.is_open
            or not isinstance(session.outlet, Streams)
            or session.request.identity != exchange.request.identity
        ):
            raise session_not_found()
        return session


def _streams(session: McpSession) -> Streams:
    assert isinstance(session.outlet, Streams)
    return session.outlet


def _for_kernel(message: JSONRPCMessage) -> JSONRPCMessage:
    """``message`` with its ids as the kernel is to have them."""
    if isinstance(message, JSONRPCRequest):
        return message.model_copy(update={"id": kernel_id(message.id)})
    if isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
        params: dict[str, Any] = dict(message.params or {})
        if isinstance(params.get("requestId"), str):
            params["requestId"] = kernel_id(params["requestId"])
        return message.model_copy(update={"params": params})
    return message


async def _answer_cancelled(streams: Streams, id: RequestId) -> None:
    """End the response to a request that the client has cancelled.

    The kernel does not answer it, but on this transport a response ends with an answer.
    """
    error = ErrorData(code=_CANCELLED, message="the request was cancelled")
    await streams.send(JSONRPCError(jsonrpc="2.0", id=kernel_id(id), error=error), None)


def _asynchronously(call: Callable[[], None]) -> Callable[[], Any]:
    async def wrapped() -> None:
        call()
        await trio.lowlevel.checkpoint()

    return wrapped
