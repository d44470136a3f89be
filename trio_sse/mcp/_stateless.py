"""The revision 2026-07-28: every request stands alone, and lives as long as its response.

There are no sessions to come back to. A client that closes a response has cancelled its
request, and nothing of it survives. A response is JSON if there is nothing but the result to
send, else an event stream that the result ends. Only ``subscriptions/listen``, whose response
stays open, is one of the hub's sessions: registered, counted, drained, ended for a reason.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, cast, final

import trio
from mcp.server.connection import Connection
from mcp.server.runner import serve_one
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundLadderRejection,
    InboundModernRoute,
    classify_inbound_request,
    unsupported_protocol_version_rejection,
)
from mcp.shared.subscriptions import event_from_wire
from mcp_types import JSONRPCNotification, JSONRPCRequest

from .._groups import no_lone_group
from ..asgi import check_accept, direct_connection
from ..errors import Refused
from ..outbox import OutboxReceiveEnd
from ..session import EndReason, Session
from ._call import RunningCall
from ._core import Core
from ._exchange import Exchange
from ._hooks import Call
from ._listener import LISTEN, Listener
from ._messages import Rejected, to_message
from ._param_headers import check_param_headers
from ._reply import Emit, Talk, answer, stream, watched

log: Final = logging.getLogger("trio_sse")

_JOIN: Final = 10.0
"""Seconds that cancelled requests may take to clean up when the application is closed."""
_FLUSH_STEPS: Final = 8


@final
class StatelessTransport:
    """Answers what clients of the revision 2026-07-28 send.

    `opened` is to be entered while it answers: it keeps silent responses alive, and ends
    what is left in good order.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        # Calls whose handlers run. Changed by `_call` only.
        self._calls: dict[RunningCall, None] = {}
        self._begun = trio.lowlevel.ParkingLot()  # for who waits for the first of them
        self._handled = trio.lowlevel.ParkingLot()  # for who waits for the last of them
        self._answering = 0  # calls whose responses are not complete, those included
        # Listeners by the ids of their sessions. Changed by `_listen` only.
        self._listeners: dict[str, Listener] = {}
        self._listening = 0  # those that are about to be, included

    def __repr__(self) -> str:
        return f"<StatelessTransport {len(self._calls)} calls, {len(self._listeners)} listeners>"

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None, None]:
        """Look after responses; on leaving, cancel what is left, and wait until it is over."""
        with no_lone_group():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_alive, name="trio_sse mcp keeper")
                nursery.start_soon(self._drain, name="trio_sse mcp drain")
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel(reason="the MCP application is closed")
                    self._give_up_calls("the server was shut down")
                    with trio.move_on_after(_JOIN, shield=True):
                        await self._wait_handled()

    def notify(self, method: str, params: Mapping[str, Any] | None = None) -> list[str]:
        """Give a change notification to the listeners that want it.

        Returns:
            The ids of the sessions that have it on their way. Those that take nothing are
            ended instead, as too slow.
        """
        event = event_from_wire(method, params)
        if event is None:
            return []
        return [
            session_id
            for session_id, listener in list(self._listeners.items())
            if listener.wants(event) and listener.give(method, params)
        ]

    # Requests.

    async def answer(self, exchange: Exchange, decoded: object) -> None:
        """Answer one HTTP request.

        Raises:
            Rejected: it is not a request of this revision, or there is no room for it.
            Refused: a register hook said so.
            HubClosed: the hub is not open.
        """
        if exchange.request.method != "POST":
            raise Rejected(
                405,
                "this revision of the protocol has no streams to open and no sessions to end: "
                "POST requests",
                headers=((b"allow", b"POST"),),
            )
        message = to_message(decoded)
        if isinstance(message, JSONRPCRequest):
            await self._answer_request(exchange, cast("dict[str, Any]", decoded), message)
        elif isinstance(message, JSONRPCNotification):
            await self._accept_notification(exchange)
        else:
            raise Rejected(400, "a client answers nothing in this revision: POST requests")

    async def _accept_notification(self, exchange: Exchange) -> None:
        """There are none that a server of this revision acts on; clients send some anyway."""
        version = exchange.headers.get(MCP_PROTOCOL_VERSION_HEADER, "")
        _check(unsupported_protocol_version_rejection(version.strip()), None)
        await exchange.answer(202)

    async def _answer_request(
        self, exchange: Exchange, decoded: dict[str, Any], message: JSONRPCRequest
    ) -> None:
        has_json, has_stream = _accepted(exchange.headers.get("accept", ""))
        if not (has_stream or (has_json and message.method != LISTEN)):
            raise Rejected(
                406,
                "responses are application/json or text/event-stream: accept both",
                id=message.id,
            )
        # One that came twice has both its values, with a comma, and matches nothing.
        headers = {name: value.strip(" \t") for name, value in exchange.headers.items()}
        route = classify_inbound_request(decoded, headers=headers)
        if isinstance(route, InboundLadderRejection):
            raise _rejected(route, message.id)
        if message.method == "tools/call":
            list_tools = partial(self._list_tools, exchange, message, route)
            _check(
                await check_param_headers(self._core.server, message, headers, list_tools),
                message.id,
            )
        self._core.check_accepting()
        if message.method == LISTEN:
            await self._listen(exchange, message, route)
        else:
            await self._call(
                exchange, message, route, may_stream=has_stream, must_stream=not has_json
            )

    async def _call(
        self,
        exchange: Exchange,
        message: JSONRPCRequest,
        route: InboundModernRoute,
        *,
        may_stream: bool,
        must_stream: bool,
    ) -> None:
        if self._answering >= self._core.limits.max_requests:
            raise _busy("requests in progress")
        self._answering += 1
        try:
            with self._core.hub.open_stream(self._core.hub.outbox) as (send_end, receive_end):
                call = RunningCall(exchange, message.id, self._core.limits, send_end, receive_end)
                call.may_stream, call.must_stream = may_stream, must_stream
                serve = partial(self._serve, exchange, message, route, call.emit)
                direct = direct_connection(exchange.scope, exchange.send)
                async with watched(exchange, direct) as nursery:
                    with self._running(call):
                        await call.handle(nursery, serve)
                    await call.answer()
        finally:
            self._answering -= 1

    @contextmanager
    def _running(self, call: RunningCall) -> Generator[None, None, None]:
        self._calls[call] = None
        self._begun.unpark_all()
        try:
            yield
        finally:
            del self._calls[call]
            if not self._calls:
                self._handled.unpark_all()

    async def _serve(
        self,
        exchange: Exchange,
        message: JSONRPCRequest,
        route: InboundModernRoute,
        emit: Emit,
    ) -> dict[str, Any]:
        """Have the server handle a request, with the application's hooks around it."""
        call = Call(
            method=message.method, params=message.params, request=exchange.request, session=None
        )
        talk = Talk(exchange, message, emit)
        return await self._core.hooks.around(
            call, partial(self._serve_one, talk, message.method, message.params, route)
        )

    async def _serve_one(
        self,
        talk: Talk,
        method: str,
        params: Mapping[str, Any] | None,
        route: InboundModernRoute,
    ) -> dict[str, Any]:
        return await serve_one(
            self._core.server,
            talk,
            method,
            params,
            connection=Connection.from_envelope(
                route.protocol_version, route.client_info, route.client_capabilities
            ),
            lifespan_state=self._core.lifespan_state,
        )

    async def _list_tools(
        self,
        exchange: Exchange,
        message: JSONRPCRequest,
        route: InboundModernRoute,
        cursor: str | None,
    ) -> dict[str, Any]:
        params: dict[str, Any] = {"_meta": dict((message.params or {}).get("_meta", {}))}
        params["_meta"].pop("progressToken", None)
        if cursor is not None:
            params["cursor"] = cursor
        return await self._serve_one(
            Talk(exchange, message, _say_nothing), "tools/list", params, route
        )

    # Listening.

    async def _listen(
        self, exchange: Exchange, message: JSONRPCRequest, route: InboundModernRoute
    ) -> None:
        if self._listening >= self._core.limits.max_listens:
            raise _busy("clients that listen")
        listener = Listener(message.id, self._core.server.server_info_stamp)
        serve = partial(self._serve, exchange, message, route, listener.emit)

        async def run(session: Session) -> None:
            self._listeners[session.id] = listener
            try:
                await listener.run(session, serve)
            finally:
                del self._listeners[session.id]

        self._listening += 1
        try:
            async with self._core.hub.open_session(
                exchange.request, topics=(), handler=run, resume=False
            ) as (session, receive_end):
                await _carry(exchange, listener, session, receive_end)
        finally:
            self._listening -= 1

    # Looking after them.

    async def _keep_alive(self) -> None:
        """Let proxies know that something will come. A session's keeper is the hub's."""
        every = self._core.limits.keep_alive
        while True:
            if not self._calls:
                await self._begun.park()
            await trio.sleep(every / 4)
            silent_since = trio.current_time() - every
            for call in list(self._calls):
                call.keep_alive(silent_since)

    async def _drain(self) -> None:
        """When the hub drains: end listeners with their results, and give calls half the time."""
        deadline = await self._core.hub.wait_draining()
        await self._flush_listeners()
        for listener in list(self._listeners.values()):
            listener.close()
        now = trio.current_time()
        with trio.CancelScope(deadline=now + (deadline - now) / 2):
            await self._wait_handled()
        self._give_up_calls("the server is shutting down")

    async def _flush_listeners(self) -> None:
        """Let handlers pass on what they have been told before: until they fall silent."""
        said = -1
        while said != (said := sum(one.said for one in self._listeners.values())):
            for _ in range(_FLUSH_STEPS):
                await trio.lowlevel.checkpoint()

    async def _wait_handled(self) -> None:
        while self._calls:
            await self._handled.park()

    def _give_up_calls(self, why: str) -> None:
        for call in list(self._calls):
            call.give_up(why)


