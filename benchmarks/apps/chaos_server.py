"""``trio-sse serve`` that can be counted: ``GET /census``, and a last line when it is over.

The command and the service are the real ones; only what answers requests knows one path
more.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import trio

from trio_sse import Hub, cli
from trio_sse.service import Service

_services: list[CountedService] = []


class CountedService(Service):  # type: ignore[misc]  # final for users; this is a probe
    """The service, and what there is of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _services.append(self)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/census":
            body = json.dumps(census(self.hub)).encode()
            headers = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        else:
            await super().__call__(scope, receive, send)


def census(hub: Hub) -> dict[str, Any]:
    """What must be back to where it was once all clients have left."""
    gc.collect()
    now = hub.statistics()
    return {
        "tasks": count_tasks(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "blocks": sys.getallocatedblocks(),
        "rss_kib": rss_kib(),
        "sessions": now.sessions,
        "registered": now.registered,
        "unregistered": sum(now.unregistered.values()),
        "reasons": dict(now.unregistered),
        "published": now.published,
        "delivered": now.delivered,
        "replayed": now.replayed,
        "gaps": now.gaps,
    }


def count_tasks() -> dict[str, int]:
    """The tasks of this Trio run, by name."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    names: Counter[str] = Counter()
    left = [root]
    while left:
        task = left.pop()
        names[task.name.partition(" ")[0]] += 1  # a session's has its id after that
        for nursery in task.child_nurseries:
            left.extend(nursery.child_tasks)
    return dict(names)


def rss_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def main() -> None:
    # The module; the package has a command of the same name.
    module = importlib.import_module("trio_sse.cli.serve")
    module.Service = CountedService  # type: ignore[attr-defined]  # see above
    try:
        cli.main()
    finally:
        for service in _services:
            now = service.hub.statistics()
            last = {"registered": now.registered, "unregistered": dict(now.unregistered)}
            last["sessions"] = now.sessions
            print(f"{LAST}{json.dumps(last)}", flush=True)


LAST: Final = "census at the end: "

if __name__ == "__main__":
    main()
