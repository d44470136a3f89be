"""Hypercorn's protocols under an accept loop made for streams that stay open.

`serve` takes the place of ``hypercorn.trio.serve``. What one connection does ends at
that connection; a drain begins before Hypercorn's own ending; and the ending is bounded
whatever clients do.
"""

from __future__ import annotations

import copy
import errno
import math
import signal
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.typing import LifespanState
from hypercorn.utils import (
    repr_socket_addr,  # pyright: ignore[reportUnknownVariableType]  # Hypercorn's own
    wrap_app,  # pyright: ignore[reportUnknownVariableType]  # types are partly unknown
)

from ._connection import TLS, Connection
from ._respond import ASGIApp
from ._worker import Worker
from .asgi import SERVER
from .hub import Hub

_OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_ACCEPT_PAUSE: Final = 0.1
_COMPLAIN_EVERY: Final = 60.0
_LOOK_EVERY: Final = 1.0
_LINGER: Final = 2.0
"""Seconds that a client has to read the response to a request that it still sends."""
_ACCEPT_BATCH: Final = 4
"""Between two turns of all others: who come in a crowd would otherwise go from step to step
side by side, and every step of theirs would be a pause for those who are there."""
_DRAIN_BATCH: Final = 16
_DRAIN_PAUSE: Final = 0.02
"""Seconds between batches while draining: 800 connections a second take a fifth of a core."""
_USER_TIMEOUT: Final = 60_000
"""Milliseconds that sent bytes may stay unacknowledged."""
_UNSENT: Final = 1 << 14
"""Bytes that the kernel may hold unsent when it says that there is room."""
_BUSY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


