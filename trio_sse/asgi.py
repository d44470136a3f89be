"""The HTTP face of a hub: an ASGI application for one URL.

``GET`` subscribes, ``POST`` publishes (where that is allowed). It runs alone, under
``hypercorn -k trio module:app``, or mounted in a framework that runs on Trio.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, final

import trio

from ._access import Access
from ._publication import Publication, idempotency_key
from ._respond import (
    ClientGone,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    read_body,
    respond,
    respond_json,
    respond_problem,
)
from .errors import HubClosed, KeyReused, LogUnavailable, Refused
from .hub import Hub
from .outbox import OutboxLimits, OutboxReceiveEnd, Writer
from .session import EndReason, Handler, Request, Session
from .wire import Event, encode

DIRECT: Final = "trio_sse.direct"
"""The scope extension by which a server offers `DirectConnection`."""
TOO_SLOW: Final = "trio_sse.too_slow"
"""True in an ``http.disconnect`` by which a server gives up a client that takes nothing."""
SERVER: Final = "trio_sse.server"
"""The key of the ASGI state under which a server asks to be told of the hubs it serves."""

_STREAM_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx holds responses back otherwise
)

Topics = Callable[[Request], Iterable[str] | None]


class DirectConnection(Writer, Protocol):
    """A plain HTTP/1.1 connection whose response body may be written past ASGI.

    Attributes:
        send: the ASGI ``send`` it belongs to. Middleware that wraps ``send`` may change
            what is sent, so it is used only if nothing does.
    """

    send: Send

    async def send_all(self, framed: bytes) -> None:
        """Write what `Writer.write` left over or `Writer.frame` made, waiting for room.

        Raises:
            OSError: the connection is lost.
            trio.TooSlowError: the client took nothing for too long.
        """
        ...

    def when_gone(self, call: Callable[[bool], None]) -> None:
        """Call ``call`` once when the client has gone, and whether for taking nothing.

        At once, if it has. What the client sends meanwhile is dropped: from now on
        nobody is to wait for the request's messages.
        """
        ...


class HubServer(Protocol):
    """A server that drains hubs before it stops."""

    def serves(self, hub: Hub) -> None: ...


def topics_from_query(request: Request) -> Iterable[str] | None:
    """``?topic=a&topic=b``; everything if there is none."""
    return request.query.get("topic")


@final
class Endpoint:
    """An ASGI application that subscribes clients to ``hub``, at whatever path it is put.

    As an application of its own it opens the hub at start-up (ASGI lifespan). Mounted,
    it gets no lifespan: open the hub in the framework's.

    Args:
        hub: where sessions live.
        handler: runs for each session; without one, sessions live on what is published.
        topics: what a request subscribes to; by default `topics_from_query`.
        access: who may do what.
        publish: whether ``POST`` publishes to the hub.
        resume: replay from the hub's log what followed the client's last event ID. Pass
            ``False`` if the handler sends ids of its own.
        retry: the reconnection time that each stream begins with, in milliseconds;
            ``None`` leaves it to the client. It undoes the jittered one of a drain.
        outbox: other bounds and overflow policy than the hub's.
        max_body: bytes that a publisher may send at once.
        body_timeout: seconds that it may take.

    Raises:
        ValueError: for a bound that is not positive.
    """

    def __init__(  # noqa: PLR0913  # all but one by name, each with its default
        self,
        hub: Hub,
        handler: Handler | None = None,
        *,
        topics: Topics = topics_from_query,
        access: Access | None = None,
        publish: bool = False,
        resume: bool = True,
        retry: int | None = 2000,
        outbox: OutboxLimits | None = None,
        max_body: int = 1 << 20,
        body_timeout: float = 10.0,
    ) -> None:
        if max_body < 1 or not 0 < body_timeout < math.inf:
            raise ValueError(
                f"Endpoint(max_body={max_body}, body_timeout={body_timeout}): both are bounds, "
                "in bytes and seconds, as in Endpoint(hub, max_body=65536, body_timeout=10)"
            )
        self.hub = hub
        self.access = Access() if access is None else access
        self._handler = handler
        self._topics = topics
        self._may_publish = publish
        self._resume = resume
        self._outbox = outbox
        self._max_body = max_body
        self._body_timeout = body_timeout
        self._retry = retry
        self._methods = "GET, HEAD, OPTIONS" + (", POST" if publish else "")

    def __repr__(self) -> str:
        return f"<Endpoint {self._methods} of {self.hub!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        server = scope.get("state", {}).get(SERVER)
        if server is not None:
            server.serves(self.hub)
        if scope["type"] == "lifespan":
            await run_lifespan(self.hub, receive, send)
        elif scope["type"] == "http":
            await self.answer(scope, receive, send)
        elif scope["type"] == "websocket":
            # Any client may ask: that is no defect of the application's.
            await send({"type": "websocket.close"})
        else:
            raise RuntimeError(
                f"trio_sse.Endpoint speaks http, not {scope['type']!r}: "
                "route only HTTP requests to it"
            )

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request, whatever happens."""
        request = request_from_scope(scope)
        cors = self.access.cors_headers(request.headers.get("origin"))
        try:
            accepted = await self._answer(scope, request, receive, send, cors)
            if accepted is not None:  # here, to be a frame less for the stream's life
                await self._subscribe(scope, accepted, receive, send, [*_STREAM_HEADERS, *cors])
        except Refused as refusal:
            await respond_problem(send, refusal, headers=cors, head=scope["method"] == "HEAD")
        except HubClosed as closed:
            closed_too = Refused(503, str(closed), retry_after=5)
            await respond_problem(send, closed_too, headers=cors, head=scope["method"] == "HEAD")
        except ClientGone:
            pass  # there is nobody to answer

    async def _answer(
        self, scope: Scope, request: Request, receive: Receive, send: Send, cors: Headers
    ) -> Request | None:
        """Answer; or, if it asks for an event stream and may have it, return the request."""
        method = scope["method"]
        if method in ("GET", "HEAD"):
            check_accept(request.headers.get("accept", ""), "text/event-stream")
            request = await self.access.check(scope, request)
            self.hub.check_open()
            headers = [*_STREAM_HEADERS, *cors]
            if method == "HEAD":
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body"})
            elif self.hub.state == "draining" and request.last_event_id:
                # It was here before, and is early. An `EventSource` that is told anything
                # but 200 would not come back again (9.2.3).
                goodbye = encode(Event(retry=self.hub.jittered_retry(), comment="draining"))
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": goodbye})
            else:
                return request
        elif method == "POST" and self._may_publish:
            request = await self.access.check(scope, request)
            await self._publish(request, receive, send, cors)
        elif method == "OPTIONS":
            self.access.check_host(scope, request.headers.get("host", ""))
            allow = (b"allow", self._methods.encode())
            preflight = self.access.preflight_headers(self._methods) if cors else []
            await respond(send, 204, headers=[allow, *cors, *preflight])
        else:
            raise Refused(
                405,
                f"{method} is not for here; try one of {self._methods}",
                headers=(("allow", self._methods),),
            )
        return None

    # Publishing.

    async def _publish(self, request: Request, receive: Receive, send: Send, cors: Headers) -> None:
        if self.hub.state == "draining":
            raise Refused(503, "the server is shutting down", retry_after=5)
        declared = request.headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._max_body:
            raise Refused(413, f"the body is larger than {self._max_body} bytes")
        body = await read_body(receive, limit=self._max_body, seconds=self._body_timeout)
        publication = Publication.parse(request.headers.get("content-type", ""), body)
        key = idempotency_key(request.headers.get("idempotency-key", ""))
        try:
            event_id = await self.hub.publish(publication.event, publication.topics, key=key)
        except KeyReused as exc:
            raise Refused(422, str(exc)) from exc
        except ValueError as exc:
            raise Refused(400, str(exc)) from exc
        except LogUnavailable as exc:
            raise Refused(503, f"not published: {exc}", retry_after=1) from exc
        await respond_json(send, 201, {"id": event_id}, headers=cors)

    # Subscribing.

    async def _subscribe(
        self, scope: Scope, request: Request, receive: Receive, send: Send, headers: Headers
    ) -> None:
        async with self.hub.open_session(
            request,
            topics=self._topics(request),
            handler=self._handler,
            outbox=self._outbox,
            resume=self._resume,
        ) as (session, receive_end):
            try:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                direct = direct_connection(scope, send)
                if direct is None:
                    await self._stream(session, receive_end, receive, send)
                else:
                    await send(_body(self._greeting(receive_end)))
                    # No task is needed to hear of the client's leaving, and none to wait for.
                    direct.when_gone(session.client_gone)
                    receive_end.write_directly(direct)
                    await _carry(session, receive_end, direct.send_all, send)
            except BaseException:
                # Not the client's leaving, which is absorbed below: the server's, or a defect.
                session.end(EndReason.CANCELLED)
                raise

    def _greeting(self, receive_end: OutboxReceiveEnd) -> bytes:
        """What is sent at once: proxies and clients then know that the stream is there.

        With an id, a client whose connection breaks before there is an event can resume.
        """
        where = receive_end.last_event_id or None
        if where is None and self._retry is None:
            return b":\n\n"
        return encode(Event(id=where, retry=self._retry))

    async def _stream(
        self, session: Session, receive_end: OutboxReceiveEnd, receive: Receive, send: Send
    ) -> None:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                disconnect = await wait_disconnected(receive)
                session.client_gone(disconnect.get(TOO_SLOW, False))
                nursery.cancel_scope.cancel(reason="the client left")

            nursery.start_soon(watch)
            await send(_body(self._greeting(receive_end)))
            await _carry(session, receive_end, lambda data: send(_body(data)), send)
            nursery.cancel_scope.cancel(reason="the response is complete")


