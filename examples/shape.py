"""One owner closes; everyone else asks. The shape, on Trio's own channel."""

from __future__ import annotations

from typing import Any

import trio


async def session(task_status: trio.TaskStatus[Any]) -> None:
    send_end, receive_end = trio.open_memory_channel[str](100)
    with send_end, trio.CancelScope() as life:  # leaving this line's block closes it
        task_status.started((life, receive_end))
        await send_end.send("hello")
        await trio.sleep_forever()  # the handler


async def client_leaves(life: trio.CancelScope) -> None:
    life.cancel(reason="the client left")


async def server_stops(life: trio.CancelScope) -> None:
    life.cancel(reason="the server drains")


async def main() -> None:
    async with trio.open_nursery() as hub:
        life, receive_end = await hub.start(session)
        async with trio.open_nursery() as others:
            others.start_soon(client_leaves, life)
            others.start_soon(server_stops, life)
        async for text in receive_end:  # ends, because the send end is closed
            print(text)
        print("ended once")


if __name__ == "__main__":
    trio.run(main)
