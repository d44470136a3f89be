"""The event source keeps the standard's rules (WHATWG HTML, 9.2).

The tests are named after the rule that each shows; where web-platform-tests' ``eventsource/``
has the same case, they bear its name there.
"""

from __future__ import annotations

import itertools
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
    SourceClosed,
    connect,
)
from trio_sse.wire import Event

Serve = Callable[..., ScriptedServer]
Clock = trio.testing.MockClock


@pytest.fixture
def serve(nursery: trio.Nursery) -> Serve:
    def start(*script: Answer | Answerer) -> ScriptedServer:
        return ScriptedServer(nursery, list(script))

    return start


# --- request-*: what is sent, and what may come back ---------------------------------------


async def test_request_accept(serve: Serve) -> None:
    server = serve(sse(b"data: a\n\n"))
    async with server.connect() as source:
        await source.__anext__()
    assert server.requests[0].headers["accept"] == b"text/event-stream"


async def test_request_cache_control(serve: Serve) -> None:
    server = serve(sse(b"data: a\n\n"))
    async with server.connect() as source:
        await source.__anext__()
    assert server.requests[0].headers["cache-control"] == b"no-cache"


async def test_request_is_a_get_without_a_body_or_a_last_event_id(serve: Serve) -> None:
    server = serve(sse(b"data: a\n\n"))
    async with server.connect("http://example.org/a/b?c=d&e") as source:
        await source.__anext__()
    request = server.requests[0]
    assert (request.method, request.target, request.body) == ("GET", "/a/b?c=d&e", b"")
    assert request.headers["host"] == b"example.org"
    assert not {"last-event-id", "content-length", "authorization"} & set(request.headers)


async def test_request_credentials_in_the_url_are_sent_as_basic(serve: Serve) -> None:
    server = serve(sse(b"data: a\n\n"))
    async with server.connect("http://jos%C3%A9:p%40ss@example.org/events") as source:
        await source.__anext__()
        assert source.url == "http://example.org/events"
    # base64 of "josé:p@ss"
    assert server.requests[0].headers["authorization"] == b"Basic am9zw6k6cEBzcw=="


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_request_redirect(serve: Serve, code: int) -> None:
    server = serve(redirect(code, "/moved?x=1"), sse(b"data: a\n\n", then="hold"))
    async with server.connect() as source:
        assert await take(source, 1) == ["a"]
        assert source.ready_state is ReadyState.OPEN
        assert source.url == "http://example.org/events"
    assert [r.target for r in server.requests] == ["/events", "/moved?x=1"]
    assert [change.state for change in server.changes] == [ReadyState.OPEN, ReadyState.CLOSED]
    assert server.all_closed()


@pytest.mark.parametrize(
    ("code", "method", "then"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
        (301, "PUT", "PUT"),
        (302, "PUT", "PUT"),
        (303, "PUT", "GET"),
    ],
)
async def test_request_redirect_method(serve: Serve, code: int, method: str, then: str) -> None:
    server = serve(redirect(code, "/moved"), sse(b"data: a\n\n"))
    headers = {"Content-Type": "application/json", "Content-Language": "en", "X-Mine": "1"}
    async with server.connect(method=method, body=b"{}", headers=headers) as source:
        await source.__anext__()
    request = server.requests[1]
    assert request.method == then
    assert request.headers["x-mine"] == b"1"
    about_body = {"content-type", "content-language", "content-length"}
    if then == "GET":
        assert request.body == b""
        assert not about_body & set(request.headers)
    else:
        assert request.body == b"{}"
        assert about_body <= set(request.headers)


