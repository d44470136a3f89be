"""One accepted connection: Hypercorn's protocol on a stream, with every wait bounded.

Hypercorn's own `TCPServer` sends under a shield that nothing ends, lets a protocol
error out into the accept loop, and starts a task for each idle time-out. Here a send
can be cancelled, which closes the connection; errors stay inside; and a connection
only notes since when it waits, for one task of the server to look at.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast, final

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState
from hypercorn.utils import (
    parse_socket_addr,  # pyright: ignore[reportUnknownVariableType]  # Hypercorn's own types
)

from ._app_tasks import AppTasks, Inbox
from ._respond import Receive, Scope, Send
from .asgi import DIRECT
from .hooks import collect
from .outbox import Batch

if TYPE_CHECKING:
    from .server import Server

TLS = trio.SSLStream[trio.SocketStream]

_RECEIVE_SIZE: Final = 1 << 16
_SEND_PIECE: Final = 1 << 16
"""Bytes; each has the send deadline to itself, so that a slow reader is not a stalled one."""
_UNFINISHED: Final = (h11.SEND_BODY, h11.ERROR)
"""What h11 says of a client that sends more of its request, or of what it takes for one."""
_LOST: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)
"""How connections end that nobody did anything wrong with; TooSlowError is a handshake's."""


class HTTP1Only(H11Protocol):
    """HTTP/1.1 without the ways into HTTP/2, whose flow control Hypercorn does not pass on.

    The head of a response whose length is known leaves with the first of its body.
    """

    _held: bytes = b""

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = cast("bytes | None", cast("Any", self).connection.send(event)) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if self._held:
            data = self._held + data
            del self._held
        if isinstance(event, h11.Response) and _has_length(event):
            self._held = data
        elif data:
            await self.send(RawData(data=data))

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.http_version not in (b"1.0", b"1.1"):
            await self._send_error_response(505)
            raise ConnectionError("a client asked for HTTP/2, which is off")


def _has_length(response: h11.Response) -> bool:
    return any(name == b"content-length" for name, _ in response.headers)


