"""Direct writes: whatever a socket takes of a chunk, and when, the stream stays whole.

A fake socket takes so many bytes at a time, says that it has no room, or fails. What it
took in all must be the chunks of the events, in order, nothing twice and nothing missing.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import h11
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sse import Decoder, Event, OutboxLimits, encode
from trio_sse._app_tasks import Inbox
from trio_sse._connection import DirectSocket
from trio_sse.log import Record
from trio_sse.outbox import Batch, OutboxReceiveEnd, OutboxSendEnd, Tally, open_outbox

FULL = object()
"""In a script: no room."""


class FakeSocket:
    """Does with each send what its script says next; after its end it takes everything."""

    def __init__(self, script: Iterable[Any] = ()) -> None:
        self._script = iter(script)
        self.taken = bytearray()
        self.calls = 0

    def send(self, data: bytes | memoryview) -> int:
        assert len(data) > 0
        self.calls += 1
        action = next(self._script, len(data))
        if action is FULL:
            raise BlockingIOError(errno.EAGAIN, "no room")
        if isinstance(action, BaseException):
            raise action
        self.taken += bytes(data[:action])
        return min(action, len(data))


@pytest.fixture(autouse=True)
def room_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait_writable(sock: object) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio.lowlevel, "wait_writable", wait_writable)


def direct_socket(sock: FakeSocket, seconds: float = 30) -> DirectSocket:
    async def send(message: Any) -> None:
        raise AssertionError("not through ASGI")

    return DirectSocket(sock, send, Inbox(10), seconds)  # type: ignore[arg-type]  # all it uses is send


async def carry(receive_end: OutboxReceiveEnd, direct: DirectSocket) -> None:
    """What the request's task does."""
    while True:
        try:
            data = await receive_end.receive()
        except trio.EndOfChannel:
            return
        await direct.send_all(data)


def batches(count: int) -> list[Batch]:
    """Of one event, two events, none: all that can be delivered."""
    made = []
    numbers = itertools.count(1)
    for index in range(count):
        if index % 4 == 3:
            made.append(Batch.control(b":\n\n"))
            continue
        records = []
        for _ in range(1 + index % 2):
            number = next(numbers)
            event = Event(f"event {number}", id=f"e.{number}")
            records.append(Record(number, event.id or "", (), encode(event)))
        made.append(Batch(records))
    return made


