"""Keep-alive comments and idle deadlines, to the second, for all sessions by one task."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from _sessions import payloads, stay

from trio_sse import Event, Hub, HubLimits, MemoryLog, OutboxLimits, Request, dispatch
from trio_sse._keeper import KEEP_ALIVE
from trio_sse.outbox import OutboxReceiveEnd

Clock = trio.testing.MockClock


async def arrivals(receive_end: OutboxReceiveEnd, until: float) -> list[tuple[float, bytes]]:
    """What comes, and when, until that time."""
    found: list[tuple[float, bytes]] = []
    with trio.move_on_at(until):
        while True:
            data = await receive_end.receive()
            found.append((trio.current_time(), data))
    return found


class TestKeepAlive:
    def test_it_is_a_comment(self) -> None:
        assert KEEP_ALIVE == b":\n\n"

    async def test_every_15_seconds_of_silence(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (_, receive_end):
            found = await arrivals(receive_end, 50)
        assert found == [(15, KEEP_ALIVE), (30, KEEP_ALIVE), (45, KEEP_ALIVE)]

    async def test_what_is_sent_puts_it_off(self, autojump_clock: Clock) -> None:
        hub = Hub()
        async with (
            hub,
            trio.open_nursery() as nursery,
            hub.open_session(Request(), topics=["a"]) as (session, receive_end),
        ):

            async def busy() -> None:
                await trio.sleep(10)
                await hub.publish(Event("published"), "a")
                await trio.sleep(10)
                session.send_nowait(Event("sent at once"))
                await trio.sleep(10)
                await session.send(Event("sent"))
                await trio.sleep(10)
                await hub.publish(Event("for others"), "b")

            nursery.start_soon(busy)
            found = await arrivals(receive_end, 50)
        assert [(when, KEEP_ALIVE) for when in (45,)] == found[3:]
        assert [when for when, _ in found] == [10, 20, 30, 45]

    async def test_a_busy_session_gets_none(self, autojump_clock: Clock) -> None:
        async with (
            Hub() as hub,
            trio.open_nursery() as nursery,
            hub.open_session(Request()) as (_, receive_end),
        ):

            async def busy() -> None:
                for _ in range(10):
                    await trio.sleep(14)
                    await hub.publish(Event("tick"))

            nursery.start_soon(busy)
            found = await arrivals(receive_end, 141)
        assert len(found) == 10
        assert not any(KEEP_ALIVE in data for _, data in found)

    async def test_one_that_has_a_backlog_gets_none(self, autojump_clock: Clock) -> None:
        """Nobody reads there: comments would pile up behind what waits already."""
        async with Hub() as hub, hub.open_session(Request()) as (session, receive_end):
            await hub.publish(Event("unread"))
            await trio.sleep(100)
            assert session.statistics().queued_events == 1
            assert KEEP_ALIVE not in (await receive_end.receive()).replace(b"\n\n", b"")
            assert session.statistics().queued_bytes == 0
            found = await arrivals(receive_end, 130)
        assert [when for when, _ in found] == [105, 120]

    async def test_not_even_a_second_comment_behind_the_first(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (_, receive_end):
            await trio.sleep(100)
            assert await receive_end.receive() == KEEP_ALIVE

    async def test_silence_is_counted_from_when_the_session_is_open(
        self, autojump_clock: Clock
    ) -> None:
        """Also of one whose hooks took their time, beside one whose did not."""
        hub = Hub(limits=HubLimits(max_idle=20))

        @hub.hooks.on_register
        async def slow(session: object) -> None:
            if trio.current_time() == 0:
                await trio.sleep(4)

        async with hub, trio.open_nursery() as nursery:
            found: dict[str, list[tuple[float, bytes]]] = {}

            async def client(name: str) -> None:
                async with hub.open_session(Request()) as (_, receive_end):
                    found[name] = await arrivals(receive_end, 20)

            nursery.start_soon(client, "slow")
            await trio.sleep(2)
            nursery.start_soon(client, "quick")
        assert [when for when, _ in found["quick"]] == [17]
        assert [when for when, _ in found["slow"]] == [19]

    async def test_the_interval_can_be_set(self, autojump_clock: Clock) -> None:
        hub = Hub(limits=HubLimits(keep_alive=0.5))
        async with hub, hub.open_session(Request()) as (_, receive_end):
            assert len(await arrivals(receive_end, 10.1)) == 20

    async def test_none_switches_it_off(self, autojump_clock: Clock) -> None:
        hub = Hub(limits=HubLimits(keep_alive=None))
        async with hub, hub.open_session(Request()) as (_, receive_end):
            assert await arrivals(receive_end, 100_000) == []

    async def test_one_task_does_it_for_all(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, trio.open_nursery() as nursery:
            before = trio.lowlevel.current_statistics().tasks_living
            for _ in range(300):
                nursery.start_soon(stay, hub)
            await trio.testing.wait_all_tasks_blocked()
            # One in this nursery, and one in the hub's.
            assert trio.lowlevel.current_statistics().tasks_living == before + 2 * 300
            await trio.sleep(15)
            await trio.testing.wait_all_tasks_blocked()
            statistics = [session.statistics() for session in hub.sessions.values()]
            assert {s.sent_bytes for s in statistics} == {len(KEEP_ALIVE)}
            hub.end_all("test")

    async def test_ended_sessions_leave_nothing_behind(self, autojump_clock: Clock) -> None:
        """Not even where their time would come only in a day."""
        day = 86400
        async with Hub(limits=HubLimits(keep_alive=None, max_idle=day)) as hub:
            for _ in range(3000):
                async with hub.open_session(Request()) as (session, _):
                    pass
                await session.wait_ended()
            assert len(hub._registry.keeper._due) < 1000
            async with hub.open_session(Request()) as (session, _):
                reason = await session.wait_ended()
            assert reason.kind == "deadline"
            assert trio.current_time() == day


class TestIdle:
    async def test_it_ends_a_session_without_events(self, autojump_clock: Clock) -> None:
        async with Hub(limits=HubLimits(max_idle=40)) as hub:
            async with hub.open_session(Request()) as (session, receive_end):
                found = await arrivals(receive_end, 39)
                assert [when for when, _ in found] == [15, 30], "comments are no events"
                with pytest.raises(trio.EndOfChannel):
                    await receive_end.receive()
            assert trio.current_time() == 40
            reason = await session.wait_ended()
            assert (reason.kind, reason.text) == ("deadline", "idle for 40 s")
            assert hub.statistics().unregistered == {"deadline": 1}

    @pytest.mark.parametrize("keep_alive", [None, 3, 15, 100])
    async def test_every_event_puts_it_off(
        self, keep_alive: float | None, autojump_clock: Clock
    ) -> None:
        hub = Hub(limits=HubLimits(max_idle=10, keep_alive=keep_alive))
        async with hub, hub.open_session(Request()) as (session, _):
            await trio.sleep(9)
            await hub.publish(Event("published"))
            await trio.sleep(9)
            session.send_nowait(Event("sent at once"))
            await trio.sleep(9)
            await session.send(Event("sent"))
            await session.wait_ended()
            assert trio.current_time() == 37

    async def test_so_does_every_page_of_a_replay(
        self, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
    ) -> None:
        monkeypatch.setattr(dispatch, "PASS_EVENTS", 1)
        log = MemoryLog()
        for text in "1234":
            await log.append(Event(text), ["t"])
        hub = Hub(log=log, limits=HubLimits(max_idle=10), outbox=OutboxLimits(max_events=1))
        request = Request(last_event_id=f"{log.epoch}.0")
        async with hub, hub.open_session(request) as (session, receive_end):
            for text in "1234":
                assert payloads(await receive_end.receive()) == [text]
                assert session.is_open
                await trio.sleep(9)

    async def test_an_event_for_others_does_not(self, autojump_clock: Clock) -> None:
        hub = Hub(limits=HubLimits(max_idle=10))
        async with hub, hub.open_session(Request(), topics=["a"]) as (session, _):
            await trio.sleep(9)
            await hub.publish(Event("for others"), "b")
            await session.wait_ended()
            assert trio.current_time() == 10

    async def test_it_counts_for_a_client_that_does_not_read_too(
        self, autojump_clock: Clock
    ) -> None:
        limits = HubLimits(max_idle=10)
        hub = Hub(limits=limits, outbox=OutboxLimits(max_events=1, overflow="drop-oldest"))
        async with hub, hub.open_session(Request()) as (session, _):
            await hub.publish(Event("unread"))
            reason = await session.wait_ended()
            assert (reason.kind, trio.current_time()) == ("deadline", 10)
