"""One session: what it is told, what it sends, why and how it ends."""

from __future__ import annotations

import gc
import logging
import re
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from _sessions import payloads, receive_rest, recorder, stay

from trio_sse import (
    EndReason,
    Event,
    Hub,
    HubLimits,
    OutboxLimits,
    Request,
    Session,
    SessionEnded,
)
from trio_sse.testing import Moment, explore

Clock = trio.testing.MockClock


async def until_ended(session: Session) -> None:
    """A handler that does nothing of its own."""
    await trio.sleep_forever()


class TestRequest:
    def test_headers_by_name_and_joined(self) -> None:
        request = Request(raw_headers=((b"accept", b"a"), (b"x", b"\xe9"), (b"accept", b"b")))
        assert request.headers == {"accept": "a, b", "x": "é"}

    def test_query_values_in_order(self) -> None:
        request = Request(query_string="topic=a&topic=b%20c&empty=&topic=a")
        assert request.query == {"topic": ["a", "b c", "a"], "empty": [""]}

    async def test_a_session_has_it(self, autojump_clock: Clock) -> None:
        request = Request(path="/events", client="192.0.2.1", identity={"name": "me"})
        async with Hub() as hub, hub.open_session(request, topics=["b", "a"]) as (session, _):
            assert session.request is request
            assert session.topics == {"a", "b"}