async def _carry(
    session: Session,
    receive_end: OutboxReceiveEnd,
    write: Callable[[bytes], Awaitable[None]],
    send: Send,
) -> None:
    """Move bytes from the session to the client until either ends, and end the response."""
    try:
        while True:
            await write(await receive_end.receive())
    except trio.EndOfChannel:
        # A server may report the disconnect before this send returns: a watcher must
        # not cancel it. It ends by itself or with the connection.
        with trio.CancelScope(shield=True):
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except trio.ClosedResourceError:
        pass  # the client has gone, or was given up: there is no proper end to be had
    except trio.TooSlowError:
        session.end(EndReason.TOO_SLOW)
    except OSError:
        session.end(EndReason.CLIENT_LEFT)


def _body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def direct_connection(scope: Scope, send: Send) -> DirectConnection | None:
    """What the server offers for writing past ASGI, if nothing is between it and ``send``."""
    direct: DirectConnection | None = scope.get("extensions", {}).get(DIRECT)
    if direct is None or direct.send is not send or scope.get("http_version") != "1.1":
        return None
    return direct


async def wait_disconnected(receive: Receive) -> Message:
    """Take the request's body, which nobody wants, and wait until the client leaves."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def request_from_scope(scope: Scope) -> Request:
    """What a session needs to know of an ASGI HTTP scope."""
    # Lower case already, as ASGI has it; a tuple of a tuple is the same one.
    raw_headers: tuple[tuple[bytes, bytes], ...] = tuple(map(tuple, scope["headers"]))
    client = scope.get("client")
    request = Request(
        method=scope["method"],
        path=scope["path"],
        query_string=scope.get("query_string", b"").decode("latin-1"),
        raw_headers=raw_headers,
        client=client[0] if client else None,
        last_event_id=_last_event_id(scope, raw_headers),
    )
    return request


def _last_event_id(scope: Scope, raw_headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in raw_headers:
        if name == b"last-event-id":
            return value.decode("utf-8", "replace")
    query = scope.get("query_string", b"")
    if b"last-event-id" not in query:
        return ""
    values = Request(query_string=query.decode("latin-1")).query.get("last-event-id", [""])
    return values[0]


def check_accept(accept: str, content_type: str) -> None:
    """Check that a client which says what it accepts accepts ``content_type``.

    Raises:
        Refused: 406.
    """
    main, _, _ = content_type.partition("/")
    ranges = ["*/*", f"{main}/*", content_type]
    best = -1  # the most specific range that matches decides (RFC 9110, 12.5.1)
    accepted = not accept.strip()
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if name in ranges and ranges.index(name) > best:
            best = ranges.index(name)
            accepted = not any(_is_zero_quality(parameter) for parameter in parameters)
    if not accepted:
        raise Refused(406, f"this is an event stream; accept {content_type} to have it")


def _is_zero_quality(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip().rstrip("0").rstrip(".") in ("", "0")


async def run_lifespan(
    hub: AbstractAsyncContextManager[object], receive: Receive, send: Send
) -> None:
    """Keep ``hub``, or what holds it, open from start-up to shutdown (ASGI lifespan).

    If the hub fails meanwhile this raises, and the application answers 503.
    """
    await receive()
    started = False
    try:
        async with hub:
            started = True
            await send({"type": "lifespan.startup.complete"})
            await receive()
    except Exception as exc:
        if started:
            raise
        await send({"type": "lifespan.startup.failed", "message": f"the hub: {exc!r}"})
        return
    await send({"type": "lifespan.shutdown.complete"})
