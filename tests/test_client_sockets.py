"""The client over real sockets: resets, half-closes, TLS, proxies, Unix sockets."""

from __future__ import annotations

import functools
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from scripted_server import HEAD, Received, read_request, take

from trio_sse.client import (
    EventSource,
    NetworkError,
    ProtocolError,
    ReadyState,
    Reconnect,
    RequestRefused,
    StateChange,
    Transport,
    connect,
    request,
)

Handler = Callable[[trio.abc.Stream, Received], Awaitable[None]]
PROMPT = Reconnect(initial=0, floor=0.01, ceiling=0)


class Server:
    """Accepts on a port of this machine; each connection gets the next handler."""

    def __init__(self, *handlers: Handler, context: ssl.SSLContext | None = None) -> None:
        self._handlers = list(handlers)
        self._context = context
        self.requests: list[Received] = []
        self.port = 0

    async def start(self, nursery: trio.Nursery) -> Server:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, self.serve, listeners)
        return self

    async def serve(self, transport: trio.abc.Stream) -> None:
        stream: trio.abc.Stream = transport
        if self._context is not None:
            stream = trio.SSLStream(
                transport, self._context, server_side=True, https_compatible=True
            )
        try:
            received = await read_request(stream)
            if received is not None:
                self.requests.append(received)
                await self._handlers.pop(0)(stream, received)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client left, or trusts nobody
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.aclose_forcefully(transport)


def says(*pieces: bytes, hold: bool = False) -> Handler:
    async def handler(stream: trio.abc.Stream, received: Received) -> None:
        for piece in pieces:
            await stream.send_all(piece)
        while hold and await stream.receive_some():
            pass

    return handler


def resets(data: bytes, taken: trio.Event) -> Handler:
    """Resets the connection when the test has taken the data."""

    async def handler(stream: trio.abc.Stream, received: Received) -> None:
        assert isinstance(stream, trio.SocketStream)
        await stream.send_all(data)
        await taken.wait()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return handler


def source(url: str, changes: list[StateChange] | None = None, **transport: object) -> EventSource:
    return connect(
        url,
        reconnect=PROMPT,
        transport=Transport(**{"trust_env": False, **transport}),
        on_state_change=None if changes is None else changes.append,
    )


async def free_port() -> int:
    """A port that nobody listens on."""
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def test_reset_in_an_event_is_a_break_and_a_resume(nursery: trio.Nursery) -> None:
    taken = trio.Event()
    changes: list[StateChange] = []
    server = await Server(
        resets(HEAD + b"id: 1\ndata: 1\n\nid: 2\nda", taken), says(HEAD + b"data: 2\n\n")
    ).start(nursery)
    async with source(f"http://127.0.0.1:{server.port}/", changes) as events:
        assert await take(events, 1) == ["1"]
        taken.set()
        assert await take(events, 1) == ["2"]
    assert server.requests[1].headers["last-event-id"] == b"1"
    cause = changes[1].cause
    assert isinstance(cause, NetworkError)
    assert "reset" in str(cause)
    nursery.cancel_scope.cancel()


async def test_half_close_is_the_end_of_the_response(nursery: trio.Nursery) -> None:
    async def half_close(stream: trio.abc.Stream, received: Received) -> None:
        assert isinstance(stream, trio.SocketStream)
        await stream.send_all(HEAD + b"id: 1\ndata: 1\n\ndata: cut")
        await stream.send_eof()
        assert await stream.receive_some() == b""  # the client closes its side

    server = await Server(half_close, says(HEAD + b"data: 2\n\n")).start(nursery)
    async with source(f"http://127.0.0.1:{server.port}/") as events:
        assert await take(events, 2) == ["1", "2"]
    nursery.cancel_scope.cancel()


async def test_server_that_is_not_there_yet_is_waited_for(nursery: trio.Nursery) -> None:
    port = await free_port()
    server = Server(says(HEAD + b"data: 1\n\n"))
    up = False

    def hook(change: StateChange) -> None:
        nonlocal up
        if change.state is ReadyState.CONNECTING and not up:
            up = True
            nursery.start_soon(
                functools.partial(trio.serve_tcp, server.serve, port, host="127.0.0.1")
            )

    async with connect(
        f"http://127.0.0.1:{port}/",
        reconnect=PROMPT,
        transport=Transport(trust_env=False),
        on_state_change=hook,
    ) as events:
        assert await take(events, 1) == ["1"]
        assert events.statistics().attempts >= 2
    nursery.cancel_scope.cancel()


async def test_one_of_several_addresses_is_enough(nursery: trio.Nursery) -> None:
    """``localhost`` is also ``::1`` on most machines, where nobody listens."""
    server = await Server(says(HEAD + b"data: 1\n\n")).start(nursery)
    async with source(f"http://localhost:{server.port}/") as events:
        assert await take(events, 1) == ["1"]
    nursery.cancel_scope.cancel()


