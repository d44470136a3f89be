"""sse-starlette, as its documentation has it; each event is encoded once for all clients."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

from asyncio_fanout import Fanout
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

fanout = Fanout(lambda data: ServerSentEvent(data=data, sep="\n").encode())

# Not what its documentation shows, but what anyone could do by hand: one write for all
# that is queued.
JOIN = bool(os.environ.get("JOIN"))


async def stream(queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:  # noqa: ASYNC900  # what the framework iterates over
    try:
        while True:
            data = await queue.get()
            if JOIN and not queue.empty():
                data = b"".join([data, *(queue.get_nowait() for _ in range(queue.qsize()))])
            yield data
    finally:
        fanout.unsubscribe(queue)


async def events(request: Request) -> Response:  # noqa: ASYNC124  # the framework wants a coroutine function
    return EventSourceResponse(stream(fanout.subscribe()), sep="\n")


async def publish(request: Request) -> Response:
    fanout.publish_json(await request.body())
    return Response(status_code=202)


async def blast(request: Request) -> Response:  # noqa: ASYNC124  # the framework wants a coroutine function
    fanout.start_blast(request.url.query)
    return Response(status_code=202)


app = Starlette(
    routes=[
        Route("/events", events, methods=["GET"]),
        Route("/events", publish, methods=["POST"]),
        Route("/blast", blast, methods=["POST"]),
    ]
)
