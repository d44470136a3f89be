"""What the core's tests share: short ways to open sessions and to read what they get."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from trio_sse import Decoder, Event, Hub, Request
from trio_sse.outbox import OutboxReceiveEnd


def decoded(data: bytes) -> list[Event]:
    """All blocks of ``data``, those included that no listener sees."""
    return Decoder(every_block=True).feed(data)


def payloads(data: bytes) -> list[str | None]:
    """The data of each event; comments and the like are left out, gaps are "gap"."""
    return [
        "gap" if event.type == "gap" else event.data
        for event in decoded(data)
        if event.data is not None
    ]


async def receive_rest(receive_end: OutboxReceiveEnd) -> bytes:
    """Everything until the session has ended."""
    parts: list[bytes] = []
    with suppress(trio.EndOfChannel):
        while True:
            parts.append(await receive_end.receive())
    return b"".join(parts)


async def receive_events(receive_end: OutboxReceiveEnd, count: int) -> list[Event]:
    """The next ``count`` events or more: what came with the last one is not kept back."""
    decoder = Decoder()
    events: list[Event] = []
    while len(events) < count:
        events += decoder.feed(await receive_end.receive())
    return events


async def stay(
    hub: Hub,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    request: Request | None = None,
    **options: Any,
) -> bytes:
    """A client that listens until its session ends; all that it got.

    ``await nursery.start(stay, hub)`` returns its session.
    """
    async with hub.open_session(request or Request(), **options) as (session, receive_end):
        task_status.started(session)
        return await receive_rest(receive_end)


def recorder(calls: list[Any], name: str) -> Callable[..., None]:
    """A hook that appends ``(name, *its arguments after the session)``."""

    def hook(_session: object, *args: object) -> None:
        calls.append((name, *args))

    return hook
