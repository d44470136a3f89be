"""When the event source comes back, when it does not, and what it tells meanwhile."""

from __future__ import annotations

import itertools
import math
import random
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
    TappedStream,
    answer,
    chunk,
    sse,
    status,
    take,
)

from trio_sse._backoff import Backoff
from trio_sse.client import (
    ClientError,
    EventSource,
    NetworkError,
    ProtocolError,
    ReadyState,
    Reconnect,
    RequestRefused,
    SourceClosed,
    StateChange,
    Transport,
    connect,
)
from trio_sse.wire import Event, EventTooLarge

Serve = Callable[..., ScriptedServer]
Clock = trio.testing.MockClock


@pytest.fixture
def serve(nursery: trio.Nursery) -> Serve:
    def start(*script: Answer | Answerer) -> ScriptedServer:
        return ScriptedServer(nursery, list(script))

    return start


def waits(server: ScriptedServer) -> list[float | None]:
    """What the hook was told."""
    return [c.wait for c in server.changes if c.state is ReadyState.CONNECTING]


def pauses(server: ScriptedServer) -> list[float]:
    """What the server saw between two requests."""
    starts = [request.at for request in server.requests]
    return [round(later - start, 6) for start, later in itertools.pairwise(starts)]


async def run_out(source: EventSource) -> Exception:
    """Iterate to the error at the end."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is what tests ask
        async for _ in source:
            pass
    return caught.value


# --- back-off ------------------------------------------------------------------------------


def test_backoff_doubles_the_extra_up_to_the_ceiling_with_full_jitter() -> None:
    asked: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        asked.append((low, high))
        return high / 2

    backoff = Backoff(Reconnect(initial=3, ceiling=20, jitter=jitter))
    got = [backoff.next_wait(lasted=0, asked=0) for _ in range(5)]
    assert asked == [(0, 3), (0, 6), (0, 12), (0, 20), (0, 20)]
    assert got == [4.5, 6, 9, 13, 13]


def test_backoff_is_never_under_the_floor_nor_without_end() -> None:
    backoff = Backoff(Reconnect(initial=0, floor=0.5, longest_wait=60, ceiling=8, jitter=max))
    assert [backoff.next_wait(lasted=0, asked=0) for _ in range(6)] == [1, 1.5, 2.5, 4.5, 8.5, 8.5]
    backoff.reconnection_time = 1e15
    for _ in range(3000):
        assert backoff.next_wait(lasted=0, asked=1e15) == 68


def test_backoff_starts_anew_after_a_healthy_connection_only() -> None:
    backoff = Backoff(Reconnect(initial=1, healthy_after=10, jitter=max))
    lasting = [0, 9.99, 9.99, 10, 0, 11]
    assert [backoff.next_wait(lasted=t, asked=0) for t in lasting] == [2, 3, 5, 2, 3, 2]
    assert backoff.breaks == 1


def test_backoff_waits_at_least_as_long_as_was_asked() -> None:
    backoff = Backoff(Reconnect(initial=2, jitter=max, longest_wait=100))
    assert backoff.next_wait(lasted=0, asked=30) == 32
    assert backoff.next_wait(lasted=0, asked=1000) == 104


def test_backoff_spreads_clients_that_lost_one_server() -> None:
    rng = random.Random(1)
    policy = Reconnect(initial=2, jitter=rng.uniform)
    first = sorted(Backoff(policy).next_wait(lasted=60, asked=0) for _ in range(1000))
    assert 2 <= first[0] < 2.05
    assert 3.95 < first[-1] <= 4
    assert 2.9 < first[500] < 3.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"floor": 0},
        {"floor": 10, "longest_wait": 5},
        {"longest_wait": math.inf},
        {"initial": -1},
        {"initial": math.nan},
        {"ceiling": math.inf},
        {"healthy_after": -1},
        {"give_up_after": 0},
    ],
)
def test_reconnect_refuses_what_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Reconnect(**wrong)


async def test_breaks_in_a_row_are_waited_for_longer(serve: Serve, autojump_clock: Clock) -> None:
    server = serve(
        sse(b"data: 1\n\n", then="break"),
        sse(5.0, b"data: 2\n\n"),
        answer(),
        sse(10.0, b"data: 3\n\n"),
        sse(b"data: 4\n\n"),
    )
    policy = Reconnect(initial=1, ceiling=3, healthy_after=10, jitter=max)
    async with server.connect(reconnect=policy) as source:
        await take(source, 1)
        assert source.statistics().breaks == 0
        await take(source, 2)
        assert source.statistics().breaks == 3
        await take(source, 1)
        assert source.statistics().breaks == 1
    assert waits(server) == [2, 3, 4, 2]
    assert pauses(server) == [2, 3 + 5, 4, 2 + 10]


async def test_connection_refused_is_tried_again(autojump_clock: Clock) -> None:
    attempts = 0

    async def open_stream(host: str, port: int) -> trio.abc.Stream:
        nonlocal attempts
        attempts += 1
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError(111, "refused")

    changes: list[StateChange] = []
    async with connect(
        "http://example.org",
        transport=Transport(open_stream=open_stream),
        reconnect=Reconnect(initial=1, give_up_after=4, jitter=min),
        on_state_change=changes.append,
    ) as source:
        with pytest.raises(NetworkError, match="refused") as caught:
            await source.__anext__()
    assert attempts == 4
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert [(change.state, change.wait) for change in changes] == [
        (ReadyState.CONNECTING, 1),
        (ReadyState.CONNECTING, 1),
        (ReadyState.CONNECTING, 1),
        (ReadyState.CLOSED, None),
    ]


async def test_give_up_after_responses_that_only_end(serve: Serve, autojump_clock: Clock) -> None:
    server = serve(sse(), sse(b"data: 1\n\n"), sse())
    async with server.connect(reconnect=Reconnect(give_up_after=3, jitter=min)) as source:
        await take(source, 1)
        with pytest.raises(NetworkError, match="keeps ending"):
            await source.__anext__()


# --- what the server asks for --------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 503])
async def test_retry_after_is_honoured(serve: Serve, code: int, autojump_clock: Clock) -> None:
    date = "retry-after: Wed, 21 Oct 2015 07:29:00 GMT\ndate: Wed, 21 Oct 2015 07:28:00 GMT\n"
    server = serve(
        status(code, "retry-after: 17\n", b"busy"),
        status(code, date),
        status(code, "retry-after: 0\n"),
        status(code, "retry-after: 7200\n"),
        sse(b"data: 1\n\n"),
    )
    async with server.connect() as source:
        assert await take(source, 1) == ["1"]
    assert pauses(server) == [17, 60, 1, 3600]
    causes = [c.cause for c in server.changes[:4]]
    assert all(isinstance(c, RequestRefused) and c.status == code for c in causes)


@pytest.mark.parametrize(
    ("code", "headers"),
    [
        (503, ""),
        (429, "retry-after: soon\n"),
        (503, "retry-after: -1\n"),
        (500, "retry-after: 1\n"),
    ],
)
async def test_without_a_valid_retry_after_it_fails_for_good(
    serve: Serve, code: int, headers: str
) -> None:
    server = serve(status(code, headers, b"no"))
    async with server.connect() as source:
        error = await run_out(source)
    assert isinstance(error, RequestRefused)
    assert (error.status, error.body) == (code, b"no")


async def test_statuses_to_come_back_after_can_be_named(
    serve: Serve, autojump_clock: Clock
) -> None:
    server = serve(
        status(502), status(504, "retry-after: 9\n"), status(503), sse(b"data: 1\n\n"), status(500)
    )
    policy = Reconnect(initial=1, statuses={502, 503, 504}, jitter=min)
    async with server.connect(reconnect=policy) as source:
        assert await take(source, 1) == ["1"]
        assert isinstance(await run_out(source), RequestRefused)
    assert pauses(server)[:3] == [1, 9, 1]


async def test_without_reconnect_the_end_is_the_end(serve: Serve) -> None:
    server = serve(sse(b"data: 1\n\ndata: 2\n\n"))
    async with server.connect(reconnect=None) as source:
        assert [event.data async for event in source] == ["1", "2"]
        assert [event.data async for event in source] == []
        with pytest.raises(SourceClosed):
            await source.wait_open()
    assert [change.state for change in server.changes] == [ReadyState.OPEN, ReadyState.CLOSED]
    server = serve(answer(CHUNKED, chunk(b"data: 1\n\n")))
    async with server.connect(reconnect=None) as source:
        await take(source, 1)
        assert isinstance(await run_out(source), NetworkError)
    server = serve(status(503, "retry-after: 1\n"))
    async with server.connect(reconnect=None) as source:
        assert isinstance(await run_out(source), RequestRefused)


# --- time-outs -----------------------------------------------------------------------------


async def test_idle_stream_is_left_and_any_byte_counts(serve: Serve, autojump_clock: Clock) -> None:
    # A lone chunk header is a byte that is none of the body.
    quiet = answer(CHUNKED, 9.0, b"5\r", 9.0, b"\n", 9.0, b"data:", 9.0, b"\r\n", then="hold")
    server = serve(quiet, sse(9.0, b":\n", 9.0, b"data: 1\n\n", 11.0, b"data: late\n\n"), sse(20.0))
    transport = server.transport(idle_timeout=10)
    async with server.connect(transport=transport) as source:
        assert await take(source, 1) == ["1"]
        with trio.move_on_after(12):
            await source.__anext__()
    assert pauses(server) == [46 + 1, 28 + 1]
    assert "nothing came for 10 seconds" in str(server.changes[1].cause)
    assert server.all_closed()


async def test_idle_time_is_waiting_time_cancelled_or_not(
    serve: Serve, autojump_clock: Clock
) -> None:
    server = serve(sse(b"data: 1\n\n", then="hold"), sse(b"data: 2\n\n"))
    async with server.connect(transport=server.transport(idle_timeout=10)) as source:
        await take(source, 1)
        await trio.sleep(100)  # the application's own time
        for _ in range(3):
            with trio.move_on_after(3):
                await source.__anext__()
        assert source.ready_state is ReadyState.OPEN
        assert await take(source, 1) == ["2"]
    assert pauses(server) == [100 + 10 + 1]


async def test_connecting_takes_no_longer_than_it_may(serve: Serve, autojump_clock: Clock) -> None:
    trickle = [b"HTTP/1.1 200 OK\r\n", *itertools.repeat(5.0, 1), b"X-A: b\r\n", 100.0]
    server = serve(answer(100.0), answer(*trickle), sse(b"data: 1\n\n"))
    async with server.connect(transport=server.transport(connect_timeout=7)) as source:
        assert await take(source, 1) == ["1"]
    assert pauses(server) == [8, 8]
    assert "no answer within 7 seconds" in str(server.changes[0].cause)


async def test_error_body_is_bounded_in_size_and_time(serve: Serve, autojump_clock: Clock) -> None:
    head = b"HTTP/1.1 404 Not Found\r\n\r\n"
    server = serve(answer(head, b"x" * 100_000, then="hold"))
    async with server.connect() as source:
        error = await run_out(source)
    assert isinstance(error, RequestRefused)
    assert error.body == b"x" * 65536
    server = serve(answer(head, b"abc", then="hold"))
    start = trio.current_time()
    async with server.connect() as source:
        error = await run_out(source)
    assert isinstance(error, RequestRefused)
    assert error.body == b"abc"
    assert trio.current_time() - start == 5
    assert server.all_closed()


@pytest.mark.parametrize(
    "wrong", [{"connect_timeout": 0}, {"idle_timeout": 0}, {"connect_timeout": math.nan}]
)
def test_transport_refuses_times_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="seconds, above 0"):
        Transport(**wrong)


# --- bounds, and a peer that is not HTTP ---------------------------------------------------


async def test_event_too_large_comes_after_the_events_before_it(serve: Serve) -> None:
    server = serve(sse(b"data: 1\n\n" * 3 + b"data: " + b"x" * 200))
    async with server.connect(max_event_size=100) as source:
        assert await take(source, 3) == ["1"] * 3
        assert source.ready_state is ReadyState.OPEN
        with pytest.raises(EventTooLarge):
            await source.__anext__()
        assert source.ready_state is ReadyState.CLOSED
        with pytest.raises(SourceClosed) as caught:
            await source.__anext__()
        assert isinstance(caught.value.__cause__, EventTooLarge)
    assert server.all_closed()


async def test_last_event_id_that_just_fits_fits_again(serve: Serve, autojump_clock: Clock) -> None:
    for line in (b"id:" + b"x" * 97, b"id:  " + b"x" * 95, b"id: " + b"x" * 96):
        server = serve(sse(line + b"\ndata: 1\n\n"), sse(b"data: 2\n\n"))
        async with server.connect(max_event_size=100) as source:
            events = [await source.__anext__() for _ in range(2)]
        assert (
            events[1].id == events[0].id == line.removeprefix(b"id:").decode().replace(" ", "", 1)
        )
        assert server.requests[1].headers["last-event-id"] == line[3:].strip()


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header line\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000,
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ],
)
async def test_peer_that_is_not_http_is_a_protocol_error(
    serve: Serve, garbage: bytes, autojump_clock: Clock
) -> None:
    server = serve(answer(garbage), sse(b"data: 1\n\n"))
    async with server.connect() as source:
        assert await take(source, 1) == ["1"]
    cause = server.changes[0].cause
    assert isinstance(cause, ProtocolError)
    assert cause.__cause__ is not None


async def test_what_came_before_a_broken_chunk_is_delivered(
    serve: Serve, autojump_clock: Clock
) -> None:
    server = serve(
        answer(CHUNKED + chunk(b"id: 1\ndata: 1\n\n") + b"zz\r\nnonsense"), sse(b"data: 2\n\n")
    )
    async with server.connect() as source:
        assert await take(source, 2) == ["1", "2"]
    assert server.requests[1].headers["last-event-id"] == b"1"
    assert isinstance(server.changes[1].cause, ProtocolError)


async def test_informational_answers_are_passed_over(serve: Serve) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    server = serve(answer(early, early + HEAD, b"data: 1\n\n"))
    async with server.connect() as source:
        assert await take(source, 1) == ["1"]


# --- seen by who asks ----------------------------------------------------------------------


async def test_every_block_shows_comments_and_retry(serve: Serve) -> None:
    body = b": hello\n\nretry: 70\n\nid: 1\n\ndata: x\nretry: 80\n: c\n\n"
    server = serve(sse(body, then="hold"))
    async with server.connect(every_block=True) as source:
        got = [await source.__anext__() for _ in range(4)]
        assert source.reconnection_time == 0.08
    assert got == [
        Event(comment="hello", id=""),
        Event(retry=70, id=""),
        Event(id="1"),
        Event("x", id="1", retry=80, comment="c"),
    ]


async def test_statistics_and_repr_tell_the_state(serve: Serve, autojump_clock: Clock) -> None:
    server = serve(answer(), sse(b"id: 5\ndata: 1\n\ndata: 2\n\n", then="hold"))
    async with server.connect("http://me:secret@example.org/e?token=secret") as source:
        assert source.statistics().attempts == 0
        await take(source, 1)
        stats = source.statistics()
        assert "secret" not in repr(source)
        assert "example.org/e?... OPEN last_event_id='5' events=1" in repr(source)
        assert "secret" not in str(server.changes[0].cause)
    assert (stats.attempts, stats.connections, stats.breaks) == (2, 1, 1)
    assert (stats.events, stats.waiting, stats.bytes_received) == (1, 1, 24)


async def test_hook_that_raises_comes_out_and_breaks_nothing(
    serve: Serve, autojump_clock: Clock
) -> None:
    server = serve(sse(b"data: 1\n\n"), sse(b"data: 2\n\n", then="hold"))
    fail = True

    def hook(change: StateChange) -> None:
        if fail:
            raise LookupError(change.state.name)

    async with server.connect(on_state_change=hook) as source:
        with pytest.raises(LookupError, match="OPEN"):
            await source.__anext__()
        fail = False
        assert await take(source, 1) == ["1"]
        fail = True
        for expected in ("CONNECTING", "OPEN"):
            with pytest.raises(LookupError, match=expected):
                await source.__anext__()
        assert await take(source, 1) == ["2"]
        with pytest.raises(LookupError, match="CLOSED"):
            await source.aclose()
    assert server.all_closed()


# --- misuse --------------------------------------------------------------------------------


async def test_source_is_to_be_opened_by_async_with() -> None:
    source = connect("http://example.org/")
    for use in (source.__anext__, source.wait_open):
        with pytest.raises(RuntimeError, match="async with"):
            await use()
    async with source:
        with pytest.raises(RuntimeError, match="opened once"):
            await source.__aenter__()
    with pytest.raises(TypeError, match=r"trio_sse\.connect"):
        EventSource()


async def test_one_task_at_a_time(serve: Serve, nursery: trio.Nursery) -> None:
    server = serve(sse(then="hold"))
    async with server.connect() as source:
        await source.wait_open()
        errors: list[Exception] = []

        async def iterate() -> None:
            errors.append(await run_out(source))

        nursery.start_soon(iterate)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await source.__anext__()
        await source.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert [type(error) for error in errors] == [SourceClosed]
    assert isinstance(errors[0], trio.ClosedResourceError)
    assert server.all_closed()


@pytest.mark.parametrize(
    "script", [answer(then="hold"), sse(b"retry: 1000000\n\n")], ids=["connecting", "waiting"]
)
async def test_closing_wakes_who_iterates(
    serve: Serve, nursery: trio.Nursery, script: Answer
) -> None:
    server = serve(script)
    async with server.connect() as source:
        errors: list[Exception] = []

        async def iterate() -> None:
            errors.append(await run_out(source))

        nursery.start_soon(iterate)
        while not server.requests:
            await trio.testing.wait_all_tasks_blocked()
        while script.then == "close" and source.ready_state is ReadyState.OPEN:
            await trio.testing.wait_all_tasks_blocked()
        assert source.ready_state is ReadyState.CONNECTING
        await source.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [type(error) for error in errors] == [SourceClosed]
    assert server.all_closed()


@pytest.mark.parametrize("moment", ["answer", "no answer", "end"])
async def test_closed_as_something_comes_it_stays_closed(
    nursery: trio.Nursery, moment: str
) -> None:
    client, theirs = trio.testing.memory_stream_pair()
    ours = TappedStream(client)

    async def open_stream(host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return ours

    changes: list[StateChange] = []
    errors: list[Exception] = []
    async with connect(
        "http://example.org/",
        transport=Transport(open_stream=open_stream),
        on_state_change=changes.append,
    ) as source:

        async def iterate() -> None:
            errors.append(await run_out(source))

        nursery.start_soon(iterate)
        if moment == "end":
            await theirs.send_all(HEAD)
        await trio.testing.wait_all_tasks_blocked()
        # The reader is woken by this, and runs when the source is closed already.
        if moment == "answer":
            await theirs.send_all(HEAD)
        else:
            theirs.send_stream.close()
        await source.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert [type(error) for error in errors] == [SourceClosed]
        assert source.ready_state is ReadyState.CLOSED
        assert ours.closed
    expected = ["OPEN", "CLOSED"] if moment == "end" else ["CLOSED"]
    assert [change.state.name for change in changes] == expected


async def test_cancelled_attempt_is_begun_anew_at_once(serve: Serve, autojump_clock: Clock) -> None:
    server = serve(answer(100.0), sse(b"data: 1\n\n"))
    async with server.connect() as source:
        with trio.move_on_after(3):
            await source.__anext__()
        assert server.all_closed()
        assert await take(source, 1) == ["1"]
    assert pauses(server) == [3]
    assert [change.state.name for change in server.changes] == ["OPEN", "CLOSED"]


async def test_cancelled_wait_goes_on(serve: Serve, autojump_clock: Clock) -> None:
    server = serve(sse(b"retry: 10000\n\n"), sse(b"data: 1\n\n"))
    async with server.connect() as source:
        for _ in range(3):
            with trio.move_on_after(3):
                await source.__anext__()
        assert await take(source, 1) == ["1"]
    assert pauses(server) == [10]


async def test_body_exception_survives_leaving_under_cancellation(serve: Serve) -> None:
    server = serve(sse(then="hold"))

    async def leave() -> None:
        with trio.CancelScope() as scope:
            async with server.connect() as source:
                await source.wait_open()
                scope.cancel()
                raise LookupError

    with pytest.raises(LookupError):
        await leave()
    assert server.all_closed()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"last_event_id": "a\nb"}, "last_event_id='42'"),
        ({"last_event_id": "a\0"}, "control"),
        ({"headers": {"Last-Event-ID": "1"}}, r"write connect\(..., last_event_id=...\)"),
        ({"headers": {"Content-Length": "1"}}, "written by the connection itself"),
        ({"headers": {"X-A": "b\r\nX-C: d"}}, "line break"),
        ({"headers": [("X A", "b")]}, "one word"),
        ({"method": "get"}, "an HTTP method"),
        ({"method": "HEAD"}, "an HTTP method"),
        ({"max_event_size": 0}, "max_event_size=65536"),
        ({"max_event_size": 99, "last_event_id": "x" * 96}, "max_event_size=65536"),
        ({"last_event_id": "\ud800"}, "last_event_id='42'"),
        ({"headers": {"X-A": "\ud800"}}, "cannot be sent"),
    ],
)
def test_connect_refuses_what_cannot_be_sent(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        connect("http://example.org/", **arguments)


# --- backpressure --------------------------------------------------------------------------


async def test_what_is_not_asked_for_is_not_read(serve: Serve) -> None:
    server = serve(sse(b"data: 1\n\n" * 3, *[b"data: 2\n\n"] * 50, then="hold"))
    async with server.connect() as source:
        await take(source, 1)
        reads = server.streams[0].reads
        await take(source, 2)  # they came with the first
        for _ in range(200):
            await trio.testing.wait_all_tasks_blocked()
        assert server.streams[0].reads == reads
        assert source.statistics().waiting == 0
        assert await take(source, 50) == ["2"] * 50
        assert server.streams[0].reads == reads + 1


def test_client_errors_are_one_family() -> None:
    for kind in (NetworkError, ProtocolError, RequestRefused, SourceClosed):
        assert issubclass(kind, ClientError)
