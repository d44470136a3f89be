"""The log in Redis: what the conformance suite cannot ask of every engine."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from _redis import RedisServer, SentinelServer, free_port, new_name, running, shared_server
from _sessions import decoded, receive_events

from trio_sse import Event, Hub, KeyReused, LogUnavailable, Record, Request
from trio_sse.log import Cursor, Replay
from trio_sse.log.redis import RedisLog

pytestmark = pytest.mark.redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that the test may hurt."""
    with running() as server:
        yield server


@pytest.fixture
def durable() -> Iterator[RedisServer]:
    """One that has on disk what it acknowledged."""
    with running("appendonly yes", "appendfsync always") as server:
        yield server


@pytest.fixture(params=[1, 4])
def shards(request: pytest.FixtureRequest) -> Any:
    return request.param


async def until(condition: Callable[[], object]) -> None:
    """Another process is waited for: there is nothing else to wait at."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110  # as it says
            await trio.sleep(0.005)


async def wait_for(log: RedisLog, count: int) -> None:
    with trio.fail_after(20):
        await log.wait(count - 1)


async def fill(log: RedisLog, count: int, topic: str = "t", start: int = 1) -> list[str]:
    """Append "start", "start + 1", …, all at once, in this order; their ids."""
    ids = dict[int, str]()

    async def one(number: int, turn: trio.Event, next_turn: trio.Event) -> None:
        await turn.wait()
        next_turn.set()  # it comes when this one has put its event into the queue
        ids[number] = await log.append(Event(str(number)), (topic,))

    for first in range(start, start + count, 500):
        numbers = range(first, min(first + 500, start + count))
        turns = [trio.Event() for _ in range(len(numbers) + 1)]
        async with trio.open_nursery() as nursery:
            for number, turn, next_turn in zip(numbers, turns, turns[1:], strict=False):
                nursery.start_soon(one, number, turn, next_turn)
            turns[0].set()
    return [ids[number] for number in sorted(ids)]


def texts(records: Sequence[Record]) -> list[str]:
    return [str(event.data) for record in records for event in decoded(record.data)]


async def rest(log: RedisLog, replay: Replay, limit: int = 100) -> tuple[list[str], list[Record]]:
    """All that a replay gives up to now, as the dispatcher reads it: reasons of gaps, records."""
    gaps, found = list[str](), list[Record]()
    with trio.fail_after(20):
        while replay.position != log.newest:
            if replay.position > log.newest:
                await log.wait(replay.position - 1)
            gap, records = await replay.read(limit, log.newest)
            gaps += [] if gap is None else [gap.reason]
            found += records
    return gaps, found


@asynccontextmanager
async def nodes(count: int, url: str, **options: Any) -> AsyncIterator[list[RedisLog]]:
    """Several logs of one name, as several nodes have them."""
    name = new_name()
    logs = [RedisLog(url, name=name, **options) for _ in range(count)]
    async with trio.open_nursery() as nursery:

        async def hold(log: RedisLog, task_status: trio.TaskStatus[None]) -> None:
            async with log:
                task_status.started()
                await trio.sleep_forever()

        for log in logs:
            await nursery.start(hold, log)
        yield logs
        nursery.cancel_scope.cancel()


class TestNodes:
    """Several logs on one Redis."""

    async def test_they_share_one_order_per_topic(self, shards: int) -> None:
        topics = [f"topic-{n}" for n in range(10)]
        async with nodes(3, shared_server().url, shards=shards) as logs:
            async with trio.open_nursery() as nursery:

                async def publisher(log: RedisLog, who: int) -> None:
                    rng = random.Random(who)
                    for n in range(100):
                        await log.append(Event(f"{who}-{n}"), (rng.choice(topics),))

                for who in range(6):
                    nursery.start_soon(publisher, logs[who % 3], who)
            orders = list[dict[str, list[str]]]()
            for log in logs:
                await wait_for(log, 600)
                records = await log.read(0, 1000)
                assert len(records) == 600
                by_topic: dict[str, list[str]] = {topic: [] for topic in topics}
                for record in records:
                    by_topic[record.topics[0]] += texts([record])
                orders.append(by_topic)
            assert orders[0] == orders[1] == orders[2]
            assert len({log.epoch for log in logs}) == 1

    @pytest.mark.parametrize("tail_events", [1000, 30])
    async def test_a_place_on_one_is_a_place_on_all(self, shards: int, tail_events: int) -> None:
        """From memory, and where one of them has forgotten what another has not."""
        rng = random.Random(7)
        name, url = new_name(), shared_server().url
        async with (
            RedisLog(url, name=name, shards=shards) as one,
            RedisLog(url, name=name, shards=shards, tail_events=tail_events) as other,
        ):
            async with trio.open_nursery() as nursery:
                for who in range(5):
                    nursery.start_soon(fill, (one, other)[who % 2], 60, f"topic-{who}", who * 1000)
            for log in (one, other):
                await wait_for(log, 300)
            given = await one.read(0, 1000)
            everything = texts(given)
            for index in rng.sample(range(300), 40):
                had = everything[: index + 1]
                gaps, records = await rest(other, await other.replay(given[index].id), 13)
                assert gaps == []
                assert Counter(texts(records)) == Counter(everything[index + 1 :])
                for topic in {record.topics for record in given}:
                    mine = [r for r in given[index + 1 :] if r.topics == topic]
                    theirs = [r for r in records if r.topics == topic]
                    assert texts(mine) == texts(theirs)
                # A place in the middle of that replay is as good as any.
                if records:
                    middle = rng.randrange(len(records))
                    had += texts(records[: middle + 1])
                    gaps, more = await rest(one, await one.replay(records[middle].id), 13)
                    assert gaps == []
                    assert Counter(had + texts(more)) == Counter(everything)

    async def test_who_is_ahead_waits_for_the_node_to_have_read_that_far(self) -> None:
        name, url = new_name(), shared_server().url
        async with (
            RedisLog(url, name=name) as ahead,
            RedisLog(url, name=name, tail_events=4) as behind,
        ):
            with trio.move_on_after(0.01):
                await behind.wait(0)  # from here on it gives out, and has not begun to
            await fill(ahead, 20)
            await until(lambda: behind.newest >= 2)
            assert behind.newest < 20
            place = ahead.place(18)
            replay = await behind.replay(place)
            read = list[str]()

            async def come_back() -> None:
                while replay.position != 20:
                    read.extend(texts((await replay.read(10, 20)).records))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(come_back)
                position = 0
                while position < 20:
                    await behind.wait(position)
                    position = (await behind.read(position, 10))[-1].position
            assert read == ["19", "20"]

    async def test_what_was_trimmed_unread_is_a_gap(self, server: RedisServer) -> None:
        name = new_name()
        async with (
            RedisLog(server.url, name=name, max_events=100) as busy,
            RedisLog(server.url, name=name, tail_events=10) as behind,
        ):
            with trio.move_on_after(0.01):
                await behind.wait(0)
            await fill(busy, 40)
            await until(lambda: behind.newest >= 5)
            for first in range(41, 1001, 40):
                await fill(busy, 40, start=first)
            # It has read on only as far as it can hold.
            assert behind.newest <= 20
            found, position, epoch = list[str](), 0, behind.epoch
            trimmed = 0
            while position < 1000:
                await behind.wait(position)
                records = await behind.read(position, 10)
                if behind.trimmed > position and (
                    not records or records[0].position > position + 1
                ):
                    trimmed += 1
                position = records[-1].position if records else behind.trimmed
                found += texts(records)
            assert trimmed == 1
            assert found[-1] == "1000"
            assert 100 <= len(found) < 400
            assert found == sorted(found, key=int)
            assert (behind.epoch, behind.place(1000)) == (epoch, f"{epoch}.1000")


class TestShards:
    async def test_topics_on_different_shards_are_refused(self) -> None:
        async with RedisLog(shared_server().url, name=new_name(), shards=4) as log:
            with pytest.raises(ValueError, match=r"different shards.*'\{orders\}/new'"):
                await log.append(Event("1"), [f"topic-{n}" for n in range(10)])
            assert log.newest == 0
            await log.append(Event("1"), [f"{{tag}}-{n}" for n in range(10)])
            await log.append(Event("2"), [f"x{{tag}}-{n}" for n in range(10)])
            assert texts(await log.read(0, 10)) == ["1", "2"]

    async def test_they_are_all_used(self) -> None:
        async with RedisLog(shared_server().url, name=new_name(), shards=4) as log:
            for n in range(64):
                await log.append(Event(str(n)), (f"topic-{n}",))
            vector = [int(part) for part in log.place(log.newest).rpartition(".")[2].split("-")]
            assert sum(vector) == 64
            assert min(vector) > 0

    async def test_another_number_of_them_is_another_epoch(self) -> None:
        name = new_name()
        async with RedisLog(shared_server().url, name=name) as log:
            [place] = await fill(log, 1)
        async with RedisLog(shared_server().url, name=name, shards=4) as log:
            gaps, records = await rest(log, await log.replay(place))
            assert gaps == ["epoch"]
            assert texts(records) == ["1"]

    async def test_an_id_is_what_replay_gives(self, shards: int) -> None:
        async with RedisLog(shared_server().url, name=new_name(), shards=shards) as log:
            start = log.place(0)
            ids = [
                await log.append(Event(str(n)), (f"topic-{n % 7}",), key=str(n)) for n in range(50)
            ]
            assert [record.id for record in await log.read(0, 100)] == ids
            _, records = await rest(log, await log.replay(start))
            assert [record.id for record in records] == ids
            assert await log.append(Event("7"), ("topic-0",), key="7") == ids[7]
            with pytest.raises(KeyReused) as caught:
                await log.append(Event("8"), ("topic-0",), key="7")
            assert caught.value.event_id == ids[7]


class TestReplay:
    async def test_what_is_in_memory_is_not_asked_of_redis(self, shards: int) -> None:
        async with RedisLog(shared_server().url, name=new_name(), shards=shards) as log:
            start = log.place(0)
            await fill(log, 300)
            for position in (0, 1, 150, 299, 300):
                place = start if position == 0 else log.place(position)
                gaps, records = await rest(log, await log.replay(place))
                assert (gaps, len(records)) == ([], 300 - position)
            assert log.statistics().asked == 0

    async def test_what_is_older_comes_from_redis_and_goes_over_into_memory(
        self, shards: int
    ) -> None:
        url = shared_server().url
        async with RedisLog(url, name=new_name(), shards=shards, tail_events=50) as log:
            ids = list[str]()
            start = log.place(0)
            for n in range(10):
                ids += await fill(log, 200, f"topic-{n % 3}", n * 200)
            assert log.trimmed == 1950
            gaps, records = await rest(log, await log.replay(start), 70)
            assert gaps == []
            assert Counter(texts(records)) == Counter(map(str, range(2000)))
            for topic in range(3):
                own = [
                    int(t) for r in records if r.topics == (f"topic-{topic}",) for t in texts([r])
                ]
                assert own == sorted(own)
            assert 0 < log.statistics().asked < 60

    async def test_those_who_come_back_together_share_what_is_asked(self) -> None:
        async with RedisLog(shared_server().url, name=new_name(), tail_events=50) as log:
            ids = await fill(log, 2000)
            counts = list[int]()

            async def client(event_id: str) -> None:
                gaps, records = await rest(log, await log.replay(event_id))
                assert gaps == []
                counts.append(len(records))

            async with trio.open_nursery() as nursery:
                for n in range(100):
                    nursery.start_soon(client, ids[n])
            assert sorted(counts) == list(range(1900, 2000))
            assert log.statistics().asked < 60

    async def test_what_redis_has_forgotten_is_one_gap(self) -> None:
        name, url = new_name(), shared_server().url
        async with RedisLog(url, name=name, max_events=500, tail_events=50) as log:
            ids = await fill(log, 5000)
            replay = await log.replay(ids[9])
            gap, _ = await replay.read(10, log.newest)
            assert gap == ("trimmed", f"{log.epoch}.4500")
            gaps, records = await rest(log, replay)
            assert gaps == []
            assert texts(records) == [str(n) for n in range(4511, 5001)]

    async def test_so_it_is_if_redis_was_trimmed_by_hand(self) -> None:
        name, url = new_name(), shared_server().url
        async with RedisLog(url, name=name, tail_events=50) as log:
            ids = await fill(log, 5000)
            shared_server().ask("XTRIM", f"{{{name}:0}}:events", "MINID", "4001")
            gap, records = await (await log.replay(ids[9])).read(10, log.newest)
            assert gap == ("trimmed", f"{log.epoch}.4000")
            assert texts(records) == [str(n) for n in range(4001, 4011)]
            replay = await log.replay("strange")
            gap, records = await replay.read(10, log.newest)
            assert gap == ("epoch", f"{log.epoch}.4000")
            assert texts(records) == [str(n) for n in range(4001, 4011)]

    async def test_a_node_that_has_just_come_gives_what_redis_has(self, shards: int) -> None:
        name, url = new_name(), shared_server().url
        async with RedisLog(url, name=name, shards=shards) as log:
            ids = await fill(log, 100)
        async with RedisLog(url, name=name, shards=shards) as log:
            assert log.newest == log.trimmed == 100
            assert log.place(100) == ids[-1]
            gaps, records = await rest(log, await log.replay(ids[9]))
            assert (gaps, [record.id for record in records]) == ([], ids[10:])

    async def test_it_waits_while_redis_is_away(self, durable: RedisServer) -> None:
        name = new_name()
        async with RedisLog(durable.url, name=name, tail_events=5, timeout=0.5) as log:
            ids = await fill(log, 100)
            durable.kill()
            found = list[Record]()

            async def come_back() -> None:
                gaps, records = await rest(log, await log.replay(ids[0]))
                assert gaps == []
                found.extend(records)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(come_back)
                await until(lambda: log.problem)
                # From memory it goes on all the same.
                assert texts((await (await log.replay(ids[97])).read(5, 100)).records) == [
                    "99",
                    "100",
                ]
                assert found == []
                durable.start()
            assert texts(found) == [str(n) for n in range(2, 101)]
            await until(lambda: log.problem is None)


class TestTrouble:
    """Redis away, or wrong."""

    async def test_without_it_the_log_does_not_open(self, server: RedisServer) -> None:
        server.kill()
        with pytest.raises(
            LogUnavailable, match=f"cannot be opened: Redis at 127.0.0.1:{server.port}"
        ):
            async with RedisLog(server.url, timeout=0.1):
                pass

    async def test_it_waits_a_little_for_it(self, server: RedisServer) -> None:
        server.kill()
        async with trio.open_nursery() as nursery:

            async def start_late() -> None:
                await trio.sleep(0.2)
                server.start()

            nursery.start_soon(start_late)
            async with RedisLog(server.url, timeout=5) as log:
                assert log.problem is None

    async def test_a_wrong_password_is_told_without_it(self, server: RedisServer) -> None:
        server.ask("CONFIG", "SET", "requirepass", "secret")
        url = f"redis://:wr%20ong@127.0.0.1:{server.port}"
        with pytest.raises(LogUnavailable, match=r"(?i)password") as caught:
            async with RedisLog(url, timeout=1):
                pass
        assert "wr ong" not in str(caught.value)
        async with RedisLog(url.replace("wr%20ong", "secret")) as log:
            await log.append(Event("1"), ("t",))
            assert "secret" not in repr(log)

    @pytest.mark.parametrize(
        ("wrong", "right", "words"),
        [
            (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "maxmemory"),
            (
                ("CONFIG", "SET", "min-replicas-to-write", "1"),
                ("CONFIG", "SET", "min-replicas-to-write", "0"),
                "(?i)not enough good replicas",
            ),
        ],
    )
    async def test_what_it_refuses_is_told_in_its_words_until_it_takes_it(
        self,
        server: RedisServer,
        wrong: tuple[str, ...],
        right: tuple[str, ...],
        words: str,
    ) -> None:
        async with RedisLog(server.url) as log:
            await log.append(Event("1"), ("t",))
            server.ask(*wrong)
            for _ in range(2):
                with pytest.raises(LogUnavailable, match=words) as caught:
                    await log.append(Event("2"), ("t",))
                assert "may have been stored" not in str(caught.value)
            assert log.problem is not None
            server.ask(*right)
            await until(lambda: log.problem is None)
            await log.append(Event("3"), ("t",))
            assert texts(await log.read(0, 10)) == ["1", "3"]

    @pytest.mark.parametrize("how", ["kill", "pause"])
    async def test_away_it_is_told_at_once_and_back_nothing_is_lost(
        self, durable: RedisServer, how: str
    ) -> None:
        name = new_name()
        async with (
            RedisLog(durable.url, name=name, timeout=0.5) as log,
            Hub(log=RedisLog(durable.url, name=name, timeout=0.5)) as hub,
            hub.open_session(Request()) as (_, receive_end),
        ):
            await log.append(Event("1"), ("default",))
            await receive_events(receive_end, 1)
            getattr(durable, how)()
            # Unless somebody has noticed already, the answer to this is what is missing.
            with pytest.raises(LogUnavailable, match=r"may have been stored|^Redis at"):
                await log.append(Event("2"), ("default",), key="2")
            for _ in range(100):
                with pytest.raises(LogUnavailable, match="Redis at"):
                    await log.append(Event("3"), ("default",))
            await until(lambda: hub.log.problem)
            durable.start() if how == "kill" else durable.go_on()
            await until(lambda: log.problem is None and hub.log.problem is None)
            await log.append(Event("2"), ("default",), key="2")
            await log.append(Event("4"), ("default",))
            events = await receive_events(receive_end, 2)
            assert [event.data for event in events] == ["2", "4"]
            assert hub.statistics().gaps == 0

    async def test_who_publishes_first_hears_at_once_if_reading_has_failed(
        self, server: RedisServer
    ) -> None:
        async with RedisLog(server.url) as log:
            server.kill()
            await until(lambda: all(writer.problem for writer in log._writers))
            with pytest.raises(LogUnavailable, match=r"^Redis at") as caught:
                await log.append(Event("1"), ("t",))
            assert "may have been stored" not in str(caught.value)

    async def test_a_problem_that_nobody_has_any_more_is_none(self, server: RedisServer) -> None:
        name = new_name()
        async with RedisLog(server.url, name=name, tail_events=1) as log:
            ids = await fill(log, 10)
            server.kill()
            with trio.move_on_after(0.2):
                await (await log.replay(ids[0])).read(10, log.newest)
            server.start()
            await until(lambda: log.problem is None)

    async def test_scripts_that_redis_has_forgotten_are_sent_again(
        self, server: RedisServer
    ) -> None:
        async with RedisLog(server.url) as log:
            await log.append(Event("1"), ("t",))
            server.ask("SCRIPT", "FLUSH")
            await log.append(Event("2"), ("t",))
            assert texts(await log.read(0, 10)) == ["1", "2"]

    async def test_killed_under_load_it_has_every_acknowledged_event_once(
        self, durable: RedisServer, shards: int, figure: Callable[[str], None]
    ) -> None:
        kills, refused = 5, 0
        acknowledged = Counter[str]()
        async with nodes(2, durable.url, shards=shards, timeout=1) as [log, other]:
            start = other.place(0)
            stop = False

            async def publisher(who: int) -> None:
                n = 0
                while not stop:
                    await acknowledge(f"{who}-{n}", f"topic-{who}")
                    n += 1

            async def acknowledge(text: str, topic: str) -> None:
                nonlocal refused
                while True:
                    try:
                        await log.append(Event(text), (topic,), key=text)
                    except LogUnavailable:  # noqa: PERF203  # as often as it takes
                        refused += 1
                        await trio.sleep(0.01)
                    else:
                        acknowledged[text] += 1
                        return

            async with trio.open_nursery() as nursery:
                for who in range(20):
                    nursery.start_soon(publisher, who)
                for _ in range(kills):
                    before = len(acknowledged)
                    await until(lambda before=before: len(acknowledged) > before + 200)
                    durable.kill()
                    await until(lambda: log.problem)
                    durable.start()
                    await until(lambda: log.problem is None)
                stop = True
            for node in (log, other):
                await wait_for(node, len(acknowledged))
                records = await node.read(0, 1_000_000)
                found = texts(records)
                assert Counter(found) == acknowledged
                for who in range(20):
                    own = [text for text in found if text.startswith(f"{who}-")]
                    assert own == [f"{who}-{n}" for n in range(len(own))]
            gaps, records = await rest(other, await other.replay(start))
            assert gaps == []
            assert Counter(texts(records)) == acknowledged
        figure(
            f"{len(acknowledged)} events acknowledged, {kills} SIGKILLs, {refused} appends "
            f"refused: 0 lost, 0 twice"
        )

    async def test_after_a_flush_it_is_another_epoch(self, server: RedisServer) -> None:
        name = new_name()
        hub = Hub(log=RedisLog(server.url, name=name))
        async with (
            RedisLog(server.url, name=name) as other,
            hub,
            hub.open_session(Request()) as (_, receive_end),
        ):
            old = await hub.publish(Event("1"))
            await receive_events(receive_end, 1)
            server.ask("FLUSHALL")
            # So many that the numbers go past the old ones before anyone looks.
            await fill(other, 30, "default")
            events = await receive_events(receive_end, 31)
            assert [event.type for event in events[:1]] == ["gap"]
            assert '"epoch"' in str(events[0].data)
            assert [event.data for event in events[1:]] == [str(n) for n in range(1, 31)]
            assert len({Cursor.parse(str(e.id)).epoch for e in events}) == 1  # type: ignore[union-attr]  # ours
            assert not str(events[1].id).startswith(old.partition(".")[0])
            assert hub.log.epoch == other.epoch
            gaps, records = await rest(other, await other.replay(old))
            assert gaps == ["epoch"]
            assert texts(records) == [str(n) for n in range(1, 31)]

    async def test_a_flush_is_noticed_when_nothing_is_published(self, server: RedisServer) -> None:
        async with nodes(2, server.url, shards=2) as [one, other]:
            await fill(one, 10)
            before = one.epoch
            server.ask("FLUSHALL")
            await until(lambda: one.epoch == other.epoch != before)

    async def test_numbers_go_on_if_only_the_epoch_was_lost(self, server: RedisServer) -> None:
        name = new_name()
        async with RedisLog(server.url, name=name) as log:
            ids = await fill(log, 10)
            server.ask("DEL", f"{{{name}:0}}:meta")
            await log.append(Event("11"), ("t",))
            gaps, records = await rest(log, await log.replay(ids[0]))
            assert gaps == ["epoch"]
            assert texts(records) == [str(n) for n in range(1, 12)]

    @pytest.mark.parametrize("again", [1, 3, 5])
    async def test_a_stale_failover_is_another_epoch(self, server: RedisServer, again: int) -> None:
        """A replica that lacks the newest events is promoted, and gives their numbers again.

        Three were lost: of their numbers some, all, or all and more are there.
        """
        with running(f"replicaof 127.0.0.1 {server.port}") as replica:
            await until(lambda: "master_link_status:up" in replica.ask("INFO", "replication"))
            name = new_name()
            hub = Hub(log=RedisLog(server.url, name=name))
            async with (
                RedisLog(server.url, name=name) as other,
                hub,
                hub.open_session(Request()) as (_, receive_end),
            ):
                ids = [await hub.publish(Event(str(n))) for n in range(1, 11)]
                await until(lambda: replica.ask("XLEN", f"{{{name}:0}}:events") == "10")
                replica.ask("REPLICAOF", "NO", "ONE")  # so that it misses the next
                lost = [await hub.publish(Event(f"lost-{n}")) for n in range(3)]
                await until(lambda: other.newest == 13)
                assert len(await receive_events(receive_end, 13)) == 13
                server.kill()
                # Another, who has not read what is lost, publishes before anyone notices.
                keys = f"{{{name}:0}}"
                field = ids[0].partition(".")[0]
                new = [f"new-{n}" for n in range(11, 11 + again)]
                for n, text in enumerate(new, start=11):
                    assert replica.ask("HINCRBY", f"{keys}:meta", "n", "1") == str(n)
                    stored = f'["default"]\ndata: {text}\n\n'
                    replica.ask("XADD", f"{keys}:events", f"{n}-1", field, stored)
                move(replica, server)
                server.start()
                await until(lambda: hub.log.epoch == other.epoch != field)
                await until(lambda: hub.log.problem is None)
                await hub.publish(Event("next"))
                events = await receive_events(receive_end, again + 2)
                given = ["gap" if event.type == "gap" else event.data for event in events]
                assert given == ["gap", *new, "next"]
                for place in (lost[-1], ids[3]):
                    gaps, records = await rest(other, await other.replay(place))
                    assert gaps == ["epoch"]
                    assert texts(records) == [*map(str, range(1, 11)), *new, "next"]

    async def test_a_restart_that_lost_nothing_goes_on(self, durable: RedisServer) -> None:
        async with RedisLog(durable.url, timeout=1) as log:
            epoch = log.epoch
            await fill(log, 10)
            for n in range(3):
                durable.kill()
                await until(lambda: log.problem)
                durable.start()
                await until(lambda: log.problem is None)
                await fill(log, 10, start=100 * (n + 1))
            assert log.epoch == epoch
            assert [record.position for record in await log.read(0, 100)] == list(range(1, 41))


def move(source: RedisServer, target: RedisServer) -> None:
    """Have ``target``, when it starts, begin with the data that ``source`` has now."""
    assert source.ask("SAVE") == "OK"
    shutil.copy(source.directory / "dump.rdb", target.directory / "dump.rdb")


class TestBounds:
    @pytest.mark.parametrize(
        "options",
        [
            *({"name": ""}, {"name": "a{b"}, {"shards": 0}, {"shards": 1000}),
            *({"max_events": 0}, {"tail_events": 0}, {"tail_bytes": 0}),
            *({"timeout": 0}, {"max_age": 0}),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"RedisLog\(.*as in RedisLog\(url"):
            RedisLog("redis://localhost", **options)

    async def test_old_events_are_deleted(self) -> None:
        name, server = new_name(), shared_server()
        async with RedisLog(server.url, name=name, max_age=1, tail_events=10) as log:
            ids = await fill(log, 300)
            await log.append(Event("k"), ("t",), key="k")
            await until(lambda: server.ask("XLEN", f"{{{name}:0}}:events") == "0")
            assert server.ask("ZCARD", f"{{{name}:0}}:keys") == "0"
            gaps, records = await rest(log, await log.replay(ids[0]))
            assert gaps == ["trimmed"]
            everything = [*(str(n) for n in range(1, 301)), "k"]
            assert len(records) <= 10  # those in memory, unless it had not read them in time
            assert texts(records) == everything[len(everything) - len(records) :]
            await log.append(Event("302"), ("t",))
            assert log.place(log.newest) == f"{log.epoch}.302"

    async def test_redis_keeps_about_as_many_as_it_is_told(self) -> None:
        name, server = new_name(), shared_server()
        async with RedisLog(server.url, name=name, max_events=1000) as log:
            for first in range(1, 5001, 1000):
                await fill(log, 1000, start=first)
            assert 1000 <= int(server.ask("XLEN", f"{{{name}:0}}:events")) <= 1200

    async def test_keys_are_remembered_as_long_as_their_events(self) -> None:
        name, server = new_name(), shared_server()
        async with RedisLog(server.url, name=name, max_events=100) as log:
            for n in range(500):
                await log.append(Event(str(n)), ("t",), key=str(n))
            assert 100 <= int(server.ask("ZCARD", f"{{{name}:0}}:keys")) <= 101
            ids = [record.id for record in await log.read(0, 100)]
            again = [await log.append(Event(str(n)), ("t",), key=str(n)) for n in range(400, 500)]
            assert again == ids


class TestClosing:
    async def test_it_leaves_no_connection(self, server: RedisServer) -> None:
        async with RedisLog(server.url, shards=3, tail_events=1) as log:
            ids = await fill(log, 10)
            await rest(log, await log.replay(ids[0]))
            assert server.ask("CLIENT", "LIST").count("\n") > 3
        await until(lambda: server.ask("CLIENT", "LIST").count("\n") == 1)

    async def test_after_it_nothing_is_taken(self) -> None:
        async with RedisLog(shared_server().url, name=new_name()) as log:
            await log.append(Event("1"), ("t",))
        with pytest.raises(LogUnavailable, match="closed"):
            await log.append(Event("2"), ("t",))
        with pytest.raises(RuntimeError, match="opened once"):
            await log.__aenter__()

    async def test_who_waits_for_an_answer_is_told(self, server: RedisServer) -> None:
        failures = list[str]()

        async def publisher(log: RedisLog) -> None:
            with pytest.raises(LogUnavailable) as caught:
                await log.append(Event("1"), ("t",))
            failures.append(str(caught.value))

        async with trio.open_nursery() as nursery, RedisLog(server.url) as log:
            await log.append(Event("0"), ("t",))
            server.pause()
            for _ in range(3):
                nursery.start_soon(publisher, log)
            await trio.testing.wait_all_tasks_blocked(0.01)
        server.go_on()
        assert len(failures) == 3
        assert "may have been stored" in failures[0]

    async def test_cancelled_anywhere_it_goes_on(self, shards: int) -> None:
        rng = random.Random(1)
        name = new_name()
        async with RedisLog(shared_server().url, name=name, shards=shards, tail_events=5) as log:
            start = log.place(0)
            done = set[str]()

            async def attempt(n: int) -> None:
                with trio.move_on_after(rng.uniform(0, 0.004)):
                    await log.append(Event(str(n)), (f"topic-{n % 9}",))
                    done.add(str(n))
                with trio.move_on_after(rng.uniform(0, 0.004)):
                    await (await log.replay(start)).read(10, log.newest)

            for first in range(0, 300, 30):
                async with trio.open_nursery() as nursery:
                    for n in range(first, first + 30):
                        nursery.start_soon(attempt, n)
            await log.append(Event("last"), ("t",))
            gaps, records = await rest(log, await log.replay(start))
            found = Counter(texts(records))
            assert gaps == []
            assert set(found.values()) == {1}
            assert found.keys() >= done
            assert log.problem is None


class TestPlaces:
    """Where Redis may be."""

    async def test_a_unix_socket(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "redis.sock")
            with running(f"unixsocket {path}") as server:
                async with RedisLog(f"unix://{path}?db=2") as log:
                    await fill(log, 3)
                assert "db2:keys=2" in server.ask("INFO", "keyspace")

    async def test_tls(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            authority, port = trustme.CA(), free_port()
            certificate = authority.issue_cert("localhost")
            ca, own, key = (str(Path(directory, name)) for name in ("ca", "own", "key"))
            authority.cert_pem.write_to_path(ca)
            certificate.cert_chain_pems[0].write_to_path(own)
            certificate.private_key_pem.write_to_path(key)
            options = [f"tls-port {port}", f"tls-cert-file {own}", f"tls-key-file {key}"]
            with running(*options, f"tls-ca-cert-file {ca}", "tls-auth-clients no"):
                async with RedisLog(f"rediss://localhost:{port}?ssl_ca_certs={ca}") as log:
                    ids = await fill(log, 3)
                    assert [record.id for record in await log.read(0, 10)] == ids
                for wrong in (
                    f"rediss://localhost:{port}",
                    f"rediss://127.0.0.1:{port}?ssl_ca_certs={ca}",
                ):
                    with pytest.raises(LogUnavailable, match=r"(?i)certificate"):
                        async with RedisLog(wrong, timeout=1):
                            pass

    @pytest.mark.parametrize("count", [1, 4])
    async def test_a_cluster(self, count: int) -> None:
        with running("cluster-enabled yes", f"cluster-port {free_port()}") as server:
            server.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            await until(lambda: "cluster_state:ok" in server.ask("CLUSTER", "INFO"))
            url = f"redis+cluster://127.0.0.1:{server.port}"
            async with nodes(2, url, shards=count, tail_events=20) as [one, other]:
                start = other.place(0)
                for topic in range(8):
                    await fill(one, 20, f"topic-{topic}", 1000 * topic)
                await wait_for(other, 160)
                gaps, records = await rest(other, await other.replay(start))
                assert gaps == []
                assert len(set(texts(records))) == len(records) == 160

    async def test_what_sentinel_says_is_the_primary(self, server: RedisServer) -> None:
        directory = Path(tempfile.mkdtemp(prefix="sentinel-"))
        sentinel = SentinelServer(directory)
        try:
            sentinel.start(f"sentinel monitor mymaster 127.0.0.1 {server.port} 1")
            async with RedisLog(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster/1") as log:
                await fill(log, 3)
            assert "db1:keys=2" in server.ask("INFO", "keyspace")
        finally:
            sentinel.kill()
            shutil.rmtree(directory)

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("http://localhost", "no URL of a Redis"),
            ("redis://localhost/x", "no number of a database"),
            ("redis://localhost:port/0", "no host and port"),
            ("redis://localhost?ssl=1", "no option 'ssl'"),
            ("redis+cluster://localhost/1", "no databases but 0"),
            ("redis+sentinel://localhost", "names the primary"),
            ("rediss://localhost?ssl_ca_certs=/nowhere.pem", "certificates"),
        ],
    )
    def test_a_url_that_is_none_is_refused(self, url: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            RedisLog(url)