class TestIdentity:
    async def test_ids_are_128_random_bits(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, trio.open_nursery() as nursery:
            sessions = [await nursery.start(stay, hub) for _ in range(100)]
            ids = {session.id for session in sessions}
            assert len(ids) == 100
            assert all(re.fullmatch(r"[\w-]{22}", id) for id in ids)
            assert set(hub.sessions) == ids
            assert all(id.startswith(hub.sessions[id].short_id) for id in ids)
            assert all(len(session.short_id) == 8 for session in sessions)
            hub.end_all("test")

    def test_nobody_else_makes_one(self) -> None:
        with pytest.raises(TypeError, match="Session has no public constructor; a hub makes it"):
            Session()  # type: ignore[call-arg]  # the mistake itself

    async def test_its_state_is_the_application_s(self, autojump_clock: Clock) -> None:
        async with (
            Hub() as hub,
            hub.open_session(Request()) as (one, _),
            hub.open_session(Request()) as (other, _),
        ):
            one.state["user"] = 42
            assert other.state == {}

    async def test_its_repr_tells_how_it_is(self, autojump_clock: Clock) -> None:
        seen: list[str] = []
        hub = Hub()
        hub.hooks.on_register(lambda session: seen.append(repr(session)))
        async with hub, hub.open_session(Request(), topics=["b", "a"]) as (session, _):
            seen.append(repr(session))
            session.send_nowait(Event("x"))
            session.end("enough")
            seen.append(repr(session))
            await session.wait_ended()
            seen.append(repr(session))
        name = session.short_id
        assert seen == [
            f"<Session {name} opening, topics ['a', 'b'], 0 queued>",
            f"<Session {name} open, topics ['a', 'b'], 0 queued>",
            f"<Session {name} open, application (enough), topics ['a', 'b'], 1 queued>",
            f"<Session {name} ended, application (enough), topics ['a', 'b'], 1 queued>",
        ]

    async def test_statistics(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (session, receive_end):
            event_id = await hub.publish(Event("one"))
            session.send_nowait(Event("two"))
            await trio.sleep(3)
            counts = session.statistics()
            assert (counts.state, counts.age) == ("open", 3)
            assert (counts.queued_events, counts.sent_events) == (2, 0)
            size = len(await receive_end.receive())
            counts = session.statistics()
            assert (counts.queued_events, counts.queued_bytes) == (0, 0)
            assert (counts.sent_events, counts.sent_bytes) == (2, size)
            assert counts.last_event_id == event_id
            session.end("test")
            await session.wait_ended()
            assert session.statistics().state == "ended"


class TestSending:
    async def test_in_order_with_what_is_published(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (session, receive_end):
            await session.send(Event("1"))
            await hub.publish(Event("2"))
            await trio.testing.wait_all_tasks_blocked()
            session.send_nowait(Event("3", id="own"))
            session.end("test")
            data = await receive_rest(receive_end)
        assert payloads(data) == ["1", "2", "3"]
        assert b"id: own\n" in data

    async def test_it_is_for_this_client_alone(self, autojump_clock: Clock) -> None:
        async with (
            Hub() as hub,
            hub.open_session(Request()) as (one, one_end),
            hub.open_session(Request()) as (other, other_end),
        ):
            await one.send(Event("secret"))
            hub.end_all("test")
            assert payloads(await receive_rest(one_end)) == ["secret"]
            assert await receive_rest(other_end) == b""
            assert await other.wait_ended()

    async def test_send_waits_for_room(self, autojump_clock: Clock) -> None:
        sent: list[int] = []

        async def handler(session: Session) -> None:
            for n in range(5):
                await session.send(Event(str(n)))
                sent.append(n)

        hub = Hub(outbox=OutboxLimits(max_events=2))
        async with hub, hub.open_session(Request(), handler=handler) as (_, receive_end):
            await trio.testing.wait_all_tasks_blocked()
            assert sent == [0, 1]
            assert payloads(await receive_end.receive()) == ["0", "1"]
            await trio.testing.wait_all_tasks_blocked()
            assert sent == [0, 1, 2, 3]
            assert payloads(await receive_rest(receive_end)) == ["2", "3", "4"]

    async def test_send_nowait_raises_where_send_would_wait(self, autojump_clock: Clock) -> None:
        hub = Hub(outbox=OutboxLimits(max_events=1))
        async with hub, hub.open_session(Request()) as (session, receive_end):
            session.send_nowait(Event("1"))
            with pytest.raises(trio.WouldBlock):
                session.send_nowait(Event("2"))
            assert session.is_open, "the overflow policy is for what is published"
            assert payloads(await receive_end.receive()) == ["1"]
            session.send_nowait(Event("3"))

    async def test_send_is_a_checkpoint(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (session, _):
            with trio.testing.assert_checkpoints():
                await session.send(Event("1"))

    async def test_to_an_ended_session(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (session, _):
            session.end("enough")
            match = f"session {session.short_id} has ended: application \\(enough\\)"
            with pytest.raises(SessionEnded, match=match):
                session.send_nowait(Event("1"))
            with pytest.raises(SessionEnded, match=match):
                await session.send(Event("1"))
            assert not session.has_backlog

    @pytest.mark.parametrize("how", ["end", "leave"])
    async def test_who_waits_for_room_is_told_of_the_end(
        self, how: str, autojump_clock: Clock
    ) -> None:
        told: list[str] = []
        hub = Hub(outbox=OutboxLimits(max_events=1))

        async def send(session: Session) -> None:
            with pytest.raises(SessionEnded):
                await session.send(Event("never"))
            told.append("told")

        async with (
            hub,
            trio.open_nursery() as nursery,
            hub.open_session(Request()) as (session, _),
        ):
            session.send_nowait(Event("1"))
            nursery.start_soon(send, session)
            nursery.start_soon(send, session)
            await trio.testing.wait_all_tasks_blocked()
            if how == "end":
                session.end("enough")
                await trio.testing.wait_all_tasks_blocked()
                assert told == ["told", "told"]
        assert told == ["told", "told"]

    @pytest.mark.parametrize("sender", ["handler", "other task"])
    def test_what_send_says_of_an_event_is_true_whenever_the_session_ends(
        self, sender: str, figure: Callable[[str], None]
    ) -> None:
        """Returned: the client gets it. Cancelled: it does not. In order, in either case."""

        async def scenario(moment: Moment) -> None:
            returned: list[str] = []
            cancelled: list[str] = []
            got: list[str | None] = []

            async def send_all(session: Session) -> None:
                for text in "abcdef":
                    try:
                        await session.send(Event(text))
                    except trio.Cancelled:
                        cancelled.append(text)
                        raise
                    returned.append(text)

            async def from_outside(session: Session) -> None:
                try:
                    await send_all(session)
                except SessionEnded:
                    return
                session.end("done")

            async def client() -> None:
                data = await stay(hub, handler=send_all if sender == "handler" else None)
                got.extend(payloads(data))

            hub = Hub(outbox=OutboxLimits(max_events=2), limits=HubLimits(keep_alive=None))
            async with hub, trio.open_nursery() as nursery:

                @hub.hooks.on_register
                def register(session: Session) -> None:
                    moment.inject(session.end, "whenever")
                    if sender != "handler":
                        nursery.start_soon(from_outside, session)

                nursery.start_soon(client)
            assert got[: len(returned)] == returned
            assert len(got) <= len(returned) + 1
            assert not set(cancelled) & set(got)

        figure(str(explore(scenario, seeds=range(3))))


class TestEnd:
    async def test_the_first_reason_stays(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hub = Hub()
        hub.hooks.on_unregister(recorder(calls, "unregister"))
        async with hub, hub.open_session(Request()) as (session, _):
            assert session.end_reason is None
            session.end("first")
            session.end(EndReason.REPLACED)
            session.end("first")
            assert session.end_reason == EndReason.application("first")
            assert not session.is_open
        session.end("long over")
        assert calls == [("unregister", EndReason("application", "first"))]

    async def test_what_is_queued_is_still_sent(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (session, receive_end):
            session.send_nowait(Event("last words"))
            session.end("test")
            await session.wait_ended()
            assert payloads(await receive_rest(receive_end)) == ["last words"]

    async def test_but_not_to_one_that_is_too_slow(self, autojump_clock: Clock) -> None:
        hub = Hub(outbox=OutboxLimits(max_events=1))
        async with hub, hub.open_session(Request()) as (session, receive_end):
            await hub.publish(Event("1"))
            await trio.testing.wait_all_tasks_blocked()
            await hub.publish(Event("2"))
            assert await session.wait_ended() == EndReason.TOO_SLOW
            assert await receive_rest(receive_end) == b""

    async def test_everyone_who_waits_for_the_end_gets_the_reason(
        self, autojump_clock: Clock
    ) -> None:
        reasons: list[EndReason] = []
        hub = Hub()

        @hub.hooks.on_unregister
        async def unregister(session: Session, reason: EndReason) -> None:
            await trio.sleep(1)
            assert reasons == [], "they wait for this too"

        async def wait(session: Session) -> None:
            reasons.append(await session.wait_ended())

        async with hub, hub.open_session(Request()) as (session, _):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait, session)
                await trio.testing.wait_all_tasks_blocked()
                session.end("test")
            with trio.testing.assert_checkpoints():
                await wait(session)
        assert reasons == [EndReason.application("test")] * 4

    def test_a_reason_reads_well(self) -> None:
        assert str(EndReason.CLIENT_LEFT) == "client-left"
        assert str(EndReason.application("by an operator")) == "application (by an operator)"
        assert EndReason("drained") == EndReason.DRAINED


async def leave(hub: Hub) -> None:
    async with hub.open_session(Request()):
        pass


async def handler_returns(hub: Hub) -> None:
    async def handler(session: Session) -> None:
        return

    await stay(hub, handler=handler)


async def handler_fails(hub: Hub) -> None:
    async def handler(session: Session) -> None:
        raise LookupError("no such page")

    await stay(hub, handler=handler)


async def drained(hub: Hub) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(stay, hub)
        await hub.drain()


async def too_slow(hub: Hub) -> None:
    async with hub.open_session(Request(), outbox=OutboxLimits(max_events=1)) as (session, _):
        for _ in range(3):
            await hub.publish(Event("x"))
            await trio.testing.wait_all_tasks_blocked()
        await session.wait_ended()


async def too_old(hub: Hub) -> None:
    async def handler(session: Session) -> None:
        session.cancel_scope.deadline = trio.current_time() + 7
        await trio.sleep_forever()

    await stay(hub, handler=handler)


async def replaced(hub: Hub) -> None:
    async with trio.open_nursery() as nursery:
        session = await nursery.start(stay, hub)
        session.end(EndReason.REPLACED)


async def told(hub: Hub) -> None:
    async with trio.open_nursery() as nursery:
        session = await nursery.start(stay, hub)
        session.end("by an operator")


async def scope_cancelled(hub: Hub) -> None:
    async with trio.open_nursery() as nursery:
        session = await nursery.start(stay, hub)
        session.cancel_scope.cancel()


async def all_told(hub: Hub) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(stay, hub)
        assert hub.end_all("maintenance") == 1
        assert hub.end_all("again") == 0


class TestReasons:
    @pytest.mark.parametrize(
        ("cause", "reason"),
        [
            (leave, EndReason.CLIENT_LEFT),
            (handler_returns, EndReason.HANDLER_RETURNED),
            (handler_fails, EndReason("handler-failed", "LookupError('no such page')")),
            (drained, EndReason.DRAINED),
            (too_slow, EndReason.TOO_SLOW),
            (too_old, EndReason("deadline", "open for 7 s")),
            (replaced, EndReason.REPLACED),
            (told, EndReason.application("by an operator")),
            (all_told, EndReason.application("maintenance")),
            (scope_cancelled, EndReason.application("its cancel scope was cancelled")),
        ],
    )
    async def test_each_is_what_hooks_log_and_counters_say(
        self,
        cause: Callable[[Hub], Awaitable[None]],
        reason: EndReason,
        caplog: pytest.LogCaptureFixture,
        autojump_clock: Clock,
    ) -> None:
        caplog.set_level(logging.INFO, "trio_sse")
        sessions: list[Session] = []
        calls: list[Any] = []
        hub = Hub()
        hub.hooks.on_register(sessions.append)
        hub.hooks.on_unregister(recorder(calls, "unregister"))
        async with hub:
            await cause(hub)
            [session] = sessions
            assert await session.wait_ended() == reason
            assert hub.sessions == {}
        assert session.end_reason == reason
        assert calls == [("unregister", reason)]
        statistics = hub.statistics()
        assert statistics.registered == 1
        assert statistics.unregistered == {reason.kind: 1}
        lines = [r.getMessage() for r in caplog.records if session.short_id in r.getMessage()]
        ends = [line for line in lines if f"session {session.short_id} ended: {reason}," in line]
        assert len(ends) == 1
        assert lines[0] == f"session {session.short_id} registered from None for all topics"

    async def test_leaving_and_cancelling_the_hub(self, autojump_clock: Clock) -> None:
        for cancel in (False, True):
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    async with Hub() as hub:
                        session = await nursery.start(stay, hub)
                        if cancel:
                            scope.cancel()
                assert await session.wait_ended() == EndReason.CANCELLED
            assert hub.statistics().unregistered == {"cancelled": 1}

    async def test_the_log_line_counts_what_the_client_got_or_will_get(
        self, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
    ) -> None:
        caplog.set_level(logging.INFO, "trio_sse")
        async with Hub() as hub:
            async with hub.open_session(Request()) as (session, receive_end):
                await session.send(Event("received"))
                await receive_end.receive()
                await trio.sleep(2)
                await session.send(Event("never received"))
            await session.wait_ended()
        assert caplog.records[-1].getMessage() == (
            f"session {session.short_id} ended: client-left, after 2.0 s and 1 events"
        )


class TestHandler:
    async def test_its_return_ends_the_session_and_what_it_started(
        self, autojump_clock: Clock
    ) -> None:
        cancelled: list[str] = []

        async def background() -> None:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.append("background")

        async def handler(session: Session) -> None:
            session.nursery.start_soon(background)
            await session.send(Event("done"))

        async with Hub() as hub:
            assert payloads(await stay(hub, handler=handler)) == ["done"]
        assert cancelled == ["background"]

    async def test_without_one_the_session_lives_on_what_is_published(
        self, autojump_clock: Clock
    ) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (session, receive_end):
            await trio.sleep(3600)
            await hub.publish(Event("still here"))
            await trio.testing.wait_all_tasks_blocked()
            assert session.is_open
            assert b"still here" in await receive_end.receive()

    async def test_its_crash_stays_at_home(
        self, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
    ) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (other, receive_end):
            await handler_fails(hub)
            await trio.testing.wait_all_tasks_blocked()
            assert other.is_open
            await hub.publish(Event("unharmed"))
            assert payloads(await receive_end.receive()) == ["unharmed"]
        [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert record.exc_info is not None

    async def test_its_clean_up_may_fail_after_another_reason(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hub = Hub()

        async def handler(session: Session) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError

        hub.hooks.on_error(recorder(calls, "error"))
        hub.hooks.on_unregister(recorder(calls, "unregister"))
        async with hub:
            async with hub.open_session(Request(), handler=handler) as (session, _):
                await trio.testing.wait_all_tasks_blocked()
            await session.wait_ended()
        (_, failure), (_, reason) = sorted(calls)
        assert isinstance(failure, LookupError)
        assert reason == EndReason.CLIENT_LEFT

    async def test_still_sending_when_the_client_leaves_is_no_failure(
        self, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hub = Hub()

        async def busy(session: Session) -> None:
            while True:
                await session.send(Event("x"))

        async def busy_at_once(session: Session) -> None:
            while True:
                session.send_nowait(Event("x"))
                await trio.lowlevel.cancel_shielded_checkpoint()

        hub.hooks.on_error(recorder(calls, "error"))
        for handler in (busy, busy_at_once):
            async with hub if handler is busy else Hub(hooks=hub.hooks) as opened:
                async with opened.open_session(Request(), handler=handler) as (session, end):
                    for _ in range(3):
                        await end.receive()
                assert await session.wait_ended() == EndReason.CLIENT_LEFT
        assert calls == []
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []

    async def test_that_another_session_has_ended_is_its_failure(
        self, autojump_clock: Clock
    ) -> None:
        hub = Hub()

        async def relay(session: Session) -> None:
            await other.send(Event("are you there?"))

        async with hub:
            async with hub.open_session(Request()) as (other, _):
                pass
            async with hub.open_session(Request(), handler=relay) as (session, _):
                assert (await session.wait_ended()).kind == "handler-failed"

    async def test_it_may_take_its_time_when_it_is_told_to_end(self, autojump_clock: Clock) -> None:
        async def handler(session: Session) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(2, shield=True):
                    await trio.sleep(1)

        async with Hub() as hub, hub.open_session(Request(), handler=handler) as (session, _):
            await trio.testing.wait_all_tasks_blocked()
            session.end("test")
            await session.wait_ended()
            assert trio.current_time() == 1

    async def test_one_that_ends_its_own_session(self, autojump_clock: Clock) -> None:
        async def handler(session: Session) -> None:
            session.end("I am done")
            await trio.sleep_forever()

        async with Hub() as hub, hub.open_session(Request(), handler=handler) as (session, _):
            assert await session.wait_ended() == EndReason.application("I am done")

    async def test_one_that_ends_it_and_returns_or_fails(self, autojump_clock: Clock) -> None:
        async def returns(session: Session) -> None:
            session.end("I am done")

        async def fails(session: Session) -> None:
            session.end("I am done")
            raise LookupError

        async with Hub() as hub:
            for handler in (returns, fails):
                async with hub.open_session(Request(), handler=handler) as (session, _):
                    assert await session.wait_ended() == EndReason.application("I am done")


class TestDeadline:
    async def test_the_maximum_age_to_the_second(self, autojump_clock: Clock) -> None:
        async with Hub(limits=HubLimits(max_age=60)) as hub:
            async with hub.open_session(Request(), handler=until_ended) as (session, _):
                await hub.publish(Event("activity does not matter"))
                reason = await session.wait_ended()
            assert (reason.kind, reason.text) == ("deadline", "open for 60 s")
            assert trio.current_time() == 60

    async def test_it_may_be_moved(self, autojump_clock: Clock) -> None:
        hub = Hub(limits=HubLimits(max_age=60))
        async with hub, hub.open_session(Request()) as (session, _):
            await trio.sleep(50)
            session.cancel_scope.deadline += 100
            await session.wait_ended()
            assert trio.current_time() == 160

    async def test_there_is_none_by_default(self, autojump_clock: Clock) -> None:
        async with Hub() as hub, hub.open_session(Request()) as (session, _):
            await trio.sleep(80_000)
            assert session.is_open


class TestMemory:
    @pytest.mark.parametrize("how", ["client left", "handler failed", "told", "told at once"])
    async def test_a_session_dies_by_reference_counting_alone(
        self, how: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
    ) -> None:
        """The cyclic collector is half the price of a connection once thousands are open."""
        monkeypatch.setattr(logging.getLogger("trio_sse"), "propagate", False)  # to pytest
        alive: weakref.WeakSet[Session] = weakref.WeakSet()
        hub = Hub()

        async def handler(session: Session) -> None:
            if how == "handler failed":
                raise LookupError
            await trio.sleep_forever()

        def register(session: Session) -> None:
            alive.add(session)
            if how == "told at once":
                session.end("test")

        hub.hooks.on_register(register)
        gc.collect()
        gc.disable()
        try:
            async with hub:
                if how == "told":
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(stay, hub)
                        await trio.testing.wait_all_tasks_blocked()
                        hub.end_all("x")
                else:
                    async with hub.open_session(Request(), handler=handler) as (_, end):
                        await trio.testing.wait_all_tasks_blocked()
                        await hub.publish(Event("x"))
                    del _, end
                await trio.testing.wait_all_tasks_blocked()
                assert Counter(map(type, alive)) == {}
        finally:
            gc.enable()
