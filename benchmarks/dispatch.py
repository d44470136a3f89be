"""What ``Hub.publish`` and the dispatcher cost when nobody listens: CPU time of the process.

Run by itself it prints one JSON object, with microseconds for each event.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Final

import trio

from trio_sse import Event, Hub

_ROUNDS: Final = 5


async def publish(hub: Hub, events: int) -> float:
    """One after the other, until the last was dispatched."""
    event = Event("x" * 128)
    done = hub.statistics().dispatched
    began = time.process_time()
    for _ in range(events):
        await hub.publish(event)
    while hub.statistics().dispatched < done + events:  # noqa: ASYNC110  # there is no event for it
        await trio.lowlevel.checkpoint()
    return (time.process_time() - began) / events * 1e6


async def main(events: int) -> dict[str, float]:
    """The best of several rounds: what it costs when nothing else happens."""
    async with Hub() as hub:
        await publish(hub, events // 10)
        gc.freeze()
        return {"us": min([await publish(hub, events) for _ in range(_ROUNDS)])}


if __name__ == "__main__":
    print(json.dumps(trio.run(main, int(sys.argv[1]))))
