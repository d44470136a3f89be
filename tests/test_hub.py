"""The hub: opening and closing, limits, failing, draining."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from _logs import MemoryLogWith
from _sessions import decoded, payloads, receive_rest, recorder, stay

from trio_sse import (
    Decoder,
    EndReason,
    Event,
    Hooks,
    Hub,
    HubClosed,
    HubLimits,
    MemoryLog,
    OutboxLimits,
    Refused,
    Request,
    Session,
)
from trio_sse.dispatch import MAX_BACKLOG
from trio_sse.testing import Moment, explore

Clock = trio.testing.MockClock


def state_of(hub: Hub) -> str:
    """As `Hub.state`; a function, so that a type checker expects it to change."""
    return hub.state


class TestOpening:
    async def test_its_life(self, autojump_clock: Clock) -> None:
        hub = Hub()
        assert (state_of(hub), dict(hub.sessions)) == ("new", {})
        assert repr(hub).startswith("<Hub new, 0 sessions, <MemoryLog ")
        async with hub as opened:
            assert opened is hub
            assert state_of(hub) == "open"
        assert state_of(hub) == "closed"
        await hub.wait_closed()

    async def test_opening_it_twice(self, autojump_clock: Clock) -> None:
        hub = Hub()
        async with hub:
            with pytest.raises(RuntimeError, match="a hub is opened once: make another"):
                async with hub:
                    pytest.fail("it is open already")
            await hub.publish(Event("it has not noticed"))
        with pytest.raises(RuntimeError, match=r"as in `async with trio_sse\.Hub\(\) as hub`"):
            async with hub:
                pytest.fail("it is closed already")

    async def test_opening_it_twice_at_once(self, autojump_clock: Clock) -> None:
        hub = Hub(log=MemoryLogWith())
        outcomes: list[str] = []

        async def open_() -> None:
            try:
                async with hub:
                    outcomes.append("opened")
                    await trio.sleep(1)
            except RuntimeError:
                outcomes.append("refused")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_)
            nursery.start_soon(open_)
        assert outcomes in (["opened", "refused"], ["refused", "opened"])

    async def test_a_log_that_cannot_be_opened(self, autojump_clock: Clock) -> None:
        log = MemoryLogWith()
        log.enter_failure = OSError("no such directory")
        hub = Hub(log=log)
        with pytest.raises(OSError, match="no such directory"):
            async with hub:
                pytest.fail("it could not be opened")
        assert state_of(hub) == "closed"
        await hub.wait_closed()
        with pytest.raises(HubClosed, match="has failed"):
            await hub.publish(Event("x"))

    async def test_the_body_s_exception_comes_out_as_it_is(self, autojump_clock: Clock) -> None:
        failure = LookupError("the body's own")
        with pytest.raises(LookupError) as caught:
            async with Hub() as hub, hub.open_session(Request()):
                raise failure
        assert caught.value is failure
        assert state_of(hub) == "closed"

    async def test_the_body_s_groups_too(self, autojump_clock: Clock) -> None:
        with pytest.RaisesGroup(LookupError, allow_unwrapped=False):
            async with Hub(), trio.open_nursery():
                raise LookupError

    async def test_it_may_be_cancelled_at_any_time(self, figure: Callable[[str], None]) -> None:
        async def scenario(moment: Moment) -> None:
            hub = Hub()
            with trio.CancelScope() as scope:
                moment.inject(scope.cancel)
                async with hub:
                    await hub.publish(Event("x"))
                    await trio.sleep(1)
            assert hub.state in ("closed", "new")

        figure(str(await trio.to_thread.run_sync(explore, scenario)))

    async def test_two_hubs_know_nothing_of_each_other(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        one, other = Hub(), Hub(limits=HubLimits(max_sessions=1))
        one.hooks.on_register(recorder(calls, "one"))
        other.hooks.on_register(recorder(calls, "other"))
        async with (
            one,
            other,
            one.open_session(Request(client="192.0.2.1")) as (one_session, one_end),
            other.open_session(Request(client="192.0.2.1")) as (other_session, other_end),
        ):
            assert calls == [("one",), ("other",)]
            assert dict(one.sessions) == {one_session.id: one_session}
            assert dict(other.sessions) == {other_session.id: other_session}
            await one.publish(Event("for one"))
            await trio.testing.wait_all_tasks_blocked()
            assert one.log.epoch != other.log.epoch
            assert not other_session.has_backlog
            assert one.statistics().dispatched == 1
            assert other.statistics().dispatched == 0
            one.end_all("only here")
            assert payloads(await receive_rest(one_end)) == ["for one"]
            assert other_session.is_open
            await one.drain()
            assert (state_of(one), state_of(other)) == ("closed", "open")
            await other.publish(Event("for other"))
            assert payloads(await other_end.receive()) == ["for other"]


class TestPublish:
    async def test_to_a_hub_that_is_not_open(self, autojump_clock: Clock) -> None:
        hub = Hub()
        with pytest.raises(HubClosed, match="not open yet: publish inside `async with hub:`"):
            await hub.publish(Event("x"))
        async with hub:
            pass
        with pytest.raises(HubClosed, match="the hub is closed"):
            await hub.publish(Event("x"))
        assert hub.statistics().published == 0

    @pytest.mark.parametrize(
        ("event", "topic", "message"),
        [
            (Event("x", id="7"), "t", r"hub\.publish\(Event\(id='7'\)\): the log numbers"),
            (Event(comment="x"), "t", r'for an empty event write Event\(""\)'),
            (Event(retry=5), "t", r"without data it would reach no listener"),
            (Event("x"), (), r'As in publish\(event, "news"\)'),
        ],
    )
    async def test_what_cannot_be_published(
        self, event: Event, topic: Any, message: str, autojump_clock: Clock
    ) -> None:
        async with Hub() as hub:
            with pytest.raises(ValueError, match=message):
                await hub.publish(event, topic)
            assert hub.log.newest == 0

    async def test_the_id_is_the_place_in_the_log(self, autojump_clock: Clock) -> None:
        async with Hub() as hub:
            ids = [await hub.publish(Event(str(n))) for n in range(3)]
        assert ids == [f"{hub.log.epoch}.{n}" for n in (1, 2, 3)]
        assert hub.statistics().published == 3

    async def test_a_generator_of_topics(self, autojump_clock: Clock) -> None:
        async with Hub() as hub:
            await hub.publish(Event("x"), (topic for topic in "aba"))
            [record] = await hub.log.read(0, 1)
        assert record.topics == ("a", "b")


class TestFailing:
    """A hub whose dispatcher died must not go on."""

    async def test_a_log_that_cannot_be_read_ends_everything(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        log = MemoryLogWith()
        hub = Hub(log=log)
        failure = OSError("disk gone")
        hub.hooks.on_unregister(recorder(calls, "unregister"))
        got: list[bytes] = []

        async def client() -> None:
            got.append(await stay(hub))

        async def body(nursery: trio.Nursery) -> None:
            async with hub:
                nursery.start_soon(client)
                await trio.testing.wait_all_tasks_blocked()
                log.break_(failure)
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            with pytest.raises(OSError, match="disk gone") as caught:
                await body(nursery)
        assert caught.value is failure
        assert hub.failure is failure
        assert calls == [("unregister", EndReason.CANCELLED)]
        assert got == [b""], "the response ends properly"
        assert state_of(hub) == "closed"
        for attempt in (self.publish, self.open_session):
            with pytest.raises(HubClosed, match="the hub has failed; open a new one") as closed:
                await attempt(hub)
            assert closed.value.__cause__ is failure

    async def publish(self, hub: Hub) -> None:
        await hub.publish(Event("x"))

    async def open_session(self, hub: Hub) -> None:
        async with hub.open_session(Request()):
            pytest.fail("it is closed")

    @pytest.mark.parametrize("how", ["fails", "is left"])
    async def test_it_takes_nothing_more_while_the_last_hooks_run(
        self, how: str, autojump_clock: Clock
    ) -> None:
        log = MemoryLogWith()
        hub = Hub(log=log)

        @hub.hooks.on_unregister
        async def unregister(session: Session, reason: EndReason) -> None:
            await trio.sleep(3)

        async def try_it() -> None:
            await trio.sleep(1)
            for attempt in (self.publish, self.open_session):
                with pytest.raises(HubClosed):
                    await attempt(hub)
            assert trio.current_time() == 1
            await hub.drain(100)
            assert trio.current_time() == 3

        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_it)
            try:
                async with hub:
                    nursery.start_soon(stay, hub)
                    await trio.testing.wait_all_tasks_blocked()
                    if how == "fails":
                        log.break_(OSError())
                        await trio.sleep_forever()
            except OSError:
                pass
        assert trio.current_time() == 3

    @pytest.mark.parametrize("how", ["fails", "is left", "drains"])
    async def test_publishers_that_wait_are_told(self, how: str, autojump_clock: Clock) -> None:
        log = MemoryLogWith()
        hub = Hub(log=log)
        told: list[str] = []
        stuck = trio.Event()

        async def never(after: int, limit: int) -> Any:
            await stuck.wait()
            raise OSError

        log.read = never  # type: ignore[method-assign]  # a log that is stuck

        async def publisher() -> None:
            with suppress(HubClosed):
                while True:
                    await hub.publish(Event("x"))
            told.append("told")

        async with trio.open_nursery() as nursery:
            try:
                async with hub:
                    for _ in range(3):
                        nursery.start_soon(publisher)
                    await trio.testing.wait_all_tasks_blocked()
                    assert hub.statistics().published == MAX_BACKLOG
                    if how == "fails":
                        stuck.set()
                        await trio.sleep_forever()
                    if how == "drains":
                        await hub.drain(1)
            except OSError:
                pass
        assert told == ["told"] * 3

    async def test_a_log_that_takes_no_more_is_the_publisher_s_news(
        self, autojump_clock: Clock
    ) -> None:
        log = MemoryLogWith()
        log.append_failure = OSError("disk full")
        async with Hub(log=log) as hub:
            with pytest.raises(OSError, match="disk full"):
                await hub.publish(Event("x"))
            log.append_failure = None
            await hub.publish(Event("y"))
            assert hub.statistics().published == 1


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "right"),
        [
            ({"max_sessions": 0}, "max_sessions=None"),
            ({"max_sessions": -1}, "max_sessions=None"),
            ({"max_sessions_per_client": 0}, "max_sessions_per_client=None"),
            ({"max_age": 0}, "max_age=None"),
            ({"max_age": -1}, "max_age=None"),
            ({"max_age": math.inf}, "max_age=None"),
            ({"max_idle": math.nan}, "max_idle=None"),
            ({"max_idle": 0}, "max_idle=None"),
            ({"keep_alive": 0}, "keep_alive=None"),
            ({"keep_alive": -15}, "keep_alive=None"),
            ({"keep_alive": math.inf}, "keep_alive=None"),
            ({"max_topics": 0}, "max_topics=256"),
            ({"max_topics": None}, "max_topics=256"),
        ],
    )
    def test_values_that_make_no_sense(self, limits: dict[str, Any], right: str) -> None:
        [(name, value)] = limits.items()
        with pytest.raises(ValueError, match=rf"HubLimits\({name}={value}\).*HubLimits\({right}\)"):
            HubLimits(**limits)

    async def test_sessions_in_all(self, autojump_clock: Clock) -> None:
        async with Hub(limits=HubLimits(max_sessions=2)) as hub:
            async with hub.open_session(Request()), hub.open_session(Request()) as (second, _):
                with pytest.raises(Refused) as caught:
                    async with hub.open_session(Request()):
                        pytest.fail("there is no room")
                assert caught.value.status == 503
                assert caught.value.retry_after == 5
                second.end("make room")
                await second.wait_ended()
                async with hub.open_session(Request()) as (third, _):
                    assert third.is_open
            assert hub.statistics().refused == 1
            assert hub.statistics().registered == 3

    async def test_sessions_of_one_client(self, autojump_clock: Clock) -> None:
        limits = HubLimits(max_sessions_per_client=1)
        async with Hub(limits=limits) as hub:
            async with hub.open_session(Request(client="192.0.2.1")) as (session, _):
                with pytest.raises(Refused) as caught:
                    async with hub.open_session(Request(client="192.0.2.1")):
                        pytest.fail("it has one")
                assert caught.value.status == 429
                assert caught.value.retry_after == 5
                async with (
                    hub.open_session(Request(client="192.0.2.2")),
                    hub.open_session(Request(client=None)),
                    hub.open_session(Request(client=None)),
                ):
                    assert len(hub.sessions) == 4
            await session.wait_ended()
            async with hub.open_session(Request(client="192.0.2.1")):
                pass

    async def test_those_that_are_opening_or_closing_count(self, autojump_clock: Clock) -> None:
        hub = Hub(limits=HubLimits(max_sessions=1))

        async def slow(session: Session, reason: EndReason | None = None) -> None:
            await trio.sleep(2)

        hub.hooks.on_register(slow)
        hub.hooks.on_unregister(slow)
        refused: list[float] = []

        async def knock() -> None:
            while True:
                await trio.sleep(1 - 0.01)
                try:
                    async with hub.open_session(Request()):
                        return
                except Refused:
                    refused.append(round(trio.current_time()))

        async with hub, trio.open_nursery() as nursery:
            nursery.start_soon(knock)
            async with hub.open_session(Request()):
                await trio.sleep(0.5)
        assert refused == [1, 2, 3, 4]

    async def test_topics_of_one_session(self, autojump_clock: Clock) -> None:
        async with Hub(limits=HubLimits(max_topics=2)) as hub:
            async with hub.open_session(Request(), topics=["a", "b", "a"]):
                pass
            with pytest.raises(Refused, match="400: 3 topics; at most 2 are allowed"):
                async with hub.open_session(Request(), topics=["a", "b", "c"]):
                    pytest.fail("too many")

    async def test_one_string_is_no_list_of_topics(self, autojump_clock: Clock) -> None:
        async with Hub() as hub:
            with pytest.raises(TypeError, match=r"open_session\(topics=\['news'\]\)"):
                async with hub.open_session(Request(), topics="news"):
                    pytest.fail("four topics: n, e, w, s")

    @pytest.mark.parametrize("way", ["leave", "refused", "failed", "ended", "cancelled"])
    async def test_all_counts_go_back_to_zero(self, way: str, autojump_clock: Clock) -> None:
        hub = Hub()

        @hub.hooks.on_register
        async def register(session: Session) -> None:
            await trio.sleep(1)
            if way == "refused":
                raise Refused
            if way == "failed":
                raise LookupError

        async with hub:
            try:
                with trio.move_on_after(0.5 if way == "cancelled" else math.inf):
                    async with hub.open_session(Request(client="192.0.2.1")) as (session, _):
                        if way == "ended":
                            session.end("test")
                            await session.wait_ended()
            except Refused:
                pass
            await trio.sleep(1)
            await trio.testing.wait_all_tasks_blocked()
            assert dict(hub.sessions) == {}
            there = hub._registry
            assert (there.alive, there.alive_per_client, there.receive_ends) == ({}, {}, {})
            assert hub._dispatcher._audiences._all == {}

    async def test_a_session_may_have_bounds_of_its_own(self, autojump_clock: Clock) -> None:
        hub = Hub(outbox=OutboxLimits(max_events=1))
        tight = OutboxLimits(max_events=1, overflow="drop-newest")
        async with (
            hub,
            hub.open_session(Request()) as (strict, _),
            hub.open_session(Request(), outbox=OutboxLimits(max_events=10)) as (roomy, _),
            hub.open_session(Request(), outbox=tight) as (lossy, lossy_end),
        ):
            for n in range(5):
                await hub.publish(Event(str(n)))
                await trio.testing.wait_all_tasks_blocked()
            assert strict.end_reason == EndReason.TOO_SLOW
            assert (roomy.is_open, roomy.statistics().queued_events) == (True, 5)
            assert (lossy.is_open, lossy.statistics().dropped_events) == (True, 4)
            assert payloads(await lossy_end.receive()) == ["0", "gap"]
            assert hub.statistics().dropped == 4


class TestStatistics:
    async def test_they_tell_what_it_has_done(self, autojump_clock: Clock) -> None:
        hub = Hub()
        async with hub:
            async with (
                hub.open_session(Request(), topics=["a"]) as (_, a_end),
                hub.open_session(Request()) as (_, b_end),
            ):
                await hub.publish(Event("1"), "a")
                await hub.publish(Event("2"), "b")
                await trio.testing.wait_all_tasks_blocked()
                size = len(await a_end.receive()) + len(await b_end.receive())
                now = hub.statistics()
                assert (now.state, now.sessions, now.registered) == ("open", 2, 2)
            await trio.testing.wait_all_tasks_blocked()
        after = hub.statistics()
        assert (after.state, after.sessions, after.registered) == ("closed", 0, 2)
        assert after.unregistered == {"client-left": 2}
        assert (after.published, after.dispatched) == (2, 2)
        assert (after.delivered, after.delivered_bytes) == (3, size)
        assert (after.dropped, after.replayed, after.gaps, after.refused) == (0, 0, 0, 0)
        assert after.dispatch_passes in (1, 2)
        assert after.dispatch_seconds > 0

    async def test_the_registry_is_live_and_read_only(self, autojump_clock: Clock) -> None:
        async with Hub() as hub:
            sessions = hub.sessions
            async with hub.open_session(Request()) as (session, _):
                assert dict(sessions) == {session.id: session}
                with pytest.raises(TypeError):
                    del sessions[session.id]  # type: ignore[attr-defined]  # the mistake itself


@asynccontextmanager
async def reading(hub: Hub, **options: Any) -> AsyncIterator[tuple[Session, list[bytes]]]:
    """A client that reads as fast as it can; its session, and what it has got."""
    got: list[bytes] = []

    async def client(task_status: trio.TaskStatus[Session]) -> None:
        async with hub.open_session(Request(), **options) as (session, receive_end):
            task_status.started(session)
            with suppress(trio.EndOfChannel, trio.ClosedResourceError):
                while True:
                    got.append(await receive_end.receive())

    async with trio.open_nursery() as nursery:
        session = await nursery.start(client)
        yield session, got


class TestDraining:
    async def test_it_refuses_flushes_says_goodbye_and_closes(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hub = Hub()
        hub.hooks.on_unregister(recorder(calls, "unregister"))
        async with hub, reading(hub) as (session, got):
            await hub.publish(Event("last news"))
            await hub.drain()
            assert state_of(hub) == "closed"
            assert calls == [("unregister", EndReason.DRAINED)]
            assert await session.wait_ended() == EndReason.DRAINED
        assert trio.current_time() == 0, "nobody had anything to wait for"
        news, farewell = decoded(b"".join(got))
        assert news.data == "last news"
        assert (farewell.data, farewell.comment) == (None, "draining")
        assert farewell.retry is not None

    async def test_new_sessions_are_refused(self, autojump_clock: Clock) -> None:
        async def slow(session: Session) -> None:
            await session.draining()
            await trio.sleep(3)

        async with Hub() as hub, reading(hub, handler=slow), trio.open_nursery() as nursery:
            nursery.start_soon(hub.drain)
            await trio.sleep(1)
            assert state_of(hub) == "draining"
            with pytest.raises(Refused) as caught:
                async with hub.open_session(Request()):
                    pytest.fail("it drains")
            assert (caught.value.status, caught.value.retry_after) == (503, 5)
            assert hub.statistics().refused == 1

    async def test_what_is_published_meanwhile_is_still_delivered(
        self, autojump_clock: Clock
    ) -> None:
        async def handler(session: Session) -> None:
            await session.draining()
            await trio.sleep(1)
            await hub.publish(Event("leaving"))

        async with Hub() as hub, reading(hub) as (_, got), reading(hub, handler=handler):
            await hub.drain()
        assert payloads(b"".join(got)) == ["leaving"]

    async def test_the_retry_differs_from_client_to_client(self, autojump_clock: Clock) -> None:
        retries: list[int | None] = []

        async def client() -> None:
            retries.extend(event.retry for event in decoded(await stay(hub)))

        async with Hub(rng=random.Random(7)) as hub, trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(client)
            await trio.testing.wait_all_tasks_blocked()
            await hub.drain()
        waits = [retry for retry in retries if retry is not None]
        assert len(waits) == 200
        assert len(set(waits)) > 150
        assert 1000 <= min(waits) < 1200
        assert 2800 < max(waits) < 3000

    async def test_the_more_there_are_the_wider_it_is_spread(self, autojump_clock: Clock) -> None:
        spreads: list[int] = []

        class Spy(random.Random):
            def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
                assert stop is not None
                spreads.append(stop - start)
                return start

        async with Hub(rng=Spy()) as hub, trio.open_nursery() as nursery:
            for _ in range(3000):
                nursery.start_soon(stay, hub)
            await trio.testing.wait_all_tasks_blocked()
            await hub.drain()
        assert spreads == [6000] * 3000

    async def test_handlers_that_are_told_may_say_goodbye(self, autojump_clock: Clock) -> None:
        async def polite(session: Session) -> None:
            await session.draining()
            await trio.sleep(3)
            await session.send(Event("goodbye"))

        async with Hub() as hub, reading(hub, handler=polite) as (session, got):
            await hub.drain(10)
            assert trio.current_time() == 3
        assert payloads(b"".join(got)) == ["goodbye"]
        assert session.end_reason == EndReason.HANDLER_RETURNED

    async def test_but_for_half_the_grace_only(self, autojump_clock: Clock) -> None:
        async def forever(session: Session) -> None:
            await session.draining()
            await trio.sleep_forever()

        async with Hub() as hub, reading(hub, handler=forever) as (session, got):
            await hub.drain(10)
            assert trio.current_time() == 5
        assert session.end_reason == EndReason.DRAINED
        assert decoded(b"".join(got))[-1].comment == "draining"

    async def test_nobody_waits_for_handlers_that_are_not_told(self, autojump_clock: Clock) -> None:
        async def unaware(session: Session) -> None:
            await trio.sleep_forever()

        async with Hub() as hub, reading(hub, handler=unaware):
            await hub.drain(10)
        assert trio.current_time() == 0

    async def test_draining_returns_at_once_when_it_has_begun(self, autojump_clock: Clock) -> None:
        async def late(session: Session) -> None:
            await session.draining()
            await session.draining()

        async with Hub() as hub, reading(hub, handler=late) as (session, _):
            await hub.drain()
        assert session.end_reason == EndReason.HANDLER_RETURNED

    async def test_a_client_that_does_not_read_is_cut_off_after_the_grace(
        self, autojump_clock: Clock
    ) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (session, receive_end):
            await hub.publish(Event("unread"))
            await hub.drain(7)
            assert trio.current_time() == 7
            assert receive_end.closed
            assert session.end_reason == EndReason.DRAINED
            with pytest.raises(trio.ClosedResourceError):
                await receive_end.receive()

    async def test_one_that_reads_late_gets_everything(self, autojump_clock: Clock) -> None:
        got: list[bytes] = []

        async def client(task_status: trio.TaskStatus[None]) -> None:
            async with hub.open_session(Request()) as (_, receive_end):
                task_status.started()
                await trio.sleep(6)
                got.append(await receive_rest(receive_end))

        async with Hub() as hub, trio.open_nursery() as nursery:
            await nursery.start(client)
            await hub.publish(Event("news"))
            await hub.drain(10)
            assert trio.current_time() == 6
        assert payloads(b"".join(got)) == ["news"]
        assert b"retry: " in got[0]

    async def test_a_full_outbox_still_takes_the_goodbye(self, autojump_clock: Clock) -> None:
        hub = Hub(outbox=OutboxLimits(max_events=1))
        async with hub, hub.open_session(Request()) as (_, receive_end):
            await hub.publish(Event("full"))
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hub.drain, 5)
                await trio.sleep(1)
                data = await receive_rest(receive_end)
        assert payloads(data) == ["full"]
        assert b"retry: " in data

    async def test_a_log_that_hangs_does_not_hold_it_up(self, autojump_clock: Clock) -> None:
        log = MemoryLogWith()

        async def never(after: int, limit: int) -> Any:
            await trio.sleep_forever()

        async with Hub(log=log) as hub, reading(hub) as (session, got):
            await trio.testing.wait_all_tasks_blocked()
            log.read = never  # type: ignore[method-assign]  # a log that hangs
            await hub.publish(Event("x"))
            await hub.drain(4)
        assert trio.current_time() == 2, "so that there is time for the goodbye"
        assert session.end_reason == EndReason.DRAINED
        assert [block.comment for block in decoded(b"".join(got))] == ["draining"]

    async def test_unregister_hooks_have_run_when_it_returns(self, autojump_clock: Clock) -> None:
        calls: list[str] = []
        hub = Hub(hooks=Hooks(timeout=60))

        @hub.hooks.on_unregister
        async def unregister(session: Session, reason: EndReason) -> None:
            await trio.sleep(20)
            calls.append("unregistered")

        async with hub, reading(hub), reading(hub):
            await hub.drain(1)
            assert calls == ["unregistered"] * 2
            assert trio.current_time() == 20

    async def test_with_no_grace_at_all(self, autojump_clock: Clock) -> None:
        hub = Hub()
        async with hub, reading(hub) as (session, got), hub.open_session(Request()):
            await hub.publish(Event("unread"))
            await hub.drain(0)
        assert trio.current_time() == 0
        assert session.end_reason == EndReason.DRAINED
        assert [b.comment for b in decoded(b"".join(got))][-1] == "draining", "it listened"

    @pytest.mark.parametrize("grace", [0, 1e-9, 0.001])
    async def test_with_next_to_none_on_a_real_clock(self, grace: float) -> None:
        """Each step begins a little after the one before it."""
        async with Hub() as hub, hub.open_session(Request()) as (session, _):
            await hub.drain(grace)
        assert session.end_reason == EndReason.DRAINED
        assert hub.failure is None

    @pytest.mark.parametrize("grace", [-1, -0.001, math.nan])
    async def test_a_grace_that_makes_no_sense(self, grace: float, autojump_clock: Clock) -> None:
        async with Hub() as hub:
            with pytest.raises(ValueError, match=r"hub\.drain\(.*as in hub\.drain\(10\)"):
                await hub.drain(grace)
            assert state_of(hub) == "open"

    async def test_for_ever_if_need_be(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, trio.open_nursery() as nursery:
            async with hub.open_session(Request()):
                nursery.start_soon(hub.drain, math.inf)
                await trio.sleep(5000)
                assert state_of(hub) == "draining"
            await hub.wait_closed()

    async def test_twice(self, autojump_clock: Clock) -> None:
        done: list[float] = []

        async def drain(grace: float) -> None:
            await hub.drain(grace)
            done.append(trio.current_time())

        hub = Hub()
        async with hub, hub.open_session(Request()):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drain, 6)
                await trio.sleep(1)
                nursery.start_soon(drain, 600)
                nursery.start_soon(drain, 0)
            await drain(5)
        assert done == [6, 6, 6, 6]

    async def test_a_new_or_closed_one(self, autojump_clock: Clock) -> None:
        hub = Hub()
        with pytest.raises(HubClosed, match="nothing to drain"):
            await hub.drain()
        async with hub:
            pass
        await hub.drain()

    async def test_by_a_session_s_own_handler(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []

        async def suicidal(session: Session) -> None:
            await hub.drain(10)
            pytest.fail("its session ended first")

        hub = Hub()
        hub.hooks.on_unregister(recorder(calls, "unregister"))
        async with hub, reading(hub), reading(hub, handler=suicidal):
            await hub.wait_closed()
        assert calls == [("unregister", EndReason.DRAINED)] * 2
        assert trio.current_time() == 0

    async def test_by_hooks(self, autojump_clock: Clock) -> None:
        """They wait for themselves: until their time is over."""
        for add in ("on_register", "on_unregister"):
            start = trio.current_time()
            hub = Hub()

            async def hook(session: Session, *_: object, hub: Hub = hub) -> None:
                await hub.drain(1)

            getattr(hub.hooks, add)(hook)
            async with hub:
                try:
                    async with hub.open_session(Request()):
                        pass
                except (Refused, HubClosed):
                    pass
                await hub.wait_closed()
            assert trio.current_time() - start <= 6

    async def test_its_caller_may_be_cancelled(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, hub.open_session(Request()):
            with trio.move_on_after(1) as scope:
                await hub.drain(5)
            assert scope.cancelled_caught
            assert state_of(hub) == "draining"
            await hub.wait_closed()
            assert trio.current_time() == 5

    @pytest.mark.parametrize("takes", [2, 100])
    async def test_while_a_session_registers(self, takes: float, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hub = Hub(hooks=Hooks(timeout=200))

        @hub.hooks.on_register
        async def register(session: Session) -> None:
            await trio.sleep(takes)

        hub.hooks.on_unregister(recorder(calls, "unregister"))

        async def client() -> None:
            try:
                calls.append(await stay(hub))
            except HubClosed as exc:
                calls.append(str(exc))

        async with trio.open_nursery() as nursery, hub:
            nursery.start_soon(client)
            await trio.sleep(1)
            await hub.drain(10)
        if takes == 2:
            assert calls[0] == ("unregister", EndReason.DRAINED)
            assert decoded(calls[1])[0].comment == "draining"
        else:
            assert calls == ["the hub was closed while the session registered"]
            assert trio.current_time() == 11

    async def test_while_the_hub_is_left(self, autojump_clock: Clock) -> None:
        done: list[str] = []

        async def drain() -> None:
            await hub.drain(100)
            done.append("drained")

        async with trio.open_nursery() as nursery, Hub() as hub:
            session = await nursery.start(stall, hub)
            nursery.start_soon(drain)
            await trio.sleep(1)
            assert state_of(hub) == "draining"
        assert done == ["drained"]
        assert trio.current_time() == 1
        assert session.end_reason == EndReason.DRAINED

    def test_at_any_time(self, figure: Callable[[str], None]) -> None:
        """Opening, leaving and publishing go on around it; nothing hangs, all is over after it."""

        async def scenario(moment: Moment) -> None:
            hub = Hub(limits=HubLimits(keep_alive=None))
            registered: list[Session] = []
            unregistered: list[EndReason] = []
            hub.hooks.on_register(registered.append)
            hub.hooks.on_unregister(lambda session, reason: unregistered.append(reason))

            async def client(last_event_id: str = "") -> None:
                with suppress(Refused, HubClosed):
                    await stay(hub, request=Request(last_event_id=last_event_id))

            async def publish() -> str:
                try:
                    return await hub.publish(Event("x"))
                except HubClosed:
                    return ""

            async def brief() -> None:
                try:
                    async with hub.open_session(Request()):
                        pass
                except (Refused, HubClosed):
                    pass

            async with trio.open_nursery() as nursery:
                async with hub:
                    moment.inject(hub.drain, 5)
                    nursery.start_soon(client)
                    first = await publish()
                    nursery.start_soon(brief)
                    await publish()
                    nursery.start_soon(client, first)
                    await publish()
                    await hub.drain(5)
                    assert hub.state == "closed"
                    assert dict(hub.sessions) == {}
                    assert len(registered) == len(unregistered) <= 3
                assert hub._registry.alive == {}

        figure(str(explore(scenario, seeds=range(4))))

    @pytest.mark.parametrize("injected", ["another drain", "a session's end"])
    def test_with_no_grace_the_goodbye_names_no_place_that_was_not_reached(
        self, injected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though a pass is under way, and sessions end while the others are told."""
        for module in ("dispatch", "hub"):
            monkeypatch.setattr(f"trio_sse.{module}.YIELD_EVERY", 1)

        async def scenario(moment: Moment) -> None:
            hub = Hub(limits=HubLimits(keep_alive=None))
            got: list[bytes] = []

            async def client() -> None:
                async with hub.open_session(Request()) as (_, receive_end):
                    with suppress(trio.EndOfChannel, trio.ClosedResourceError):
                        while True:
                            got.append(await receive_end.receive())
                    check(b"".join(got))

            def check(data: bytes) -> None:
                last = f"{hub.log.epoch}.0"
                for block in decoded(data):
                    if block.comment == "draining":
                        assert block.id in (None, "", last)
                    last = block.id or last

            async with trio.open_nursery() as nursery, hub:
                await nursery.start(stay, hub)
                nursery.start_soon(client)
                session = await nursery.start(stay, hub)
                await trio.testing.wait_all_tasks_blocked()
                if injected == "another drain":
                    moment.inject(hub.drain, 0)
                else:
                    moment.inject(session.end, "test")
                for text in ("1", "2", "3"):
                    with suppress(HubClosed):
                        await hub.publish(Event(text))
                await hub.drain(0)
            assert hub.failure is None

        explore(scenario, seeds=range(4))

    async def test_it_is_logged(
        self, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
    ) -> None:
        caplog.set_level(logging.INFO, "trio_sse")
        async with Hub() as hub, reading(hub), reading(hub):
            await hub.drain()
        assert "draining 2 sessions" in caplog.messages

    async def test_others_can_wait_for_it(self, autojump_clock: Clock) -> None:
        seen: list[tuple[str, str]] = []

        async def watch(wait: Callable[[], Any], name: str) -> None:
            await wait()
            seen.append((name, hub.state))

        async with Hub() as hub, trio.open_nursery() as nursery, hub.open_session(Request()):
            nursery.start_soon(watch, hub.wait_draining, "draining")
            nursery.start_soon(watch, hub.wait_closed, "closed")
            await trio.testing.wait_all_tasks_blocked()
            await hub.drain(3)
        assert seen == [("draining", "draining"), ("closed", "closed")]
        assert hub.failure is None


