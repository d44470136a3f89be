"""A stream that ends by itself: ``GET /?from=5`` counts down."""

from __future__ import annotations

import sys

import trio
from hypercorn.config import Config

import trio_sse


async def count_down(session: trio_sse.Session) -> None:
    try:
        start = int(session.request.query.get("from", ["10"])[0])
    except ValueError:
        start = 10
    for left in range(min(start, 60), 0, -1):
        await session.send(trio_sse.Event(str(left), type="tick"))
        await trio.sleep(1)
    await session.send(trio_sse.Event("lift-off", type="done"))


def make_hub() -> trio_sse.Hub:
    hub = trio_sse.Hub()

    @hub.hooks.on_register
    def came(session: trio_sse.Session) -> None:
        print(session.short_id, "came from", session.request.client, file=sys.stderr)

    @hub.hooks.on_unregister
    def went(session: trio_sse.Session, reason: trio_sse.EndReason) -> None:
        print(session.short_id, "went:", reason, file=sys.stderr)

    return hub


def make_app() -> trio_sse.Endpoint:
    # Its events are for one client and have no ids: there is nothing to resume.
    return trio_sse.Endpoint(make_hub(), count_down, topics=lambda _: (), resume=False)


if __name__ == "__main__":
    trio.run(trio_sse.serve, make_app(), Config())