async def test_kernel_probes_a_silent_peer(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[trio.SocketStream] = []
    open_tcp_stream = trio.open_tcp_stream

    async def keep(host: str, port: int) -> trio.SocketStream:
        opened.append(await open_tcp_stream(host, port))
        return opened[0]

    monkeypatch.setattr(trio, "open_tcp_stream", keep)
    server = await Server(says(HEAD, hold=True)).start(nursery)
    async with source(f"http://127.0.0.1:{server.port}/") as events:
        await events.wait_open()
        assert opened[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    nursery.cancel_scope.cancel()


async def test_slow_application_stops_the_servers_sending(nursery: trio.Nursery) -> None:
    block = b"data: " + b"x" * 8192 + b"\n\n"
    sent = 0

    async def endless(stream: trio.abc.Stream, received: Received) -> None:
        nonlocal sent
        await stream.send_all(HEAD)
        while True:
            await stream.send_all(block)
            sent += len(block)

    server = await Server(endless).start(nursery)
    async with source(f"http://127.0.0.1:{server.port}/") as events:
        await take(events, 1)
        before = -1
        while sent != before:  # until the buffers between the two are full
            before = sent
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < 64 << 20
        assert events.statistics().bytes_received < 1 << 20
        await take(events, 4 * sent // len(block))
        assert sent > before
    nursery.cancel_scope.cancel()


async def test_unix_socket(nursery: trio.Nursery, tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    server = Server(says(HEAD + b"data: 1\n\n"))
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        await sock.bind(path)
        sock.listen()
        listener = trio.SocketListener(sock)
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        async with source("http://service.example/events", unix_socket=path) as events:
            assert await take(events, 1) == ["1"]
        assert server.requests[0].headers["host"] == b"service.example"
        nursery.cancel_scope.cancel()


# --- TLS -----------------------------------------------------------------------------------


class Tls:
    """A private authority, and what each side needs of it."""

    def __init__(self) -> None:
        self.authority = trustme.CA()
        self.trusting = ssl.create_default_context()
        self.authority.configure_trust(self.trusting)

    def server(self, name: str = "localhost") -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(name).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def tls() -> Tls:
    return Tls()


async def test_tls_with_a_private_authority(nursery: trio.Nursery, tls: Tls) -> None:
    server = await Server(
        says(HEAD + b"id: 1\ndata: 1\n\nid: 2\ndata:"),  # ends without a TLS farewell
        says(HEAD + b"data: 2\n\n", hold=True),
        context=tls.server(),
    ).start(nursery)
    async with source(f"https://localhost:{server.port}/", ssl_context=tls.trusting) as events:
        assert await take(events, 2) == ["1", "2"]
    assert server.requests[1].headers["last-event-id"] == b"1"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("case", ["unknown authority", "other name"])
async def test_tls_that_is_not_trusted_fails_for_good(
    nursery: trio.Nursery, tls: Tls, case: str
) -> None:
    other_name = case == "other name"
    name = "other.example" if other_name else "localhost"
    server = await Server(context=tls.server(name)).start(nursery)
    # Without a context it is the system's trust, which knows nothing of this authority.
    context = tls.trusting if other_name else None
    async with source(f"https://localhost:{server.port}/", ssl_context=context) as events:
        with pytest.raises(NetworkError, match="certificate") as caught:
            await events.__anext__()
        assert caught.value.for_good
        assert events.ready_state is ReadyState.CLOSED
    assert not server.requests
    nursery.cancel_scope.cancel()


async def test_tls_to_a_server_without_is_tried_again(nursery: trio.Nursery, tls: Tls) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def plain(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    nursery.start_soon(trio.serve_listeners, plain, listeners)
    changes: list[StateChange] = []
    async with connect(
        f"https://localhost:{port}/",
        reconnect=Reconnect(initial=0, floor=0.01, give_up_after=2),
        transport=Transport(ssl_context=tls.trusting, trust_env=False),
        on_state_change=changes.append,
    ) as events:
        with pytest.raises(NetworkError) as caught:
            await events.__anext__()
    assert not caught.value.for_good
    assert [change.state.name for change in changes] == ["CONNECTING", "CLOSED"]
    nursery.cancel_scope.cancel()


# --- proxies -------------------------------------------------------------------------------


class Proxy(Server):
    """An HTTP proxy: CONNECT, and requests in absolute form; it may want credentials."""

    def __init__(self, auth: bytes | None = None, context: ssl.SSLContext | None = None) -> None:
        super().__init__(*[self._handle] * 100, context=context)
        self._auth = auth
        self.answer: bytes | None = None

    async def _handle(self, stream: trio.abc.Stream, received: Received) -> None:
        if self.answer is not None:
            await stream.send_all(self.answer)
        elif self._auth is not None and received.headers.get("proxy-authorization") != self._auth:
            await stream.send_all(
                b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 3\r\n\r\nwho"
            )
        elif received.method == "CONNECT":
            host, _, port = received.target.rpartition(":")
            async with await trio.open_tcp_stream(host, int(port)) as far:
                await stream.send_all(b"HTTP/1.1 200 Connection Established\r\nvia: test\r\n\r\n")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_copy, far, stream, nursery.cancel_scope)
                    await _copy(stream, far, nursery.cancel_scope)
        else:
            await stream.send_all(HEAD + b"data: by proxy\n\n")


async def _copy(source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    scope.cancel()


async def test_proxy_tunnels_https(nursery: trio.Nursery, tls: Tls) -> None:
    server = await Server(says(HEAD + b"data: 1\n\n"), context=tls.server()).start(nursery)
    proxy = await Proxy(auth=b"Basic dTpw").start(nursery)
    address = f"http://u:p@127.0.0.1:{proxy.port}"
    url = f"https://localhost:{server.port}/events"
    async with source(url, proxy=address, ssl_context=tls.trusting) as events:
        assert await take(events, 1) == ["1"]
    assert (proxy.requests[0].method, proxy.requests[0].target) == (
        "CONNECT",
        f"localhost:{server.port}",
    )
    assert proxy.requests[0].headers["host"] == f"localhost:{server.port}".encode()
    assert server.requests[0].target == "/events"
    assert "proxy-authorization" not in server.requests[0].headers
    nursery.cancel_scope.cancel()


async def test_proxy_may_itself_speak_tls(nursery: trio.Nursery, tls: Tls) -> None:
    server = await Server(says(HEAD + b"data: 1\n\n"), context=tls.server()).start(nursery)
    proxy = await Proxy(context=tls.server()).start(nursery)
    address = f"https://localhost:{proxy.port}"
    for url, expected in (
        (f"https://localhost:{server.port}/", "1"),
        ("http://far.example/", "by proxy"),
    ):
        async with source(url, proxy=address, ssl_context=tls.trusting) as events:
            assert await take(events, 1) == [expected]
    nursery.cancel_scope.cancel()


async def test_proxy_of_the_environment_gets_plain_requests_in_absolute_form(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await Proxy(auth=b"Basic dTpw").start(nursery)
    for name in ("no_proxy", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://u:p@127.0.0.1:{proxy.port}")
    async with connect("http://far.example:81/a?b=c", reconnect=PROMPT) as events:
        assert await take(events, 1) == ["by proxy"]
    received = proxy.requests[0]
    assert (received.method, received.target) == ("GET", "http://far.example:81/a?b=c")
    assert received.headers["host"] == b"far.example:81"
    server = await Server(says(HEAD + b"data: 1\n\n")).start(nursery)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with connect(f"http://127.0.0.1:{server.port}/", reconnect=PROMPT) as events:
        assert await take(events, 1) == ["1"]
    assert len(proxy.requests) == 1
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    async with connect("http://far.example/") as events:
        with pytest.raises(NetworkError, match="'socks5' is not supported"):
            await events.__anext__()
    nursery.cancel_scope.cancel()


async def test_proxy_that_refuses_fails_for_good(nursery: trio.Nursery, tls: Tls) -> None:
    proxy = await Proxy(auth=b"Basic dTpw").start(nursery)
    address = f"http://127.0.0.1:{proxy.port}"
    for scheme in ("http", "https"):
        async with source(f"{scheme}://localhost:1/", proxy=address) as events:
            with pytest.raises(RequestRefused, match="407") as caught:
                await events.__anext__()
            assert (caught.value.status, caught.value.body) == (407, b"who")
            assert events.ready_state is ReadyState.CLOSED
    with pytest.raises(RequestRefused):
        await request("POST", "https://localhost:1/", transport=Transport(proxy=address))
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", NetworkError),
        (b"HTTP/1.1 200 OK\r\n\r\nearly bytes", ProtocolError),
        (b"HTTP/1.1 2", NetworkError),
        (b"nonsense\r\n\r\n", ProtocolError),
    ],
)
async def test_proxy_that_fails_is_tried_again(
    nursery: trio.Nursery, tls: Tls, answer: bytes, kind: type[Exception]
) -> None:
    server = await Server(says(HEAD + b"data: 1\n\n"), context=tls.server()).start(nursery)
    proxy = await Proxy().start(nursery)
    proxy.answer = answer
    changes: list[StateChange] = []

    def hook(change: StateChange) -> None:
        changes.append(change)
        proxy.answer = None

    async with connect(
        f"https://localhost:{server.port}/",
        reconnect=PROMPT,
        transport=Transport(proxy=f"http://127.0.0.1:{proxy.port}", ssl_context=tls.trusting),
        on_state_change=hook,
    ) as events:
        assert await take(events, 1) == ["1"]
    assert isinstance(changes[0].cause, kind)
    nursery.cancel_scope.cancel()


def test_transport_takes_one_way_only() -> None:
    with pytest.raises(ValueError, match="one of proxy, unix_socket and open_stream"):
        Transport(proxy="http://p:1", unix_socket="/s")
    with pytest.raises(ValueError, match="not supported"):
        Transport(proxy="socks5://p:1")
