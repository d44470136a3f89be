"""aiohttp-sse on uvloop, as its documentation has it."""

from __future__ import annotations

import sys

import uvloop
from aiohttp import web
from aiohttp_sse import sse_response
from asyncio_fanout import Fanout

fanout = Fanout(lambda data: data)


async def events(request: web.Request) -> web.StreamResponse:
    queue = fanout.subscribe()
    try:
        async with sse_response(request, sep="\n") as response:
            while response.is_connected():
                await response.send(await queue.get())
        return response
    finally:
        fanout.unsubscribe(queue)


async def publish(request: web.Request) -> web.Response:
    fanout.publish_json(await request.read())
    return web.Response(status=202)


async def blast(request: web.Request) -> web.Response:  # noqa: ASYNC124  # the framework wants a coroutine function
    fanout.start_blast(request.query_string)
    return web.Response(status=202)


def main() -> None:
    app = web.Application()
    app.router.add_get("/events", events)
    app.router.add_post("/events", publish)
    app.router.add_post("/blast", blast)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop=uvloop.new_event_loop(),
        access_log=None,
        print=None,
        backlog=2048,
        shutdown_timeout=5,
    )


if __name__ == "__main__":
    main()
