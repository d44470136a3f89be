"""Coming back with a last event ID: what followed, then live; or word of what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from _logs import MemoryLogWith
from _sessions import decoded, payloads, receive_events, stay

from trio_sse import (
    Event,
    EventLog,
    Hub,
    HubLimits,
    MemoryLog,
    OutboxLimits,
    Request,
    Session,
    dispatch,
)
from trio_sse.outbox import OutboxReceiveEnd
from trio_sse.testing import Moment, explore

Clock = trio.testing.MockClock


def texts(*numbers: int) -> list[str]:
    return [str(n) for n in numbers]


async def filled(log: EventLog, count: int, topic: str = "t") -> list[str]:
    """``log`` with events "1" to ``count``; their ids."""
    return [await log.append(Event(str(n)), [topic]) for n in range(1, count + 1)]


async def resumed(hub: Hub, last_event_id: str, count: int, **options: Any) -> list[Event]:
    """The first ``count`` events that a client gets which comes back."""
    request = Request(last_event_id=last_event_id)
    async with hub.open_session(request, **options) as (_, receive_end):
        return await receive_events(receive_end, count)


class TestReplay:
    async def test_what_followed_then_live(self, autojump_clock: Clock) -> None:
        log = MemoryLog()
        ids = await filled(log, 5)
        async with (
            Hub(log=log) as hub,
            hub.open_session(Request(last_event_id=ids[1])) as (_, receive_end),
        ):
            replayed = await receive_events(receive_end, 3)
            assert [event.id for event in replayed] == ids[2:]
            assert [event.data for event in replayed] == texts(3, 4, 5)
            live = await hub.publish(Event("6"))
            [event] = await receive_events(receive_end, 1)
            assert (event.data, event.id) == ("6", live)
            assert hub.statistics().replayed == 3
            assert hub.statistics().gaps == 0

    async def test_only_what_it_subscribes_to(self, autojump_clock: Clock) -> None:
        log = MemoryLog()
        [first, *_] = await filled(log, 1, "b")
        await filled(log, 3, "a")
        await filled(log, 3, "b")
        async with Hub(log=log) as hub:
            events = await resumed(hub, first, 3, topics=["b"])
            assert [event.data for event in events] == texts(1, 2, 3)

    async def test_nothing_followed(self, autojump_clock: Clock) -> None:
        log = MemoryLog()
        ids = await filled(log, 3)
        hub = Hub(log=log)
        async with hub, hub.open_session(Request(last_event_id=ids[-1])) as (_, end):
            await trio.testing.wait_all_tasks_blocked()
            await hub.publish(Event("4"))
            assert payloads(await end.receive()) == ["4"]

    async def test_more_than_a_page_and_more_than_the_outbox_holds(
        self, autojump_clock: Clock
    ) -> None:
        log = MemoryLog()
        count = dispatch.PASS_EVENTS * 3 + 7
        await filled(log, count)
        hub = Hub(log=log, outbox=OutboxLimits(max_events=10))
        async with hub:
            events = await resumed(hub, f"{log.epoch}.0", count)
        assert [event.data for event in events] == texts(*range(1, count + 1))

    async def test_a_handler_may_send_meanwhile(self, autojump_clock: Clock) -> None:
        log = MemoryLog()
        ids = await filled(log, 3)

        async def handler(session: Session) -> None:
            await session.send(Event("own"))
            await trio.sleep_forever()

        async with Hub(log=log) as hub:
            events = await resumed(hub, ids[0], 3, handler=handler)
        found = [event.data for event in events]
        assert sorted(found) == ["2", "3", "own"]
        assert [text for text in found if text != "own"] == ["2", "3"]

    async def test_a_handler_with_ids_of_its_own_is_left_alone(self, autojump_clock: Clock) -> None:
        log = MemoryLog()
        await filled(log, 3)
        hub = Hub(log=log)
        async with hub, hub.open_session(Request(last_event_id="page-7"), resume=False) as (s, end):
            await trio.testing.wait_all_tasks_blocked()
            assert not s.has_backlog
            assert s.request.last_event_id == "page-7"
            await hub.publish(Event("live"))
            assert payloads(await end.receive()) == ["live"]

    async def test_it_ends_with_the_session(self, autojump_clock: Clock) -> None:
        log = MemoryLog()
        await filled(log, 1000)
        async with Hub(log=log, outbox=OutboxLimits(max_events=1)) as hub:
            request = Request(last_event_id=f"{log.epoch}.0")
            async with hub.open_session(request) as (session, _):
                await trio.testing.wait_all_tasks_blocked()
                assert session.has_backlog
            await session.wait_ended()
            await hub.publish(Event("for nobody"))
            await trio.testing.wait_all_tasks_blocked()
            assert session.statistics().sent_events == 0

    async def test_a_log_that_cannot_be_read_ends_the_session(self, autojump_clock: Clock) -> None:
        log = MemoryLogWith()
        ids = await filled(log, 3)
        failures: list[Exception] = []
        hub = Hub(log=log)
        hub.hooks.on_error(lambda session, exc: failures.append(exc))
        async with hub:
            await trio.testing.wait_all_tasks_blocked()
            log.read_failure = OSError("disk gone")
            async with hub.open_session(Request(last_event_id=ids[0])) as (session, _):
                reason = await session.wait_ended()
            log.read_failure = None
            assert reason.kind == "handler-failed"
            assert "disk gone" in reason.text
            assert failures == [OSError("disk gone")] or isinstance(failures[0], OSError)
            assert [event.data for event in await resumed(hub, ids[0], 2)] == ["2", "3"]


def notice(event: Event) -> dict[str, str]:
    assert event.type == "gap"
    return dict(json.loads(event.data or ""))


class TestGap:
    async def test_trimmed(self, autojump_clock: Clock) -> None:
        log = MemoryLog(max_events=3)
        ids = await filled(log, 10)
        async with Hub(log=log) as hub:
            gap, *events = await resumed(hub, ids[1], 4)
            assert hub.statistics().gaps == 1
        assert notice(gap) == {
            "reason": "trimmed",
            "last_event_id": ids[1],
            "resumed_after": ids[6],
            "newest": ids[9],
        }
        assert gap.id == ids[6], "who is cut off now is not told again"
        assert [event.data for event in events] == texts(8, 9, 10)

    async def test_what_is_just_held_is_no_gap(self, autojump_clock: Clock) -> None:
        log = MemoryLog(max_events=3)
        ids = await filled(log, 10)
        async with Hub(log=log) as hub:
            events = await resumed(hub, ids[6], 3)
            assert hub.statistics().gaps == 0
        assert [event.data for event in events] == texts(8, 9, 10)

    async def test_another_epoch(self, autojump_clock: Clock) -> None:
        old, log = MemoryLog(), MemoryLog()
        [*_, last] = await filled(old, 3)
        ids = await filled(log, 5)
        async with Hub(log=log) as hub:
            gap, *events = await resumed(hub, last, 6)
        assert notice(gap)["reason"] == "epoch"
        assert notice(gap)["last_event_id"] == last
        assert [event.id for event in events] == ids

    async def test_another_epoch_and_nothing_held(self, autojump_clock: Clock) -> None:
        async with Hub() as hub:
            [gap] = await resumed(hub, "deadbeef.42", 1)
        assert notice(gap) == {
            "reason": "epoch",
            "last_event_id": "deadbeef.42",
            "resumed_after": f"{hub.log.epoch}.0",
            "newest": f"{hub.log.epoch}.0",
        }

    @pytest.mark.parametrize(
        "strange",
        [
            *("garbage", ".", "{epoch}.", "{epoch}.-1", "{epoch}.٣", "{epoch}.1e3", "x" * 5000),
            *("é☃\N{PILE OF POO}", "{epoch}.4", "{epoch}." + "9" * 40, "\0"),
            '"}\n\ndata: forged\n\n',
        ],
    )
    async def test_strange_ids_and_future_ones_get_all_that_is_held(
        self, strange: str, autojump_clock: Clock
    ) -> None:
        log = MemoryLog()
        ids = await filled(log, 3)
        last_event_id = strange.replace("{epoch}", log.epoch)
        async with Hub(log=log) as hub:
            gap, *events = await resumed(hub, last_event_id, 4)
        assert notice(gap)["last_event_id"] == last_event_id
        assert [event.id for event in events] == ids

    async def test_the_edge_of_a_full_log_with_a_busy_publisher(
        self, autojump_clock: Clock
    ) -> None:
        """What is read is sent, though it is trimmed by then: or it would never catch up."""
        log = MemoryLog(max_events=50)
        await filled(log, 60)
        hub = Hub(log=log, outbox=OutboxLimits(max_events=10_000))
        async with hub:

            async def publisher() -> None:
                for n in range(61, 1061):
                    await hub.publish(Event(str(n)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(publisher)
                async with hub.open_session(Request(last_event_id="old.1")) as (_, end):
                    data = b""
                    while b"data: 1060\n" not in data:
                        data += await end.receive()
        found = [event for event in decoded(data) if event.type != "gap"]
        gaps = [event for event in decoded(data) if event.type == "gap"]
        numbers = [int(event.data or "") for event in found]
        assert numbers == sorted(set(numbers))
        assert len(gaps) < 5
        assert len(numbers) > 1000

    async def test_a_slow_client_while_the_log_is_trimmed_under_it(
        self, autojump_clock: Clock
    ) -> None:
        """In bounded memory, and whatever it missed is announced where it is missing."""
        size = 1000
        log = MemoryLog(max_events=2000)
        limits = OutboxLimits(max_events=100, max_bytes=100 * size)
        hub = Hub(log=log, outbox=limits)
        for n in range(2000):
            await log.append(Event(str(n).ljust(size)), ["t"])
        events: list[Event] = []
        async with hub:
            request = Request(last_event_id=f"{log.epoch}.0")
            async with hub.open_session(request) as (session, end):
                published = 2000
                for _ in range(60):
                    queued = session.statistics().queued_bytes
                    assert queued <= max(limits.max_bytes, dispatch.PASS_BYTES) + 10_000
                    events += decoded(await end.receive())
                    for _ in range(400):
                        await hub.publish(Event(str(published).ljust(size)))
                        published += 1
                    await trio.testing.wait_all_tasks_blocked()
                while True:
                    events += decoded(await end.receive())
                    if events[-1].data == str(published - 1).ljust(size):
                        break
        expected = 0
        gaps = 0
        for event in events:
            if event.type == "gap":
                gaps += 1
                resumed_after = notice(event)["resumed_after"]
                assert int(resumed_after.rpartition(".")[2]) >= expected
                expected = int(resumed_after.rpartition(".")[2])
            else:
                assert event.data == str(expected).ljust(size), "missing, and not announced"
                expected += 1
        assert expected == published
        assert gaps > 2


async def texts_after(log: EventLog, last_event_id: str) -> list[str | None]:
    """What the log holds, in its order."""
    position = int(last_event_id.rpartition(".")[2])
    return [text for record in await log.read(position, 1000) for text in payloads(record.data)]


class TestHandOver:
    """At every interleaving of publishing with the steps of a replay."""

    @pytest.mark.parametrize("yield_every", [1, 256])
    @pytest.mark.parametrize("page", [1, 2, 256])
    @pytest.mark.parametrize(("steps", "seeds"), [(0, 4), (2, 2)])
    def test_no_gap_no_duplicate_no_disorder(
        self,
        yield_every: int,
        page: int,
        steps: int,
        seeds: int,
        monkeypatch: pytest.MonkeyPatch,
        figure: Callable[[str], None],
    ) -> None:
        """Two are published at once, at any moment; others hear them too, in a pass that yields."""
        monkeypatch.setattr(dispatch, "YIELD_EVERY", yield_every)
        monkeypatch.setattr(dispatch, "PASS_EVENTS", page)

        async def scenario(moment: Moment) -> None:
            log = MemoryLogWith(steps=steps)
            ids = await filled(log, 4)
            hub = Hub(log=log, limits=HubLimits(keep_alive=None))
            got: dict[str, bytes] = {}

            async def client(name: str, last_event_id: str, topics: list[str]) -> None:
                request = Request(last_event_id=last_event_id)
                got[name] = await stay(hub, request=request, topics=topics)

            async def publish() -> None:
                await hub.publish(Event("5"), "t")
                await hub.publish(Event("6"), "t")

            async with hub, trio.open_nursery() as nursery:
                for n in range(3):
                    nursery.start_soon(client, f"other {n}", "", ["t", f"other {n % 2}"])
                await trio.testing.wait_all_tasks_blocked()
                moment.inject(publish)
                nursery.start_soon(client, "back", ids[0], ["t", "last"])
                nursery.start_soon(client, "back again", ids[2], ["t", "last"])
                await trio.testing.wait_all_tasks_blocked()
                moment.end()
                if not moment.injected:
                    await publish()
                await hub.publish(Event("7"), "t")
                await trio.testing.wait_all_tasks_blocked()
                hub.end_all("test")
            assert set(await texts_after(log, ids[3])) == {"5", "6", "7"}
            since = {"back": 0, "back again": 2, "other 0": 3, "other 1": 3, "other 2": 3}
            for name, last in since.items():
                assert payloads(got[name]) == await texts_after(log, ids[last]), name

        figure(str(explore(scenario, seeds=range(seeds))))

    def test_with_the_id_of_an_event_that_others_are_only_about_to_get(self) -> None:
        """As its publisher may: it must not get that event again when the pass comes to it."""

        async def scenario(moment: Moment) -> None:
            hub = Hub(limits=HubLimits(keep_alive=None))
            got: dict[str, bytes] = {}

            async def publish_and_listen() -> None:
                event_id = await hub.publish(Event("1"))
                got[event_id] = await stay(hub, request=Request(last_event_id=event_id))

            async with hub, trio.open_nursery() as nursery:
                nursery.start_soon(stay, hub)
                moment.inject(lambda: hub.publish(Event("other")))
                nursery.start_soon(publish_and_listen)
                await trio.testing.wait_all_tasks_blocked()
                moment.end()
                await hub.publish(Event("2"))
                await trio.testing.wait_all_tasks_blocked()
                hub.end_all("test")
            [(event_id, data)] = got.items()
            assert payloads(data) == await texts_after(hub.log, event_id)

        explore(scenario, seeds=range(5))

    def test_while_the_log_is_trimmed(self, figure: Callable[[str], None]) -> None:
        """Nothing is missing without being announced, whenever it goes."""

        async def scenario(moment: Moment) -> None:
            log = MemoryLogWith(max_events=3, steps=1)
            ids = await filled(log, 4)
            hub = Hub(log=log, limits=HubLimits(keep_alive=None))
            got = b""

            async def client() -> None:
                nonlocal got
                got = await stay(hub, request=Request(last_event_id=ids[0]))

            async def publish() -> None:
                await hub.publish(Event("5"))
                await hub.publish(Event("6"))

            async with hub, trio.open_nursery() as nursery:
                await trio.testing.wait_all_tasks_blocked()
                moment.inject(publish)
                nursery.start_soon(client)
                await trio.testing.wait_all_tasks_blocked()
                moment.end()
                await hub.publish(Event("7"))
                await trio.testing.wait_all_tasks_blocked()
                hub.end_all("test")
            next_ = 2
            for event in decoded(got):
                assert event.id is not None
                position = int(event.id.rpartition(".")[2])
                if event.type == "gap":
                    assert position >= next_
                else:
                    assert position == next_, "missing, and not announced"
                next_ = position + 1
            assert next_ == log.newest + 1

        figure(str(explore(scenario, seeds=range(3))))


async def test_the_first_events_are_not_lost(autojump_clock: Clock) -> None:
    """What is published as soon as a session is open reaches it, before anyone receives."""
    hub = Hub()
    got: list[bytes] = []

    async def read(end: OutboxReceiveEnd) -> None:
        got.append(await end.receive())

    async with hub, hub.open_session(Request()) as (_, receive_end):
        await hub.publish(Event("first"))
        await read(receive_end)
    assert payloads(got[0]) == ["first"]
