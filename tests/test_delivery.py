"""What is published reaches clients whole and in order, by either way of writing.

Every test runs twice: with direct writes, and behind a middleware, through ASGI alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.testing
from connections import MANY, Recorder, directly, through_asgi
from sockets import Subscriber, eventually, serving, subscribed

from trio_sse import Endpoint, Event, HubLimits, MemoryLog, OutboxLimits, Session
from trio_sse._connection import DirectSocket

Path = Callable[[Any], Any]


class Writes:
    """How many direct writes there were, at once and after waiting."""

    def __init__(self) -> None:
        self.at_once = 0
        self.waiting = 0


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    counted = Writes()
    write, send_all = DirectSocket.write, DirectSocket.send_all

    def counting_write(self: DirectSocket, batch: Any) -> bytes:
        counted.at_once += 1
        return write(self, batch)

    async def counting_send_all(self: DirectSocket, framed: bytes) -> None:
        counted.waiting += 1
        await send_all(self, framed)

    monkeypatch.setattr(DirectSocket, "write", counting_write)
    monkeypatch.setattr(DirectSocket, "send_all", counting_send_all)
    return counted


@pytest.fixture(params=[directly, through_asgi])
def path(request: pytest.FixtureRequest, writes: Writes) -> Iterator[Path]:
    """One of the two ways; and it is the one that was taken."""
    yield request.param
    taken = writes.at_once + writes.waiting
    assert (taken > 0) == (request.param is directly)


async def events(subscriber: Subscriber, count: int) -> list[Event]:
    return [await subscriber.event() for _ in range(count)]


def data_of(some: list[Event]) -> list[str | None]:
    return [event.data for event in some]


EVENTS = [
    Event("hello"),
    Event(""),
    Event("two\nlines"),
    Event("\nline breaks\r\nof all\rkinds\n\n"),
    Event("ü€𝄞\u2028\x0b\x85\ufeff"),
    Event(": no comment"),
    Event("x" * 100_000),
    Event("typed", type="news"),
    Event("with all", type="ü", retry=5, comment="a\nb"),
]


async def test_every_kind_of_event_arrives_as_it_was(path: Path) -> None:
    recorder = Recorder()
    async with serving(path(Endpoint(recorder.hub))) as running, subscribed(running) as subscriber:
        for event in EVENTS:
            event_id = await recorder.hub.publish(event)
            came = await subscriber.event()
            data = (event.data or "").replace("\r\n", "\n").replace("\r", "\n")
            assert came == Event(
                data, type=event.type, id=event_id, retry=event.retry, comment=event.comment
            )


async def test_a_burst_arrives_in_order(path: Path) -> None:
    recorder = Recorder(outbox=MANY)
    async with serving(path(Endpoint(recorder.hub))) as running, subscribed(running) as subscriber:
        async with trio.open_nursery() as nursery:

            async def publish() -> None:
                for number in range(2000):
                    await recorder.hub.publish(Event(str(number)))

            nursery.start_soon(publish)
            came = await events(subscriber, 2000)
        assert data_of(came) == [str(number) for number in range(2000)]
        [session] = recorder.registered
        statistics = session.statistics()
        assert statistics.sent_events == 2000
        greeting = subscriber.body.index(b"\n\n") + 2
        assert statistics.sent_bytes == len(subscriber.body) - greeting
        assert statistics.last_event_id == came[-1].id


async def test_many_clients_each_get_what_they_asked_for(path: Path) -> None:
    recorder = Recorder(outbox=MANY)
    rng = random.Random(1)
    topics = ["a", "b", "c"]
    async with serving(path(Endpoint(recorder.hub))) as running, AsyncExitStack() as stack:
        asked = [rng.sample(topics, rng.randrange(1, 4)) for _ in range(12)] + [[]]
        subscribers = [
            await stack.enter_async_context(
                subscribed(running, "/?" + "&".join(f"topic={topic}" for topic in each))
            )
            for each in asked
        ]
        published: list[tuple[str, set[str]]] = []
        for number in range(200):
            to = rng.sample(topics, rng.randrange(1, 4))
            published.append((str(number), set(to)))
            await recorder.hub.publish(Event(str(number)), to)
        for each, subscriber in zip(asked, subscribers, strict=True):
            expected = [data for data, to in published if not each or to & set(each)]
            assert data_of(await events(subscriber, len(expected))) == expected


async def test_a_client_that_stalls_and_goes_on_misses_nothing(path: Path) -> None:
    recorder = Recorder(outbox=MANY)
    rng = random.Random(2)
    async with (
        serving(path(Endpoint(recorder.hub))) as running,
        subscribed(running, receive_buffer=4096) as slow,
        subscribed(running) as quick,
    ):
        sent: list[str] = []
        for _ in range(5):
            for _ in range(20):
                size = rng.choice([1, 100, 10_000, 1_000_000])
                sent.append(f"{len(sent)} " + "x" * size)
                await recorder.hub.publish(Event(sent[-1]))
            await trio.testing.wait_all_tasks_blocked()
            part = len(sent) // 2 - len([b for b in slow.blocks if b.data])
            await events(slow, max(0, part))
        assert data_of(await events(quick, len(sent))) == sent
        while len(data_of([b for b in slow.blocks if b.data])) < len(sent):
            await slow.event()
        assert data_of([b for b in slow.blocks if b.data]) == sent
        assert slow.body == quick.body


async def test_what_was_missed_and_what_is_new_follow_without_a_seam(path: Path) -> None:
    recorder = Recorder(outbox=MANY)
    async with serving(path(Endpoint(recorder.hub))) as running:
        ids = [await recorder.hub.publish(Event(str(number))) for number in range(1000)]

        async def publish() -> None:
            for number in range(1000, 2000):
                await recorder.hub.publish(Event(str(number)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            async with subscribed(running, "/", f"Last-Event-ID: {ids[9]}") as subscriber:
                came = await events(subscriber, 1990)
        assert data_of(came) == [str(number) for number in range(10, 2000)]


@pytest.mark.parametrize("reason", ["trimmed", "epoch"])
async def test_a_gap_is_announced_before_it(path: Path, reason: str) -> None:
    recorder = Recorder(log=MemoryLog(max_events=3))
    async with serving(path(Endpoint(recorder.hub))) as running:
        ids = [await recorder.hub.publish(Event(str(number))) for number in range(10)]
        await trio.testing.wait_all_tasks_blocked()
        last = ids[0] if reason == "trimmed" else "ffffffff.1"
        async with subscribed(running, "/", f"Last-Event-ID: {last}") as subscriber:
            gap, *rest = await events(subscriber, 4)
            assert gap.type == "gap"
            assert json.loads(gap.data or "")["reason"] == reason
            assert data_of(rest) == ["7", "8", "9"]
            await recorder.hub.publish(Event("live"))
            assert (await subscriber.event()).data == "live"


@pytest.mark.parametrize("overflow", ["drop-oldest", "drop-newest", "conflate"])
async def test_what_a_slow_client_loses_is_counted_and_told(path: Path, overflow: Any) -> None:
    recorder = Recorder(outbox=OutboxLimits(max_events=10, overflow=overflow))
    async with (
        serving(path(Endpoint(recorder.hub))) as running,
        subscribed(running, receive_buffer=4096) as slow,
    ):
        [session] = recorder.registered
        await recorder.hub.publish(Event("x" * 8_000_000), "big")
        await trio.testing.wait_all_tasks_blocked()  # it now holds up the rest
        for number in range(50):
            await recorder.hub.publish(Event(str(number)), f"topic {number % 5}")
            await trio.testing.wait_all_tasks_blocked()
        dropped = session.statistics().dropped_events
        assert dropped > 0
        big = await slow.event()
        assert len(big.data or "") == 8_000_000
        came: list[Event] = []
        while sum(event.type != "gap" for event in came) < 50 - dropped:
            came.append(await slow.event())
        await recorder.hub.publish(Event("last"))
        came.append(await slow.event())
        numbers = [int(e.data or "") for e in came if e.type != "gap" and e.data != "last"]
        assert numbers == sorted(numbers)
        if overflow == "conflate":
            assert numbers[-5:] == [45, 46, 47, 48, 49]
        told = [json.loads(event.data or "") for event in came if event.type == "gap"]
        assert sum(each["dropped"] for each in told) == dropped
        assert len(recorder.unregistered) == 0


async def test_a_client_that_is_too_slow_comes_back_and_misses_nothing(path: Path) -> None:
    recorder = Recorder(outbox=OutboxLimits(max_events=10))
    async with serving(path(Endpoint(recorder.hub))) as running, AsyncExitStack() as stack:
        slow = await stack.enter_async_context(subscribed(running, receive_buffer=4096))
        for number in range(40):
            await recorder.hub.publish(Event(f"{number} " + "x" * 500_000))
            await trio.testing.wait_all_tasks_blocked()
        await eventually(lambda: recorder.reasons() == ["too-slow"])
        await slow.rest()
        assert slow.ended == "complete"
        came = [block for block in slow.blocks if block.data]
        last = f"Last-Event-ID: {came[-1].id}"
        back = await stack.enter_async_context(subscribed(running, "/", last))
        came += await events(back, 40 - len(came))
        assert [int((event.data or "").split()[0]) for event in came] == list(range(40))


async def test_what_a_handler_sends_is_in_order_with_what_is_published(path: Path) -> None:
    recorder = Recorder(outbox=OutboxLimits(max_events=5))

    async def handler(session: Session) -> None:
        for number in range(100):
            await session.send(Event(f"sent {number}"))
            if number % 10 == 0:
                await recorder.hub.publish(Event(f"published {number}"))
        session.send_nowait(Event("the end"))

    async with (
        serving(path(Endpoint(recorder.hub, handler))) as running,
        subscribed(running) as subscriber,
    ):
        await subscriber.rest()
        data = data_of([block for block in subscriber.blocks if block.data])
        assert subscriber.ended == "complete"
        sent = [f"sent {number}" for number in range(100)]
        assert [each for each in data if (each or "").startswith("sent")] == sent
        published = [each for each in data if (each or "").startswith("published")]
        assert published == [f"published {number}" for number in range(0, 100, 10)]
        assert data[-1] == "the end"


async def test_silence_is_filled_and_an_end_is_said(path: Path) -> None:
    recorder = Recorder(limits=HubLimits(keep_alive=0.02))
    async with (
        serving(path(Endpoint(recorder.hub, retry=None))) as running,
        subscribed(running) as subscriber,
    ):
        for _ in range(3):
            assert (await subscriber.block()).comment == ""
        running.stop()
        await subscriber.rest()
        assert subscriber.blocks[-1].comment == "draining"
        assert subscriber.ended == "complete"


@pytest.mark.parametrize("size", [0, 1, 100, 65_000, 3_000_000])
async def test_both_ways_send_the_same_bytes(writes: Writes, size: int) -> None:
    """Two clients of one hub, one by each way."""
    recorder = Recorder(outbox=MANY)
    endpoint = Endpoint(recorder.hub)
    wrapped = through_asgi(endpoint)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        by_asgi = scope["type"] == "http" and scope["path"] == "/asgi"
        await (wrapped if by_asgi else endpoint)(scope, receive, send)

    async with (
        serving(app) as running,
        subscribed(running, "/", receive_buffer=4096) as direct,
        subscribed(running, "/asgi", receive_buffer=4096) as by_asgi,
    ):
        for event in [*EVENTS, Event("y" * size), *EVENTS]:
            await recorder.hub.publish(event)
        recorder.hub.end_all("enough")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(direct.rest)
            nursery.start_soon(by_asgi.rest)
    assert direct.body == by_asgi.body
    del direct.headers["date"], by_asgi.headers["date"]  # a second may have passed
    assert direct.headers == by_asgi.headers
    assert direct.ended == by_asgi.ended == "complete"
    assert writes.at_once > 0


async def test_a_middleware_that_changes_what_is_sent_is_not_gone_past(writes: Writes) -> None:
    recorder = Recorder()
    endpoint = Endpoint(recorder.hub)

    async def shouting(scope: Any, receive: Any, send: Any) -> None:
        async def shout(message: Any) -> None:
            if "body" in message:
                message["body"] = message["body"].replace(b"hello", b"HELLO")
            await send(message)

        await endpoint(scope, receive, shout if scope["type"] == "http" else send)

    async with serving(shouting) as running, subscribed(running) as subscriber:
        await recorder.hub.publish(Event("hello"))
        await subscriber.client.until(b"data: HELLO\n\n")
    assert writes.at_once == writes.waiting == 0
