"""Real sockets: `trio_sse.serve` on a free port, and clients that do as a test tells them."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import h11
import trio
import trio.testing
from hypercorn.config import Config

import trio_sse
from trio_sse.wire import Decoder, Event

FAR: float = 30.0
"""Seconds after which something that a test waits for is not going to happen."""
GRACE: float = 10.0
"""Seconds; a server that ends in half of that did not wait for anybody."""


class LogList(logging.Handler):
    """Keeps what was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def make_config(**settings: Any) -> tuple[Config, list[logging.LogRecord]]:
    """A Hypercorn configuration for one test, and the records it logs, infos left out."""
    handler = LogList()
    # Of this test alone: not to be found by its name.
    logger = logging.Logger("a server under test", level=logging.WARNING)  # noqa: LOG001
    logger.addHandler(handler)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = logger
    for name, value in settings.items():
        assert hasattr(config, name), name
        setattr(config, name, value)
    return config, handler.records


@dataclass
class Running:
    """A server that runs in this Trio run."""

    address: tuple[str, int] | str
    urls: Sequence[str]
    log: list[logging.LogRecord]
    stop_wanted: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    def stop(self) -> None:
        self.stop_wanted.set()

    def cancel(self) -> None:
        self.scope.cancel(reason="the test wants it")

    async def stopped(self) -> float:
        """Ask it to stop; the seconds that took."""
        start = trio.current_time()
        self.stop()
        with trio.fail_after(FAR):
            await self.ended.wait()
        return trio.current_time() - start

    def logged(self) -> list[str]:
        return [record.getMessage() for record in self.log]


@asynccontextmanager
async def serving(
    app: Any,
    *,
    stop_on_exit: bool = True,
    grace: float = GRACE,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Running]:
    """Run ``app`` under `trio_sse.serve`; on leaving, stop it and wait.

    Args:
        settings: for Hypercorn's configuration.
        options: for `trio_sse.serve`.
    """
    config, log = make_config(**(settings or {}))
    stop_wanted = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Running]) -> None:
            async with trio.open_nursery() as inner:
                urls = await inner.start(_serve, app, config, stop_wanted, grace, options)
                running = Running(_address(urls[0]), urls, log, stop_wanted, inner.cancel_scope)
                task_status.started(running)
            running.ended.set()

        running = await nursery.start(run)
        yield running
        if stop_on_exit:
            running.stop()
            with trio.fail_after(FAR):
                await running.ended.wait()
        nursery.cancel_scope.cancel(reason="the test is over")


async def _serve(
    app: Any,
    config: Config,
    stop_wanted: trio.Event,
    grace: float,
    options: dict[str, Any],
    task_status: trio.TaskStatus[list[str]],
) -> None:
    await trio_sse.serve(
        app,
        config,
        shutdown_trigger=stop_wanted.wait,
        grace=grace,
        task_status=task_status,
        **options,
    )


def _address(url: str) -> tuple[str, int] | str:
    _scheme, _, place = url.partition("://")
    if place.startswith("unix:"):
        return place.removeprefix("unix:")
    host, _, port = place.rpartition(":")
    return host.strip("[]"), int(port)


class Client:
    """A connection that sends exactly what it is given, and keeps what comes."""

    def __init__(
        self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], sock: socket.socket
    ) -> None:
        self.stream = stream
        self.socket = sock  # to reset it, to shut one half
        self.received = bytearray()
        self.ended = False

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self) -> bytes:
        """What comes next; nothing at the end, and where the connection was reset."""
        with trio.fail_after(FAR):
            try:
                data = bytes(await self.stream.receive_some(1 << 16))
            except trio.BrokenResourceError:
                data = b""
        self.received += data
        self.ended = not data
        return data

    async def until(self, pattern: bytes) -> bytes:
        """Everything received so far, once ``pattern`` is in it."""
        while pattern not in self.received:
            if not await self.receive():
                raise AssertionError(f"the end, without {pattern!r}: {bytes(self.received)!r}")
        return bytes(self.received)

    async def to_end(self) -> bytes:
        while await self.receive():
            pass
        return bytes(self.received)

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def half_close(self) -> None:
        with suppress(OSError):  # where the server was faster, with RST
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        stream = self.stream
        if isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        stream.socket.close()


