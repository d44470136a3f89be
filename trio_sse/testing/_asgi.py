"""A client and a server in memory: an ASGI application's own tests, without a socket.

Of ASGI it plays the server's part as Hypercorn does: ``receive`` tells of the client's
leaving once, and waits for ever after that; ``send`` to a client that has left does
nothing and raises nothing; a client that does not read makes ``send`` wait, and
cancelling does not help then. What an application must not do raises here.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, final
from urllib.parse import unquote, urlencode

import trio

from .._groups import no_lone_group
from .._respond import ASGIApp, Message, Scope
from ..wire import Decoder, Event

Fields = Mapping[str, str] | Iterable[tuple[str, str]]

HOST: Final = "127.0.0.1:8000"
CLIENT: Final = ("127.0.0.1", 50_000)
WINDOW: Final = 64 << 10
"""Bytes that an application may send to a client that does not read, as to a socket."""


@final
class _Exchange:
    """One request and its response: the server's side of ASGI, and what the client sees."""

    def __init__(self, body: bytes, window: int) -> None:
        self._request_body: bytes | None = body
        self._window = window
        self._gone = trio.Event()  # the client left, or has all of the response
        self._told_gone = False
        self.state: Literal["waiting", "started", "complete"] = "waiting"
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body = bytearray()  # all of it, so far
        self.taken = 0  # of the body, by the client
        self.stopped = False  # the application sends no more, complete or not
        self.changed = trio.lowlevel.ParkingLot()  # by either side

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        if self._request_body is not None:
            body, self._request_body = self._request_body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        if self._told_gone:
            await trio.sleep_forever()
        self._told_gone = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        kind = message["type"]
        if kind == "http.response.start" and self.state == "waiting":
            self._start(message)
        elif kind == "http.response.body" and self.state == "started":
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"an application must not send {kind!r}: response {self.state}")

    def _start(self, message: Message) -> None:
        self.state = "started"
        self.status = message["status"]
        for name, value in message.get("headers", ()):
            if not isinstance(name, bytes) or not isinstance(value, bytes):
                raise TypeError(f"header {name!r}: {value!r}: ASGI wants both as bytes")
            if name != name.lower():
                raise ValueError(f"header {name!r}: ASGI wants names in lower case")
            self.headers.append((name.decode("latin-1"), value.decode("latin-1")))
        self.changed.unpark_all()

    async def _send_body(self, data: bytes, more: bool) -> None:
        if not more:
            self.state = "complete"
        if self._gone.is_set():
            return
        self.body += data
        if not more:
            # As Hypercorn does: the disconnect is received before this send returns.
            self._gone.set()
        self.changed.unpark_all()
        with trio.CancelScope(shield=True):  # until the client reads or leaves
            while len(self.body) - self.taken > self._window and not self._gone.is_set():
                await self.changed.park()
        for _ in range(1 if more else 2):
            await trio.lowlevel.cancel_shielded_checkpoint()

    @property
    def gone(self) -> bool:
        return self._gone.is_set()

    def leave(self) -> None:
        self._gone.set()
        self.changed.unpark_all()

    def stop(self) -> None:
        self.stopped = True
        self._gone.set()
        self.changed.unpark_all()

    def take(self) -> bytes:
        data = bytes(self.body[self.taken :])
        self.taken = len(self.body)
        self.changed.unpark_all()
        return data


@final
class Stream:
    """A response as its client sees it, event by event. `open_stream` makes it.

    Attributes:
        status: the HTTP status.
        headers: by lower-case name; where a name comes more than once, the last.
    """

    def __init__(self, exchange: _Exchange, decoder: Decoder) -> None:
        self._exchange = exchange
        self._decoder = decoder
        self._blocks: deque[Event] = deque()
        self.status = exchange.status
        self.headers: Mapping[str, str] = dict(exchange.headers)

    def __repr__(self) -> str:
        return (
            f"<Stream {self.status}, {len(self.body)} bytes"
            f"{', complete' if self.is_complete else ''}>"
        )

    @property
    def body(self) -> bytes:
        """All that has come so far, read or not, as the bytes that came."""
        return bytes(self._exchange.body)

    @property
    def is_complete(self) -> bool:
        """Whether the application has ended its response properly."""
        return self._exchange.state == "complete"

    @property
    def last_event_id(self) -> str:
        """What an EventSource would send as ``Last-Event-ID`` if it reconnected now."""
        return self._decoder.last_event_id

    @property
    def retry(self) -> int | None:
        """The reconnection time last set, in milliseconds."""
        return self._decoder.retry

    async def receive_event(self) -> Event:
        """The next event that a listener would be given.

        If cancelled, nothing is lost.

        Raises:
            trio.EndOfChannel: the response has ended.
            trio.ClosedResourceError: this client has left.
        """
        while (block := await self.receive_block()).data is None:
            pass
        return block

    async def receive_block(self) -> Event:
        """The same, with what no listener sees: comments, a ``retry``, an ``id`` alone."""
        await trio.lowlevel.checkpoint()
        exchange = self._exchange
        while True:
            if exchange.gone and not (exchange.stopped or self.is_complete):
                raise trio.ClosedResourceError("this client has left")
            if exchange.taken < len(exchange.body):
                self._blocks.extend(self._decoder.feed(exchange.take()))
            if self._blocks:
                return self._blocks.popleft()
            if exchange.stopped or self.is_complete:
                raise trio.EndOfChannel
            await exchange.changed.park()

    async def read(self) -> bytes:
        """Wait for the response's end; its whole body."""
        exchange = self._exchange
        await trio.lowlevel.checkpoint()
        while not (exchange.stopped or self.is_complete):
            exchange.take()
            await exchange.changed.park()
        return self.body

    def leave(self) -> None:
        """Close the connection, as a client does that goes away. Idempotent."""
        self._exchange.leave()

    async def wait_finished(self) -> None:
        """Wait until the application has returned from this request."""
        await trio.lowlevel.checkpoint()
        while not self._exchange.stopped:
            await self._exchange.changed.park()

    async def aclose(self) -> None:
        """Leave, and wait until the application has returned from this request."""
        self.leave()
        await self.wait_finished()


