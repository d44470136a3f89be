"""Many who catch up at once leave room for the others: they take turns, a page each."""

from __future__ import annotations

from collections.abc import Callable

import trio
import trio.testing
from _logs import MemoryLogWith

from trio_sse import Event, Hub, OutboxLimits, Request
from trio_sse.dispatch import PASS_EVENTS, REPLAYS_AT_ONCE

SESSIONS = 50
PAGES = 4
ROOMY = OutboxLimits(max_events=10_000, max_bytes=10 << 20)


class Rounds(trio.abc.Instrument):
    """Counts the scheduler's rounds: in each, every task that can run has one turn."""

    def __init__(self) -> None:
        self.number = 0

    def after_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_few_of_those_who_catch_up_have_a_turn_in_each_round(
    autojump_clock: trio.testing.MockClock, figure: Callable[[str], None]
) -> None:
    log = MemoryLogWith()
    rounds = Rounds()
    trio.lowlevel.add_instrument(rounds)
    async with Hub(log=log, outbox=ROOMY) as hub, trio.open_nursery() as nursery:
        first = await hub.publish(Event("first"))
        for number in range(PASS_EVENTS * PAGES):
            await hub.publish(Event(str(number)))
        await trio.testing.wait_all_tasks_blocked()
        log.reads.clear()
        reads: list[int] = []
        log.before_read = lambda: reads.append(rounds.number)
        had: list[int] = []

        async def catch_up() -> None:
            request = Request(last_event_id=first)
            async with hub.open_session(request) as (_, receive_end):
                got = b""
                while got.count(b"\ndata: ") < PASS_EVENTS * PAGES:
                    got += await receive_end.receive()
                had.append(rounds.number)

        for _ in range(SESSIONS):
            nursery.start_soon(catch_up)
        with trio.fail_after(60):
            while len(had) < SESSIONS:
                await trio.lowlevel.checkpoint()
    trio.lowlevel.remove_instrument(rounds)
    assert len(reads) >= SESSIONS * PAGES
    busiest = max(reads.count(number) for number in {*reads})
    assert busiest <= REPLAYS_AT_ONCE
    # And nobody waits until all the others are through: they had theirs in turn.
    assert max(had) - min(had) <= 2 * SESSIONS
    figure(f"{SESSIONS} sessions, {len(reads)} pages, at most {busiest} in one round")


async def test_one_who_does_not_read_holds_up_nobody_who_catches_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever waits for a client does not keep others from their turn."""
    limits = OutboxLimits(max_events=PASS_EVENTS)
    async with Hub(outbox=limits) as hub, trio.open_nursery() as nursery:
        first = await hub.publish(Event("first"))
        for number in range(PASS_EVENTS * PAGES):
            await hub.publish(Event(str(number)))

        async def stall() -> None:
            async with hub.open_session(Request(last_event_id=first)):
                await trio.sleep_forever()

        for _ in range(2 * REPLAYS_AT_ONCE):
            nursery.start_soon(stall)
        await trio.testing.wait_all_tasks_blocked()
        async with hub.open_session(Request(last_event_id=first)) as (_, receive_end):
            got = b""
            with trio.fail_after(60):
                while got.count(b"\ndata: ") < PASS_EVENTS * PAGES:
                    got += await receive_end.receive()
        nursery.cancel_scope.cancel()
