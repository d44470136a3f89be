"""Fan-out: topics, group commit, order, fairness, backpressure on publishers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing
from _logs import MemoryLogWith
from _sessions import decoded, payloads, receive_events, stay

import trio_sse.log.memory
from trio_sse import Event, Hub, HubLimits, MemoryLog, OutboxLimits, Request, Session, encode
from trio_sse.dispatch import MAX_BACKLOG, PASS_BYTES, PASS_EVENTS, YIELD_EVERY, Audiences
from trio_sse.log import Record
from trio_sse.outbox import Batch

Clock = trio.testing.MockClock


def data_of(events: list[Event]) -> list[str | None]:
    return [event.data for event in events]


class TestTopics:
    @pytest.mark.parametrize(
        ("topics", "heard"),
        [
            (None, ["a", "b", "ab", "other"]),
            ((), []),
            (("a",), ["a", "ab"]),
            (("b",), ["b", "ab"]),
            (("a", "b"), ["a", "b", "ab"]),
            (("b", "a", "b"), ["a", "b", "ab"]),
            (("nobody's",), []),
            (("default",), ["other"]),
        ],
    )
    @pytest.mark.parametrize("together", [False, True])
    async def test_who_hears_what(
        self,
        topics: tuple[str, ...] | None,
        heard: list[str],
        together: bool,
        autojump_clock: Clock,
    ) -> None:
        got: list[str | None] = []

        async def client(nursery: trio.Nursery) -> None:
            got.extend(payloads(await stay(hub, topics=topics)))
            nursery.cancel_scope.cancel()

        async with Hub() as hub, trio.open_nursery() as nursery:
            nursery.start_soon(client, nursery)
            await trio.testing.wait_all_tasks_blocked()
            for event, to in [("a", ["a"]), ("b", "b"), ("ab", ("a", "b", "a"))]:
                if not together:
                    await trio.testing.wait_all_tasks_blocked()
                await hub.publish(Event(event), to)
            await hub.publish(Event("other"))
            await trio.testing.wait_all_tasks_blocked()
            hub.end_all("test")
        assert got == heard

    def test_an_audience_goes_with_its_last_session(self) -> None:
        audiences = Audiences()
        sessions = [FakeSession(frozenset("ab")), FakeSession(frozenset("ab")), FakeSession(None)]
        for session in sessions:
            audiences.add(session)  # type: ignore[arg-type]  # it only looks at the topics
        assert len(audiences._all) == 2
        for session in [*sessions, *sessions]:
            audiences.discard(session)  # type: ignore[arg-type]  # as above
        assert (audiences._all, audiences._by_topic) == ({}, {})


class FakeSession:
    def __init__(self, topics: frozenset[str] | None) -> None:
        self.topics = topics


class TestGroupCommit:
    async def test_an_event_is_encoded_once_whoever_hears_it(
        self, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
    ) -> None:
        encoded: list[Event] = []

        def counting(event: Event, *, id: str | None = None) -> bytes:
            encoded.append(event)
            return encode(event, id=id)

        monkeypatch.setattr(trio_sse.log.memory, "encode", counting)
        got: list[bytes] = []

        async def client(topics: list[str] | None) -> None:
            got.append(await stay(hub, topics=topics))

        async with Hub() as hub, trio.open_nursery() as nursery:
            for topics in [None, ["a"], ["b"], ["a", "b"], ["b", "a"]]:
                nursery.start_soon(client, topics)
            await trio.testing.wait_all_tasks_blocked()
            events = [Event(str(n)) for n in range(3)]
            for event in events:
                await hub.publish(event, ["a", "b"])
            await trio.testing.wait_all_tasks_blocked()
            hub.end_all("test")
        assert encoded == events
        assert [payloads(data) for data in got] == [["0", "1", "2"]] * 5

    async def test_what_came_meanwhile_is_one_batch_that_an_audience_shares(
        self, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
    ) -> None:
        delivered: dict[Session, list[Batch]] = {}

        def deliver(session: Session, batch: Batch, now: float) -> None:
            delivered.setdefault(session, []).append(batch)

        monkeypatch.setattr(Session, "deliver", deliver)
        async with Hub() as hub, trio.open_nursery() as nursery:
            for topics in [["a"], ["a"], ["b"], None]:
                nursery.start_soon(lambda topics: stay(hub, topics=topics), topics)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as publishers:
                for n in range(20):
                    publishers.start_soon(hub.publish, Event(str(n)), ["a", "b"])
            await trio.testing.wait_all_tasks_blocked()
            hub.end_all("test")
        same = [d for s, d in delivered.items() if s.topics == frozenset("a")]
        assert len(same) == 2
        assert same[0] == same[1], "not equal ones: the very same"
        [batch] = same[0]
        assert len(batch.records) == 20
        assert len(delivered) == 4
        assert hub.statistics().dispatch_passes == 1

    async def test_a_pass_is_bounded_in_events(self, autojump_clock: Clock) -> None:
        log = MemoryLogWith()
        for n in range(PASS_EVENTS * 2 + 1):
            await log.append(Event(str(n)), ("t",))
        hub = Hub(log=log)
        async with hub, hub.open_session(Request(last_event_id=f"{log.epoch}.0")) as (_, end):
            sizes = []
            while sum(sizes) <= PASS_EVENTS * 2:
                sizes.append(len(payloads(await end.receive())))
        assert max(sizes) <= PASS_EVENTS
        assert sum(sizes) == PASS_EVENTS * 2 + 1

    async def test_a_pass_is_bounded_in_bytes(self, autojump_clock: Clock) -> None:
        hub = Hub(outbox=OutboxLimits(max_bytes=10 * PASS_BYTES))
        async with hub, hub.open_session(Request()) as (_, receive_end):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(hub.publish, Event("x" * (PASS_BYTES // 3)))
            await receive_events(receive_end, 10)
        # Two of these fit, a third would not.
        assert hub.statistics().dispatch_passes == 5

    async def test_one_event_larger_than_a_pass_goes_alone(self, autojump_clock: Clock) -> None:
        hub = Hub()
        async with hub, hub.open_session(Request()) as (_, receive_end):
            for text in ("before", "x" * (PASS_BYTES * 2), "after"):
                await hub.publish(Event(text))
            events = await receive_events(receive_end, 3)
        assert [len(event.data or "") for event in events] == [6, PASS_BYTES * 2, 5]

    async def test_order(self, autojump_clock: Clock) -> None:
        """Every session sees its topics in the log's order, whatever the bursts."""
        count = 1000
        topics = ["a", "b", "c"]
        got: dict[str, list[str | None]] = {}
        appended: dict[str, list[str | None]] = {topic: [] for topic in topics}

        async def client(topic: str) -> None:
            got[topic] = payloads(await stay(hub, topics=[topic]))

        async def publisher(name: str) -> None:
            for n in range(count // 10):
                topic = topics[(n * 7 + ord(name)) % 3]
                await hub.publish(Event(f"{name}{n}"), topic)

        hub = Hub(outbox=OutboxLimits(max_events=10_000))
        async with hub, trio.open_nursery() as nursery:
            for topic in topics:
                nursery.start_soon(client, topic)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as publishers:
                for name in "abcdefghij":
                    publishers.start_soon(publisher, name)
            await trio.testing.wait_all_tasks_blocked()
            for record in await hub.log.read(0, 10_000):
                appended[record.topics[0]] += payloads(record.data)
            hub.end_all("test")
        assert got == appended
        assert sum(map(len, got.values())) == count
        assert 1 < hub.statistics().dispatch_passes < count / 4


class Stopwatch:
    """The dispatcher's time, which goes on where a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, a_delivery: float) -> None:
        self.now = 0.0
        self.sizes: list[int] = []
        deliver = Session.deliver

        def timed(session: Session, batch: Batch, now: float) -> None:
            self.now += a_delivery
            self.sizes.append(batch.count)
            deliver(session, batch, now)

        monkeypatch.setattr(Session, "deliver", timed)
        monkeypatch.setattr("trio_sse.dispatch.time.perf_counter", lambda: self.now)


class TestGathering:
    """What publishers are just bringing goes out with what is there."""

    async def publish(
        self,
        watch: Stopwatch,
        count: int,
        *,
        each: float = 0.0,
        size: int = 0,
        log: MemoryLog | None = None,
    ) -> None:
        """One after the other; what comes is checked, and `watch.sizes` left."""
        texts = [str(n).ljust(size) for n in range(count)]
        hub = Hub(log=log, outbox=OutboxLimits(max_events=count, max_bytes=1 << 24))
        async with hub, hub.open_session(Request()) as (_, receive_end):
            for text in texts:
                await hub.publish(Event(text))
                watch.now += each
            events = await receive_events(receive_end, count)
        assert data_of(events) == texts
        assert sum(watch.sizes) == count

    async def test_as_many_as_a_pass_takes(
        self, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Stopwatch(monkeypatch, a_delivery=1.0)
        await self.publish(watch, 2 * PASS_EVENTS)
        assert len(watch.sizes) <= 4
        assert max(watch.sizes) == PASS_EVENTS

    async def test_however_small_the_log_is(
        self, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What has been read is held, whatever the log forgets meanwhile."""
        watch = Stopwatch(monkeypatch, a_delivery=1.0)
        await self.publish(watch, 2 * PASS_EVENTS, log=MemoryLog(max_events=3))
        assert max(watch.sizes) == PASS_EVENTS

    async def test_no_more_bytes_than_a_pass_takes(
        self, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Stopwatch(monkeypatch, a_delivery=1.0)
        await self.publish(watch, 100, size=PASS_BYTES // 10)
        assert 5 <= max(watch.sizes) <= 10

    async def test_for_no_longer_than_a_pass(
        self, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Stopwatch(monkeypatch, a_delivery=1.0)
        await self.publish(watch, 500, each=0.125)
        assert 8 <= max(watch.sizes) <= 12

    async def test_not_at_all_where_a_pass_takes_no_time(
        self, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch = Stopwatch(monkeypatch, a_delivery=0.0)
        await self.publish(watch, 100)
        assert max(watch.sizes) <= 3

    async def test_who_brings_nothing_is_not_waited_for(
        self, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An append that hangs keeps nobody else's event, although no time passes."""
        Stopwatch(monkeypatch, a_delivery=1.0)
        append = MemoryLog.append

        async def hanging(self: MemoryLog, event: Event, *args: Any, **options: Any) -> str:
            if event.data == "hangs":
                await trio.sleep_forever()
            return await append(self, event, *args, **options)

        monkeypatch.setattr(MemoryLog, "append", hanging)
        async with Hub() as hub, hub.open_session(Request()) as (_, receive_end):
            await hub.publish(Event("1"))
            assert data_of(await receive_events(receive_end, 1)) == ["1"]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hub.publish, Event("hangs"))
                await trio.testing.wait_all_tasks_blocked()
                await hub.publish(Event("2"))
                with trio.fail_after(1):
                    assert data_of(await receive_events(receive_end, 1)) == ["2"]
                nursery.cancel_scope.cancel()


class TestFairness:
    async def test_other_tasks_have_a_turn_during_a_large_pass(self, autojump_clock: Clock) -> None:
        many = YIELD_EVERY * 3
        async with Hub(limits=HubLimits(keep_alive=None)) as hub, trio.open_nursery() as nursery:
            for n in range(many):
                nursery.start_soon(lambda n: stay(hub, topics=[str(n % 4)]), n)
            await trio.testing.wait_all_tasks_blocked()
            turns = 0
            before = hub.statistics().dispatch_passes

            async def other() -> None:
                nonlocal turns
                while hub.statistics().dispatch_passes == before:
                    turns += 1
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as inner:
                inner.start_soon(other)
                await hub.publish(Event("x"), ["0", "1", "2", "3"])
            assert turns >= many // YIELD_EVERY
            hub.end_all("test")


class TestBackpressure:
    async def test_publishers_wait_while_the_dispatcher_is_behind(
        self, autojump_clock: Clock
    ) -> None:
        log = MemoryLogWith()
        go = trio.Event()

        async def held(after: int, limit: int) -> list[Record]:
            await go.wait()
            return list(await MemoryLog.read(log.inner, after, limit))

        log.read = held  # type: ignore[method-assign, assignment]  # a log that is stuck
        async with Hub(log=log) as hub:
            published = 0

            async def publisher() -> None:
                nonlocal published
                for _ in range(MAX_BACKLOG):
                    await hub.publish(Event("x"))
                    published += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(publisher)
                nursery.start_soon(publisher)
                await trio.testing.wait_all_tasks_blocked()
                assert published == MAX_BACKLOG
                go.set()
            assert published == 2 * MAX_BACKLOG

    async def test_publishes_that_fail_or_are_cancelled_take_no_room(
        self, autojump_clock: Clock
    ) -> None:
        log = MemoryLogWith()
        async with Hub(log=log) as hub:
            for _ in range(MAX_BACKLOG):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await hub.publish(Event("never"))
            log.append_failure = OSError("disk full")
            for _ in range(MAX_BACKLOG):
                with pytest.raises(OSError, match="disk full"):
                    await hub.publish(Event("never"))
            log.append_failure = None
            await hub.publish(Event("room"))
        assert hub.statistics().published == 1


class TestMissed:
    """The log was trimmed before the dispatcher had read it: a small ring, a large burst."""

    async def test_everyone_is_told_whatever_they_subscribe_to(self, autojump_clock: Clock) -> None:
        hub = Hub(log=MemoryLog(max_events=5))
        got: dict[str | None, bytes] = {}

        async def client(topic: str | None) -> None:
            got[topic] = await stay(hub, topics=None if topic is None else [topic])

        async with hub, trio.open_nursery() as nursery:
            for topic in ("a", "b", None):
                nursery.start_soon(client, topic)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as publishers:
                for n in range(20):
                    publishers.start_soon(hub.publish, Event(f"{n}"), "a")
            await trio.testing.wait_all_tasks_blocked()
            hub.end_all("test")
        assert hub.statistics().gaps == 3
        held = [event.data for event in decoded(got[None])[1:]]
        assert len(held) == 5
        assert payloads(got[None]) == ["gap", *held]
        assert payloads(got["a"]) == ["gap", *held]
        assert payloads(got["b"]) == ["gap"]
        [notice] = [event for event in decoded(got["b"]) if event.type == "gap"]
        assert json.loads(notice.data or "")["reason"] == "trimmed"
        assert notice.id == f"{hub.log.epoch}.15"

    async def test_a_log_that_has_nothing_left_is_no_endless_loop(
        self, autojump_clock: Clock
    ) -> None:
        class Emptied(MemoryLogWith):
            gone = False

            @property
            def trimmed(self) -> int:
                return self.newest if self.gone else super().trimmed

            async def read(self, after: int, limit: int) -> list[Record]:
                records = list(await super().read(after, limit))
                return [] if self.gone else records

        log = Emptied()
        log.gone = True
        async with Hub(log=log) as hub, hub.open_session(Request()) as (_, receive_end):
            await hub.publish(Event("x"))
            assert payloads(await receive_end.receive()) == ["gap"]
            log.gone = False
            await hub.publish(Event("y"))
            assert payloads(await receive_end.receive()) == ["y"]
            await trio.testing.wait_all_tasks_blocked()
        assert len(log.reads) <= 4
