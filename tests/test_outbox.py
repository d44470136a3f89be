"""The memory channel between a session and its request: bounds, policies, closing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import get_args

import pytest
import trio
import trio.testing
from _sessions import decoded, payloads
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trio_sse import Event, OutboxLimits, Record, encode
from trio_sse.outbox import (
    CONTROL_ROOM,
    Batch,
    OutboxReceiveEnd,
    OutboxSendEnd,
    Overflow,
    Tally,
    open_outbox,
)


def record(
    position: int, topics: tuple[str, ...] = ("t",), size: int | None = None, data: str = ""
) -> Record:
    """A record of exactly ``size`` bytes, if that is given."""
    text = data or str(position)
    if size is not None:
        text = text.ljust(size - len(encode(Event(""), id=f"e.{position}")), ".")
    return Record(position, f"e.{position}", topics, encode(Event(text), id=f"e.{position}"))


def batch(*positions: int, size: int | None = None) -> Batch:
    return Batch([record(position, size=size) for position in positions])


def make(
    overflow: Overflow = "close", *, max_events: int = 3, max_bytes: int = 10_000
) -> tuple[OutboxSendEnd, OutboxReceiveEnd]:
    limits = OutboxLimits(max_events=max_events, max_bytes=max_bytes, overflow=overflow)
    return open_outbox(limits, Tally())


def told(data: bytes) -> list[int | str | None]:
    """Payloads in order; where the client is told of dropped events, how many."""
    return [
        json.loads(event.data)["dropped"] if event.type == "gap" else event.data
        for event in decoded(data)
        if event.data is not None
    ]


class TestLimits:
    @pytest.mark.parametrize("bounds", [{"max_events": 0}, {"max_bytes": 0}, {"max_events": -1}])
    def test_an_outbox_that_holds_nothing_is_refused(self, bounds: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"OutboxLimits\(.*as in OutboxLimits\(max_events="):
            OutboxLimits(**bounds)

    def test_an_unknown_policy_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"overflow='block'.*'close', 'drop-oldest'"):
            OutboxLimits(overflow="block")  # type: ignore[arg-type]  # the mistake itself


class TestReceiving:
    async def test_all_that_is_queued_comes_as_one_write(self) -> None:
        send, receive = make()
        assert send.put(batch(1))
        assert send.put(batch(2, 3))
        assert payloads(await receive.receive()) == ["1", "2", "3"]

    async def test_a_waiting_receiver_is_woken(self, autojump_clock: trio.abc.Clock) -> None:
        send, receive = make()
        got: list[bytes] = []

        async def take() -> None:
            got.append(await receive.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            assert got == []
            send.put(batch(1))
        assert payloads(got[0]) == ["1"]

    async def test_what_is_queued_is_received_after_the_sender_closed(self) -> None:
        send, receive = make()
        with send:
            send.put(batch(1))
        assert payloads(await receive.receive()) == ["1"]
        for _ in range(2):
            with pytest.raises(trio.EndOfChannel):
                await receive.receive()

    async def test_a_waiting_receiver_is_told_of_the_end(self) -> None:
        send, receive = make()
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                with pytest.raises(trio.EndOfChannel):
                    await receive.receive()

            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            with send:
                pass

    async def test_cancelled_it_has_taken_nothing(self) -> None:
        send, receive = make()
        send.put(batch(1))
        with trio.CancelScope() as scope:
            scope.cancel()
            await receive.receive()
        assert scope.cancelled_caught
        with trio.move_on_after(0):
            await trio.sleep_forever()
        assert payloads(await receive.receive()) == ["1"]

    async def test_cancelled_while_it_waits_it_can_wait_again(self) -> None:
        send, receive = make()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive.receive)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        send.put(batch(1))
        assert payloads(await receive.receive()) == ["1"]

    async def test_it_is_a_checkpoint_also_when_something_is_queued(self) -> None:
        send, receive = make()
        send.put(batch(1))
        with trio.testing.assert_checkpoints():
            await receive.receive()

    async def test_only_one_task_may_wait(self) -> None:
        _, receive = make()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive.receive)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await receive.receive()
            nursery.cancel_scope.cancel()

    async def test_closing_wakes_and_forgets(self) -> None:
        send, receive = make()
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await receive.receive()

            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            receive.close()
        receive.close()
        assert receive.closed
        assert send.put(batch(1)), "what is sent to nobody is no overflow"
        with pytest.raises(trio.ClosedResourceError):
            await receive.receive()

    async def test_closed_it_counts_nothing_as_queued(self) -> None:
        send, receive = make()
        send.put(batch(1, 2))
        receive.close()
        counts = receive.statistics()
        assert (counts.queued_events, counts.queued_bytes, counts.sent_events) == (0, 0, 0)

    async def test_statistics(self) -> None:
        tally = Tally()
        send, receive = open_outbox(OutboxLimits(), tally)
        both = batch(1, 2)
        send.put(both)
        send.put(Batch.control(b":\n\n"))
        counts = receive.statistics()
        assert (counts.queued_events, counts.queued_bytes) == (2, len(both.data) + 3)
        assert (counts.sent_events, counts.sent_bytes, counts.last_event_id) == (0, 0, "")
        await receive.receive()
        counts = receive.statistics()
        assert (counts.queued_events, counts.queued_bytes) == (0, 0)
        assert (counts.sent_events, counts.sent_bytes) == (2, len(both.data) + 3)
        assert counts.last_event_id == "e.2"
        assert (tally.delivered, tally.delivered_bytes) == (2, len(both.data) + 3)

    async def test_an_event_without_id_leaves_the_last_one(self) -> None:
        send, receive = make()
        send.put(batch(1))
        send.put(Batch([Record(0, "", (), encode(Event("no id")))]))
        await receive.receive()
        assert receive.statistics().last_event_id == "e.1"


class TestSending:
    async def test_it_waits_for_room(self) -> None:
        send, receive = make(max_events=1)
        send.put(batch(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send.send, batch(2))
            await trio.testing.wait_all_tasks_blocked()
            assert receive.statistics().queued_events == 1
            assert payloads(await receive.receive()) == ["1"]
        assert payloads(await receive.receive()) == ["2"]

    async def test_cancelled_it_has_not_sent(self) -> None:
        send, receive = make(max_events=1)
        send.put(batch(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send.send, batch(2))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        with trio.CancelScope() as scope:
            scope.cancel()
            await send.send(batch(3))
        assert payloads(await receive.receive()) == ["1"]

    @pytest.mark.parametrize("end", ["sender", "receiver"])
    async def test_closing_either_end_releases_those_who_wait(self, end: str) -> None:
        send, receive = make(max_events=1)
        send.put(batch(1))
        async with trio.open_nursery() as nursery:
            for position in range(2, 5):
                nursery.start_soon(send.send, batch(position))
            await trio.testing.wait_all_tasks_blocked()
            if end == "receiver":
                receive.close()
            else:
                with send:
                    pass
        if end == "sender":
            assert payloads(await receive.receive()) == ["1"]

    async def test_at_once_it_raises_where_it_would_wait(self) -> None:
        send, _ = make(max_events=1)
        send.put_nowait(batch(1))
        with pytest.raises(trio.WouldBlock):
            send.put_nowait(batch(2))

    @pytest.mark.parametrize("overflow", get_args(Overflow))
    async def test_whoever_waits_for_room_is_never_dropped(self, overflow: Overflow) -> None:
        """Not even where events that did not fit were dropped just now, and a small one would."""
        send, receive = make(overflow, max_bytes=100)
        send.put(batch(1, size=60))
        send.put(batch(2, size=60))  # too much: the policy decides
        async with trio.open_nursery() as nursery:
            if overflow == "drop-newest":
                with pytest.raises(trio.WouldBlock):
                    send.put_nowait(batch(3, size=20))
            nursery.start_soon(send.send, batch(4, size=20))
            await trio.testing.wait_all_tasks_blocked()
            data = await receive.receive()
        if receive.statistics().queued_events:
            data += await receive.receive()
        assert payloads(data)[-1] == "4".ljust(20 - len(encode(Event(""), id="e.4")), ".")


class TestBounds:
    async def test_by_events(self) -> None:
        send, receive = make(max_events=3)
        assert send.put(batch(1, 2))
        assert send.put(batch(3))
        assert not send.put(batch(4))
        assert payloads(await receive.receive()) == ["1", "2", "3"]

    async def test_by_bytes(self) -> None:
        send, receive = make(max_events=100, max_bytes=100)
        assert send.put(batch(1, size=60))
        assert send.put(batch(2, size=40))
        assert not send.put(batch(3, size=20))
        assert receive.statistics().queued_bytes == 100

    async def test_an_empty_one_takes_any_one_write(self) -> None:
        send, _ = make(max_events=1, max_bytes=1)
        assert send.put(batch(1, 2, 3))
        assert not send.put(batch(4))

    async def test_after_receiving_there_is_room_again(self) -> None:
        send, receive = make(max_events=1)
        for position in range(1, 4):
            assert send.put(batch(position))
            assert payloads(await receive.receive()) == [str(position)]

    @pytest.mark.parametrize("overflow", get_args(Overflow))
    async def test_control_bytes_pass_a_full_one_but_not_without_end(
        self, overflow: Overflow
    ) -> None:
        send, receive = make(overflow, max_events=1, max_bytes=100)
        send.put(batch(1, size=95))
        notice = Batch.control(b": notice\n\n")
        assert send.put(notice)
        while send.put(notice):
            pass
        assert receive.statistics().queued_bytes <= 100 + CONTROL_ROOM


class TestDropOldest:
    async def test_the_hole_is_announced_where_it_is(self) -> None:
        send, receive = make("drop-oldest")
        for position in range(1, 8):
            assert send.put(batch(position))
        assert told(await receive.receive()) == [4, "5", "6", "7"]
        assert receive.statistics().dropped_events == 4

    async def test_a_shared_batch_loses_only_what_it_must(self) -> None:
        send, receive = make("drop-oldest")
        shared = batch(1, 2, 3)
        send.put(shared)
        send.put(batch(4))
        assert told(await receive.receive()) == [1, "2", "3", "4"]
        assert len(shared.records) == 3, "it is others' too"

    async def test_by_bytes(self) -> None:
        send, receive = make("drop-oldest", max_bytes=100)
        for position in (1, 2, 3):
            send.put(batch(position, size=40))
        assert receive.statistics().queued_bytes == 80
        data = await receive.receive()
        assert [event.id for event in decoded(data)] == ["", "e.2", "e.3"]

    async def test_control_bytes_are_kept(self) -> None:
        send, receive = make("drop-oldest", max_events=1)
        send.put(Batch.control(b": kept\n\n"))
        send.put(batch(1))
        send.put(batch(2))
        blocks = decoded(await receive.receive())
        assert [block.comment or block.data for block in blocks if block.type != "gap"] == [
            "kept",
            "2",
        ]

    async def test_each_drop_is_told_once(self) -> None:
        send, receive = make("drop-oldest", max_events=1)
        send.put(batch(1))
        send.put(batch(2))
        assert told(await receive.receive()) == [1, "2"]
        send.put(batch(3))
        assert told(await receive.receive()) == ["3"]


class TestDropNewest:
    async def test_the_hole_is_announced_where_it_is(self) -> None:
        send, receive = make("drop-newest")
        for position in range(1, 8):
            assert send.put(batch(position))
        assert told(await receive.receive()) == ["1", "2", "3", 4]
        send.put(batch(8))
        assert told(await receive.receive()) == ["8"]

    async def test_once_something_is_missing_nothing_fits_until_it_is_told(self) -> None:
        """Or a small event would pass a large one that was dropped, before the notice."""
        send, receive = make("drop-newest", max_bytes=100)
        send.put(batch(1, size=60))
        send.put(batch(2, size=60))
        send.put(batch(3, size=20))
        data = await receive.receive()
        assert [event.id or event.type for event in decoded(data)][:1] == ["e.1"]
        assert json.loads(decoded(data)[-1].data or "")["dropped"] == 2

    async def test_what_fits_of_a_batch_is_taken(self) -> None:
        send, receive = make("drop-newest")
        send.put(batch(1, 2))
        send.put(batch(3, 4, 5))
        assert told(await receive.receive()) == ["1", "2", "3", 2]


class TestConflate:
    async def test_the_latest_of_each_set_of_topics_is_kept(self) -> None:
        send, receive = make("conflate")
        for position, topics in enumerate([("a",), ("b",), ("a",), ("b",), ("a", "b")], 1):
            assert send.put(Batch([record(position, topics)]))
        assert told(await receive.receive()) == [2, "3", "4", "5"]
        assert receive.statistics().dropped_events == 2

    async def test_topics_are_a_set(self) -> None:
        send, receive = make("conflate", max_events=1)
        send.put(Batch([record(1, ("a", "b"))]))
        assert send.put(Batch([record(2, ("b", "a"))]))
        assert told(await receive.receive()) == [1, "2"]

    async def test_nothing_is_lost_before_it_is_full(self) -> None:
        send, receive = make("conflate")
        for position in (1, 2, 3):
            send.put(batch(position))
        assert told(await receive.receive()) == ["1", "2", "3"]

    async def test_what_was_sent_to_this_session_alone_is_kept(self) -> None:
        send, receive = make("conflate", max_events=2)
        send.put(Batch([Record(0, "", (), encode(Event("mine")))]))
        send.put(batch(1))
        assert send.put(batch(2))
        assert told(await receive.receive()) == [1, "mine", "2"]

    async def test_too_many_topics_close(self) -> None:
        send, _ = make("conflate", max_events=2)
        assert send.put(Batch([record(1, ("a",))]))
        assert send.put(Batch([record(2, ("b",))]))
        assert not send.put(Batch([record(3, ("c",))]))


class FakeWriter:
    """A kernel buffer that takes ``room`` bytes; frames as ``<...>``."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.written = b""

    def frame(self, data: bytes) -> bytes:
        return b"<" + data + b">"

    def write(self, batch: Batch) -> bytes:
        framed = self.frame(batch.data)
        taken, rest = framed[: self.room], framed[self.room :]
        self.written += taken
        self.room -= len(taken)
        return rest


