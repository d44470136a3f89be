"""Mounted in Starlette: a page that shows what others post.

Run it and open http://127.0.0.1:8000/ in two windows::

    hypercorn -k trio starlette_app:app
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

import trio_sse

PAGE = """<!doctype html>
<title>Said here</title>
<form><input name=text autofocus><button>Say</button></form>
<ul></ul>
<script>
const form = document.querySelector("form"), list = document.querySelector("ul")
new EventSource("/events?topic=said").onmessage = (event) => {
  list.appendChild(document.createElement("li")).textContent = event.data
}
form.onsubmit = (event) => {
  event.preventDefault()
  fetch("/say", { method: "POST", body: form.text.value })
  form.reset()
}
</script>
"""

hub = trio_sse.Hub()


@hub.hooks.on_unregister
def note(session: trio_sse.Session, reason: trio_sse.EndReason) -> None:
    print(f"session {session.short_id} ended: {reason}", flush=True)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    async with hub:
        yield


async def say(request: Request) -> Response:
    text = (await request.body()).decode(errors="replace")
    await hub.publish(trio_sse.Event(text), "said")
    return Response(status_code=204)


app = Starlette(
    routes=[
        Route("/", HTMLResponse(PAGE)),
        Route("/say", say, methods=["POST"]),
        Route("/events", trio_sse.Endpoint(hub)),  # it knows by itself which methods it has
    ],
    lifespan=lifespan,
)