@pytest.mark.parametrize("other", ["http://other.org/", "http://example.org:8080/"])
async def test_request_redirect_to_another_origin_carries_no_credentials(
    serve: Serve, other: str
) -> None:
    back = "http://example.org/back"
    server = serve(redirect(307, other), redirect(307, back), sse(b"data: a\n\n"))
    headers = {"Cookie": "a=b", "X-Api-Key": "secret", "Accept-Language": "en"}
    async with server.connect(
        "http://user:password@example.org/events", headers=headers, last_event_id="7"
    ) as source:
        await source.__anext__()
    secret = {"authorization", "cookie", "x-api-key"}
    assert secret <= set(server.requests[0].headers)
    for request in server.requests[1:]:  # the way back to the first origin included
        assert not secret & set(request.headers)
        assert request.headers["accept-language"] == b"en"
        assert request.headers["accept"] == b"text/event-stream"
        assert request.headers["last-event-id"] == b"7"
    assert server.hosts[1] == (("other.org", 80) if "other" in other else ("example.org", 8080))


async def test_request_redirect_within_an_origin_keeps_credentials(serve: Serve) -> None:
    server = serve(
        redirect(301, "HTTP://EXAMPLE.ORG:80/a"),
        redirect(302, "//user2:pw2@example.org/b"),
        sse(b"data: a\n\n"),
    )
    headers = {"Authorization": "Bearer 1", "X-Api-Key": "secret"}
    async with server.connect(headers=headers) as source:
        await source.__anext__()
    assert server.requests[1].headers["authorization"] == b"Bearer 1"
    assert server.requests[2].headers["authorization"] == b"Basic dXNlcjI6cHcy"
    assert server.requests[2].headers["x-api-key"] == b"secret"


async def test_request_redirect_with_credentials_for_another_origin_is_an_error(
    serve: Serve,
) -> None:
    server = serve(redirect(302, "http://a:b@other.org/"))
    async with server.connect() as source:
        with pytest.raises(ProtocolError, match="credentials"):
            await source.__anext__()


async def test_request_redirect_is_not_remembered_across_reconnects(
    serve: Serve, autojump_clock: Clock
) -> None:
    server = serve(
        redirect(301, "/moved"), sse(b"data: a\n\n"), redirect(301, "/moved"), sse(b"data: b\n\n")
    )
    async with server.connect(method="POST", body=b"x") as source:
        assert await take(source, 2) == ["a", "b"]
    assert [(r.method, r.target, r.body) for r in server.requests] == [
        ("POST", "/events", b"x"),
        ("GET", "/moved", b""),
    ] * 2


async def test_request_redirect_twenty_times_and_no_more(serve: Serve) -> None:
    hops = [redirect(302, f"/{n}") for n in range(20)]
    server = serve(*hops, sse(b"data: a\n\n"))
    async with server.connect() as source:
        assert await take(source, 1) == ["a"]
    server = serve(*hops, redirect(302, "/20"))
    async with server.connect() as source:
        with pytest.raises(ProtocolError, match="more than 20"):
            await source.__anext__()
        assert source.ready_state is ReadyState.CLOSED
    assert server.all_closed()


@pytest.mark.parametrize("location", ["ftp://example.org/", "http://[", "mailto:a@b", "//:80/"])
async def test_request_redirect_to_what_is_no_http_url_fails_for_good(
    serve: Serve, location: str
) -> None:
    server = serve(redirect(302, location))
    async with server.connect() as source:
        with pytest.raises(ProtocolError) as caught:
            await source.__anext__()
    assert caught.value.for_good
    assert isinstance(caught.value.__cause__, ValueError)


async def test_request_redirect_location_bytes_are_escaped_as_they_are(serve: Serve) -> None:
    raw = b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: /caf\xc3\xa9 x?\xc3\xa9\r\n\r\n"
    server = serve(answer(raw), sse(b"data: a\n\n"))
    async with server.connect() as source:
        await source.__anext__()
    assert server.requests[1].target == "/caf%C3%A9%20x?%C3%A9"