class TestDirectWrites:
    async def test_it_is_used_only_while_the_receiver_waits(self) -> None:
        send, receive = make()
        writer = FakeWriter(room=10_000)
        receive.write_directly(writer)
        first, second, third = batch(1), batch(2), batch(3)
        send.put(first)
        assert writer.written == b"", "the receiver may have bytes in its hands"
        assert await receive.receive() == b"<" + first.data + b">"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive.receive)
            await trio.testing.wait_all_tasks_blocked()
            send.put(second)
            send.put(third)
            assert writer.written == b"<" + second.data + b"><" + third.data + b">"
            assert receive.statistics().sent_events == 3
            nursery.cancel_scope.cancel()

    async def test_what_the_kernel_did_not_take_goes_first(self) -> None:
        send, receive = make()
        writer = FakeWriter(room=5)
        receive.write_directly(writer)
        first, second = batch(1), batch(2)
        got: list[bytes] = []

        async def take() -> None:
            got.append(await receive.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            send.put(first)
            send.put(second)
        assert writer.written + got[0] == b"<" + first.data + b"><" + second.data + b">"

    async def test_half_a_frame_survives_being_too_slow(self) -> None:
        """The client could not make sense of what follows if it were cut."""
        send, receive = make()
        writer = FakeWriter(room=5)
        receive.write_directly(writer)
        only = batch(1)
        got: list[bytes] = []

        async def take() -> None:
            got.append(await receive.receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.testing.wait_all_tasks_blocked()
            send.put(only)
            send.put(batch(2))
            send.discard()
        assert writer.written + got[0] == b"<" + only.data + b">"


class Model(RuleBasedStateMachine):
    """The outbox beside a list of events, where None marks a hole and what is in it."""

    @initialize(
        overflow=st.sampled_from(get_args(Overflow)),
        max_events=st.integers(1, 4),
        max_bytes=st.integers(1, 300),
    )
    def start(self, overflow: Overflow, max_events: int, max_bytes: int) -> None:
        self.limits = OutboxLimits(max_events=max_events, max_bytes=max_bytes, overflow=overflow)
        self.tally = Tally()
        self.send, self.receive = open_outbox(self.limits, self.tally)
        self.queue: list[Record] = []
        self.dropped: list[int] = []
        self.untold = 0
        self.seen: list[int] = []
        self.announced = 0
        self.position = 0
        self.alive = True

    def fits(self, records: list[Record]) -> bool:
        if self.untold and self.limits.overflow == "drop-newest":
            return False
        together = self.queue + records
        return not self.queue or (
            len(together) <= self.limits.max_events
            and sum(len(r.data) for r in together) <= self.limits.max_bytes
        )

    def drop(self, *records: Record) -> None:
        self.dropped += [r.position for r in records]
        self.untold += len(records)

    def expect_overflow(self, records: list[Record]) -> None:
        policy = self.limits.overflow
        if policy == "close":
            self.alive = False
        elif policy == "drop-newest":
            for r in records:
                if self.fits([r]):
                    self.queue.append(r)
                else:
                    self.drop(r)
        elif policy == "drop-oldest":
            for r in records:
                while not self.fits([r]):
                    self.drop(self.queue.pop(0))
                self.queue.append(r)
        else:
            together = self.queue + records
            latest = {frozenset(r.topics): r for r in together}
            self.drop(*[r for r in together if latest[frozenset(r.topics)] is not r])
            self.queue = [r for r in together if latest[frozenset(r.topics)] is r]
            self.alive = len(self.queue) <= 1 or (
                len(self.queue) <= self.limits.max_events
                and sum(len(r.data) for r in self.queue) <= self.limits.max_bytes
            )

    def new_records(self, sizes: list[int], topics: list[str]) -> list[Record]:
        records: list[Record] = []
        for size in sizes:
            self.position += 1
            records.append(record(self.position, tuple(topics), size))
        return records

    sizes = st.lists(st.integers(24, 120), min_size=1, max_size=4)
    topics = st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True)

    @precondition(lambda self: self.alive)
    @rule(sizes=sizes, topics=topics)
    def publish(self, sizes: list[int], topics: list[str]) -> None:
        records = self.new_records(sizes, topics)
        if self.fits(records):
            self.queue += records
        else:
            self.expect_overflow(records)
        assert self.send.put(Batch(records)) == self.alive

    @precondition(lambda self: self.alive)
    @rule(size=st.integers(24, 120), topics=topics)
    def send_nowait(self, size: int, topics: list[str]) -> None:
        records = self.new_records([size], topics)
        if self.fits(records):
            self.send.put_nowait(Batch(records))
            self.queue += records
        else:
            with pytest.raises(trio.WouldBlock):
                self.send.put_nowait(Batch(records))
            self.position -= 1

    @precondition(lambda self: not self.alive)
    @rule()
    def close(self) -> None:
        """As a session does that is too slow."""
        self.send.discard()
        with self.send:
            pass
        with pytest.raises(trio.EndOfChannel):
            trio.run(self.receive.receive)
        assert self.receive.statistics().queued_bytes == 0

    @precondition(lambda self: self.alive and self.queue)
    @rule()
    def take(self) -> None:
        data = trio.run(self.receive.receive)
        events = [event for event in decoded(data) if event.data is not None]
        if self.untold:
            notice = events.pop(-1 if self.limits.overflow == "drop-newest" else 0)
            assert json.loads(notice.data or "") == {
                "reason": "overflow",
                "dropped": self.untold,
            }
            self.announced += self.untold
            self.untold = 0
        assert [event.id for event in events] == [r.id for r in self.queue]
        self.seen += [r.position for r in self.queue]
        self.queue = []

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "receive") or not self.alive:
            return
        counts = self.receive.statistics()
        assert counts.queued_events == len(self.queue)
        assert counts.queued_bytes == sum(len(r.data) for r in self.queue)
        assert counts.sent_events == len(self.seen) == self.tally.delivered
        assert counts.dropped_events == len(self.dropped) == self.tally.dropped
        assert self.announced + self.untold == len(self.dropped)
        # Nothing is lost silently, nothing twice, nothing out of order.
        assert self.seen == sorted(set(self.seen))
        everything = self.seen + [r.position for r in self.queue] + self.dropped
        assert sorted(everything) == list(range(1, self.position + 1))


TestModel: Callable[[], object] = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
