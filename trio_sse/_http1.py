"""One request and its answer, HTTP/1.1 by h11, over one Trio stream.

A connection serves one request: an event stream leaves nothing of it to use again. What
is known of dialling and of redirects is elsewhere.
"""

from __future__ import annotations

import re
import ssl
import zlib
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias, cast, final

import h11
import trio

from ._client_errors import ClientError, NetworkError, ProtocolError
from ._url import Url

Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]
"""What a caller may give as headers; values are sent as UTF-8."""

RawHeaders: TypeAlias = tuple[tuple[str, bytes], ...]
"""Names in lower case."""

_MAX_HEAD: Final = 64 * 1024  # bytes of status line and headers
_SLICE: Final = 64 * 1024  # bytes that are decompressed at a time
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_FRAMING: Final = {"connection", "content-length", "host", "te", "transfer-encoding", "upgrade"}


@dataclass(frozen=True, slots=True)
class Request:
    """A request, apart from how it travels."""

    method: str
    url: Url
    headers: RawHeaders
    body: bytes | None = None


@final
@dataclass(frozen=True, slots=True)
class Response:
    """An answer that was read whole.

    Attributes:
        status: the HTTP status.
        headers: names in lower case.
        body: its content coding undone.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def header_value(value: str) -> bytes | None:
    """As a header carries it, or ``None`` if no header can (RFC 9110, 5.5)."""
    try:
        raw = value.encode().strip(b" \t")
    except UnicodeEncodeError:  # a lone surrogate
        return None
    return None if _CONTROL.search(raw) else raw


def checked_headers(headers: Headers | None, *, reserved: Mapping[str, str]) -> RawHeaders:
    """What a caller gave, ready to send.

    Args:
        reserved: names the caller cannot give, each with what to use instead.

    Raises:
        ValueError: for a name or a value that would not be one header of a request.
    """
    if isinstance(headers, Mapping):
        headers = cast("Mapping[str, str]", headers).items()
    checked: list[tuple[str, bytes]] = []
    for name, value in headers or ():
        lower = name.lower()
        if lower in reserved:
            raise ValueError(f"headers: {name!r} cannot be given here; {reserved[lower]}")
        if lower in _FRAMING:
            raise ValueError(f"headers: {name!r} is written by the connection itself")
        raw = header_value(value)
        if not _TOKEN.fullmatch(name) or raw is None:
            # The value may be a secret, so it is not shown.
            raise ValueError(
                f"headers: {name!r} cannot be sent as it is: a name is one word, and a value "
                "has no line break or other control character"
            )
        checked.append((lower, raw))
    return tuple(checked)


def with_defaults(headers: RawHeaders, defaults: Mapping[str, bytes]) -> RawHeaders:
    given = {name for name, _ in headers}
    return (*((n, v) for n, v in defaults.items() if n not in given), *headers)


@contextmanager
def translated(url: Url) -> Generator[None]:
    """Turn what streams and TLS raise into the client's own error."""
    try:
        yield
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        cause = exc.__cause__ if isinstance(exc, trio.BrokenResourceError) else None
        untrusted = isinstance(cause, ssl.SSLCertVerificationError)
        why = str(cause or exc) or type(cause or exc).__name__
        raise NetworkError(f"{url.shown}: {why}", for_good=untrusted) from exc