@pytest.mark.parametrize("code", [204, 205, 210, 299, 300, 301, 304, 400, 401, 404, 410, 500, 503])
async def test_request_status_error(serve: Serve, code: int) -> None:
    server = serve(status(code, "content-type: text/event-stream\n", b"data: no\n\n"))
    async with server.connect() as source:
        with pytest.raises(RequestRefused, match=rf"answered {code}$") as caught:
            await source.__anext__()
        assert source.ready_state is ReadyState.CLOSED
        with pytest.raises(SourceClosed) as again:
            await source.__anext__()
    assert again.value.__cause__ is caught.value
    assert caught.value.status == code
    assert caught.value.body == (b"" if code in {204, 304} else b"data: no\n\n")
    assert ("content-type", "text/event-stream") in caught.value.headers
    assert caught.value.for_good
    assert [change.state for change in server.changes] == [ReadyState.CLOSED]
    assert server.changes[0].cause is caught.value


# --- format-mime-*: the content type -------------------------------------------------------


@pytest.mark.parametrize(
    "mime",
    [
        "text/event-stream",
        "text/event-stream;",  # format-mime-trailing-semicolon
        "TEXT/Event-Stream; charset=windows-1251",
        " text/event-stream ; x=y",
        "text/html, text/event-stream",
        'text/event-stream; x="a, text/html"',
        "text/event-stream, bogus",
        "text/event-stream, */*",
    ],
)
async def test_format_mime(serve: Serve, mime: str) -> None:
    server = serve(answer(f"HTTP/1.1 200 OK\r\ncontent-type: {mime}\r\n\r\ndata: ок\n\n".encode()))
    async with server.connect() as source:
        assert await take(source, 1) == ["ок"]


@pytest.mark.parametrize(
    "mime",
    [
        "text/x-bogus",  # format-mime-valid-bogus
        "x bogus",  # format-mime-bogus
        "text/event-streams",
        "text/event-stream, text/html",
        "",
    ],
)
async def test_format_mime_bogus(serve: Serve, mime: str) -> None:
    server = serve(answer(f"HTTP/1.1 200 OK\r\ncontent-type: {mime}\r\n\r\ndata: x\n\n".encode()))
    async with server.connect() as source:
        with pytest.raises(RequestRefused, match="not text/event-stream") as caught:
            await source.__anext__()
        assert source.ready_state is ReadyState.CLOSED
    assert (caught.value.status, caught.value.body) == (200, b"data: x\n\n")


# --- eventsource-*: states and connections -------------------------------------------------


async def test_eventsource_ready_state(serve: Serve) -> None:
    server = serve(sse(then="hold"))
    async with server.connect() as source:
        assert source.ready_state is ReadyState.CONNECTING
        await source.wait_open()
        assert source.ready_state is ReadyState.OPEN
        await source.aclose()
        assert source.ready_state is ReadyState.CLOSED
    assert [state.value for state in ReadyState] == [0, 1, 2]
    assert [change.state for change in server.changes] == [ReadyState.OPEN, ReadyState.CLOSED]


async def test_eventsource_close(serve: Serve, autojump_clock: Clock) -> None:
    """As web-platform-tests' reconnect-fail: opened, reconnected, then told to stay away."""
    server = serve(sse(b"retry: 2\ndata: opened\n\n"), sse(b"data: reconnected\n\n"), status(204))
    async with server.connect() as source:
        assert await take(source, 2) == ["opened", "reconnected"]
        with pytest.raises(RequestRefused):
            await source.__anext__()
    assert [change.state.name for change in server.changes] == [
        "OPEN",
        "CONNECTING",
        "OPEN",
        "CONNECTING",
        "CLOSED",
    ]


async def test_eventsource_request_cancellation(serve: Serve, autojump_clock: Clock) -> None:
    server = serve(sse(then="hold"))
    async with server.connect() as source:
        with trio.move_on_after(5):
            await source.__anext__()
        assert not server.all_closed()
    assert server.all_closed()


async def test_eventsource_reconnect_after_a_proper_end_and_after_a_break(
    serve: Serve, autojump_clock: Clock
) -> None:
    server = serve(
        answer(CHUNKED, chunk(b"data: 1\n\n"), b"0\r\n\r\n"),
        answer(CHUNKED, chunk(b"data: 2\n\n")),  # cut short
        sse(b"data: 3\n\n", then="break"),
        answer(b""),  # nothing at all
        sse(b"data: 5\n\n"),
    )
    async with server.connect() as source:
        assert await take(source, 4) == ["1", "2", "3", "5"]
    causes = [c.cause for c in server.changes if c.state is ReadyState.CONNECTING]
    assert causes[0] is None
    assert [type(cause) for cause in causes[1:]] == [NetworkError] * 3
    assert all(cause.__cause__ is not None for cause in causes[1:] if cause)


