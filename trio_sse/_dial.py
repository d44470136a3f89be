"""A stream to where a URL points: TCP or a Unix socket, through a proxy or not, TLS or not."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, final

import trio

from ._client_errors import ClientError, NetworkError, RequestRefused
from ._http1 import Incoming, RawHeaders, Request, exchange, translated
from ._url import Url, environment_proxy, parse_proxy, parse_url

_BODY_LIMIT: Final = 64 * 1024  # bytes of an answer that is not what was asked for
_BODY_TIME: Final = 5.0  # seconds for the same

_PROBES: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """What requests travel over. Times are in seconds.

    Attributes:
        ssl_context: for ``https``; ``None`` is the system's trust store.
        proxy: the URL of an HTTP proxy for all requests, with ``user:password@`` if it wants
            that.
        trust_env: without a `proxy`, use the one that ``HTTP_PROXY``, ``HTTPS_PROXY`` and
            ``NO_PROXY`` name.
        unix_socket: the path of a Unix socket to connect to, whatever host the URL names.
        open_stream: called as ``await open_stream(host, port)`` instead of connecting; what
            it returns is owned by the client. TLS goes on top of it for ``https``.
        connect_timeout: for all from the name look-up to the head of the answer.
        idle_timeout: a stream over which nothing has come for so long is broken off, and
            connected anew. Any byte counts, comments too. Choose three times the interval
            at which the server keeps its streams alive. ``None``: TCP's own keep-alive
            alone finds out that a peer is gone, in about a minute.
    """

    ssl_context: ssl.SSLContext | None = None
    proxy: str | None = None
    trust_env: bool = True
    unix_socket: str | None = None
    open_stream: Callable[[str, int], Awaitable[trio.abc.Stream]] | None = None
    connect_timeout: float = 30.0
    idle_timeout: float | None = None

    def __post_init__(self) -> None:
        if not self.connect_timeout > 0 or not (self.idle_timeout is None or self.idle_timeout > 0):
            raise ValueError(
                f"Transport(connect_timeout={self.connect_timeout}, "
                f"idle_timeout={self.idle_timeout}): seconds, above 0; idle_timeout=None for none"
            )
        ways = [self.proxy, self.unix_socket, self.open_stream]
        if sum(way is not None for way in ways) > 1:
            raise ValueError(
                "Transport(...): give one of proxy, unix_socket and open_stream; "
                "each of them says where all streams lead"
            )
        if self.proxy is not None:
            parse_proxy(self.proxy)


DEFAULT_TRANSPORT: Final = Transport()


@final
class Dialer:
    """Opens streams, and sends one request over each."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._system_trust: ssl.SSLContext | None = None  # made when first needed

    async def send(self, request: Request) -> Incoming:
        """Connect, send the request, wait for the head of the answer.

        Raises:
            NetworkError: no connection, or it broke.
            ProtocolError: the answer is not HTTP/1.1.
            RequestRefused: the proxy refused.

        Cancelled or failed, it has closed what it opened.
        """
        url = request.url
        proxy = self._proxy_for(url)
        target = url.target
        with translated(proxy or url):
            stream = await self._connect(proxy or url)
        try:
            if proxy is not None:
                stream = await self._start_tls(stream, proxy)
                if url.scheme == "https":
                    stream = await _tunnel(stream, proxy, url)
                else:  # RFC 9112, 3.2.2
                    target = url.absolute
                    request = _for_proxy(request, proxy)
            stream = await self._start_tls(stream, url)
            return await exchange(stream, request, target)
        except BaseException:
            with trio.move_on_after(1, shield=True):
                await trio.aclose_forcefully(stream)
            raise

    def _proxy_for(self, url: Url) -> Url | None:
        transport = self._transport
        if transport.proxy is not None:
            return parse_proxy(transport.proxy)
        if transport.unix_socket or transport.open_stream or not transport.trust_env:
            return None
        found = environment_proxy(url)
        try:
            return None if found is None else parse_proxy(found)
        except ValueError as exc:
            raise NetworkError(f"{url.shown}: {exc}", for_good=True) from exc

    async def _connect(self, to: Url) -> trio.abc.Stream:
        transport = self._transport
        if transport.open_stream is not None:
            return await transport.open_stream(to.host, to.port)
        if transport.unix_socket is not None:
            return await trio.open_unix_socket(transport.unix_socket)
        stream = await trio.open_tcp_stream(to.host, to.port)
        _probe(stream)
        return stream

    async def _start_tls(self, stream: trio.abc.Stream, to: Url) -> trio.abc.Stream:
        if to.scheme != "https":
            return stream
        context = self._transport.ssl_context or self._system_trust
        if context is None:
            context = self._system_trust = system_trust()
        tls = trio.SSLStream(stream, context, server_hostname=to.host, https_compatible=True)
        with translated(to):
            await tls.do_handshake()
        return tls


def _probe(stream: trio.SocketStream) -> None:
    """Have the kernel find out about a peer that is gone without a word."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES:
        if hasattr(socket, name):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def system_trust() -> ssl.SSLContext:
    """A context that trusts what the system trusts."""
    # Imported here because only a client of https needs it.
    import truststore  # noqa: PLC0415  # see above

    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _proxy_auth(proxy: Url) -> RawHeaders:
    return (("proxy-authorization", proxy.basic_auth),) if proxy.userinfo else ()


def _for_proxy(request: Request, proxy: Url) -> Request:
    headers = (*_proxy_auth(proxy), *request.headers)
    return Request(request.method, request.url, headers, request.body)


async def _tunnel(stream: trio.abc.Stream, proxy: Url, url: Url) -> trio.abc.Stream:
    """Have the proxy connect this stream to where ``url`` points (RFC 9110, 9.3.6)."""
    far_end = parse_url(f"http://{url.host_and_port}")
    answer = await exchange(
        stream, Request("CONNECT", far_end, _proxy_auth(proxy)), url.host_and_port
    )
    if 200 <= answer.status < 300:
        return answer.tunnel()
    message = f"{proxy.shown}: the proxy answered {answer.status} to CONNECT {url.host_and_port}"
    if answer.status >= 500:  # the far end is down, or the proxy is: either may pass
        raise NetworkError(message)
    raise await refusal(answer, message)


async def refusal(answer: Incoming, message: str, *, for_good: bool = True) -> RequestRefused:
    """The error for an answer that is not what was asked for, with what it says."""
    body = bytearray()
    with suppress(ClientError), trio.move_on_after(_BODY_TIME):
        answer.undo_coding()
        await read_into(body, answer, limit=_BODY_LIMIT)
    return RequestRefused(
        message,
        status=answer.status,
        headers=answer.text_headers(),
        body=bytes(body[:_BODY_LIMIT]),
        for_good=for_good,
    )


async def read_into(body: bytearray, answer: Incoming, *, limit: int) -> None:
    """Append the answer's body, until its end or until it is over the limit."""
    while len(body) <= limit:
        data = await answer.receive()
        if data is None:
            return
        body += data
