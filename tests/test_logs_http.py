"""The three logs behind an endpoint, over real sockets: a repeated publication is one event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from _redis import RedisServer, running, shared_server
from sockets import Running, serving

from trio_sse import Endpoint, Event, EventLog, Hub, Transport, connect, open_log
from trio_sse._fetch import request
from trio_sse._http1 import Response

DIRECT = Transport(trust_env=False)
REDIS = pytest.param("redis", marks=pytest.mark.redis)
MakeLog = Callable[[], EventLog]


@pytest.fixture
def make_log(engine: str, tmp_path: Path) -> MakeLog:
    """Each call is another log; those of SQLite and Redis share what they keep."""
    if engine == "memory":
        return lambda: open_log("memory")
    if engine == "sqlite":
        return lambda: open_log(f"sqlite:{tmp_path / 'events.db'}")
    return lambda: open_log(shared_server().url, name=tmp_path.name)


@asynccontextmanager
async def serving_log(log: EventLog) -> AsyncIterator[Running]:
    async with serving(Endpoint(Hub(log=log), publish=True)) as server:
        yield server


async def publish(
    server: Running, key: str, data: str, topic: str | list[str] = "news"
) -> Response:
    headers = {"content-type": "application/json", "idempotency-key": key}
    body = json.dumps({"data": data, "topic": topic}).encode()
    url = f"{server.urls[0]}/"
    return await request("POST", url, headers=headers, body=body, transport=DIRECT)


def said(response: Response) -> Any:
    return json.loads(response.body)


async def stored(server: Running, last_event_id: str, count: int) -> list[Event]:
    """So many events that followed; and there is no other before the one published last."""
    events: list[Event] = []
    url = f"{server.urls[0]}/"
    with trio.fail_after(30):
        async with connect(url, last_event_id=last_event_id, transport=DIRECT) as source:
            await publish(server, '"the end"', "the end")
            async for event in source:
                if event.data == "the end":
                    break
                events.append(event)
    assert len(events) == count, events
    return events


@pytest.mark.parametrize("engine", ["memory", "sqlite", REDIS])
class TestOnAllThree:
    async def test_a_repetition_is_answered_as_the_first(self, make_log: MakeLog) -> None:
        async with serving_log(make_log()) as server:
            start = said(await publish(server, "start", "start"))["id"]
            first = await publish(server, '"k"', "x")
            assert first.status == 201
            for key in ('"k"', "k"):
                again = await publish(server, key, "x")
                assert (again.status, said(again)) == (201, said(first))
            [event] = await stored(server, start, 1)
            assert (event.id, event.data) == (said(first)["id"], "x")

    async def test_a_key_is_for_one_event(self, make_log: MakeLog) -> None:
        async with serving_log(make_log()) as server:
            start = said(await publish(server, "start", "start"))["id"]
            await publish(server, "k", "x", ["a", "b"])
            for data, topics in (("y", ["a", "b"]), ("x", ["a"]), ("x", ["a", "b", "c"])):
                refused = await publish(server, "k", data, topics)
                assert refused.status == 422
                assert "belongs to event" in said(refused)["detail"]
            assert [event.data for event in await stored(server, start, 1)] == ["x"]

    async def test_many_at_once(self, make_log: MakeLog) -> None:
        """Ten publishers of each of ten keys, all at the same time."""
        ids: dict[str, list[str]] = {}

        async def one(key: str) -> None:
            response = await publish(server, key, f"data of {key}")
            assert response.status == 201, response
            ids.setdefault(key, []).append(said(response)["id"])

        async with serving_log(make_log()) as server:
            start = said(await publish(server, "start", "start"))["id"]
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(one, f"k{number % 10}")
            events = await stored(server, start, 10)
        assert [len({*told}) for told in ids.values()] == [1] * 10
        assert {event.id: event.data for event in events} == {
            told[0]: f"data of {key}" for key, told in ids.items()
        }


@pytest.mark.parametrize("engine", ["sqlite", REDIS])
class TestOnThoseThatAreShared:
    async def test_a_restart_does_not_forget_it(self, make_log: MakeLog) -> None:
        async with serving_log(make_log()) as server:
            start = said(await publish(server, "start", "start"))["id"]
            first = await publish(server, "k", "x")
        async with serving_log(make_log()) as server:
            assert said(await publish(server, "k", "x")) == said(first)
            assert (await publish(server, "k", "y")).status == 422
            await stored(server, start, 1)

    async def test_whichever_server_is_asked(self, make_log: MakeLog) -> None:
        """The repetition goes elsewhere, at once: before the first was read there."""
        async with serving_log(make_log()) as here, serving_log(make_log()) as there:
            start = said(await publish(here, "start", "start"))["id"]
            for number in range(10):
                first = await publish(here, f"k{number}", "x")
                again = await publish(there, f"k{number}", "x")
                assert said(again) == said(first)
            ids = [event.id for event in await stored(there, start, 10)]
            assert len({*ids}) == 10


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    with running("appendonly yes", "appendfsync always") as server:
        yield server


@pytest.mark.redis
async def test_a_redis_that_is_away_is_503_and_the_repetition_one_event(
    own_redis: RedisServer,
) -> None:
    async with serving_log(open_log(own_redis.url)) as server:
        start = said(await publish(server, "start", "start"))["id"]
        own_redis.kill()
        away = await publish(server, "k", "x")
        assert away.status == 503
        assert dict(away.headers)["retry-after"] == "1"
        assert "not published" in said(away)["detail"]
        await trio.to_thread.run_sync(own_redis.start)
        response = away
        with trio.fail_after(30):
            while response.status == 503:
                await trio.sleep(0.05)
                response = await publish(server, "k", "x")
        assert response.status == 201
        assert said(await publish(server, "k", "x")) == said(response)
        [event] = await stored(server, start, 1)
        assert event.id == said(response)["id"]