async def test_eventsource_url_bogus(serve: Serve) -> None:
    for url in ["http://this is invalid/", "", "/events", "ws://example.org/", "http://", "h:1:2"]:
        with pytest.raises(ValueError, match=r"as in 'https://example.org/events'"):
            connect(url)


async def test_last_event_id_is_sent_again_and_again(serve: Serve, autojump_clock: Clock) -> None:
    server = serve(
        sse(b"id: 1\ndata: a\n\n"),
        sse(b""),
        sse(b"data: b\n\n"),  # an id outlives the connection that brought it
        sse(b"id: 2\n\n"),  # taken, though nothing is dispatched
        sse(b"id: 3\ndata: cut sh"),  # not taken
        sse("id: …ü\ndata: c\n\n".encode()),
        sse(b"id\ndata: d\n\n"),  # reset
        sse(b"data: e\n\n"),
    )
    async with server.connect() as source:
        got = [await source.__anext__() for _ in range(5)]
        assert source.last_event_id == ""
    assert [(e.data, e.id) for e in got] == [
        ("a", "1"),
        ("b", "1"),
        ("c", "…ü"),
        ("d", ""),
        ("e", ""),
    ]
    assert [r.headers.get("last-event-id") for r in server.requests] == [
        None,
        b"1",
        b"1",
        b"1",
        b"2",
        b"2",
        "…ü".encode(),
        None,
    ]


async def test_last_event_id_of_the_caller(serve: Serve) -> None:
    server = serve(sse(b"\xef\xbb\xbfdata: a\n\nid: 8\ndata: b\n\n"))
    async with server.connect(last_event_id="7ü") as source:
        assert source.last_event_id == "7ü"
        assert (await source.__anext__()).id == "7ü"
        assert source.last_event_id == "7ü"  # though the next one is here already
        assert (await source.__anext__()).id == "8"
        assert source.last_event_id == "8"
    assert server.requests[0].headers["last-event-id"] == "7ü".encode()


async def test_last_event_id_that_no_header_carries_fails_for_good(
    serve: Serve, autojump_clock: Clock
) -> None:
    server = serve(sse(b"id: a\x0bb\ndata: a\n\n"))
    async with server.connect() as source:
        assert await take(source, 1) == ["a"]
        with pytest.raises(ProtocolError, match="no header can carry"):
            await source.__anext__()
        assert source.last_event_id == "a\x0bb"


async def test_retry_sets_the_wait(serve: Serve, autojump_clock: Clock) -> None:
    """format-field-retry, -bogus, -empty."""
    server = serve(
        sse(b"retry: 3000\ndata: 1\n\n"),
        sse(b"retry: 2000\nretry: 1000x\nretry:\nretry: -1\ndata: 2\n\n"),
        sse(b"retry: 5000"),  # not a line yet
        sse(b"retry: 7000\n"),  # a line, if not a block
        sse(b"retry: 0\ndata: 3\n\n"),
        sse(b"data: 4\n\n"),
    )
    async with server.connect() as source:
        await take(source, 4)
        assert source.reconnection_time == 0
    starts = [r.at for r in server.requests]
    waits = [round(later - start, 6) for start, later in itertools.pairwise(starts)]
    assert waits == [3, 2, 2, 7, 0.1]  # the floor at last


async def test_close_is_final(serve: Serve) -> None:
    server = serve(sse(b"data: a\n\ndata: b\n\n", then="hold"))
    async with server.connect() as source:
        assert await take(source, 1) == ["a"]
        await source.aclose()
        assert server.all_closed()
        await source.aclose()
        for use in (source.__anext__, source.wait_open):
            with pytest.raises(SourceClosed):
                await use()
    assert server.changes[-1].state is ReadyState.CLOSED
    assert len(server.changes) == 2