@asynccontextmanager
async def open_stream(
    app: ASGIApp,
    url: str = "/",
    *,
    method: str = "GET",
    headers: Fields = (),
    body: bytes = b"",
    client: tuple[str, int] = CLIENT,
    window: int = WINDOW,
    scope: Mapping[str, Any] | None = None,
) -> AsyncGenerator[Stream, None]:
    """Send a request to ``app``; a stream, once the response has begun.

    Leaving the block leaves the stream, and waits until ``app`` has returned. What
    ``app`` raises cancels the block, and comes out of here. Nothing has a time-out: use
    Trio's, or run under its mock clock.

    Args:
        url: path and query, percent-encoded as in a request line.
        headers: ``Host`` is there without you; yours takes precedence.
        client: the peer's address and port.
        window: bytes that ``app`` may send ahead of what is received here.
        scope: what the ASGI scope is to contain beside the usual, or instead of it.
    """
    exchange = _Exchange(body, window)
    whole_scope = {**_http_scope(method, url, headers, client), **(scope or {})}

    async def run() -> None:
        await app(whole_scope, exchange.receive, exchange.send)
        if exchange.state != "complete" and not exchange.gone:
            raise RuntimeError(f"the application returned with its response {exchange.state}")
        exchange.stop()

    with no_lone_group():
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, name=f"{method} {url}")
                try:
                    while exchange.state == "waiting":
                        await exchange.changed.park()
                    yield Stream(exchange, Decoder(every_block=True))
                finally:
                    exchange.leave()
        finally:
            exchange.stop()


@final
@dataclass(frozen=True, slots=True)
class Response:
    """A whole response, from `request`.

    Attributes:
        status: the HTTP status.
        headers: by lower-case name.
        body: bytes.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


async def request(
    app: ASGIApp,
    method: str,
    url: str,
    *,
    headers: Fields = (),
    body: bytes | None = None,
    json: object = None,
    form: Fields | None = None,
    scope: Mapping[str, Any] | None = None,
) -> Response:
    """Send a request to ``app``; its whole response.

    Args:
        body: as it is; or instead ``json``, any object, or ``form``, fields.

    Otherwise as `open_stream`.

    Raises:
        ValueError: more than one of ``body``, ``json`` and ``form`` was given.
    """
    content, content_type = _content(body, json, form)
    given = _pairs(headers)
    if content_type is not None:
        given.insert(0, ("content-type", content_type))
    if content or method not in ("GET", "HEAD"):
        given.insert(0, ("content-length", str(len(content))))
    async with open_stream(
        app, url, method=method, headers=given, body=content, scope=scope
    ) as stream:
        return Response(stream.status, stream.headers, await stream.read())


def _content(body: bytes | None, obj: object, form: Fields | None) -> tuple[bytes, str | None]:
    if sum(value is not None for value in (body, obj, form)) > 1:
        raise ValueError(
            "request(body=..., json=..., form=...): one body, as in request(app, 'POST', "
            "'/events', json={'data': 'hello'})"
        )
    if obj is not None:
        return json.dumps(obj).encode(), "application/json"
    if form is not None:
        return urlencode(_pairs(form)).encode(), "application/x-www-form-urlencoded"
    return body or b"", None


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncGenerator[ASGIApp, None]:
    """Start ``app`` up, and shut it down on leaving (ASGI lifespan).

    What is handed out is ``app`` as requests find it in a server: with the state that
    its start-up made.

    Raises:
        RuntimeError: its start-up or shutdown failed, and this is what it said.
    """
    to_app, from_test = trio.open_memory_channel[Message](1)
    from_app, to_test = trio.open_memory_channel[Message](1)
    state: dict[str, Any] = {}

    async def run() -> None:
        with from_app:
            await app(
                {"type": "lifespan", "asgi": _ASGI, "state": state},
                from_test.receive,
                from_app.send,
            )

    async def with_state(scope: Scope, receive: Any, send: Any) -> None:
        await app({**scope, "state": state}, receive, send)

    async def tell(what: str) -> None:
        await to_app.send({"type": f"lifespan.{what}"})
        try:
            answer = await to_test.receive()
        except trio.EndOfChannel:
            raise RuntimeError(f"the application returned at {what}") from None
        if answer["type"] != f"lifespan.{what}.complete":
            raise RuntimeError(f"{answer['type']}: {answer.get('message', '')}")

    with no_lone_group():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, name="lifespan")
            await tell("startup")
            yield with_state
            await tell("shutdown")


_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}


def _pairs(fields: Fields) -> list[tuple[str, str]]:
    return list(cast("Iterable[tuple[str, str]]", getattr(fields, "items", lambda: fields)()))


def _http_scope(method: str, url: str, headers: Fields, client: tuple[str, int]) -> Scope:
    raw_path, _, query = url.partition("?")
    raw = [(name.lower().encode("latin-1"), value.encode()) for name, value in _pairs(headers)]
    if not any(name == b"host" for name, _ in raw):
        raw.insert(0, (b"host", HOST.encode()))
    host, _, port = HOST.partition(":")
    return {
        "type": "http",
        "asgi": _ASGI,
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": raw,
        "client": client,
        "server": (host, int(port)),
        "extensions": {},
    }