@final
class Incoming:
    """The answer to a request: its head, and its body as it comes.

    It owns the stream. Closing is up to whoever holds it.
    """

    def __init__(self, stream: trio.abc.Stream, conn: h11.Connection, url: Url) -> None:
        self._stream = stream
        self._conn = conn
        self.url = url
        self.status = 0
        self.headers: RawHeaders = ()
        self._inflater: _Inflater | None = None
        # Met while there was data before it to hand out:
        self._error: ClientError | None = None
        self._eof = False  # of the stream
        self._ended = False  # the body, properly or not

    async def read_head(self) -> None:
        """Wait for the status line and headers, past any 1xx.

        Raises:
            NetworkError: if the stream ends or breaks first.
            ProtocolError: if what comes is not HTTP/1.1, or too long.
        """
        with translated(self.url):
            while True:
                try:
                    event = self._conn.next_event()
                except h11.RemoteProtocolError as exc:
                    raise self._fault(exc) from exc
                if isinstance(event, h11.Response):
                    break
                if event is h11.NEED_DATA:
                    await self._receive()
        self.status = event.status_code
        self.headers = tuple((name.decode(), value) for name, value in event.headers)

    async def _receive(self) -> None:
        data = await self._stream.receive_some()
        self._eof = not data
        self._conn.receive_data(bytes(data))

    def _fault(self, exc: Exception) -> ClientError:
        if self._eof:  # cut short, which h11 and zlib take for a fault of form
            return NetworkError(f"{self.url.shown}: the connection ended too early")
        return ProtocolError(f"{self.url.shown}: {exc}")

    def text_headers(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, value.decode("latin-1")) for name, value in self.headers)

    def header(self, name: str) -> str | None:
        """All values of a header, joined with commas."""
        values = [value.decode("latin-1") for key, value in self.headers if key == name]
        return ", ".join(values) if values else None

    def undo_coding(self) -> None:
        """Have `receive` undo the body's ``Content-Encoding``.

        Raises:
            ProtocolError: if it is one that was not asked for and is not known.
        """
        coding = (self.header("content-encoding") or "identity").strip().lower()
        if coding in {"gzip", "x-gzip", "deflate"}:
            self._inflater = _Inflater()
        elif coding != "identity":
            raise ProtocolError(
                f"{self.url.shown}: the server answers in {coding!r}, which is not "
                "understood, though it was asked for no coding at all",
                for_good=True,
            )

    async def receive(self) -> bytes | None:
        """Wait for more of the body: ``None`` at its end, ``b""`` if what came was none of it.

        Takes from the network only what one read gives. Cancelled, it has lost nothing.

        Raises:
            NetworkError: the connection broke; the body may be incomplete.
            ProtocolError: what came is not HTTP/1.1, or not in the coding announced.
        """
        if self._inflater is not None and self._inflater.more:
            await trio.lowlevel.checkpoint()  # there may be a thousand times as much to come
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        body = self._parsed()
        if not body and not self._ended:
            with translated(self.url):
                await self._receive()
            body = self._parsed()
        if body or not self._ended or (self._inflater is not None and self._inflater.more):
            return body
        if self._error is not None:
            raise self._error
        return None

    def _parsed(self) -> bytes:
        """What can be had without reading; what is met on the way is kept for later."""
        inflater = self._inflater
        if inflater is not None and inflater.more:
            return self._inflated(b"")
        parts: list[bytes | bytearray] = []
        while not self._ended:
            try:
                event = self._conn.next_event()
            except h11.RemoteProtocolError as exc:
                self._fail(exc)
                break
            if isinstance(event, h11.Data):
                parts.append(event.data)
            elif event is h11.NEED_DATA:
                break
            else:
                self._ended = True
        body = b"".join(parts)
        return body if inflater is None else self._inflated(body)

    def _inflated(self, data: bytes) -> bytes:
        assert self._inflater is not None
        try:
            return self._inflater.take(data)
        except zlib.error as exc:
            self._fail(exc)
            return b""

    def _fail(self, exc: Exception) -> None:
        self._ended = True
        self._error = self._fault(exc)
        self._error.__cause__ = exc

    def tunnel(self) -> trio.abc.Stream:
        """The stream, after a CONNECT was accepted.

        Raises:
            ProtocolError: if bytes came that the far end cannot have sent yet.
        """
        if self._conn.trailing_data[0]:
            raise ProtocolError(f"{self.url.shown}: the proxy spoke before the tunnel was used")
        return self._stream

    async def aclose(self) -> None:
        """Close the stream at once, without a farewell, under cancellation too."""
        await trio.aclose_forcefully(self._stream)


class _Inflater:
    """Undoes gzip and zlib, a bounded slice at a time, however well it was compressed.

    Attributes:
        more: there is output to be had without input.
    """

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=47)  # either header
        self.more = False

    def take(self, data: bytes) -> bytes:
        """Some of the output; ``data`` must be empty while there is `more`.

        Raises:
            zlib.error: if the data is neither gzip nor zlib.
        """
        data = self._zlib.unconsumed_tail + data
        if self._zlib.eof:  # a further member may follow (RFC 1952, 2.2)
            data = self._zlib.unused_data + data
            if data:
                self._zlib = zlib.decompressobj(wbits=47)
        self.more = False
        out = self._zlib.decompress(data, _SLICE)
        self.more = len(out) == _SLICE or bool(
            self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
        )
        return out


async def exchange(stream: trio.abc.Stream, request: Request, target: str) -> Incoming:
    """Send a request and wait for the head of its answer, which then owns the stream.

    Args:
        target: the request target, whose form depends on whom one talks to (RFC 9112, 3.2).

    Cancelled or failed, it leaves the stream to the caller to close.
    """
    conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    headers = [(b"host", request.url.authority.encode())]
    if request.method != "CONNECT":
        headers.append((b"connection", b"close"))
    if request.body is not None or request.method in {"POST", "PUT", "PATCH"}:
        headers.append((b"content-length", b"%d" % len(request.body or b"")))
    headers += [(name.encode(), value) for name, value in request.headers]
    head = h11.Request(method=request.method, target=target, headers=headers)
    parts = [head, h11.Data(data=request.body or b""), h11.EndOfMessage()]
    data = b"".join(conn.send(part) or b"" for part in parts)
    incoming = Incoming(stream, conn, request.url)
    refused: trio.BrokenResourceError | None = None
    with translated(request.url):
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError as exc:
            refused = exc  # the answer, as a 413, may have come before the end of the request
    try:
        await incoming.read_head()
    except ClientError as exc:
        raise exc from refused or exc.__cause__
    return incoming