async def _carry(
    exchange: Exchange, listener: Listener, session: Session, receive_end: OutboxReceiveEnd
) -> None:
    """Move what a listener is sent to its client; an error alone is answered as one."""
    direct = direct_connection(exchange.scope, exchange.send)
    try:
        async with watched(exchange, direct, session.client_gone):
            try:
                first = await receive_end.receive()
                await stream(exchange, receive_end, first=first, direct=direct)
            except trio.EndOfChannel:  # before there was anything to stream
                await answer(exchange, listener.outcome)
            except trio.TooSlowError:
                session.end(EndReason.TOO_SLOW)
            except (trio.ClosedResourceError, OSError):
                session.end(EndReason.CLIENT_LEFT)
    except BaseException:
        # Not the client's leaving, which is absorbed: the server's, or a defect.
        session.end(EndReason.CANCELLED)
        raise


def _accepted(accept: str) -> tuple[bool, bool]:
    """Whether JSON is accepted, and an event stream."""
    return _accepts(accept, "application/json"), _accepts(accept, "text/event-stream")


def _accepts(accept: str, content_type: str) -> bool:
    try:
        check_accept(accept, content_type)
    except Refused:
        return False
    return True


def _check(rejection: InboundLadderRejection | None, id: Any) -> None:
    if rejection is not None:
        raise _rejected(rejection, id)


def _rejected(rejection: InboundLadderRejection, id: Any) -> Rejected:
    return Rejected(
        ERROR_CODE_HTTP_STATUS[rejection.code],
        rejection.message,
        code=rejection.code,
        id=id,
        data=rejection.data,
    )


def _busy(what: str) -> Rejected:
    return Rejected(503, f"too many {what}", headers=((b"retry-after", b"5"),))


async def _say_nothing(method: str, params: Mapping[str, Any] | None) -> None:
    """Who asks the server something for itself has nobody to tell."""
