"""Beside Quart-Trio: the event stream has its URL, Quart has all the others.

Run it::

    hypercorn -k trio quart_trio_app:app

and, in two more terminals::

    curl -N "http://127.0.0.1:8000/events?topic=visits"
    curl http://127.0.0.1:8000/hello/ada
"""

from __future__ import annotations

from typing import Any

import trio
from quart_trio import QuartTrio

import trio_sse

hub = trio_sse.Hub()
endpoint = trio_sse.Endpoint(hub)
app = QuartTrio(__name__)
quart_asgi_app = app.asgi_app


@hub.hooks.on_unregister
def note(session: trio_sse.Session, reason: trio_sse.EndReason) -> None:
    print(f"session {session.short_id} ended: {reason}", flush=True)


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http" and scope["path"] == "/events":
        await endpoint(scope, receive, send)
    else:
        await quart_asgi_app(scope, receive, send)


app.asgi_app = asgi_app  # type: ignore[method-assign]  # Quart's way to put something around it


# The hub is open while the application serves, in the application's own nursery.


@app.before_serving
async def open_hub() -> None:
    await app.nursery.start(keep_hub_open)


async def keep_hub_open(task_status: trio.TaskStatus[None]) -> None:
    async with hub:
        task_status.started()
        await hub.wait_closed()


@app.after_serving
async def close_hub() -> None:
    await hub.drain()


@app.get("/hello/<name>")
async def hello(name: str) -> str:
    await hub.publish(trio_sse.Event(f"{name} said hello"), "visits")
    return f"hello, {name}\n"
