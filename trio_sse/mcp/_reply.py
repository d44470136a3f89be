"""The response to one stateless request: how it begins, what it carries, how it ends."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, final

import anyio
import trio
from mcp.server.runner import modern_error_data
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import INTERNAL_ERROR, JSONRPCRequest, RequestId
from pydantic_core import to_jsonable_python

from ..asgi import TOO_SLOW, DirectConnection, wait_disconnected
from ..outbox import OutboxReceiveEnd
from ._exchange import STREAM_HEADERS, Exchange

Emit = Callable[[str, "Mapping[str, Any] | None"], Awaitable[None]]


def to_json(message: Mapping[str, Any]) -> str:
    """``message`` on one line, in ASCII: some clients take U+2028 for the end of a line.

    Raises:
        ValueError: it has a number that JSON has not, or something that is no JSON at all.
    """
    return json.dumps(message, separators=(",", ":"), allow_nan=False, default=to_jsonable_python)


def notification_json(method: str, params: Mapping[str, Any] | None) -> str:
    """A notification; without ``params`` it has none. Raises as `to_json` does."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return to_json(message)


def frame(text: str) -> bytes:
    """JSON, on one line, as an event."""
    return b"event: message\ndata: %b\n\n" % text.encode()


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request came to.

    Attributes:
        status: the HTTP status that it has where nothing else was sent.
        text: the JSON-RPC response; ``""`` for none.
        failure: what the handler raised.
    """

    status: int
    text: str
    failure: Exception | None = None

    @classmethod
    def of_result(cls, id: RequestId, result: Mapping[str, Any]) -> Outcome:
        try:
            return cls(200, to_json({"jsonrpc": "2.0", "id": id, "result": result}))
        except ValueError as exc:
            return cls.of_failure(id, exc)

    @classmethod
    def of_failure(cls, id: RequestId, failure: Exception) -> Outcome:
        """The error for ``failure``; what is not for clients to know is logged instead."""
        error = modern_error_data(failure).model_dump(mode="json", exclude_none=True)
        return cls(
            ERROR_CODE_HTTP_STATUS.get(error["code"], 200),
            to_json({"jsonrpc": "2.0", "id": id, "error": error}),
            failure,
        )

    @classmethod
    def unavailable(cls, id: RequestId, why: str) -> Outcome:
        error = {"code": INTERNAL_ERROR, "message": why}
        return cls(503, to_json({"jsonrpc": "2.0", "id": id, "error": error}))


@final
class Talk:
    """What a request's handler has to talk to its client: notifications, nothing else.

    It is the SDK's ``DispatchContext``. A server of this revision asks its clients nothing.
    """

    def __init__(self, exchange: Exchange, message: JSONRPCRequest, emit: Emit) -> None:
        self.can_send_request = False
        self.transport = TransportContext(
            kind="streamable-http", can_send_request=False, headers=exchange.headers
        )
        self.request_id: RequestId = message.id
        self.message_metadata = ServerMessageMetadata(request_context=exchange.request)
        self._progress_token = progress_token_from_params(message.params)
        self._emit = emit
        self._cancel_requested: anyio.Event | None = None

    @property
    def cancel_requested(self) -> anyio.Event:
        """Never set: a request is cancelled by its client's leaving, and its handler then is."""
        if self._cancel_requested is None:
            self._cancel_requested = anyio.Event()
        return self._cancel_requested

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> None:
        await self._emit(method, params)

    async def progress(
        self, progress: float, total: float | None = None, message: str | None = None
    ) -> None:
        if self._progress_token is None:
            return
        params: dict[str, Any] = {"progressToken": self._progress_token, "progress": progress}
        if total is not None:
            params["total"] = total
        if message is not None:
            params["message"] = message
        await self._emit("notifications/progress", params)


@asynccontextmanager
async def watched(
    exchange: Exchange,
    direct: DirectConnection | None,
    gone: Callable[[bool], None] | None = None,
) -> AsyncGenerator[trio.Nursery, None]:
    """Cancel the block when the client leaves; the nursery is for what lives no longer.

    Args:
        gone: is called first, with whether the client was given up for taking nothing.
    """
    async with trio.open_nursery() as nursery:

        def left(too_slow: bool) -> None:
            if gone is not None:
                gone(too_slow)
            nursery.cancel_scope.cancel(reason="the client left")

        async def watch() -> None:
            disconnect = await wait_disconnected(exchange.receive)
            left(disconnect.get(TOO_SLOW, False))

        if direct is not None:
            direct.when_gone(left)
        else:
            nursery.start_soon(watch)
        yield nursery
        nursery.cancel_scope.cancel(reason="the response is complete")


async def answer(exchange: Exchange, outcome: Outcome) -> None:
    """Answer with JSON, whatever the client does meanwhile.

    A server may report the disconnect before the last of a response is sent: a watcher must
    not cancel that. It ends by itself or with the connection.
    """
    headers = [(b"retry-after", b"5")] if outcome.status == 503 else []
    with trio.CancelScope(shield=True):
        await exchange.answer_json(outcome.status, outcome.text.encode(), headers=headers)


async def stream(
    exchange: Exchange,
    receive_end: OutboxReceiveEnd,
    *,
    first: bytes = b"",
    direct: DirectConnection | None = None,
    last: Callable[[], bytes] = lambda: b"",
) -> None:
    """Answer with an event stream: ``first``, what ``receive_end`` has to its end, ``last()``.

    Args:
        direct: where to write past ASGI.

    Raises:
        trio.ClosedResourceError: ``receive_end`` was closed: nobody is there any more.
        trio.TooSlowError: the client took nothing for too long.
        OSError: the connection is lost.
    """
    headers = [*STREAM_HEADERS, *exchange.cors]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        if first:
            await _send(exchange, first)
        if direct is not None:
            receive_end.write_directly(direct)
            while True:
                await direct.send_all(await receive_end.receive())
        while True:
            await _send(exchange, await receive_end.receive())
    except trio.EndOfChannel:
        with trio.CancelScope(shield=True):  # as in `answer`
            await exchange.send({"type": "http.response.body", "body": last(), "more_body": False})


async def _send(exchange: Exchange, data: bytes) -> None:
    await exchange.send({"type": "http.response.body", "body": data, "more_body": True})
