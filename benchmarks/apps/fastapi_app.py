"""FastAPI's own server-sent events: a path operation that yields."""

from __future__ import annotations

from collections.abc import AsyncIterable

from asyncio_fanout import Fanout
from fastapi import FastAPI, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

fanout = Fanout(lambda data: ServerSentEvent(raw_data=data))
app = FastAPI()


@app.get("/events", response_class=EventSourceResponse)
async def events() -> AsyncIterable[ServerSentEvent]:  # noqa: ASYNC900  # what the framework iterates over
    queue = fanout.subscribe()
    try:
        while True:
            yield await queue.get()
    finally:
        fanout.unsubscribe(queue)


@app.post("/events", status_code=202)
async def publish(request: Request) -> Response:
    fanout.publish_json(await request.body())
    return Response(status_code=202)


@app.post("/blast", status_code=202)
async def blast(request: Request) -> Response:  # noqa: ASYNC124  # the framework wants a coroutine function
    fanout.start_blast(request.url.query)
    return Response(status_code=202)
