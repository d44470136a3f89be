"""What every event log promises a hub, whichever engine keeps it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
from _redis import new_name, shared_server
from _sessions import decoded
from hypothesis import given
from hypothesis import strategies as st

from trio_sse import Event, EventLog, KeyReused, MemoryLog
from trio_sse.log import Cursor, sqlite
from trio_sse.log.redis import RedisLog
from trio_sse.log.sqlite import SqliteLog


class Engine(NamedTuple):
    """How to make a log of one kind, and what it promises beyond the rest.

    Attributes:
        make: a log, entered; ``max_events`` bounds what it holds, exactly.
        cancelled_append_appends_nothing: whether it promises that.
    """

    name: str
    make: Callable[..., AbstractAsyncContextManager[EventLog]]
    cancelled_append_appends_nothing: bool


@asynccontextmanager
async def make_memory(**bounds: int) -> AsyncIterator[EventLog]:
    async with MemoryLog(**bounds) as log:
        yield log


@asynccontextmanager
async def make_sqlite(**bounds: int) -> AsyncIterator[EventLog]:
    with tempfile.TemporaryDirectory() as directory:
        async with SqliteLog(Path(directory, "events.db"), sync="off", **bounds) as log:
            yield log


@asynccontextmanager
async def make_sqlite_that_reads(**bounds: int) -> AsyncIterator[EventLog]:
    """With nothing but the newest event in memory: the rest is read from the file each time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sqlite, "TAIL_EVENTS", 1)
        monkeypatch.setattr(sqlite, "CACHE_BYTES", 0)
        async with make_sqlite(**bounds) as log:
            yield log


@asynccontextmanager
async def make_redis(**bounds: int) -> AsyncIterator[EventLog]:
    async with RedisLog(shared_server().url, name=new_name(), **bounds) as log:
        yield log


ENGINES = [
    Engine("memory", make_memory, cancelled_append_appends_nothing=True),
    Engine("sqlite", make_sqlite, cancelled_append_appends_nothing=True),
    Engine("sqlite, read", make_sqlite_that_reads, cancelled_append_appends_nothing=True),
    pytest.param(
        Engine("redis", make_redis, cancelled_append_appends_nothing=False),
        marks=pytest.mark.redis,
    ),
]