def unchunked(raw: bytes) -> bytes:
    """A chunked body, checked by who did not write it."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    http.send(h11.EndOfMessage())
    http.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + raw)
    http.receive_data(b"0\r\n\r\n")
    body = b""
    while not isinstance(event := http.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            body += event.data
    assert http.trailing_data == (b"", False)
    return body


Pace = Callable[[int], bool]
"""Whether others have a turn after the batch of that number."""


def deliver(sock: FakeSocket, sent: list[Batch], pace: Pace) -> dict[str, int]:
    """Send ``sent`` through an outbox to ``sock``; how often which way was taken."""
    ways = {"at once": 0, "in part": 0, "queued": 0}

    async def produce(send_end: OutboxSendEnd, receive_end: OutboxReceiveEnd) -> None:
        with send_end:
            for number, batch in enumerate(sent):
                calls, taken = sock.calls, len(sock.taken)
                assert send_end.put(batch)
                if sock.calls == calls:
                    ways["queued"] += 1
                elif len(sock.taken) - taken == len(batch.framed or b""):
                    ways["at once"] += 1
                else:
                    ways["in part"] += 1
                if pace(number):
                    await trio.testing.wait_all_tasks_blocked()
        assert not receive_end.closed

    async def main() -> None:
        send_end, receive_end = open_outbox(OutboxLimits(), Tally())
        direct = direct_socket(sock)
        async with trio.open_nursery() as nursery:
            receive_end.write_directly(direct)
            nursery.start_soon(carry, receive_end, direct)
            await trio.testing.wait_all_tasks_blocked()
            await produce(send_end, receive_end)
        statistics = receive_end.statistics()
        assert statistics.queued_events == statistics.queued_bytes == 0
        assert statistics.sent_events == sum(len(batch.records) for batch in sent)
        assert statistics.sent_bytes == sum(len(batch.data) for batch in sent)

    trio.run(main)
    return ways


def check_whole(sock: FakeSocket, sent: list[Batch]) -> None:
    body = unchunked(bytes(sock.taken))
    assert body == b"".join(batch.data for batch in sent)
    events = Decoder().feed(body)
    ids = [event.id for event in events]
    assert ids == [record.id for batch in sent for record in batch.records]


def always(number: int) -> bool:
    return True


def never(number: int) -> bool:
    return False


def every_second(number: int) -> bool:
    return number % 2 == 1


PACES = pytest.mark.parametrize("pace", [always, never, every_second])


@PACES
def test_a_socket_that_takes_so_many_bytes_at_a_time(
    pace: Pace, figure: Callable[[str], None]
) -> None:
    sent = batches(7)
    whole = FakeSocket()
    deliver(whole, sent, never)
    seen = dict.fromkeys(["at once", "in part", "queued"], 0)
    for size in range(1, len(whole.taken) + 2):
        sock = FakeSocket(itertools.repeat(size))
        for way, count in deliver(sock, batches(7), pace).items():
            seen[way] += count
        check_whole(sock, sent)
    if pace is always:
        assert seen["at once"] > 0  # each way was taken, so that the test is worth something
        assert seen["in part"] > 0
    else:
        assert seen["queued"] > 0
    figure(f"{len(whole.taken) + 1} sizes: {seen}")


@PACES
def test_a_socket_that_has_no_room_at_times(pace: Pace) -> None:
    for length in range(1, 8):
        for pattern in itertools.product([FULL, 5], repeat=length):
            sock = FakeSocket(pattern)
            sent = batches(4)
            deliver(sock, sent, pace)
            check_whole(sock, sent)


def test_a_first_write_that_fails_is_tried_again_from_its_start() -> None:
    sock = FakeSocket([FULL, FULL, FULL, 1, FULL, 1])
    sent = batches(1)
    deliver(sock, sent, always)
    check_whole(sock, sent)


@settings(deadline=None, max_examples=200)
@given(
    script=st.lists(st.integers(1, 60) | st.just(FULL), max_size=40),
    count=st.integers(1, 12),
    turns=st.sets(st.integers(0, 12)),
)
def test_any_socket_and_any_pace(script: list[Any], count: int, turns: set[int]) -> None:
    sock = FakeSocket(script)
    sent = batches(count)
    deliver(sock, sent, turns.__contains__)
    check_whole(sock, sent)


def failing(after: int, error: int, size: int) -> Iterator[Any]:
    yield from itertools.repeat(size, after)
    yield OSError(error, os.strerror(error))
    yield from itertools.repeat(OSError(errno.EPIPE, "broken"))


@PACES
@pytest.mark.parametrize(
    "error", [errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EBADF, errno.ENOBUFS]
)
def test_a_socket_that_fails_ends_the_request_and_nothing_is_sent_after(
    pace: Pace, error: int
) -> None:
    sound = FakeSocket(itertools.repeat(7))
    deliver(sound, batches(5), pace)
    for after in range(12):
        sock = FakeSocket(failing(after, error, 7))
        with pytest.RaisesGroup(OSError, flatten_subgroups=True):
            deliver(sock, batches(5), pace)
        assert sock.calls > after
        assert sound.taken.startswith(sock.taken)


async def test_a_client_that_takes_nothing_is_too_slow(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def wait_writable(sock: object) -> None:
        await trio.sleep(20 if room else 1000)
        if not room:
            raise AssertionError("longer than allowed")

    monkeypatch.setattr(trio.lowlevel, "wait_writable", wait_writable)
    room = True
    slow = FakeSocket([FULL, 1, FULL, 1, FULL, 1])  # but it does take something
    await direct_socket(slow, 30).send_all(b"abc")
    assert (bytes(slow.taken), trio.current_time()) == (b"abc", 60)
    room = False
    start = trio.current_time()
    with pytest.raises(trio.TooSlowError, match="took nothing for 30 s"):
        await direct_socket(FakeSocket([1, FULL]), 30).send_all(b"abc")
    assert trio.current_time() - start == 30


@pytest.mark.parametrize("error", [trio.ClosedResourceError(), ValueError("fd -1")])
async def test_a_socket_that_is_closed_meanwhile_is_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def wait_writable(sock: object) -> None:
        raise error

    monkeypatch.setattr(trio.lowlevel, "wait_writable", wait_writable)
    with pytest.raises(OSError, match="closed meanwhile"):
        await direct_socket(FakeSocket([FULL])).send_all(b"abc")


async def test_a_chunk_is_framed_once_for_all_sessions() -> None:
    [batch] = batches(1)
    one, other = FakeSocket(), FakeSocket([3])
    assert direct_socket(one).write(batch) == b""
    framed = batch.framed
    rest = direct_socket(other).write(batch)
    assert batch.framed is framed
    assert bytes(other.taken) + rest == bytes(one.taken) == framed


async def test_nothing_is_written_past_what_waits() -> None:
    # The receiver has taken the rest in its hands and is about to write it: whatever is
    # delivered then goes behind it.
    sock = FakeSocket([4, FULL, 2])
    send_end, receive_end = open_outbox(OutboxLimits(), Tally())
    direct = direct_socket(sock)
    receive_end.write_directly(direct)
    sent = batches(6)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry, receive_end, direct)
        await trio.testing.wait_all_tasks_blocked()
        with send_end:
            for batch in sent:
                send_end.put(batch)
                await trio.lowlevel.checkpoint()
    check_whole(sock, sent)


async def test_what_was_queued_before_direct_writes_began_goes_first() -> None:
    sock = FakeSocket([3])
    send_end, receive_end = open_outbox(OutboxLimits(), Tally())
    direct = direct_socket(sock)
    sent = batches(5)
    send_end.put(sent[0])
    send_end.put(sent[1])
    receive_end.write_directly(direct)
    send_end.put(sent[2])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry, receive_end, direct)
        await trio.testing.wait_all_tasks_blocked()
        with send_end:
            send_end.put(sent[3])
            send_end.put(sent[4])
    check_whole(sock, sent)


@pytest.mark.parametrize("overflow", ["drop-oldest", "drop-newest"])
async def test_what_is_dropped_is_announced_in_a_chunk_of_the_stream(overflow: Any) -> None:
    limits = OutboxLimits(max_events=2, overflow=overflow)
    sock = FakeSocket([4, FULL])
    send_end, receive_end = open_outbox(limits, Tally())
    direct = direct_socket(sock)
    receive_end.write_directly(direct)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry, receive_end, direct)
        await trio.testing.wait_all_tasks_blocked()
        with send_end:
            for batch in batches(9):
                send_end.put(batch)
    events = Decoder().feed(unchunked(bytes(sock.taken)))
    kinds = [event.type for event in events]
    assert kinds.count("gap") == 1
    assert events[0].data == "event 1"  # it was half sent, and is not dropped
