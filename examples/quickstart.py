import trio
from hypercorn.config import Config

import trio_sse


async def greet(session: trio_sse.Session) -> None:
    await session.send(trio_sse.Event(f"hello, {session.request.client}"))
    await session.draining()  # meanwhile it gets what is published
    await session.send(trio_sse.Event("goodbye", type="farewell"))


async def main() -> None:
    hub = trio_sse.Hub()
    hub.hooks.on_unregister(lambda session, reason: print(session.short_id, reason))
    await trio_sse.serve(trio_sse.Endpoint(hub, greet, publish=True), Config())


if __name__ == "__main__":
    trio.run(main)
