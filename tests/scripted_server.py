"""A server whose every answer a test writes out, over memory streams.

Each connection gets the next answer of the script. What the client sent is kept, and so is
the client's end of each stream, to see that it was closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import h11
import trio
import trio.testing

from trio_sse.client import EventSource, Reconnect, StateChange, Transport, connect

URL = "http://example.org/events"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
EVEN = Reconnect(initial=1.0, jitter=lambda low, high: low)
"""Waits for the reconnection time and no longer, so that tests can tell what it was."""


@dataclass
class Received:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, bytes]
    body: bytes
    at: float  # on Trio's clock


@dataclass
class Answer:
    """What a connection gets: pieces of bytes, and what becomes of it then.

    Each piece is sent when the client has done all it can with the one before. A number is
    so many seconds of silence.
    """

    pieces: Iterable[bytes | float]
    then: Literal["close", "hold", "break"] = "close"


Answerer = Callable[[Received], Answer]


def answer(*pieces: bytes | float, then: Literal["close", "hold", "break"] = "close") -> Answer:
    return Answer(pieces, then)


def sse(*body: bytes | float, then: Literal["close", "hold", "break"] = "close") -> Answer:
    """An event stream whose end is the connection's."""
    return Answer((HEAD, *body), then)


def status(code: int, headers: str = "", body: bytes = b"") -> Answer:
    """``headers``: lines, each with its line break."""
    head = f"HTTP/1.1 {code} TEST\r\n{headers}".replace("\n", "\r\n").replace("\r\r", "\r")
    if code not in {204, 304}:
        head += f"content-length: {len(body)}\r\n"
    return Answer([head.encode() + b"\r\n" + body])


def redirect(code: int, location: str) -> Answer:
    return status(code, f"location: {location}\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class TappedStream(trio.abc.Stream):
    """The client's end of a connection; it can break, and says whether it was closed."""

    def __init__(self, inner: trio.StapledStream) -> None:
        self._inner = inner
        self.closed = False
        self.broken = False
        self.reads = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.reads += 1
        data = await self._inner.receive_some(max_bytes)
        if not data and self.broken:
            raise trio.BrokenResourceError("reset by peer")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.closed = True
        await self._inner.aclose()


@dataclass
class ScriptedServer:
    nursery: trio.Nursery
    script: list[Answer | Answerer]
    wrap: Callable[[trio.abc.Stream], Awaitable[trio.abc.Stream]] | None = None
    """Put on the server's end of each stream, as for TLS."""
    requests: list[Received] = field(default_factory=list)
    streams: list[TappedStream] = field(default_factory=list)
    changes: list[StateChange] = field(default_factory=list)
    hosts: list[tuple[str, int]] = field(default_factory=list)

    def connect(self, url: str = URL, **kwargs: object) -> EventSource:
        """A source whose every stream leads here; it waits evenly unless told otherwise."""
        transport = kwargs.pop("transport", None) or Transport(open_stream=self.open_stream)
        return connect(
            url,
            transport=transport,
            **{"reconnect": EVEN, "on_state_change": self.changes.append, **kwargs},
        )

    def transport(self, **kwargs: object) -> Transport:
        return Transport(open_stream=self.open_stream, **kwargs)

    async def open_stream(self, host: str, port: int) -> trio.abc.Stream:
        self.hosts.append((host, port))
        await trio.lowlevel.checkpoint()
        assert self.script, "the client connects once more than the script has answers"
        next_answer = self.script.pop(0)
        client, server = trio.testing.memory_stream_pair()
        tapped = TappedStream(client)
        self.streams.append(tapped)
        self.nursery.start_soon(self._serve, server, tapped, next_answer)
        return tapped

    async def _serve(
        self, stream: trio.abc.Stream, tapped: TappedStream, what: Answer | Answerer
    ) -> None:
        try:
            if self.wrap is not None:
                stream = await self.wrap(stream)
            received = await read_request(stream)
            if received is None:
                return
            self.requests.append(received)
            if not isinstance(what, Answer):
                what = what(received)
            for piece in what.pieces:
                if isinstance(piece, bytes):
                    await stream.send_all(piece)
                else:
                    await trio.sleep(piece)
                await trio.testing.wait_all_tasks_blocked()
            if what.then == "hold":
                while await stream.receive_some():
                    pass
            tapped.broken = what.then == "break"
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client left in the middle
        finally:
            await trio.aclose_forcefully(stream)

    def all_closed(self) -> bool:
        return all(stream.closed for stream in self.streams)


async def read_request(stream: trio.abc.Stream) -> Received | None:
    """The request that comes over a stream; ``None`` if it ends before that is whole."""
    conn = h11.Connection(h11.SERVER)
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            data = await stream.receive_some()
            if not data:
                return None
            conn.receive_data(bytes(data))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        else:
            assert isinstance(event, h11.EndOfMessage)
            assert head is not None
            return Received(
                method=head.method.decode(),
                target=head.target.decode(),
                headers={name.decode(): value for name, value in head.headers},
                body=bytes(body),
                at=trio.current_time(),
            )


async def take(source: EventSource, count: int) -> list[str | None]:
    """The data of the next events."""
    return [(await source.__anext__()).data for _ in range(count)]
