"""Mounted in FastAPI: orders come in by POST, and whoever follows them hears.

Run it::

    hypercorn -k trio fastapi_app:app

and, in two more terminals::

    curl -N "http://127.0.0.1:8000/events?topic=orders"
    curl --json '{"item": "tea", "amount": 2}' http://127.0.0.1:8000/orders
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel

import trio_sse

hub = trio_sse.Hub()


@hub.hooks.on_unregister
def note(session: trio_sse.Session, reason: trio_sse.EndReason) -> None:
    print(f"session {session.short_id} ended: {reason}", flush=True)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with hub:
        yield


class Order(BaseModel):
    item: str
    amount: int


app = FastAPI(lifespan=lifespan)
app.add_route("/events", trio_sse.Endpoint(hub))  # type: ignore[arg-type]  # any ASGI application will do


@app.post("/orders", status_code=201)
async def place(order: Order) -> dict[str, str]:
    event = trio_sse.Event.json(order.model_dump(), type="order")
    return {"id": await hub.publish(event, "orders")}
