"""Cancelling at every step: no event is lost, none comes twice, nothing stays open."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
import trustme
from scripted_server import (
    CHUNKED,
    Answer,
    Received,
    ScriptedServer,
    answer,
    chunk,
    redirect,
)

from trio_sse import testing
from trio_sse.client import EventSource, ReadyState, Reconnect, SourceClosed, StateChange, connect

LOG = [str(n) for n in range(1, 8)]
PROMPT = Reconnect(initial=0, floor=0.001, ceiling=0)


class CancelAt(trio.abc.Instrument):
    """Cancels a scope as a step of any task is about to begin, the first of them at ``step``."""

    def __init__(self, step: int, every: int = 0) -> None:
        self._left = step
        self._every = every
        self.steps = 0
        self.scope: trio.CancelScope | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.scope is None:
            return
        self.steps += 1
        self._left -= 1
        if self._left == 0:
            self.scope.cancel(reason="the explorer")
            self._left = self._every


def serve_log(request: Received) -> Answer:
    """Two events of what follows the last event ID, a part of a third, then the end."""
    if request.target == "/events":
        return redirect(307, "/log")
    position = int(request.headers.get("last-event-id", b"0"))
    events = [b"id: %s\r\ndata: %s\r\n\r\n" % (n.encode(), n.encode()) for n in LOG[position:]]
    whole = b"".join(events[:2]) + b"".join(events[2:])[:14]
    return answer(CHUNKED, chunk(whole[:20]), chunk(whole[20:]), b"0\r\n\r\n")


def start(
    nursery: trio.Nursery,
    wrap: Callable[[trio.abc.Stream], Awaitable[trio.abc.Stream]] | None = None,
) -> ScriptedServer:
    return ScriptedServer(nursery, [serve_log] * 100, wrap=wrap)


async def read_log(source: EventSource, instrument: CancelAt) -> list[str | None]:
    """All of the log, going on after each cancellation."""
    got: list[str | None] = []
    while len(got) < len(LOG):
        with trio.CancelScope() as instrument.scope:
            while len(got) < len(LOG):
                got.append((await source.__anext__()).data)  # kept one by one
        instrument.scope = None
    return got


def explore(scenario: Callable[[CancelAt], Awaitable[None]], every: int = 0) -> int:
    """Run with the cancellation at each step in turn, until there are no more steps."""
    for step in itertools.count(1):
        instrument = CancelAt(step, every)
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(scenario, instrument, instruments=[instrument], clock=clock)
        if instrument.steps < step:
            return step - 1
    raise AssertionError


@pytest.mark.parametrize("every", [0, 61, 89])
def test_cancelled_iteration_goes_on(every: int, figure: Callable[[str], None]) -> None:
    """Once at each step; then again and again after that."""

    async def scenario(instrument: CancelAt) -> None:
        async with trio.open_nursery() as nursery:
            server = start(nursery)
            async with server.connect(reconnect=PROMPT) as source:
                assert await read_log(source, instrument) == LOG
                assert source.last_event_id == LOG[-1]
            assert server.all_closed()
        assert len(server.requests) >= 8

    count = explore(scenario, every)
    assert count > 150
    figure(f"{count} steps to be cancelled at{f', then every {every}' if every else ''}")


def test_cancelled_iteration_goes_on_in_any_order(figure: Callable[[str], None]) -> None:
    """At each step again, in several orders in which tasks may be run."""

    async def scenario(moment: testing.Moment) -> None:
        got: list[str | None] = []
        async with trio.open_nursery() as nursery:
            server = start(nursery)
            async with server.connect(reconnect=PROMPT) as source:
                with trio.CancelScope() as scope:
                    moment.inject(scope.cancel, "by the explorer")
                    while len(got) < len(LOG):
                        got.append((await source.__anext__()).data)  # kept one by one
                moment.end()
                while len(got) < len(LOG):
                    got.append((await source.__anext__()).data)
                assert got == LOG
            assert server.all_closed()

    figure(str(testing.explore(scenario, seeds=range(4))))


def test_cancelled_iteration_over_tls_goes_on(figure: Callable[[str], None]) -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.org").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)

    async def wrap(stream: trio.abc.Stream) -> trio.abc.Stream:
        return trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)

    async def scenario(instrument: CancelAt) -> None:
        async with trio.open_nursery() as nursery:
            server = start(nursery, wrap)
            async with connect(
                "https://example.org/log",
                transport=server.transport(ssl_context=client_context),
                reconnect=PROMPT,
            ) as source:
                assert await read_log(source, instrument) == LOG
            assert server.all_closed()

    count = explore(scenario)
    assert count > 150
    figure(f"{count} steps to be cancelled at")


def test_cancelled_block_closes_everything(figure: Callable[[str], None]) -> None:
    async def scenario(instrument: CancelAt) -> None:
        changes: list[StateChange] = []
        got: list[str | None] = []
        async with trio.open_nursery() as nursery:
            server = start(nursery)
            source: EventSource | None = None
            with trio.CancelScope() as instrument.scope:
                async with server.connect(
                    reconnect=PROMPT, on_state_change=changes.append
                ) as source:
                    for _ in LOG:
                        got.append((await source.__anext__()).data)  # noqa: PERF401  # as above
            instrument.scope = None
            assert server.all_closed()
        if source is not None:
            assert source.ready_state is ReadyState.CLOSED
            assert [c.state for c in changes].count(ReadyState.CLOSED) == 1
            assert changes[-1].state is ReadyState.CLOSED
            if got:
                assert source.last_event_id == got[-1]
        assert got == LOG[: len(got)]

    count = explore(scenario)
    assert count > 150
    figure(f"{count} steps to be cancelled at")


def test_closed_by_another_task_at_every_step(figure: Callable[[str], None]) -> None:
    """The same from outside: whoever iterates gets the one error, whatever it was at."""

    class CloseAt(trio.abc.Instrument):
        def __init__(self, step: int) -> None:
            self.left = step
            self.go: trio.Event | None = None

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if self.go is not None:
                self.left -= 1
                if self.left == 0:
                    self.go.set()

    async def scenario(instrument: CloseAt) -> None:
        async with trio.open_nursery() as nursery:
            server = start(nursery)
            async with server.connect(reconnect=PROMPT) as source:
                go = trio.Event()

                async def close() -> None:
                    await go.wait()
                    await source.aclose()

                nursery.start_soon(close)
                await trio.testing.wait_all_tasks_blocked()
                instrument.go = go
                got: list[str | None] = []
                try:
                    while len(got) < len(LOG):
                        got.append((await source.__anext__()).data)  # as above
                except SourceClosed as exc:
                    assert source.ready_state is ReadyState.CLOSED
                    assert server.changes[-1].state is ReadyState.CLOSED
                    assert exc.__cause__ is None  # noqa: PT017  # it need not be raised
                else:
                    assert got == LOG
                    go.set()
                instrument.go = None
            assert server.all_closed()
            assert got == LOG[: len(got)]

    for step in itertools.count(1):
        instrument = CloseAt(step)
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(scenario, instrument, instruments=[instrument], clock=clock)
        if instrument.left > 0:
            break
    assert step > 150
    figure(f"{step - 1} steps to be closed at")