async def stall(hub: Hub, *, task_status: trio.TaskStatus[Session]) -> None:
    """A client that reads nothing, and stays until there is no hub any more."""
    async with hub.open_session(Request()) as (session, _):
        task_status.started(session)
        await hub.wait_closed()


class TestLeavingASession:
    async def test_it_ends_as_the_client_s_leaving(self, autojump_clock: Clock) -> None:
        async with Hub() as hub:
            async with hub.open_session(Request()) as (session, receive_end):
                pass
            assert receive_end.closed
            assert await session.wait_ended() == EndReason.CLIENT_LEFT

    async def test_leaving_does_not_wait_for_hooks(self, autojump_clock: Clock) -> None:
        hub = Hub()

        @hub.hooks.on_unregister
        async def unregister(session: Session, reason: EndReason) -> None:
            await trio.sleep(4)

        async with hub:
            async with hub.open_session(Request()) as (session, _):
                pass
            assert trio.current_time() == 0
            await session.wait_ended()
            assert trio.current_time() == 4

    async def test_an_exception_in_it_is_the_caller_s(self, autojump_clock: Clock) -> None:
        async with Hub() as hub:
            with pytest.raises(LookupError):
                async with hub.open_session(Request()) as (session, _):
                    raise LookupError
            assert await session.wait_ended() == EndReason.CLIENT_LEFT
            assert state_of(hub) == "open"


