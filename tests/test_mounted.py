"""The examples that run under Hypercorn's own worker, each as a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from sockets import FAR, Running, Subscriber, connected, eventually, get, post, subscribed

EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass
class Example:
    """How to use an example: where to subscribe, and what makes it publish what."""

    module: str
    path: str
    publish: Callable[[str], bytes]
    data: Callable[[str], str]

    def __str__(self) -> str:
        return self.module


FORM = "application/x-www-form-urlencoded"
STANDALONE = Example(
    "standalone_app",
    "/?topic=news",
    lambda word: post("/", f"topic=news&data={word}".encode(), content_type=FORM),
    lambda word: word,
)
MOUNTED = [
    Example(
        "starlette_app",
        "/events?topic=said",
        lambda word: post("/say", word.encode(), content_type="text/plain"),
        lambda word: word,
    ),
    Example(
        "fastapi_app",
        "/events?topic=orders",
        lambda word: post("/orders", b'{"item": "%s", "amount": 2}' % word.encode()),
        lambda word: f'{{"item":"{word}","amount":2}}',
    ),
    Example(
        "quart_trio_app",
        "/events?topic=visits",
        lambda word: get(f"/hello/{word}"),
        lambda word: f"{word} said hello",
    ),
]


class Output:
    """What a process writes, line by line, both streams in one."""

    def __init__(self, stream: Any) -> None:
        self.lines: list[str] = []
        self._stream = stream

    async def read(self) -> None:
        rest = b""
        async for data in self._stream:
            *lines, rest = (rest + data).split(b"\n")
            self.lines += [line.decode() for line in lines]

    async def match(self, pattern: str) -> re.Match[str]:
        """The first line that ``pattern`` is found in."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found[:] = [m for line in self.lines if (m := re.search(pattern, line))]
            return bool(found)

        try:
            await eventually(look)
        except AssertionError:
            raise AssertionError(f"no {pattern!r} in {self.lines}") from None
        return found[0]


@asynccontextmanager
async def running(example: Example) -> AsyncIterator[tuple[Running, Output]]:
    """The example under ``hypercorn -k trio``; on leaving, SIGTERM ends it."""
    command = ["hypercorn", "-k", "trio", "--bind", "127.0.0.1:0", f"{example.module}:app"]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=EXAMPLES,
        )
        output = Output(process.stdout)
        nursery.start_soon(output.read)
        url = (await output.match(r"Running on (http://127\.0\.0\.1:\d+)"))[1]
        try:
            yield Running(("127.0.0.1", int(url.rpartition(":")[2])), [url], []), output
            process.terminate()
            with trio.fail_after(FAR):
                assert await process.wait() == 0
        finally:
            if process.poll() is None:
                process.kill()
        assert not any("Traceback" in line for line in output.lines), output.lines


async def ask(running: Running, request: bytes) -> Subscriber:
    """The whole response to ``request``."""
    async with connected(running) as client:
        await client.send(request)
        response = Subscriber(client, method=request.partition(b" ")[0].decode())
        await response.rest()
        assert response.ended == "complete"
        return response


@pytest.mark.parametrize("example", [STANDALONE, *MOUNTED], ids=str)
async def test_subscribe_publish_receive_resume_and_leave(example: Example) -> None:
    async with running(example) as (server, output):
        async with subscribed(server, example.path) as subscriber:
            assert subscriber.headers["content-type"] == "text/event-stream"
            assert subscriber.headers["cache-control"] == "no-store"
            assert "connection" not in subscriber.headers
            first = await ask(server, example.publish("ada"))
            assert first.status in (200, 201, 204)
            event = await subscriber.event()
            assert event.data == example.data("ada")
        await output.match("ended: client-left")
        await ask(server, example.publish("bob"))
        async with subscribed(server, example.path, f"Last-Event-ID: {event.id}") as back:
            assert (await back.event()).data == example.data("bob")
        refused = await ask(server, get(example.path, method="DELETE"))
        assert refused.status == 405
        assert refused.headers["allow"].startswith("GET, HEAD, OPTIONS")
        elsewhere = get(example.path).replace(b"localhost", b"example.org")
        assert (await ask(server, elsewhere)).status == 403


async def test_the_page_of_the_starlette_example_is_there() -> None:
    async with running(MOUNTED[0]) as (server, _):
        page = await ask(server, get("/"))
        assert b'new EventSource("/events?topic=said")' in page.body