async def serve(  # noqa: PLR0913  # Hypercorn's four, and ours by name
    app: ASGIApp,
    config: Config,
    *,
    shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
    mode: Literal["asgi", "wsgi"] | None = None,
    grace: float = 10.0,
    send_timeout: float = 30.0,
    max_connections: int | None = None,
    http2: bool = False,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until ``shutdown_trigger`` returns, then drain and stop.

    Hubs of `trio_sse.Endpoint` are found by themselves, mounted or not; they are drained
    first. If one of them fails, that is a shutdown too. The whole ending takes ``grace``
    seconds at most, and what unregister hooks and the application's own lifespan take;
    then connections that are left are cut. If cancelled, it cuts them at once.

    Args:
        app: any ASGI (or, with ``mode``, WSGI) application.
        config: Hypercorn's. ``keep_alive_timeout`` bounds the time for request headers
            and between requests; ``graceful_timeout`` is not used, ``grace`` is.
        shutdown_trigger: as Hypercorn's. Without one, in the main thread, SIGINT and
            SIGTERM are that, and a second signal ends all at once.
        grace: seconds.
        send_timeout: seconds after which a client that takes nothing is cut.
        max_connections: in all; the next ones are told 503 and closed.
        http2: allow HTTP/2, in which Hypercorn passes on no backpressure: a stalled
            client makes the server buffer without bound. A proxy in front is better.
        task_status: reports the URLs served, once they are.

    Raises:
        ValueError: for a bound that is not positive, or a configuration of QUIC.
        OSError: an address cannot be bound.
    """
    for name, value in (("grace", grace), ("send_timeout", send_timeout)):
        if not 0 < value < math.inf:
            raise ValueError(f"serve({name}={value}): seconds, as in serve({name}=10)")
    if config.quic_bind:
        raise ValueError("serve: QUIC is not supported; leave quic_bind out of the config")
    server = Server(app, config, mode, send_timeout, max_connections, http2=http2)
    await server.run(shutdown_trigger, grace, task_status)


@final
class Server:
    """What the connections of one `serve` call share."""

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        mode: Literal["asgi", "wsgi"] | None,
        send_timeout: float,
        max_connections: int | None,
        *,
        http2: bool,
    ) -> None:
        self.application: Any = wrap_app(app, config.wsgi_max_body_size, mode)  # type: ignore[arg-type]  # Hypercorn types scopes as TypedDicts
        self.config = config
        if not http2:
            self.config = copy.copy(config)
            self.config.alpn_protocols = ["http/1.1"]
        self.send_timeout = send_timeout
        self.http2 = http2
        self.context = Worker(config.max_requests)
        self.state: LifespanState = {SERVER: self}
        self._max_connections = max_connections
        self._connections: dict[Connection, None] = {}
        self._hubs: dict[Hub, None] = {}
        self._watchers: trio.Nursery | None = None
        self._connection_ended = trio.lowlevel.ParkingLot()
        self._must_stop = trio.Event()

    def serves(self, hub: Hub) -> None:
        """Drain ``hub`` before stopping, and stop if it fails. Idempotent."""
        if hub not in self._hubs and self._watchers is not None:
            self._hubs[hub] = None
            self._watchers.start_soon(self._watch, hub)

    async def _watch(self, hub: Hub) -> None:
        await hub.wait_closed()
        self._must_stop.set()

    async def report(self, failure: Exception) -> None:
        """Log what went wrong in one connection, with its cause."""
        await self.config.log.error("Error in a connection, which was closed", exc_info=failure)

    async def run(
        self,
        shutdown_trigger: Callable[[], Awaitable[None]] | None,
        grace: float,
        task_status: trio.TaskStatus[list[str]],
    ) -> None:
        """Start up, serve, drain, stop."""
        with _bound(self.config) as listeners:
            async with trio.open_nursery() as self._watchers:
                self._watchers.start_soon(self._wait_for_trigger, shutdown_trigger)
                self._watchers.start_soon(self._wait_for_max_requests)
                async with self._lifespan():
                    await self._serve(listeners, grace, task_status)
                self._watchers.cancel_scope.cancel(reason="the server has stopped")

    @asynccontextmanager
    async def _lifespan(self) -> AsyncGenerator[None, None]:
        lifespan = Lifespan(self.application, self.config, self.state)
        returned = trio.Event()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await lifespan.handle_lifespan(task_status=task_status)
            returned.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            with suppress(trio.ClosedResourceError):  # the application has returned:
                await lifespan.wait_for_startup()  # it does without a lifespan
            if lifespan.shutdown.is_set():
                await returned.wait()  # or be cancelled, if the start-up has failed
            yield
            with suppress(trio.ClosedResourceError):
                await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel(reason="the application has shut down")

    async def _wait_for_trigger(
        self, shutdown_trigger: Callable[[], Awaitable[None]] | None
    ) -> None:
        if shutdown_trigger is not None:
            await shutdown_trigger()
            self._must_stop.set()
        elif threading.current_thread() is threading.main_thread():
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    if self._must_stop.is_set():
                        assert self._watchers is not None
                        self._watchers.cancel_scope.cancel(reason="a second signal")
                    self._must_stop.set()

    async def _wait_for_max_requests(self) -> None:
        await self.context.terminate.wait()
        self._must_stop.set()

    async def _serve(
        self, listeners: list[Listener], grace: float, task_status: trio.TaskStatus[list[str]]
    ) -> None:
        async with trio.open_nursery() as connections:
            try:
                async with trio.open_nursery() as front:
                    for listener in listeners:
                        listener.socket.listen(self.config.backlog)
                        front.start_soon(self._accept, listener, connections)
                        await self.config.log.info(f"Running on {listener.url}")
                    task_status.started([listener.url for listener in listeners])
                    connections.start_soon(self._look_after_connections)
                    await self._must_stop.wait()
                    deadline = trio.current_time() + grace
                    # Still accepting: who asks is told 503, health checks too.
                    await self._drain_hubs(grace)
                    front.cancel_scope.cancel(reason="the server stops accepting")
                await self._finish_requests(deadline)
            finally:
                connections.cancel_scope.cancel(reason="the server ends")
                # To cancel is not enough for an application that shields its sends.
                for connection in list(self._connections):
                    connection.cut()

    async def _drain_hubs(self, grace: float) -> None:
        async with trio.open_nursery() as drains:
            for hub in self._hubs:
                if hub.state != "new":  # somebody forgot to open it: nothing to drain
                    drains.start_soon(hub.drain, grace)

    async def _finish_requests(self, deadline: float) -> None:
        """Let requests in flight end; the others have nothing to wait for."""
        await self.context.terminated.set()  # no connection is kept after its response
        for connection in list(self._connections):
            if connection.idle_since is not None:
                connection.cut()
        with trio.CancelScope(deadline=deadline):
            while self._connections:
                await self._connection_ended.park()

    async def _accept(self, listener: Listener, connections: trio.Nursery) -> None:
        quiet_until = -math.inf
        while True:
            await trio.lowlevel.wait_readable(listener.socket)
            try:
                for _ in range(_DRAIN_BATCH if self._must_stop.is_set() else _ACCEPT_BATCH):
                    self._start(listener, connections, listener.socket.accept()[0])
            except BlockingIOError:
                pass
            except OSError as exc:
                if exc.errno in _OUT_OF_RESOURCES:
                    if trio.current_time() >= quiet_until:
                        quiet_until = trio.current_time() + _COMPLAIN_EVERY
                        await self.config.log.error(
                            "Cannot accept (%s); trying every %s s", exc.strerror, _ACCEPT_PAUSE
                        )
                    await trio.sleep(_ACCEPT_PAUSE)
            if self._must_stop.is_set():
                # All who were told goodbye may be back at once. They are answered, but
                # those who are still here come first.
                await trio.sleep(_DRAIN_PAUSE)

    def _start(self, listener: Listener, nursery: trio.Nursery, sock: socket.socket) -> None:
        if self._max_connections is not None and len(self._connections) >= self._max_connections:
            sock.setblocking(False)
            with sock, suppress(OSError):
                if listener.ssl_context is None:
                    sock.send(_BUSY)
            return
        sock.setblocking(False)
        tls: TLS | None = None
        if listener.ssl_context is not None:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
            tls = trio.SSLStream(
                stream, listener.ssl_context, server_side=True, https_compatible=True
            )
        connection = Connection(self, nursery, sock, tls)
        self._connections[connection] = None
        nursery.start_soon(connection.run)

    def forget(self, connection: Connection) -> None:
        """It has ended."""
        del self._connections[connection]
        if not self._connections:
            self._connection_ended.unpark_all()

    async def _look_after_connections(self) -> None:
        """Cut those that let the server wait too long."""
        while True:
            await trio.sleep(_LOOK_EVERY)
            now = trio.current_time()
            for connection in list(self._connections):
                if _is_before(connection.sending_since, now - self.send_timeout):
                    connection.cut(too_slow=True)
                elif _is_before(
                    connection.idle_since, now - self.config.keep_alive_timeout
                ) or _is_before(connection.lingering_since, now - _LINGER):
                    connection.cut()


def _is_before(since: float | None, time: float) -> bool:
    return since is not None and since < time


@final
@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, and what is spoken on it."""

    socket: socket.socket
    ssl_context: ssl.SSLContext | None

    @property
    def url(self) -> str:
        scheme = "http" if self.ssl_context is None else "https"
        return f"{scheme}://{repr_socket_addr(self.socket.family, self.socket.getsockname())}"


@contextmanager
def _bound(config: Config) -> Generator[list[Listener], None, None]:
    """Sockets for all that ``config`` binds, not listening yet; closed in the end."""
    context = config.create_ssl_context()
    sockets = config.create_sockets()
    listeners = [Listener(sock, context) for sock in sockets.secure_sockets]
    listeners += [Listener(sock, None) for sock in sockets.insecure_sockets]
    with ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener.socket)
        for listener in listeners:
            _set_options(listener.socket)
        yield listeners


def _set_options(sock: socket.socket) -> None:
    """Options that accepted sockets inherit.

    The kernel ends connections whose peer is gone. What is written goes out at once, and
    there is room for more when most of it has gone: both are what Trio's own sockets have.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 60),  # seconds
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _USER_TIMEOUT),
        ("TCP_NOTSENT_LOWAT", _UNSENT),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
