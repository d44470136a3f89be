"""The service that ``trio-sse serve`` runs, and ``POST /blast`` beside it.

Publishing over HTTP costs more than delivering: where delivery is measured, the events
have to come from inside.
"""

from __future__ import annotations

import argparse
import gc
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, final

import trio
from hypercorn.config import Config
from stamps import Blast

from trio_sse import Access, Endpoint, Event, Hub, serve
from trio_sse.asgi import DIRECT
from trio_sse.service import Service

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@final
class WithBlast:
    """The service and ``/blast``; ``direct`` is whether it may write past ASGI."""

    def __init__(self, service: Service, *, direct: bool) -> None:
        self._service = service
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] == "/blast":
                await self._blast(Blast(scope["query_string"].decode()), send)
                return
            if not self._direct:
                scope["extensions"].pop(DIRECT, None)
        await self._service(scope, receive, send)

    async def _blast(self, blast: Blast, send: Send) -> None:
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body"})
        for number in blast.numbers():
            early = blast.early_by(number)
            if early > 0:
                await trio.sleep(early)
            await self._service.hub.publish(Event(blast.data(number)))


@final
class Started:
    """The collector's settings that ``trio-sse serve`` has."""

    def started(self, value: Sequence[str] | None = None) -> None:
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--no-direct", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    config = Config()
    config.bind = [f"127.0.0.1:{args.port}"]
    config.backlog = 2048
    config.errorlog = logging.getLogger("trio_sse.server")
    access = Access()
    service = Service(Endpoint(Hub(), access=access, publish=True), access)
    app = WithBlast(service, direct=not args.no_direct)

    async def run() -> None:
        await serve(app, config, task_status=Started())

    trio.run(run)


if __name__ == "__main__":
    main()