@final
class DirectSocket:
    """Writes a chunked response body to a socket, past ASGI: see `DirectConnection`."""

    __slots__ = ("_inbox", "_is_gone", "_socket", "_timeout", "_waiting", "send")

    def __init__(self, sock: socket.socket, send: Send, inbox: Inbox, timeout: float) -> None:
        self._socket = sock
        self._inbox = inbox
        self._timeout = timeout
        self._waiting: trio.CancelScope | None = None  # for room
        self._is_gone = False
        self.send = send

    def write(self, batch: Batch) -> bytes:
        framed = batch.framed
        if framed is None:
            framed = batch.framed = self.frame(batch.data)
        try:
            sent = self._socket.send(framed)
        except OSError:
            # No room, or no connection: `send_all`, which can wait, finds out which.
            return framed
        return framed[sent:]

    def frame(self, data: bytes) -> bytes:
        """``data`` as one chunk (RFC 9112, 7.1)."""
        return b"%x\r\n%b\r\n" % (len(data), data)

    def when_gone(self, call: Callable[[bool], None]) -> None:
        # The inbox alone keeps `call`, until it is closed: there is no cycle with a session.
        self._inbox.when_gone(partial(self._gone, call))

    def _gone(self, call: Callable[[bool], None], too_slow: bool) -> None:
        call(too_slow)
        self._is_gone = True
        if self._waiting is not None:
            self._waiting.cancel(reason="the client has gone")

    async def send_all(self, framed: bytes) -> None:
        rest = memoryview(framed)
        while rest:
            rest = rest[await self._send_some(rest) :]

    async def _send_some(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            await self._wait_for_room()
            return 0

    async def _wait_for_room(self) -> None:
        try:
            with trio.move_on_after(self._timeout) as self._waiting:
                await trio.lowlevel.wait_writable(self._socket)
        except (trio.ClosedResourceError, ValueError) as exc:
            raise BrokenPipeError("the connection was closed meanwhile") from exc
        ran_out, self._waiting = self._waiting.cancelled_caught, None
        if self._is_gone:
            raise BrokenPipeError("the client has gone")
        if ran_out:
            raise trio.TooSlowError(f"the client took nothing for {self._timeout:g} s")


@final
class Connection:
    """A client's connection, from accept to close.

    Attributes:
        idle_since: when it began to wait for a request, if it does.
        sending_since: when it began to wait for the client to take a piece, if it does.
        lingering_since: when it began to read and drop what comes, so that the client can
            read the response; if it does.
    """

    __slots__ = (
        "_failures",
        "_handling",
        "_protocol",
        "_sent",
        "_server",
        "_socket",
        "_tasks",
        "_tls",
        "idle_since",
        "lingering_since",
        "sending_since",
    )

    def __init__(
        self, server: Server, tasks: trio.Nursery, sock: socket.socket, tls: TLS | None
    ) -> None:
        self._server = server
        # Not in one of Trio's streams, if it is plain: a kilobyte less for each session.
        self._socket = sock
        self._tls = tls
        self._sent: trio.lowlevel.ParkingLot | None = None  # made when somebody must wait
        self._handling: trio.CancelScope | None = None  # what was read last
        self._tasks = AppTasks(tasks, self._fail)
        self._protocol: ProtocolWrapper | H11Protocol | None = None
        self._failures: list[Exception] = []
        self.idle_since: float | None = trio.current_time()
        self.sending_since: float | None = None
        self.lingering_since: float | None = None

    async def run(self) -> None:
        """Serve the connection until it ends. Only cancellation comes out of here."""
        try:
            with collect(self._failures):
                self._protocol = await self._open()
                await self._read(self._protocol)
            if self._failures or self.lingering_since is not None:
                self.cut()
            with collect(self._failures):  # the application is told, whatever has failed
                if self._protocol is not None:
                    await self._protocol.handle(Closed())
            await self._tasks.wait()
        finally:
            self.cut()
            self._server.forget(self)
            for failure in self._failures:
                # What follows from an application's failure has been logged with it.
                if not isinstance(failure, _LOST) and not self._tasks.has_failed:
                    await self._server.report(failure)  # noqa: ASYNC102  # a log line: no wait

    def _fail(self, failure: Exception) -> None:
        self._failures.append(failure)
        self.cut()

    async def _open(self) -> ProtocolWrapper | H11Protocol:
        alpn = "http/1.1"
        if self._tls is not None:
            with trio.fail_after(self._server.config.ssl_handshake_timeout):
                await self._tls.do_handshake()
            alpn = self._tls.selected_alpn_protocol() or alpn
        protocol = self._make_protocol(alpn)
        await protocol.initiate()
        return protocol

    def _make_protocol(self, alpn: str) -> ProtocolWrapper | H11Protocol:
        server, sock = self._server, self._socket
        ssl = self._tls is not None
        make = cast("Callable[..., Any]", ProtocolWrapper if server.http2 else HTTP1Only)
        protocol: ProtocolWrapper | H11Protocol = make(
            self._application if not ssl else server.application,
            server.config,
            server.context,
            self._tasks,
            ConnectionState(server.state),  # each request gets a copy
            ssl,
            parse_socket_addr(sock.family, sock.getpeername()),
            parse_socket_addr(sock.family, sock.getsockname()),
            self._send,
            *([alpn] if server.http2 else []),
        )
        return protocol

    def _application(
        self, scope: Scope, receive: Receive, send: Send, *rest: Callable[..., Any]
    ) -> Awaitable[None]:
        if scope["type"] == "http":
            inbox = self._tasks.inbox
            assert inbox is not None
            direct = DirectSocket(self._socket, send, inbox, self._server.send_timeout)
            scope["extensions"][DIRECT] = direct
        app = self._server.application
        if isinstance(app, ASGIWrapper):  # which would be one frame more for a session's life
            return app.app(scope, receive, send)  # type: ignore[arg-type]  # Hypercorn types scopes as TypedDicts
        return cast("Awaitable[None]", app(scope, receive, send, *rest))

    async def _read(self, protocol: ProtocolWrapper | H11Protocol) -> None:
        while True:
            try:
                data = await self._receive()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                return
            if self.lingering_since is None:
                # It may wait: where requests follow one another, for a response to end,
                # which on a closed connection would never be.
                with trio.CancelScope() as self._handling:
                    await protocol.handle(RawData(data))
                self._handling = None
            if not data:
                return

    async def _receive(self) -> bytes:
        if self._tls is not None:
            return bytes(await self._tls.receive_some(_RECEIVE_SIZE))
        while True:
            if self._socket.fileno() < 0:  # cut while a message was handled
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self._socket)
            with suppress(BlockingIOError):
                return self._socket.recv(_RECEIVE_SIZE)

    async def _send(self, event: Event) -> None:
        """What Hypercorn's protocol calls to have its way with the connection."""
        if isinstance(event, RawData):
            while self.sending_since is not None:  # another task is at it
                if self._sent is None:
                    self._sent = trio.lowlevel.ParkingLot()
                await self._sent.park()
            await self._send_data(event.data)
        elif isinstance(event, Closed):
            self._end()
        elif isinstance(event, Updated):
            self.idle_since = trio.current_time() if event.idle else None

    async def _send_data(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), _SEND_PIECE):
                self.sending_since = trio.current_time()
                await self._send_piece(data[start : start + _SEND_PIECE])
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.cut()
        except BaseException:
            self.cut()  # part of it may have gone: nothing sensible can follow
            raise
        finally:
            self.sending_since = None
            if self._sent is not None:
                self._sent.unpark()

    async def _send_piece(self, data: bytes) -> None:
        if self._tls is not None:
            await self._tls.send_all(data)
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = memoryview(data)
        while rest:
            rest = rest[await self._send_some(rest) :]
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _send_some(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(self._socket)
            return 0

    def _end(self) -> None:
        """Close; but a client that still sends its request is to read the response first.

        To close with bytes unread would be to reset, and what the client has not read yet
        is lost with that.
        """
        http = getattr(self._protocol, "connection", None)
        if (
            self.lingering_since is not None
            or getattr(http, "their_state", None) not in _UNFINISHED
        ):
            self.cut()
            return
        self.lingering_since = trio.current_time()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def cut(self, *, too_slow: bool = False) -> None:
        """Close; whoever waits on the connection is told. Idempotent.

        What was sent still goes out, as far as the kernel has it.

        Args:
            too_slow: tell the application so, too.
        """
        self._tasks.too_slow = self._tasks.too_slow or too_slow
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        if self._handling is not None:
            self._handling.cancel(reason="the connection was closed")