@pytest.fixture(params=ENGINES, ids=["memory", "sqlite", "sqlite-read", "redis"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


async def append(log: EventLog, *texts: str, topics: tuple[str, ...] = ("t",)) -> list[str]:
    return [await log.append(Event(text), topics) for text in texts]


async def texts_after(log: EventLog, position: int, limit: int = 1000) -> list[str | None]:
    records = await log.read(position, limit)
    return [event.data for record in records for event in decoded(record.data)]


class TestConformance:
    async def test_it_starts_with_nothing(self, engine: Engine) -> None:
        async with engine.make() as log:
            assert (log.newest, log.trimmed) == (0, 0)
            assert list(await log.read(0, 10)) == []
            assert log.epoch
            assert not set(log.epoch) & set(" \r\n\0")

    async def test_an_id_is_epoch_and_position(self, engine: Engine) -> None:
        async with engine.make() as log:
            [event_id] = await append(log, "hello")
            assert Cursor.parse(event_id) == (log.epoch, log.newest)

    async def test_a_record_is_the_event_encoded_with_its_id(self, engine: Engine) -> None:
        event = Event('{"a":\n1}\r', type="tick", retry=5, comment="é")
        async with engine.make() as log:
            event_id = await log.append(event, ("a", "b"))
            [record] = await log.read(0, 10)
            assert (record.id, record.topics) == (event_id, ("a", "b"))
            assert record.position == log.newest
            [sent] = decoded(record.data)
            assert (sent.data, sent.type, sent.id) == ('{"a":\n1}\n', "tick", event_id)
            assert (sent.retry, sent.comment) == (5, "é")

    async def test_positions_rise_in_the_order_of_appending(self, engine: Engine) -> None:
        async with engine.make() as log:
            before = log.newest
            ids = await append(log, *map(str, range(20)))
            records = await log.read(0, 100)
            assert [record.id for record in records] == ids
            positions = [record.position for record in records]
            assert positions == sorted(set(positions))
            assert positions[0] > before
            assert await texts_after(log, 0) == [str(n) for n in range(20)]

    async def test_read_gives_what_follows_a_position_and_no_more_than_asked(
        self, engine: Engine
    ) -> None:
        async with engine.make() as log:
            await append(log, "1", "2", "3", "4")
            positions = [record.position for record in await log.read(0, 10)]
            assert await texts_after(log, positions[0]) == ["2", "3", "4"]
            assert await texts_after(log, positions[1], limit=1) == ["3"]
            assert await texts_after(log, positions[3]) == []
            assert await texts_after(log, positions[3] + 100) == []

    async def test_read_by_pages_gives_everything_once(self, engine: Engine) -> None:
        async with engine.make() as log:
            await append(log, *map(str, range(25)))
            position, found = 0, list[str | None]()
            while records := await log.read(position, 7):
                assert len(records) <= 7
                found += [event.data for record in records for event in decoded(record.data)]
                position = records[-1].position
            assert found == [str(n) for n in range(25)]
            assert position == log.newest

    async def test_what_is_trimmed_is_the_oldest_and_is_told(self, engine: Engine) -> None:
        async with engine.make(max_events=3) as log:
            await append(log, "1", "2")
            assert log.trimmed == 0
            positions = [record.position for record in await log.read(0, 10)]
            await append(log, "3", "4", "5")
            assert log.trimmed == positions[1]
            assert await texts_after(log, 0) == ["3", "4", "5"]
            assert await texts_after(log, log.trimmed) == ["3", "4", "5"]
            assert await texts_after(log, log.trimmed, limit=1) == ["3"]

    async def test_it_goes_on_trimming(self, engine: Engine) -> None:
        async with engine.make(max_events=4) as log:
            for n in range(100):
                await append(log, str(n))
                held = await texts_after(log, log.trimmed)
                assert held == [str(k) for k in range(max(0, n - 3), n + 1)]
                assert await texts_after(log, 0) == held

    async def test_wait_returns_at_once_if_there_is_something(self, engine: Engine) -> None:
        async with engine.make() as log:
            await append(log, "1")
            await log.wait(0)

    async def test_wait_returns_when_something_comes(self, engine: Engine) -> None:
        async with engine.make() as log:
            await append(log, "1")
            woken: list[str] = []

            async def reader(name: str) -> None:
                await log.wait(log.newest)
                woken.append(name)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader, "a")
                nursery.start_soon(reader, "b")
                await trio.testing.wait_all_tasks_blocked()
                assert woken == []
                await append(log, "2")
            assert sorted(woken) == ["a", "b"]

    async def test_wait_can_be_cancelled(self, engine: Engine) -> None:
        async with engine.make() as log:
            with trio.move_on_after(0.01) as scope:
                await log.wait(0)
            assert scope.cancelled_caught
            with trio.CancelScope() as scope:
                scope.cancel()
                await log.wait(0)
            assert scope.cancelled_caught
            await append(log, "1")
            await log.wait(0)

    async def test_append_is_a_checkpoint(self, engine: Engine) -> None:
        async with engine.make() as log:
            with trio.testing.assert_checkpoints():
                await append(log, "1")

    async def test_a_cancelled_append_is_whole_or_not_at_all(self, engine: Engine) -> None:
        async with engine.make() as log:
            await append(log, "1")
            with trio.CancelScope() as scope:
                scope.cancel()
                await append(log, "2")
            await append(log, "3")
            texts = await texts_after(log, 0)
            if engine.cancelled_append_appends_nothing:
                assert texts == ["1", "3"]
            else:
                assert texts in (["1", "3"], ["1", "2", "3"])

    async def test_many_may_append_at_once(self, engine: Engine) -> None:
        async with engine.make() as log:
            ids: list[str] = []

            async def writer(name: str) -> None:
                for n in range(10):
                    ids.extend(await append(log, f"{name}{n}"))

            async with trio.open_nursery() as nursery:
                for name in "abc":
                    nursery.start_soon(writer, name)
            assert len(set(ids)) == 30
            texts = await texts_after(log, 0)
            for name in "abc":
                own = [text for text in texts if text and text.startswith(name)]
                assert own == [f"{name}{n}" for n in range(10)]

    async def test_a_reader_beside_writers_misses_nothing(self, engine: Engine) -> None:
        async with engine.make() as log:
            found: list[str | None] = []

            async def reader() -> None:
                position = 0
                while len(found) < 60:
                    await log.wait(position)
                    for record in await log.read(position, 7):
                        found.extend(event.data for event in decoded(record.data))
                        position = record.position

            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader)
                for n in range(60):
                    await append(log, str(n))
            assert found == [str(n) for n in range(60)]

    async def test_two_logs_are_two_epochs(self, engine: Engine) -> None:
        async with engine.make() as one, engine.make() as other:
            assert one.epoch != other.epoch


