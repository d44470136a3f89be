"""The client's HTTP: content codings, single requests, and answers that come early."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Callable

import pytest
import trio
import trio.testing
from scripted_server import (
    CHUNKED,
    HEAD,
    Answer,
    Answerer,
    ScriptedServer,
    answer,
    chunk,
    redirect,
    sse,
    status,
    take,
)

from trio_sse.client import (
    NetworkError,
    ProtocolError,
    ReadyState,
    RequestRefused,
    Transport,
    request,
)
from trio_sse.wire import EventTooLarge

Serve = Callable[..., ScriptedServer]
Clock = trio.testing.MockClock

EVENTS = "".join(f"id: {n}\ndata: event {n}…\n\n" for n in range(5)).encode()
DATA = [f"event {n}…" for n in range(5)]


@pytest.fixture
def serve(nursery: trio.Nursery) -> Serve:
    def start(*script: Answer | Answerer) -> ScriptedServer:
        return ScriptedServer(nursery, list(script))

    return start


def coded(coding: str, head: bytes = HEAD) -> bytes:
    return head[:-2] + b"content-encoding: %s\r\n\r\n" % coding.encode()


def in_members(data: bytes, size: int) -> bytes:
    """As a server does that ends its gzip stream with every write."""
    return b"".join(gzip.compress(data[n : n + size]) for n in range(0, len(data), size))


async def test_no_coding_is_asked_for(serve: Serve) -> None:
    server = serve(sse(b"data: 1\n\n"))
    async with server.connect() as source:
        await take(source, 1)
    assert server.requests[0].headers["accept-encoding"] == b"identity"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(EVENTS)),
        ("X-GZip", gzip.compress(EVENTS)),
        ("deflate", zlib.compress(EVENTS)),
        ("gzip", in_members(EVENTS, 30)),
        ("identity", EVENTS),
    ],
    ids=["gzip", "x-gzip", "deflate", "members", "identity"],
)
async def test_coding_is_undone_at_every_split(serve: Serve, coding: str, body: bytes) -> None:
    for i in range(len(body)):
        server = serve(answer(coded(coding) + body[:i], body[i:]))
        async with server.connect(reconnect=None) as source:
            assert [event.data async for event in source] == DATA, i


async def test_gzip_that_is_flushed_is_delivered_at_once(serve: Serve) -> None:
    compressor = zlib.compressobj(wbits=31)
    parts = [
        compressor.compress(b"data: %d\n\n" % n) + compressor.flush(zlib.Z_SYNC_FLUSH)
        for n in range(3)
    ]
    server = serve(answer(coded("gzip"), *parts, then="hold"))
    async with server.connect() as source:
        assert await take(source, 3) == ["0", "1", "2"]


async def test_gzip_bomb_is_taken_in_slices(serve: Serve) -> None:
    block = b"data: " + b"x" * 1000 + b"\n\n"
    bomb = gzip.compress(block * 100_000)  # a hundred megabytes
    server = serve(answer(coded("gzip") + bomb))
    async with server.connect() as source:
        for _ in range(1000):
            await source.__anext__()
            assert source.statistics().waiting <= 65
        assert source.statistics().bytes_received <= 1100 * len(block)
        assert server.streams[0].reads <= 3


async def test_gzip_bomb_of_one_event_is_too_large(serve: Serve) -> None:
    server = serve(answer(coded("gzip") + gzip.compress(b"data: " + b"x" * 10**8)))
    async with server.connect() as source:
        with pytest.raises(EventTooLarge):
            await source.__anext__()
        assert source.statistics().bytes_received < 1_200_000


async def test_gzip_of_nothing_but_empty_members(serve: Serve) -> None:
    server = serve(answer(coded("gzip") + gzip.compress(b"") * 1000 + gzip.compress(EVENTS)))
    async with server.connect(reconnect=None) as source:
        assert [event.data async for event in source] == DATA


async def test_gzip_that_is_none_is_a_protocol_error(serve: Serve, autojump_clock: Clock) -> None:
    server = serve(
        answer(coded("gzip", CHUNKED) + chunk(b"data: 1\n\n"), then="hold"),
        answer(coded("gzip") + gzip.compress(EVENTS) + b"garbage"),
        answer(coded("gzip") + gzip.compress(EVENTS)[:-9]),
        sse(b"data: 2\n\n"),
    )
    async with server.connect() as source:
        assert await take(source, 11) == [*DATA, *DATA, "2"]
    causes = [c.cause for c in server.changes if c.state is ReadyState.CONNECTING]
    assert isinstance(causes[0], ProtocolError)
    assert isinstance(causes[0].__cause__, zlib.error)
    assert isinstance(causes[1], ProtocolError | NetworkError)
    assert causes[2] is None


async def test_coding_that_is_not_known_fails_for_good(serve: Serve) -> None:
    server = serve(answer(coded("br") + b"..."))
    async with server.connect() as source:
        with pytest.raises(ProtocolError, match="'br'"):
            await source.__anext__()
        assert source.ready_state is ReadyState.CLOSED
    assert server.all_closed()


async def test_refusal_in_gzip_is_readable(serve: Serve) -> None:
    body = gzip.compress(b"no such stream" * 10_000)
    server = serve(status(404, "content-encoding: gzip\n", body))
    async with server.connect() as source:
        with pytest.raises(RequestRefused) as caught:
            await source.__anext__()
    assert caught.value.body == (b"no such stream" * 10_000)[:65536]


# --- request() -----------------------------------------------------------------------------


async def test_request_sends_and_reads_whole(serve: Serve) -> None:
    server = serve(status(201, "Content-Type: application/json\nX: 1\nX: 2\n", b'{"id": "1.2"}'))
    response = await request(
        "POST",
        "http://u:p@example.org/events?a=b",
        headers={"Content-Type": "application/json"},
        body=b'{"data": "x"}',
        transport=server.transport(),
    )
    assert (response.status, response.body) == (201, b'{"id": "1.2"}')
    assert response.headers[:3] == (("content-type", "application/json"), ("x", "1"), ("x", "2"))
    received = server.requests[0]
    assert (received.method, received.target) == ("POST", "/events?a=b")
    assert received.body == b'{"data": "x"}'
    assert received.headers["authorization"] == b"Basic dTpw"
    assert server.all_closed()


async def test_request_of_each_framing_at_every_split(serve: Serve) -> None:
    for whole in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        coded("gzip", b"HTTP/1.1 200 OK\r\n\r\n") + gzip.compress(b"hello"),
    ):
        for i in range(len(whole)):
            server = serve(answer(whole[:i], whole[i:]))
            got = await request("GET", "http://h/", transport=server.transport())
            assert (got.status, got.body) == (200, b"hello"), (whole, i)


async def test_request_does_not_follow_redirects(serve: Serve) -> None:
    server = serve(redirect(302, "/elsewhere"))
    response = await request("POST", "http://h/", transport=server.transport())
    assert (response.status, dict(response.headers)["location"]) == (302, "/elsewhere")
    assert server.requests[0].headers["content-length"] == b"0"


async def test_request_is_bounded_in_size_and_time(serve: Serve, autojump_clock: Clock) -> None:
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    server = serve(answer(head, b"x" * 100), answer(head, b"x" * 101), answer(head, then="hold"))
    transport = server.transport(connect_timeout=5)

    async def send() -> bytes:
        response = await request("GET", "http://h/", transport=transport, max_body_size=100)
        return response.body

    assert await send() == b"x" * 100
    with pytest.raises(ProtocolError, match="larger than 100 bytes"):
        await send()
    with pytest.raises(NetworkError, match="within 5 seconds"):
        await send()
    assert trio.current_time() == 5
    assert server.all_closed()


async def test_request_cut_short_is_a_network_error(serve: Serve) -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    for i in range(len(whole)):
        server = serve(answer(whole[:i]))
        with pytest.raises(NetworkError):
            await request("GET", "http://h/", transport=server.transport())
        assert server.all_closed()


async def test_request_refuses_what_cannot_be_sent() -> None:
    for arguments in (("GET", "nowhere"), ("get", "http://h/"), ("CONNECT", "http://h/")):
        with pytest.raises(ValueError, match="as in"):
            await request(*arguments)


async def test_answer_that_comes_before_the_request_is_sent_is_read() -> None:
    """A server that refuses a body by its head need not read the rest of it."""

    async def open_stream(host: str, port: int) -> trio.abc.Stream:
        client, server = trio.testing.memory_stream_pair()
        await server.send_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        client.send_stream.close_hook = None
        sent = itertools.count()

        async def refuse() -> None:
            await trio.lowlevel.checkpoint()
            if not next(sent):
                raise trio.BrokenResourceError

        client.send_stream.send_all_hook = refuse
        return client

    response = await request(
        "POST", "http://h/", body=b"x" * 9999, transport=Transport(open_stream=open_stream)
    )
    assert (response.status, response.body) == (413, b"no")