class TestGoodbye:
    async def test_it_says_where_each_session_was(self, autojump_clock: Clock) -> None:
        async with Hub() as hub:
            event_id = await hub.publish(Event("before anyone came"))
            await trio.testing.wait_all_tasks_blocked()
            async with (
                hub.open_session(Request()) as (_, receive_end),
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(hub.drain, 1)
                decoder = Decoder(every_block=True)
                (goodbye,) = decoder.feed(await receive_end.receive())
                receive_end.close()
            assert goodbye.data is None
            assert decoder.last_event_id == event_id
            assert goodbye.retry is not None

    async def test_one_that_was_still_replaying_keeps_its_place(
        self, autojump_clock: Clock
    ) -> None:
        log = MemoryLog()
        for _ in range(600):
            await log.append(Event("x"), ["a"])
        async with Hub(log=log, outbox=OutboxLimits(max_events=1)) as hub:
            request = Request(last_event_id=f"{log.epoch}.0")
            async with hub.open_session(request) as (_, receive_end):
                await trio.testing.wait_all_tasks_blocked()  # one page is queued, one waits
                decoder = Decoder()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hub.drain, 1)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    seen = decoder.feed(await receive_end.receive())
                    receive_end.close()
            assert decoder.last_event_id == seen[-1].id != f"{log.epoch}.600"

    async def test_one_that_is_replaying_gets_the_rest_first(self, autojump_clock: Clock) -> None:
        log = MemoryLog()
        for _ in range(600):
            await log.append(Event("x"), ["a"])
        async with Hub(log=log, outbox=OutboxLimits(max_events=1)) as hub:
            request = Request(last_event_id=f"{log.epoch}.0")
            async with (
                hub.open_session(request) as (_, receive_end),
                trio.open_nursery() as nursery,
            ):
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(hub.drain, 5)
                decoder = Decoder()
                seen: list[Event] = []
                with suppress(trio.EndOfChannel):
                    while True:
                        await trio.sleep(0.1)
                        seen += decoder.feed(await receive_end.receive())
            assert len(seen) == 600
            assert decoder.last_event_id == f"{log.epoch}.600"

    async def test_one_that_replays_and_stalls_holds_up_nobody(self, autojump_clock: Clock) -> None:
        log = MemoryLog()
        for _ in range(600):
            await log.append(Event("x"), ["a"])
        async with Hub(log=log, outbox=OutboxLimits(max_events=1)) as hub:
            request = Request(last_event_id=f"{log.epoch}.0")
            async with (
                hub.open_session(request) as (stalled, _),
                hub.open_session(Request()) as (_, receive_end),
                trio.open_nursery() as nursery,
            ):
                await trio.testing.wait_all_tasks_blocked()
                start = trio.current_time()
                nursery.start_soon(hub.drain, 8)
                await receive_rest(receive_end)
                assert trio.current_time() == start
                assert await stalled.wait_ended() == EndReason.DRAINED
                assert trio.current_time() == start + 4

    def test_what_was_accepted_goes_out_first(self, figure: Callable[[str], None]) -> None:
        """Every event whose publisher got an id reaches who is there, or was refused."""

        async def scenario(moment: Moment) -> None:
            hub = Hub()
            accepted: list[str] = []
            received = b""

            async def publish_all() -> None:
                with suppress(HubClosed):
                    for _ in range(5):
                        event_id = await hub.publish(Event("x"))
                        accepted.append(event_id)

            async with (
                hub,
                trio.open_nursery() as nursery,
                hub.open_session(Request()) as (_, receive_end),
            ):
                nursery.start_soon(publish_all)
                nursery.start_soon(publish_all)
                moment.inject(hub.drain, 5)
                await trio.testing.wait_all_tasks_blocked()
                moment.end()
                nursery.start_soon(hub.drain, 5)
                received = await receive_rest(receive_end)
            events = [event for event in decoded(received) if event.data is not None]
            in_order = sorted(accepted, key=lambda each: int(each.rpartition(".")[2]))
            assert [event.id for event in events] == in_order

        figure(str(explore(scenario, seeds=range(4))))
