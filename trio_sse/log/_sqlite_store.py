"""What a `SqliteLog` does in its file: append, trim, read, checkpoint.

Everything here blocks, and is called in threads.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from ..errors import KeyReused, LogUnavailable
from ._protocol import Cursor, Record
from ._sqlite_file import (
    BUSY_SECONDS,
    Sync,
    identity,
    open_file,
    reader,
    second,
    translated,
)
from ._sqlite_rows import Entry, Pages, held, insert

CATCH_UP: Final = 4
"""How many pages by other processes a transaction reads, while all wait for it."""
TRIM_AT_MOST: Final = 4096
"""How many events one transaction forgets, likewise."""
TRIM_EVENTS: Final = 256
TRIM_BYTES: Final = 256 << 10
"""How much is forgotten at once: to forget one by one would be a write more for each."""
WAL_BYTES: Final = 4 << 20
"""After so much the write-ahead log is copied into the file, while others write on."""
WAL_MOST: Final = 4 * WAL_BYTES
"""At this size they wait for it."""
PAGE_SIZE: Final = 4096
PAGE_EVENTS: Final = 1024


@final
@dataclass(frozen=True, slots=True)
class Bounds:
    """What to keep: number, bytes, and seconds."""

    max_events: int
    max_bytes: int
    max_age: float | None


class Seen(NamedTuple):
    """What there is in the file.

    Attributes:
        records: what follows the position that was asked for, up to ``newest``; the last
            of them if that is much.
        newest: the newest position.
        trimmed: that of the newest event that is forgotten.
    """

    records: Sequence[Record]
    newest: int
    trimmed: int


class _End(NamedTuple):
    """A position, and how many bytes there are up to it."""

    position: int
    total: int


@final
class Store:
    """One process's hold on the file: `commit` and `trim` write, `look` and `read` do not.

    Each may be called from any thread, and waits for its turn.

    Args:
        path: of the file, which is made if there is none.

    Raises:
        UnusableLog: the file is something else, or damaged.
        LogUnavailable: it cannot be opened now.
    """

    def __init__(self, path: str, bounds: Bounds, sync: Sync) -> None:
        self.path = path
        self._bounds = bounds
        self._is_closed = False
        self._lock = threading.Lock()  # held by who writes
        self._writer, self.epoch, self._identity = open_file(path, sync)
        self._pages = Pages(self.epoch)
        # To where it was trimmed when this process last looked: others trim, too.
        self._trimmed = _End(0, 0)
        self._keeping = threading.Lock()  # held by who uses the next
        self._keeper: sqlite3.Connection | None = None
        self._sync: Sync = sync
        self._idle_lock = threading.Lock()
        self._idle: list[tuple[sqlite3.Connection, Pages]] = []  # to read with
        self.touched = 0
        """When this process last touched the file, in ns: by that others notice."""
        self.since_checkpoint = 0
        """Bytes written to the write-ahead log since it was copied, roughly."""

    def close(self) -> None:
        """Let go of the file; waits for what is under way."""
        self._is_closed = True
        with self._idle_lock:
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()
        with self._keeping:
            if self._keeper is not None:
                self._keeper.close()
        with self._lock:
            self._writer.close()

    # Writing.

    def commit(
        self, entries: Sequence[Entry], known: int
    ) -> tuple[Sequence[str | KeyReused], Seen]:
        """Append ``entries`` in one transaction.

        Returns:
            For each its id, or why it has none; and what follows position ``known`` now.

        Raises:
            LogUnavailable: nothing was appended.
        """
        with self._transaction():
            before = self._end()
            records = self._catch_up(known, before.position)
            results, new = self._place(entries, before.position)
            now = int(time.time() * 1000)
            total = insert(self._writer, new, before.position, before.total, now)
            newest = _End(before.position + len(new), total)
            trimmed = self._trim(newest)
        self._trimmed = trimmed
        first = before.position + 1
        records += [entry.record(n, self.epoch) for n, entry in enumerate(new, first)]
        # Two pages at least: that of the table's end, and that of its beginning or parent.
        self.since_checkpoint += total - before.total + 2 * PAGE_SIZE
        if new:
            self._touch()
        return results, Seen(records, newest.position, trimmed.position)

    def trim(self) -> bool:
        """Forget what is over the bounds, age as well; whether there may be more of that.

        Raises:
            LogUnavailable: nothing was changed.
        """
        with self._transaction():
            trimmed = self._trim(self._end(), with_age=True)
        more = trimmed.position - self._trimmed.position >= TRIM_AT_MOST
        self._trimmed = trimmed
        return more

    def probe(self) -> None:
        """Write something, and take it away again.

        Raises:
            LogUnavailable: that does not work.
        """
        with self._transaction():
            self._writer.execute("INSERT INTO room VALUES (zeroblob(65536))")
        with self._transaction():
            self._writer.execute("DELETE FROM room")

    @contextmanager
    def _transaction(self) -> Generator[None, None, None]:
        with self._lock:
            try:
                self._check_file()
                self._begin()
                try:
                    yield
                    self._writer.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):  # or SQLite has done it already
                        self._writer.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, OSError) as exc:
                raise LogUnavailable(str(translated(exc, self.path, "written"))) from exc

    def _check_file(self) -> None:
        """What is written to a file without a name is lost when it is closed."""
        try:
            is_same = identity(self.path) == self._identity
        except FileNotFoundError:
            is_same = False
        if not is_same:
            raise OSError("the file was removed, or another put in its place")

    def _begin(self) -> None:
        # SQLite would try again at intervals of up to 100 ms, and find the file locked by
        # the next transaction of a busy process, and so on.
        deadline = time.monotonic() + BUSY_SECONDS
        while not self._has_begun(is_last_try=time.monotonic() > deadline or self._is_closed):
            time.sleep(0.0005)

    def _has_begun(self, *, is_last_try: bool) -> bool:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or is_last_try:
                raise
            return False
        return True

    def _end(self) -> _End:
        row = self._writer.execute(
            "SELECT position, total FROM event ORDER BY position DESC LIMIT 1"
        ).fetchone()
        return self._beginning() if row is None else _End(*row)

    def _beginning(self) -> _End:
        values = dict(self._writer.execute("SELECT name, value FROM meta").fetchall())
        return _End(values[b"trimmed"], values[b"total_trimmed"])

    def _catch_up(self, known: int, upto: int) -> list[Record]:
        """What others appended meanwhile; nothing if that is much."""
        records: list[Record] = []
        for _ in range(CATCH_UP):
            if known >= upto:
                return records
            page = self._pages.read(self._writer, known, min(upto, known + PAGE_EVENTS))
            records += page
            known = page[-1].position if page else upto  # or it was trimmed
        return records if known >= upto else []

    def _place(
        self, entries: Sequence[Entry], before: int
    ) -> tuple[list[str | KeyReused], list[Entry]]:
        """What each of ``entries`` comes to behind ``before``, and those that are new."""
        keys = {entry.key for entry in entries if entry.key is not None}
        known = held(self._writer, keys) if keys else {}
        results: list[str | KeyReused] = []
        new: list[Entry] = []
        for entry in entries:
            position = before + len(new) + 1
            id = str(Cursor(self.epoch, position))
            if entry.key is None:
                results.append(id)
                new.append(entry)
                continue
            this = (position, entry.text, entry.topics)
            earlier = known.setdefault(entry.key, this)
            if earlier is this:
                results.append(id)
                new.append(entry)
                continue
            id = str(Cursor(self.epoch, earlier[0]))
            results.append(id if earlier[1:] == this[1:] else KeyReused(entry.key, id))
        return results, new

    # Forgetting.

    def _trim(self, newest: _End, *, with_age: bool = False) -> _End:
        """Forget some of the oldest, if there is enough to forget; to where it is trimmed."""
        bounds = self._bounds
        number = newest.position - bounds.max_events
        total = newest.total - bounds.max_bytes
        few = 0 if with_age else min(TRIM_EVENTS, bounds.max_events // 16)
        if number - self._trimmed.position <= few and total <= self._trimmed.total and not with_age:
            return self._trimmed
        start = self._beginning()
        most = start.position + TRIM_AT_MOST
        cut = max(number, start.position)
        if total > start.total:
            little = min(TRIM_BYTES, bounds.max_bytes // 16)
            cut = max(cut, min(self._by_total(total + little, most), newest.position - 1))
        if with_age and bounds.max_age is not None:
            cut = max(cut, self._by_age(start.position, most, newest.position))
        return self._forget(start, min(cut, most))

    def _by_total(self, total: int, most: int) -> int:
        """The first position with ``total`` bytes up to it, or ``most``."""
        [found] = self._writer.execute(
            "SELECT min(position) FROM event WHERE position <= ? AND total >= ?", (most, total)
        ).fetchone()
        return most if found is None else found

    def _by_age(self, start: int, most: int, newest: int) -> int:
        """The position before the first event that is young enough, if it is before ``most``."""
        assert self._bounds.max_age is not None
        since = int((time.time() - self._bounds.max_age) * 1000)
        [young] = self._writer.execute(
            "SELECT min(position) FROM event WHERE position > ? AND position <= ? AND time >= ?",
            (start, most, since),
        ).fetchone()
        return min(most, newest) if young is None else young - 1

    def _forget(self, start: _End, cut: int) -> _End:
        if cut <= start.position:
            return start
        [total] = self._writer.execute(
            "SELECT total FROM event WHERE position = ?", (cut,)
        ).fetchone()
        self._writer.execute("DELETE FROM event WHERE position <= ?", (cut,))
        self._writer.execute("UPDATE meta SET value = ? WHERE name = 'trimmed'", (cut,))
        self._writer.execute("UPDATE meta SET value = ? WHERE name = 'total_trimmed'", (total,))
        return _End(cut, total)

    def _touch(self) -> None:
        """Tell other processes: see `Prompt`. It matters only for how soon they notice."""
        self.touched = time.time_ns()
        with suppress(OSError):
            os.utime(self.path, ns=(self.touched, self.touched))

    # The write-ahead log.

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the file, so that it begins again.

        Others go on writing meanwhile, and so it may never come to its end; when it has
        become too large, they wait.

        Raises:
            LogUnavailable: it cannot be done now.
        """
        with self._keeping:
            if self._is_closed:
                return
            try:
                if self._keeper is None:
                    self._keeper = second(self.path, self._sync)
                written = self.since_checkpoint
                _, size, copied = self._checkpoint("PASSIVE")
                if copied < size and size * PAGE_SIZE > WAL_MOST:
                    with self._lock:
                        self._checkpoint("RESTART")
                self.since_checkpoint -= written
            except (sqlite3.Error, OSError) as exc:
                raise LogUnavailable(str(translated(exc, self.path, "written"))) from exc

    def _checkpoint(self, mode: str) -> tuple[int, int, int]:
        assert self._keeper is not None
        row: tuple[int, int, int] = self._keeper.execute(
            f"PRAGMA wal_checkpoint({mode})"
        ).fetchone()
        return row

    # Reading.

    def read(self, after: int, upto: int) -> tuple[Sequence[Record], int]:
        """One page of what follows ``after``, up to ``upto``; and the newest that is trimmed.

        Raises:
            UnusableLog: the file is damaged.
            LogUnavailable: it cannot be read now.
        """
        with self._reading() as (connection, pages):
            records, oldest = pages.read_with_oldest(connection, after, upto)
            trimmed = upto if oldest is None else oldest - 1
            if not records and trimmed <= after:
                raise sqlite3.DatabaseError(f"malformed: no events from {after + 1} to {upto}")
            return records, trimmed

    def look(self, known: int, max_events: int, max_bytes: int) -> Seen:
        """What follows position ``known`` by now, but about so much of it at most.

        Raises:
            UnusableLog: the file is damaged.
            LogUnavailable: it cannot be read now.
        """
        records: list[Record] = []
        with self._reading() as (connection, pages):
            [newest, total, trimmed] = connection.execute(_STATE).fetchone()
            newest = trimmed if newest is None else newest
            known = max(known, trimmed, newest - max_events)
            if known < newest:
                [start] = connection.execute(_LAST_BYTES, (known, total - max_bytes)).fetchone()
                known = known if start is None else start - 1
            while known < newest:
                page = pages.read(connection, known, min(newest, known + PAGE_EVENTS))
                records += page
                known = page[-1].position if page else newest
        return Seen(records, newest, trimmed)

    @contextmanager
    def _reading(self) -> Generator[tuple[sqlite3.Connection, Pages], None, None]:
        """Connections are kept: as many as there were readers at once, which are bounded."""
        try:
            with self._idle_lock:
                pair = self._idle.pop() if self._idle else None
            if pair is None:
                if self._is_closed:
                    raise sqlite3.OperationalError("it was closed")
                pair = reader(self.path), Pages(self.epoch)
            try:
                yield pair
            finally:
                with self._idle_lock:
                    closed = self._is_closed
                    if not closed:
                        self._idle.append(pair)
                if closed:
                    pair[0].close()
        except (sqlite3.Error, OSError) as exc:
            raise translated(exc, self.path, "read") from exc


_STATE: Final = """
SELECT max(position), max(total), (SELECT value FROM meta WHERE name = 'trimmed') FROM (
  SELECT position, total FROM event ORDER BY position DESC LIMIT 1)
"""
_LAST_BYTES: Final = "SELECT min(position) FROM event WHERE position > ? AND total >= ?"
