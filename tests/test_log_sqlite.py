"""The log in a file: what it promises beyond what all logs do (see test_log)."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlite_processes
import trio
import trio.testing
from _sessions import decoded, payloads, receive_events

from trio_sse import Event, Hub, KeyReused, LogUnavailable, Record, Request, UnusableLog
from trio_sse.log import _sqlite_file, _sqlite_prompt, _sqlite_store
from trio_sse.log import sqlite as sqlite_log
from trio_sse.log._sqlite_cache import PageCache
from trio_sse.log._sqlite_store import Store
from trio_sse.log.sqlite import SqliteLog
from trio_sse.testing import Moment, explore

Figure = Callable[[str], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    """Whatever a test does, in the end no descriptor of a log's is open."""
    yield
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_fd(fd)]
    assert [link for link in links if ".db" in link or "inotify" in link] == []


def _is_fd(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


async def append(log: SqliteLog, *texts: str, **options: Any) -> list[str]:
    return [await log.append(Event(text), ("t",), **options) for text in texts]


async def texts_in(log: SqliteLog, after: int = 0) -> list[str | None]:
    found: list[str | None] = []
    while records := await log.read(after, 100):
        found += [event.data for record in records for event in decoded(record.data)]
        after = records[-1].position
    return found


async def held(path: Path) -> list[str | None]:
    """What a log finds that opens the file anew."""
    async with SqliteLog(path) as log:
        return await texts_in(log)


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        [count] = connection.execute("SELECT count(*) FROM event").fetchone()
        return int(count)


def size(path: Path) -> int:
    return path.stat().st_size


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # threads do it, and tell nobody
            await trio.sleep(0.01)


def writer(log: SqliteLog) -> sqlite3.Connection:
    return log._store._writer


def without_tail(monkeypatch: pytest.MonkeyPatch, *, cache: int = 0) -> None:
    """What is read is read from the file, but for the newest event."""
    monkeypatch.setattr(sqlite_log, "TAIL_EVENTS", 1)
    monkeypatch.setattr(sqlite_log, "CACHE_BYTES", cache)


class TestSurviving:
    async def test_a_restart(self, path: Path) -> None:
        async with SqliteLog(path) as log:
            epoch, ids = log.epoch, await append(log, "1", "2", "3")
        async with SqliteLog(path) as log:
            assert (log.epoch, log.newest, log.trimmed) == (epoch, 3, 0)
            assert [record.id for record in await log.read(0, 10)] == ids
            assert await append(log, "4") == [f"{epoch}.4"]
            gap, records = await (await log.replay(ids[1])).read(10, log.newest)
            assert gap is None
            assert [payloads(record.data) for record in records] == [["3"], ["4"]]

    async def test_a_restart_of_the_hub(self, path: Path) -> None:
        async with Hub(log=SqliteLog(path)) as hub:
            ids = [await hub.publish(Event(text)) for text in "123"]
            await hub.drain(0)
        async with Hub(log=SqliteLog(path)) as hub:
            request = Request(last_event_id=ids[0])
            async with hub.open_session(request) as (_, receive_end):
                await hub.publish(Event("4"))
                events = await receive_events(receive_end, 3)
        assert [event.data for event in events] == ["2", "3", "4"]

    async def test_a_hub_that_fails_leaves_the_log(self, path: Path) -> None:
        async def scenario() -> None:
            async with Hub(log=SqliteLog(path)) as hub:
                await hub.publish(Event("1"))
                raise KeyError("a mistake")

        with pytest.raises(KeyError, match="a mistake"):
            await scenario()
        assert await held(path) == ["1"]
        assert os.listdir(path.parent) == [path.name]  # the last one to leave cleans up

    async def test_all_that_can_be_in_an_event(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Read from the file it is byte for byte what it was."""
        without_tail(monkeypatch)
        events = [
            Event(""),
            Event("a\nb\r\nc", type="x", retry=5),
            Event("é\0\U0001f600\0"),
            Event("\0\n\0", comment="id: \n\n: \0 colon"),
            Event(": no comment\nid: 5\n0"),
            Event("x" * 300_000),
            Event("0\n0\n"),
            Event("z"),
        ]
        topics = [("t", "\0"), ('"', "\n"), ("\ud800",), ("é",), ("a",), ("b",), ("a",), ("z",)]
        async with SqliteLog(path) as log:
            live: list[Record] = []
            for event, names in zip(events, topics, strict=True):
                await log.append(event, names)
                live += await log.read(log.newest - 1, 1)
            assert [record.topics for record in live] == topics
            read: list[Record] = []
            while len(read) < len(live):
                read += await log.read(len(read), 100)
            assert read == live

    @pytest.mark.parametrize("sync", ["full", "normal", "off"])
    async def test_a_restart_of_the_system(
        self, path: Path, sync: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where events may be lost their ids are not known any more: others may get them."""
        async with SqliteLog(path, sync=sync) as log:
            epoch, [id] = log.epoch, await append(log, "1")
        monkeypatch.setattr(_sqlite_file, "_boot_id", lambda: "another")
        async with SqliteLog(path, sync=sync) as log:
            assert (log.epoch == epoch) == (sync == "full")
            gap, _ = await (await log.replay(id)).read(10, log.newest)
            assert (gap is None) == (sync == "full")
            epoch = log.epoch
        async with SqliteLog(path, sync=sync) as log:
            assert log.epoch == epoch
            assert await texts_in(log) == ["1"]

    @pytest.mark.parametrize(("sync", "level"), [("full", 2), ("normal", 1), ("off", 0)])
    async def test_what_a_commit_waits_for(self, path: Path, sync: Any, level: int) -> None:
        """That SQLite asks the disk for it: whether the disk does it no test can tell."""
        async with SqliteLog(path, sync=sync) as log:
            await trio.to_thread.run_sync(log._store.checkpoint)
            for connection in (writer(log), log._store._keeper):
                assert connection is not None
                assert connection.execute("PRAGMA synchronous").fetchone() == (level,)

    async def test_full_after_normal(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with SqliteLog(path, sync="normal") as log:
            first = log.epoch
        monkeypatch.setattr(_sqlite_file, "_boot_id", lambda: "second")
        async with SqliteLog(path) as log:
            second = log.epoch
        monkeypatch.setattr(_sqlite_file, "_boot_id", lambda: "third")
        async with SqliteLog(path) as log:
            assert first != second == log.epoch


class TestKilled:
    """Real processes that are killed; what they had acknowledged is there, once, in order."""

    def run(self, name: str, **arguments: object) -> dict[str, int]:
        done = subprocess.run(
            [sys.executable, sqlite_processes.__file__, json.dumps([name, arguments])],
            stdout=subprocess.PIPE,
            timeout=300,
            check=True,
        )
        return json.loads(done.stdout)  # type: ignore[no-any-return]  # dict[str, int], from there

    @pytest.mark.exhaustive
    @pytest.mark.parametrize(("max_events", "wal_bytes"), [(1000, 100_000), (4, 1)])
    def test_before_each_statement(self, max_events: int, wal_bytes: int, figure: Figure) -> None:
        """From the making of the file to its closing, with trimming and checkpoints or without."""
        done = self.run("kill_at_each_statement", max_events=max_events, wal_bytes=wal_bytes)
        assert done["kills"] > 40
        figure(str(done))

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("sync", ["full", "normal", "off"])
    def test_at_any_moment(self, sync: str, figure: Figure) -> None:
        done = self.run("kill_at_random", seed=len(sync), rounds=12, sync=sync)
        assert done["held"] >= done["acknowledged"] > done["kills"]
        figure(str(done))

    async def test_between_any_two_writes(self, path: Path, figure: Figure) -> None:
        """Of the write-ahead log there may be any beginning: it holds whole transactions."""
        copy = path.with_name("copy.db")
        sizes: list[int] = []
        wal = Path(f"{path}-wal")
        async with SqliteLog(path) as log:
            for n in range(6):
                await append(log, str(n), key=f"key {n}")
                sizes.append(size(wal))
            content, beginning = content_of(wal), content_of(path)
        ends = {*range(0, len(content), 509), *(s + d for s in sizes for d in (-1, 0, 1))}
        for end in sorted(ends):
            put(copy, beginning)
            put(Path(f"{copy}-wal"), content[:end])
            whole = sum(size <= end for size in sizes)
            async with SqliteLog(copy) as log:
                assert await texts_in(log) == [str(n) for n in range(whole)]
                assert await append(log, "next") == [log.place(whole + 1)]
        figure(f"{len(ends)} beginnings")


class TestSeveralProcesses:
    def test_they_publish_in_one_order_that_all_see(self, figure: Figure) -> None:
        done = TestKilled().run("together", processes=3, count=150)
        assert done["events"] == 450
        figure(str(done))

    async def test_one_hears_of_the_other_at_once(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is told: it does not depend on looking."""
        monkeypatch.setattr(_sqlite_prompt, "LOOK_EVERY", 10_000)
        async with SqliteLog(path) as one, SqliteLog(path) as other:
            for n in range(20):
                writing, reading = (one, other) if n % 3 else (other, one)
                with trio.fail_after(30):
                    await append(writing, str(n))
                    await reading.wait(n)
            assert await texts_in(one) == await texts_in(other) == [str(n) for n in range(20)]

    async def test_where_nobody_tells(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_sqlite_prompt, "_watch", lambda path: None)
        async with SqliteLog(path) as one, SqliteLog(path) as other:
            await append(one, "1", "2")
            with trio.fail_after(30):
                await other.wait(1)
            assert await texts_in(other) == ["1", "2"]

    async def test_what_others_appended_comes_before_what_follows_it(self, path: Path) -> None:
        """An append finds it in its transaction, however little was heard of it."""
        async with SqliteLog(path) as one, SqliteLog(path) as other:
            for n in range(50):
                await append(one, f"{n} one")
                await append(other, f"{n} other")
                assert other.newest == 2 * n + 2
            expected = [f"{n} {name}" for n in range(50) for name in ("one", "other")]
            assert await texts_in(other) == expected

    @pytest.mark.parametrize("count", [30, 300])
    async def test_one_that_was_far_behind(
        self, path: Path, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Much is not read while all wait for the transaction, and is there all the same."""
        monkeypatch.setattr(_sqlite_store, "PAGE_EVENTS", 10)
        monkeypatch.setattr(_sqlite_prompt, "LOOK_EVERY", 10_000)
        monkeypatch.setattr(Store, "_touch", lambda store: None)
        async with SqliteLog(path) as one, SqliteLog(path) as other:
            await append(one, *map(str, range(count)))
            await append(other, "last")
            assert other.newest == count + 1
            assert other.trimmed == 0
            assert await texts_in(other) == [*map(str, range(count)), "last"]

    async def test_an_id_that_another_process_gave_a_moment_ago(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sqlite_prompt, "LOOK_EVERY", 10_000)
        monkeypatch.setattr(Store, "_touch", lambda store: None)
        async with SqliteLog(path) as one, SqliteLog(path) as other:
            ids = await append(one, "1", "2")
            assert other.newest == 0
            replay = await other.replay(ids[0])
            assert (replay.position, other.newest) == (1, 2)
            replay = await other.replay(other.place(3))
            assert replay.position == -1

    async def test_a_key_is_everybodys(self, path: Path) -> None:
        async with SqliteLog(path) as one, SqliteLog(path) as other:
            [id] = await append(one, "1", key="k")
            assert await append(other, "1", key="k") == [id]
            with pytest.raises(KeyReused):
                await append(other, "2", key="k")

    async def test_what_others_trim_is_known(self, path: Path) -> None:
        async with SqliteLog(path) as one, SqliteLog(path, max_events=3) as other:
            await append(one, *"123456")
            await append(other, "7")
            with trio.fail_after(30):
                await one.wait(6)
            assert one.trimmed == other.trimmed == 4
            assert await texts_in(one) == ["5", "6", "7"]

    async def test_they_may_start_together(self, path: Path) -> None:
        epochs: set[str] = set()

        async def use(name: str) -> None:
            async with SqliteLog(path) as log:
                epochs.add(log.epoch)
                await append(log, name)

        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(use, str(n))
        assert len(epochs) == 1
        assert sorted(await held(path), key=str) == list("01234")


def snapshot(directory: Path) -> dict[str, object]:
    return {
        file.name: (file.read_bytes() if file.is_file() else None, file.stat().st_mtime_ns)
        for file in directory.iterdir()
    }


class TestOpening:
    """What is not a log is not touched."""

    async def check_untouched(self, path: Path, match: str) -> None:
        before = snapshot(path.parent)
        with pytest.raises(UnusableLog, match=match):
            async with SqliteLog(path):
                pass
        assert snapshot(path.parent) == before

    @pytest.mark.parametrize("content", [b"x", b"some text\n" * 1000, bytes(8192)])
    async def test_no_database(self, path: Path, content: bytes) -> None:
        put(path, content)
        await self.check_untouched(path, "not an event log.*name another")

    async def test_a_directory(self, path: Path) -> None:
        os.mkdir(path)
        await self.check_untouched(path, "not a file")

    @pytest.mark.parametrize("mode", ["wal", "delete"])
    async def test_another_programs_database(self, path: Path, mode: str) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA journal_mode={mode}")
            connection.execute("CREATE TABLE event (position INTEGER PRIMARY KEY)")
            connection.commit()
        await self.check_untouched(path, "another program's")

    async def test_another_programs_database_while_it_uses_it(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=wal")
            connection.execute("CREATE TABLE event (position INTEGER PRIMARY KEY)")
            connection.commit()
            await self.check_untouched(path, "another program's")

    async def filled(self, path: Path) -> None:
        async with SqliteLog(path) as log, trio.open_nursery() as nursery:
            for n in range(300):
                nursery.start_soon(append, log, f"{n} " * 50)

    async def test_a_newer_version(self, path: Path) -> None:
        await self.filled(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version=2")
        await self.check_untouched(path, "newer version.*upgrade")

    async def test_a_table_that_is_missing(self, path: Path) -> None:
        await self.filled(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DROP TABLE room")
        await self.check_untouched(path, "damaged.*lacks")

    @pytest.mark.parametrize("size", [100, 511, 4096, 5000, 40_000])
    async def test_a_file_that_was_cut_off(self, path: Path, size: int) -> None:
        await self.filled(path)
        os.truncate(path, size)
        await self.check_untouched(path, "damaged|not an event log")

    async def test_a_page_that_was_overwritten(self, path: Path, figure: Figure) -> None:
        """Whichever it is; what cannot be told from an event's text is taken for that."""
        await self.filled(path)
        good = content_of(path)
        for start in range(0, len(good), 4096):
            put(path, good[:start] + b"\xa5" * 4096 + good[start + 4096 :])
            await self.check_untouched(path, "damaged|not an event log")
        figure(f"{len(good) // 4096} pages")

    async def test_what_a_crash_left_is_no_damage(self, path: Path) -> None:
        """A file that is being copied into is shorter than it says, with the rest beside it."""
        copy = path.with_name("copy.db")
        async with SqliteLog(path) as log:
            await append(log, *("x" * 3000 for _ in range(20)))
            shutil.copy(f"{path}-wal", f"{copy}-wal")
        shutil.copy(path, copy)
        os.truncate(copy, 2 * 4096)
        async with SqliteLog(copy) as log:
            assert len(await texts_in(log)) == 20

    async def test_an_empty_file_is_no_log_yet(self, path: Path) -> None:
        put(path, b"")
        assert await held(path) == []

    async def test_no_directory(self, path: Path) -> None:
        with pytest.raises(LogUnavailable, match=r"cannot be opened.*see that its directory"):
            async with SqliteLog(path / "events.db"):
                pass
        assert snapshot(path.parent) == {}

    async def test_a_file_that_stays_locked(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert await held(path) == []
        monkeypatch.setattr(_sqlite_file, "BUSY_SECONDS", 0.05)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with pytest.raises(LogUnavailable, match=r"is locked.*end that program"):
                async with SqliteLog(path):
                    pass
            connection.execute("ROLLBACK")
        assert await held(path) == []

    @pytest.mark.parametrize(
        "options",
        [{"max_events": 0}, {"max_bytes": 0}, {"max_age": 0}, {"max_age": -1}, {"sync": "FULL"}],
    )
    def test_what_cannot_be_meant(self, path: Path, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"SqliteLog\("):
            SqliteLog(path, **options)

    async def test_it_is_used_inside_its_block(self, path: Path) -> None:
        log = SqliteLog(path)
        assert "not open" in repr(log)
        with pytest.raises(RuntimeError, match="async with"):
            await log.append(Event("1"), ("t",))
        async with log:
            with pytest.raises(RuntimeError, match="opened once"):
                await log.__aenter__()
            [id] = await append(log, "1")
            assert "positions 1 to 1" in repr(log)
        for use in (log.append(Event("1"), ("t",)), log.read(0, 1), log.replay(id)):
            with pytest.raises(RuntimeError, match="async with"):
                await use
        with pytest.raises(RuntimeError, match="opened once"):
            await log.__aenter__()


class TestForgetting:
    async def test_the_file_is_trimmed_in_chunks(self, path: Path) -> None:
        async with SqliteLog(path, max_events=64) as log:
            for n in range(200):
                await append(log, str(n))
                assert log.trimmed == max(0, n + 1 - 64)
            assert 64 <= rows(path) <= 64 + 64 // 16 + 1
        async with SqliteLog(path, max_events=64) as log:
            assert (log.newest, log.trimmed) == (200, 136)

    async def test_by_bytes(self, path: Path) -> None:
        async with SqliteLog(path, max_bytes=50_000) as log:
            await append(log, *("x" * 1000 for _ in range(200)))
            kept = log.newest - log.trimmed
            assert 40 <= kept <= 48
            assert len(await texts_in(log)) == kept == rows(path)
            await append(log, "y" * 100_000)
            assert await texts_in(log) == ["y" * 100_000]
            await append(log, "z")
            assert await texts_in(log) == ["z"]
            assert (log.newest, log.trimmed) == (202, 201)

    async def test_by_age_also_when_nothing_is_written(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with SqliteLog(path, max_age=1) as log:
            await append(log, "1", "2", key=None)
            await until(lambda: log.trimmed == 2)
            assert (await texts_in(log), rows(path)) == ([], 0)
            assert await append(log, "3") == [log.place(3)]
        async with SqliteLog(path) as log:
            assert (log.newest, log.trimmed, await texts_in(log)) == (3, 2, ["3"])

    async def test_positions_go_on_when_all_is_forgotten(self, path: Path) -> None:
        async with SqliteLog(path, max_age=3600) as log:
            ids = await append(log, "1", "2")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("UPDATE event SET time = 0")
            connection.commit()
        async with SqliteLog(path, max_age=3600) as log:
            await until(lambda: log.trimmed == 2)
        async with SqliteLog(path, max_age=3600) as log:
            assert (log.newest, log.trimmed) == (2, 2)
            gap, _ = await (await log.replay(ids[0])).read(10, 2)
            assert gap == ("trimmed", ids[1])
            assert await append(log, "3") == [log.place(3)]

    async def test_bounds_that_were_lowered(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sqlite_store, "TRIM_AT_MOST", 7)
        async with SqliteLog(path) as log:
            await append(log, *map(str, range(100)))
        async with SqliteLog(path, max_events=5) as log:
            assert log.trimmed == 95
            await until(lambda: rows(path) == 5)
            assert await texts_in(log) == ["95", "96", "97", "98", "99"]

    async def test_room_is_used_again(self, path: Path) -> None:
        async with SqliteLog(path, max_bytes=300_000, sync="off") as log:

            async def publish(count: int) -> int:
                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(append, log, *(["x" * 1000] * (count // 20)))
                await trio.to_thread.run_sync(log._store.checkpoint)
                return size(path)

            first = await publish(1000)
            assert await publish(4000) <= first * 1.2
            assert first < 1_000_000

    async def test_the_write_ahead_log_is_bounded_while_others_read(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sqlite_store, "WAL_BYTES", 100_000)
        monkeypatch.setattr(sqlite_log, "WAL_BYTES", 100_000)
        monkeypatch.setattr(_sqlite_store, "WAL_MOST", 400_000)
        without_tail(monkeypatch)
        wal = Path(f"{path}-wal")
        async with SqliteLog(path, max_bytes=200_000, sync="off") as log:
            is_done = False

            async def read() -> None:
                while not is_done:
                    await trio.lowlevel.checkpoint()
                    await texts_in(log)

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(read)
                largest = 0
                for _ in range(150):
                    await append(log, *(["x" * 10_000] * 4))
                    largest = max(largest, size(wal))
                is_done = True
            assert 100_000 < largest < 2_000_000  # of six million that were written

    async def test_a_key_is_remembered_with_its_event(self, path: Path) -> None:
        async with SqliteLog(path, max_events=3) as log:
            ids = [await log.append(Event(str(n)), ("t",), key=f"k{n}") for n in range(5)]
        async with SqliteLog(path, max_events=3) as log:
            for n in (2, 3, 4):
                assert await append(log, str(n), key=f"k{n}") == [ids[n]]
            assert (log.newest, await texts_in(log)) == (5, ["2", "3", "4"])
            with pytest.raises(KeyReused):
                await append(log, "x", key="k2")

    async def test_a_key_may_be_any_text(self, path: Path) -> None:
        async with SqliteLog(path) as log:
            keys = ["", "\0", "a\0b", "a", "é", "k" * 10_000, "'\""]
            ids = [await log.append(Event("1"), ("t",), key=key) for key in keys]
            assert len(set(ids)) == len(keys)
            assert [await log.append(Event("1"), ("t",), key=key) for key in keys] == ids
            with pytest.raises(ValueError, match="surrogates"):
                await log.append(Event("1"), ("t",), key="\ud800")


class TestTrouble:
    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_log, "RETRY_EVERY", 0.01)
        monkeypatch.setattr(_sqlite_store, "BUSY_SECONDS", 0.05)

    async def test_no_room(self, path: Path) -> None:
        async with SqliteLog(path) as log:
            await append(log, "1")
            [pages] = writer(log).execute("PRAGMA page_count").fetchone()
            writer(log).execute(f"PRAGMA max_page_count={pages + 2}")
            with pytest.raises(LogUnavailable, match=r"is full.*make room"):
                await append(log, "x" * 20_000)
            assert log.problem is not None
            assert "make room" in log.problem
            await trio.sleep(0.1)
            assert log.problem is not None, "the probe found room"
            assert await append(log, "2") == [log.place(2)]
            assert log.problem is None, "an append worked"
            with pytest.raises(LogUnavailable, match="make room"):
                await append(log, "x" * 20_000)
            writer(log).execute("PRAGMA max_page_count=100000")
            await until(lambda: log.problem is None)
            await append(log, "3")
        assert await held(path) == ["1", "2", "3"]

    async def test_an_append_counts_for_more_than_a_probe(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        probing, appended = threading.Event(), threading.Event()

        def probe(_: Store) -> None:
            probing.set()
            assert appended.wait(10)
            raise LogUnavailable("no room")

        monkeypatch.setattr(Store, "probe", probe)
        async with SqliteLog(path) as log:
            writer(log).execute("PRAGMA max_page_count=1")
            with pytest.raises(LogUnavailable, match="make room"):
                await append(log, "x" * 20_000)
            await until(probing.is_set)
            writer(log).execute("PRAGMA max_page_count=100000")
            await append(log, "1")
            appended.set()
            await trio.sleep(0.1)
            assert log.problem is None

    async def test_files_may_not_grow(self, path: Path) -> None:
        """Not SQLite's own bound: the system refuses to write, in the middle of anything."""
        script = """
            import resource, sys, trio
            from trio_sse import Event, LogUnavailable
            from trio_sse.log.sqlite import SqliteLog
            async def main():
                async with SqliteLog(sys.argv[1]) as log:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))
                    kept = []
                    while log.problem is None:
                        try:
                            kept.append(await log.append(Event(f"{len(kept)} " * 500), ["t"]))
                        except LogUnavailable as exc:
                            assert "cannot be written" in str(exc), exc
                    print(len(kept), flush=True)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
                    assert await log.append(Event("last"), ["t"]) == log.place(len(kept) + 1)
                    assert log.problem is None
            trio.run(main)
        """
        done = await trio.run_process(
            [sys.executable, "-W", "error", "-c", _dedented(script), str(path)],
            capture_stdout=True,
        )
        kept = int(done.stdout)
        assert kept > 5
        assert await held(path) == [*(f"{n} " * 500 for n in range(kept)), "last"]

    async def test_somebody_keeps_it_locked(self, path: Path) -> None:
        async with SqliteLog(path) as log:
            await append(log, "1")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(LogUnavailable, match=r"is locked.*end that program"):
                    await append(log, "2")
                assert log.problem is not None
                assert await texts_in(log) == ["1"], "reading goes on"
                other.execute("ROLLBACK")
            await until(lambda: log.problem is None)
            await append(log, "3")
        assert await held(path) == ["1", "3"]

    async def test_the_file_is_removed(self, path: Path) -> None:
        away = path.with_name("away.db")
        async with SqliteLog(path) as log:
            await append(log, "1")
            os.rename(path, away)
            with pytest.raises(LogUnavailable, match=r"removed.*put the file back"):
                await append(log, "2")
            os.rename(away, path)
            await until(lambda: log.problem is None)
            await append(log, "3")
        assert await held(path) == ["1", "3"]

    async def test_it_cannot_be_read_for_a_while(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        without_tail(monkeypatch)
        failures = iter([sqlite3.OperationalError("disk I/O error")] * 3)
        async with SqliteLog(path) as log:
            await append(log, "1", "2")
            seen: list[str | None] = []
            read = _sqlite_store.Pages.read_with_oldest

            def fails(*args: Any) -> Any:
                seen.append(log.problem)
                if (failure := next(failures, None)) is not None:
                    raise failure
                return read(*args)

            monkeypatch.setattr(_sqlite_store.Pages, "read_with_oldest", fails)
            assert await texts_in(log) == ["1", "2"]
            assert seen[0] is None
            assert seen[-1] is not None
            assert "look at the disk" in seen[-1]
            assert log.problem is None
        assert len(caplog.messages) == 1

    async def test_damage_that_is_found_late(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A session that needs what is gone fails; what is there can be read."""
        without_tail(monkeypatch)
        async with SqliteLog(path) as log:
            await append(log, "1", "2", "3", "4")
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("DELETE FROM event WHERE position IN (2, 3)")
                connection.commit()
            with pytest.raises(UnusableLog, match="damaged"):
                await log.read(1, 2)
            await append(log, "5")
            assert [r.position for r in await log.read(3, 10)] == [4, 5]

    async def test_a_failed_group_leaves_nothing(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At whichever statement it fails, all who waited are told, and all of it is undone."""
        monkeypatch.setattr(Store, "probe", lambda store: None)  # they would use it, too
        monkeypatch.setattr(Store, "trim", lambda store: False)
        statement = 0

        class Failing:
            def __init__(self, real: sqlite3.Connection) -> None:
                self.real = real
                self.left = statement

            def execute(self, *args: Any) -> Any:
                self.left -= 1
                if not self.left:
                    raise sqlite3.OperationalError("disk I/O error")
                return self.real.execute(*args)

        async with SqliteLog(path, max_events=2) as log:
            await append(log, "0", key="0")
            store, real = log._store, writer(log)
            failed = 0
            while failed == statement:
                statement += 1
                monkeypatch.setattr(store, "_writer", Failing(real))
                before = log.newest
                try:
                    await append(log, f"{statement}", key=f"{statement}")
                except LogUnavailable:
                    failed += 1
                    assert log.newest == before
                monkeypatch.setattr(store, "_writer", real)
                assert await append(log, f"{statement}", key=f"{statement}") == [
                    log.place(log.newest)
                ]
            assert failed > 5
            assert log.newest == 1 + statement


def _dedented(text: str) -> str:
    return "\n".join(line[12:] for line in text.split("\n"))


class TestGroups:
    async def test_who_waits_meanwhile_goes_together(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        groups: list[int] = []
        commit = Store.commit
        go = threading.Event()

        def counted(store: Store, entries: Sequence[Any], known: int) -> Any:
            groups.append(len(entries))
            go.wait(30)
            return commit(store, entries, known)

        monkeypatch.setattr(Store, "commit", counted)
        async with SqliteLog(path) as log, trio.open_nursery() as nursery:
            nursery.start_soon(append, log, "first")
            await until(lambda: bool(groups))
            for n in range(100):
                nursery.start_soon(append, log, str(n))
            await trio.testing.wait_all_tasks_blocked()
            go.set()
        assert groups == [1, 100]
        assert len(await held(path)) == 101

    async def test_who_gives_up_before_its_turn_appends_nothing(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked, go = threading.Event(), threading.Event()
        check = Store._check_file

        def slow(store: Store) -> None:
            asked.set()
            go.wait(30)
            check(store)

        async with SqliteLog(path) as log, trio.open_nursery() as nursery:
            monkeypatch.setattr(Store, "_check_file", slow)
            nursery.start_soon(append, log, "1")
            await until(asked.is_set)
            with trio.move_on_after(0.01) as scope:
                await append(log, "2")
            assert scope.cancelled_caught
            nursery.start_soon(append, log, "3")
            go.set()
        assert await held(path) == ["1", "3"]

    @pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 127, 200])
    async def test_of_any_size(self, path: Path, count: int) -> None:
        async with SqliteLog(path) as log:
            async with trio.open_nursery() as nursery:
                for n in range(count):
                    nursery.start_soon(append, log, str(n))
            found = await texts_in(log)
        assert sorted(found, key=str) == sorted(map(str, range(count)))
        assert await held(path) == found

    async def test_keys_within_one(self, path: Path) -> None:
        """Repetitions of each other, of what is held, and what reuses a key, all at once."""
        async with SqliteLog(path) as log:
            await append(log, "old", key="old")
            results: list[str] = []

            async def publish(text: str, key: str) -> None:
                try:
                    id = await log.append(Event(text), ("t",), key=key)
                except KeyReused as exc:
                    id = f"not {exc.event_id}"
                results.append(f"{key} {id.replace(log.epoch, 'e')}")

            async with trio.open_nursery() as nursery:
                for _ in range(70):
                    nursery.start_soon(publish, "old", "old")
                    nursery.start_soon(publish, "new", "new")
                    nursery.start_soon(publish, "wrong", "old")
            assert sorted(set(results)) == ["new e.2", "old e.1", "old not e.1"]
            assert await texts_in(log) == ["old", "new"]


class TestPageCache:
    async def test_who_asks_for_the_same_reads_once(self) -> None:
        cache, loads = PageCache(10**6), list[tuple[int, int]]()

        async def load(after: int, upto: int) -> list[Record]:
            loads.append((after, upto))
            await trio.testing.wait_all_tasks_blocked()
            return [record(n) for n in range(after + 1, upto + 1)]

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(cache.read, n // 10, 1000, load)
        assert sorted(loads) == [(0, 256), (1, 256)]
        assert len(await cache.read(0, 256, load)) == 256
        assert len(loads) == 2
        assert len(await cache.read(0, 255, load)) == 255
        assert loads[2:] == [(0, 255)]

    async def test_one_that_gives_up_does_not_keep_others_waiting(self) -> None:
        cache, loads = PageCache(10**6), list[int]()

        async def load(after: int, upto: int) -> list[Record]:
            loads.append(after)
            if len(loads) == 1:
                await trio.sleep_forever()
            return [record(n) for n in range(after + 1, upto + 1)]

        async def give_up() -> None:
            with scope:
                await cache.read(0, 256, load)

        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(cache.read, 0, 256, load)
            await trio.testing.wait_all_tasks_blocked()
            assert loads == [0]
            scope.cancel()
        assert loads == [0, 0]
        assert len(await cache.read(0, 256, load)) == 256

    async def test_it_is_bounded_and_forgets_what_was_not_asked_for(self) -> None:
        cache, loads = PageCache(300 * 256 * 3), list[int]()

        async def load(after: int, upto: int) -> list[Record]:
            await trio.lowlevel.checkpoint()
            loads.append(after)
            return [record(n) for n in range(after + 1, upto + 1)]

        for after in (0, 256, 0, 512, 0, 768, 0, 256):
            await cache.read(after, 10_000, load)
        assert loads == [0, 256, 512, 768, 256]
        assert cache.bytes <= 300 * 256 * 3


def record(position: int) -> Record:
    return Record(position, str(position), ("t",), b"data: x\n\n")


class TestCancellation:
    """Without threads: what they do happens between two steps, so that all can be tried."""

    @pytest.fixture(autouse=True)
    def _no_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def run_here(function: Callable[..., Any], *args: object, **_options: object) -> Any:
            await trio.lowlevel.checkpoint()
            result = function(*args)
            await trio.lowlevel.checkpoint()
            return result

        monkeypatch.setattr(sqlite_log, "run_sync", run_here)
        monkeypatch.setattr(_sqlite_prompt, "_watch", lambda path: None)
        monkeypatch.setattr(_sqlite_prompt, "LOOK_OFTEN", 10_000)

    def explored(self, tmp_path: Path, scenario: Callable[[Moment, Path], Any]) -> str:
        runs = iter(range(100_000))

        async def fresh(moment: Moment) -> None:
            directory = tmp_path / str(next(runs))
            os.mkdir(directory)
            await scenario(moment, directory / "events.db")
            shutil.rmtree(directory)

        return str(explore(fresh, seeds=range(3)))

    def test_of_an_append_among_others(self, tmp_path: Path, figure: Figure) -> None:
        async def scenario(moment: Moment, path: Path) -> None:
            acknowledged: dict[str, str] = {}
            scope = trio.CancelScope()

            async def publish(log: SqliteLog, name: str) -> None:
                for n in range(2):
                    [id] = await append(log, f"{name}{n}")
                    acknowledged[f"{name}{n}"] = id

            async def publish_until_cancelled(log: SqliteLog) -> None:
                with scope:
                    await publish(log, "x")

            async with SqliteLog(path, sync="off") as log:
                moment.inject(scope.cancel)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(publish, log, "a")
                    nursery.start_soon(publish_until_cancelled, log)
                    nursery.start_soon(publish, log, "b")
                moment.end()
                await append(log, "last")
                assert {"a0", "a1", "b0", "b1"} <= acknowledged.keys()
                texts = await texts_in(log)
            check_texts(texts, acknowledged)
            async with SqliteLog(path, sync="off") as log:
                assert await texts_in(log) == texts

        figure(self.explored(tmp_path, scenario))

    def test_of_the_log_with_all_that_use_it(self, tmp_path: Path, figure: Figure) -> None:
        async def scenario(moment: Moment, path: Path) -> None:
            acknowledged: dict[str, str] = {}
            scope = trio.CancelScope()

            async def publish(log: SqliteLog, name: str) -> None:
                for n in range(2):
                    [id] = await append(log, f"{name}{n}")
                    acknowledged[f"{name}{n}"] = id

            async def read(log: SqliteLog) -> None:
                await log.wait(0)
                await texts_in(log)

            moment.inject(scope.cancel)
            with scope:
                async with SqliteLog(path, sync="off") as log, trio.open_nursery() as nursery:
                    nursery.start_soon(publish, log, "a")
                    nursery.start_soon(publish, log, "b")
                    nursery.start_soon(read, log)
            moment.end()
            async with SqliteLog(path, sync="off") as log:
                check_texts(await texts_in(log), acknowledged)
                await append(log, "last")

        figure(self.explored(tmp_path, scenario))

    def test_of_the_log_alone(self, tmp_path: Path, figure: Figure) -> None:
        """Who still waits to append when it is left is told, and does not wait for ever."""

        async def scenario(moment: Moment, path: Path) -> None:
            acknowledged: dict[str, str] = {}
            refused: list[str] = []
            left = trio.Event()
            log = SqliteLog(path, sync="off")

            async def use_log(task_status: trio.TaskStatus[None]) -> None:
                async with log:
                    task_status.started()
                    await left.wait()

            async def publish(name: str) -> None:
                try:
                    for n in range(2):
                        [acknowledged[f"{name}{n}"]] = await append(log, f"{name}{n}")
                except (LogUnavailable, RuntimeError) as exc:
                    refused.append(str(exc))

            async with trio.open_nursery() as nursery:
                await nursery.start(use_log)
                moment.inject(left.set)
                nursery.start_soon(publish, "a")
                nursery.start_soon(publish, "b")
                await trio.testing.wait_all_tasks_blocked()
                moment.end()
                left.set()
            assert len(acknowledged) + len(refused) in (2, 3, 4)
            async with SqliteLog(path, sync="off") as again:
                check_texts(await texts_in(again), acknowledged)

        figure(self.explored(tmp_path, scenario))


def check_texts(texts: Sequence[str | None], acknowledged: dict[str, str]) -> None:
    """What was acknowledged is where it was said to be; nothing is there twice."""
    assert len(set(texts)) == len(texts)
    for text, id in acknowledged.items():
        assert texts[int(id.rpartition(".")[2]) - 1] == text


class TestLeaving:
    async def test_a_disk_that_does_not_answer(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is waited for, but not for ever; the file is closed when it does answer."""
        monkeypatch.setattr(sqlite_log, "CLOSE_PATIENCE", 0.05)
        asked, answers, is_closed = (threading.Event() for _ in range(3))
        check, close = Store._check_file, Store.close

        def stuck(store: Store) -> None:
            asked.set()
            answers.wait(30)
            check(store)

        def closing_(store: Store) -> None:
            close(store)
            is_closed.set()

        refused: list[str] = []

        async def publish(log: SqliteLog) -> None:
            with pytest.raises(LogUnavailable) as caught:
                await append(log, "1")
            refused.append(str(caught.value))

        monkeypatch.setattr(Store, "close", closing_)
        async with trio.open_nursery() as nursery:
            async with SqliteLog(path) as log:
                monkeypatch.setattr(Store, "_check_file", stuck)
                nursery.start_soon(publish, log)
                await until(asked.is_set)
            assert not is_closed.is_set()
        assert "did not answer" in refused[0]
        assert "did not answer" in caplog.text
        answers.set()
        await until(is_closed.is_set)
        assert await held(path) == ["1"]

    async def test_what_is_being_written_is_written(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go = threading.Event()
        commit = Store.commit

        def slow(store: Store, *args: Any) -> Any:
            go.wait(30)
            return commit(store, *args)

        monkeypatch.setattr(Store, "commit", slow)
        with trio.CancelScope() as scope:
            async with SqliteLog(path) as log, trio.open_nursery() as nursery:
                nursery.start_soon(append, log, "1")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                threading.Timer(0.05, go.set).start()
        assert scope.cancelled_caught
        assert await held(path) == ["1"]