# --- format-*: the stream, however it is cut -----------------------------------------------

FORMATS: dict[str, tuple[bytes, list[Event]]] = {
    "bom": (
        b"\xef\xbb\xbfdata:1\n\n\xef\xbb\xbfdata:2\n\ndata:3\n\n",
        [Event("1", id=""), Event("3", id="")],
    ),
    "bom-2": (b"\xef\xbb\xbf\xef\xbb\xbfdata:1\n\ndata:2\n\n", [Event("2", id="")]),
    "comments": (
        b"data:1\n:\0\n:\ndata:2\n:x\ndata:3\n:data:fail\n:x\ndata:4\n\n",
        [Event("1\n2\n3\n4", id="", comment="\0\n\nx\ndata:fail\nx")],
    ),
    "data-before-final-empty-line": (b"data:test1\n\ndata:test2", [Event("test1", id="")]),
    "field-data": (
        b"data:\n\ndata\ndata\n\ndata:test\n\n",
        [Event("", id=""), Event("\n", id=""), Event("test", id="")],
    ),
    "field-event": (
        b"event:test\ndata:x\n\ndata:x\n\n",
        [Event("x", type="test", id=""), Event("x", id="")],
    ),
    "field-event-empty": (b"event: \ndata:data\n\n", [Event("data", id="")]),
    "field-id": (
        b"id: 1\ndata: 1\n\nid:\ndata:2\n\ndata:3\n\n",
        [Event("1", id="1"), Event("2", id=""), Event("3", id="")],
    ),
    "field-id-3": (
        b"id: 1\ndata: 1\n\nid: 2\ndata:2\n\ndata:3\n\n",
        [Event("1", id="1"), Event("2", id="2"), Event("3", id="2")],
    ),
    "field-id-null": (
        b"id:a\ndata:1\n\nid:\0b\ndata:2\n\n",
        [Event("1", id="a"), Event("2", id="a")],
    ),
    "field-parsing": (
        (
            b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\r"
            b"data:\r\n data:32\ndata:4\n\n"
        ),
        [Event("\0\n 2\n1\n3\n\n4", id="")],
    ),
    "field-unknown": (
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
        [Event("test\n\ntest", id="", comment="thisisacommentyay")],
    ),
    "leading-space": (
        b"data:\ttest\rdata: \ndata:test\n\n",
        [Event("\ttest\n\ntest", id="")],
    ),
    "newlines": (
        b"data:test\r\ndata\ndata:test\r\n\r\n:x\r\r\ndata: y\n\n",
        [Event("test\n\ntest", id=""), Event("y", id="")],
    ),
    "null-character": (b"data:\0\n\n", [Event("\0", id="")]),
    "utf-8": (
        "data:ok…\n\ndata: \U0001f600\n\n".encode() + b"data:\xff\n\n",
        [Event("ok…", id=""), Event("\U0001f600", id=""), Event("�", id="")],
    ),
}


@pytest.mark.parametrize("framing", ["close", "chunked", "length"])
@pytest.mark.parametrize("name", FORMATS)
async def test_format(serve: Serve, name: str, framing: str) -> None:
    """The whole answer, head included, at every split."""
    stream, expected = FORMATS[name]
    whole = {
        "close": HEAD + stream,
        "chunked": CHUNKED + chunk(stream[:9]) + chunk(stream[9:]) + b"0\r\n\r\n",
        "length": HEAD[:-2] + b"content-length: %d\r\n\r\n" % len(stream) + stream,
    }[framing]
    cuts = [(i,) for i in range(1, len(whole))] + [tuple(range(1, len(whole)))]
    for cut in cuts:
        edges = [0, *cut, len(whole)]
        pieces = [whole[a:b] for a, b in itertools.pairwise(edges)]
        server = serve(answer(*pieces))
        async with server.connect(reconnect=None) as source:
            assert [event async for event in source] == expected, cut
            assert source.ready_state is ReadyState.CLOSED
        assert server.all_closed()
