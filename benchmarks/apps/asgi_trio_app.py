"""Plain ASGI on Trio: a memory channel for each client, one ``send`` for each event."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from stamps import Blast

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

channels: set[trio.MemorySendChannel[bytes]] = set()


def publish(data: str) -> None:
    event = f"data: {data}\n\n".encode()
    for channel in channels:
        channel.send_nowait(event)


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["path"] == "/blast":
        await answer(send)
        await run_blast(Blast(scope["query_string"].decode()))
    elif scope["method"] == "POST":
        publish(json.loads(await body(receive))["data"])
        await answer(send)
    else:
        await stream(receive, send)


async def stream(receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    send_end, receive_end = trio.open_memory_channel[bytes](math.inf)
    channels.add(send_end)
    try:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})
            async for event in receive_end:
                await send({"type": "http.response.body", "body": event, "more_body": True})
    finally:
        channels.discard(send_end)


async def run_blast(blast: Blast) -> None:
    for number in blast.numbers():
        early = blast.early_by(number)
        if early > 0:
            await trio.sleep(early)
        publish(blast.data(number))


async def body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def answer(send: Send) -> None:
    await send({"type": "http.response.start", "status": 202, "headers": []})
    await send({"type": "http.response.body"})


async def lifespan(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