class TestKeys:
    """Idempotency keys: what is repeated is one event."""

    async def test_a_repeated_key_is_the_same_event(self, engine: Engine) -> None:
        async with engine.make() as log:
            first = await log.append(Event("1"), ("t",), key="a")
            assert await log.append(Event("1"), ("t",), key="a") == first
            second = await log.append(Event("1"), ("t",), key="b")
            assert await texts_after(log, 0) == ["1", "1"]
            assert len({first, second}) == 2

    @pytest.mark.parametrize(
        ("event", "topics"),
        [(Event("2"), ("t",)), (Event("1", type="x"), ("t",)), (Event("1"), ("t", "u"))],
    )
    async def test_a_key_belongs_to_one_event(
        self, engine: Engine, event: Event, topics: tuple[str, ...]
    ) -> None:
        async with engine.make() as log:
            first = await log.append(Event("1"), ("t",), key="a")
            with pytest.raises(KeyReused, match="belongs to event") as caught:
                await log.append(event, topics, key="a")
            assert (caught.value.key, caught.value.event_id) == ("a", first)
            assert await texts_after(log, 0) == ["1"]

    async def test_many_that_repeat_at_once_are_one(self, engine: Engine) -> None:
        async with engine.make() as log:
            ids: list[str] = []

            async def publisher() -> None:
                ids.append(await log.append(Event("1"), ("t",), key="a"))

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(publisher)
            assert len(ids) == 20
            assert len(set(ids)) == 1
            assert await texts_after(log, 0) == ["1"]