@asynccontextmanager
async def connected(
    running: Running,
    *,
    receive_buffer: int | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[Client]:
    """A connection to the server, closed on leaving.

    Args:
        receive_buffer: bytes that the kernel is to take for this client; a small number
            makes a stalled reader of who does not read.
    """
    family = socket.AF_INET
    if isinstance(running.address, str):
        family = socket.AF_UNIX
    elif ":" in running.address[0]:
        family = socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    with trio.socket.from_stdlib_socket(sock) as trio_socket:
        await trio_socket.connect(running.address)
        stream: Any = trio.SocketStream(trio_socket)
        if ssl_context is not None:
            stream = trio.SSLStream(
                stream, ssl_context, server_hostname="localhost", https_compatible=True
            )
            with trio.fail_after(FAR):
                await stream.do_handshake()
        yield Client(stream, sock)


def get(path: str = "/", *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request without a body, as it goes over the wire."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def post(path: str, body: bytes, *headers: str, content_type: str = "application/json") -> bytes:
    return (
        get(
            path,
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            *headers,
            method="POST",
        )
        + body
    )


class Subscriber:
    """A response taken apart, as it comes: its head, its blocks, how it ended.

    Attributes:
        status: the HTTP status.
        headers: by lower-case name.
        blocks: all that came so far, comments and ``retry`` alone included.
        ended: ``"complete"``, ``"cut"``, or ``None`` if it has not.
    """

    def __init__(self, client: Client, method: str = "GET") -> None:
        self.client = client
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.blocks: list[Event] = []
        self.ended: str | None = None
        self._unread: deque[Event] = deque()
        self._decoder = Decoder(every_block=True, max_line_size=1 << 24, max_event_size=1 << 24)
        self._http = h11.Connection(h11.CLIENT)
        self._http.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        self._http.send(h11.EndOfMessage())

    async def head(self) -> None:
        """Wait for the response's head."""
        while not self.status:
            await self._step()

    async def block(self) -> Event:
        """The next block that comes.

        Raises:
            trio.EndOfChannel: the response has ended.
        """
        while not self._unread:
            if self.ended is not None:
                raise trio.EndOfChannel(self.ended)
            await self._step()
        return self._unread.popleft()

    async def event(self) -> Event:
        """The next event that a listener would be given."""
        while (block := await self.block()).data is None:
            pass
        return block

    async def rest(self) -> list[Event]:
        """All blocks that are left, at the end of the response."""
        while self.ended is None:
            await self._step()
        rest = list(self._unread)
        self._unread.clear()
        return rest

    async def _step(self) -> None:
        event = self._next_event()
        while event is h11.NEED_DATA:
            self._http.receive_data(await self.client.receive())
            event = self._next_event()
        if isinstance(event, h11.Response):
            self.status = event.status_code
            self.headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            self.body += event.data
            blocks = self._decoder.feed(bytes(event.data))
            self.blocks += blocks
            self._unread += blocks
        elif isinstance(event, h11.EndOfMessage):
            self.ended = "complete"
        elif isinstance(event, h11.ConnectionClosed):
            self.ended = "cut"

    def _next_event(self) -> Any:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError:
            if self.client.ended:
                return h11.ConnectionClosed()  # where the framing does not have an end
            raise


@asynccontextmanager
async def subscribed(
    running: Running, path: str = "/", *headers: str, version: str = "1.1", **options: Any
) -> AsyncIterator[Subscriber]:
    """An event stream, once its head and its first bytes are there."""
    async with connected(running, **options) as client:
        await client.send(get(path, *headers, version=version))
        subscriber = Subscriber(client)
        await subscriber.head()
        assert subscriber.status == 200, (subscriber.status, bytes(client.received))
        await subscriber.block()
        yield subscriber


async def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Wait until ``condition()``: for what ends in the kernel, and tells nobody.

    Other tasks run until none can; then a little time passes, and it is asked again.
    """
    with trio.move_on_after(FAR):
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.002)
        return
    raise AssertionError(f"it never came to be: {what or condition}")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def living_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living