class TestReplay:
    """What the dispatcher asks for who comes back."""

    async def test_it_gives_what_followed_up_to_where_it_is_asked(self, engine: Engine) -> None:
        async with engine.make() as log:
            ids = await append(log, *"12345")
            places = [record.position for record in await log.read(0, 10)]
            replay = await log.replay(ids[0])
            assert replay.position == places[0]
            gap, records = await replay.read(2, places[3])
            assert (gap, [record.id for record in records]) == (None, ids[1:3])
            assert replay.position == places[2]
            gap, records = await replay.read(10, places[3])
            assert (gap, [record.id for record in records]) == (None, ids[3:4])
            assert replay.position == places[3]
            assert await replay.read(10, places[3]) == (None, [])
            assert replay.position == places[3]
            gap, records = await replay.read(10, log.newest)
            assert [record.id for record in records] == ids[4:]

    async def test_of_the_newest_there_is_nothing(self, engine: Engine) -> None:
        async with engine.make() as log:
            ids = await append(log, *"123")
            replay = await log.replay(ids[-1])
            assert replay.position == log.newest
            assert await replay.read(10, log.newest) == (None, [])

    async def test_a_place_is_the_id_of_who_has_had_all_up_to_there(self, engine: Engine) -> None:
        async with engine.make() as log:
            start = log.place(log.newest)
            ids = await append(log, *"123")
            assert [log.place(record.position) for record in await log.read(0, 10)] == ids
            gap, records = await (await log.replay(start)).read(10, log.newest)
            assert (gap, [record.id for record in records]) == (None, ids)

    @pytest.mark.parametrize("strange", ["", "7", "other.1", "{epoch}.999999", "{epoch}.x"])
    async def test_what_is_not_of_this_log_begins_with_a_gap(
        self, engine: Engine, strange: str
    ) -> None:
        async with engine.make(max_events=3) as log:
            ids = await append(log, *"12345")
            replay = await log.replay(strange.replace("{epoch}", log.epoch))
            assert replay.position == -1
            gap, records = await replay.read(10, log.newest)
            assert gap == ("epoch", log.place(log.trimmed))
            assert [record.id for record in records] == ids[2:]
            assert await replay.read(10, log.newest) == (None, [])

    async def test_what_was_trimmed_is_a_gap(self, engine: Engine) -> None:
        async with engine.make(max_events=3) as log:
            ids = await append(log, *"123")
            replay = await log.replay(ids[0])
            await append(log, *"4567")
            gap, records = await replay.read(2, log.newest)
            assert gap == ("trimmed", log.place(log.trimmed))
            assert len(records) == 2
            gap, records = await replay.read(2, log.newest)
            assert gap is None
            assert replay.position == log.newest


class TestMemoryLog:
    @pytest.mark.parametrize("bounds", [{"max_events": 0}, {"max_bytes": 0}])
    def test_a_log_that_keeps_nothing_is_refused(self, bounds: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"MemoryLog\(.*as in MemoryLog\(max_events="):
            MemoryLog(**bounds)

    async def test_it_is_bounded_in_bytes(self) -> None:
        log = MemoryLog(max_bytes=10_000)
        for _ in range(50):
            await append(log, "x" * 1000)
        held = await log.read(0, 1000)
        assert 5 <= len(held) <= 10
        assert sum(len(record.data) for record in held) <= 10_000

    async def test_one_event_is_kept_whatever_its_size(self) -> None:
        log = MemoryLog(max_bytes=10)
        await append(log, "x" * 1000)
        await append(log, "y" * 1000)
        assert await texts_after(log, 0) == ["y" * 1000]
        assert (log.newest, log.trimmed) == (2, 1)

    async def test_its_repr_tells_what_it_holds(self) -> None:
        log = MemoryLog(max_events=2)
        await append(log, "1", "2", "3")
        assert f"{log.epoch} positions 2 to 3" in repr(log)

    async def test_what_it_has_forgotten_takes_no_memory(self) -> None:
        log = MemoryLog(max_events=10)
        for _ in range(1000):
            await append(log, "x")
        assert len(log._tail._records) <= 2 * 10 + 1


class TestCursor:
    @pytest.mark.parametrize(
        "text",
        [
            *("", ".", "5", "abc", "abc.", "abc.x", "abc.-1", "abc.+1", "abc.1 ", "abc. 1"),
            *("abc.1_0", "abc.²", "abc.٣", "abc." + "9" * 41),
        ],
    )
    def test_what_is_not_one_of_ours(self, text: str) -> None:
        assert Cursor.parse(text) is None

    def test_an_epoch_may_contain_dots(self) -> None:
        assert Cursor.parse("node.1.42") == ("node.1", 42)

    @given(st.text(min_size=1), st.integers(0, 10**39))
    def test_it_reads_what_it_writes(self, epoch: str, position: int) -> None:
        assert Cursor.parse(str(Cursor(epoch, position))) == (epoch, position)

    @given(st.text())
    def test_no_text_is_too_strange(self, text: str) -> None:
        cursor = Cursor.parse(text)
        assert cursor is None or cursor.position >= 0
