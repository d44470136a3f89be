"""The log that survives a restart, and that the processes of one machine share."""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Final, TypeVar, final

import trio

from .._groups import no_lone_group
from ..errors import LogUnavailable
from ..wire import Event, encode
from ._protocol import Cursor, Record
from ._replay import SequenceReplay
from ._sqlite_cache import PageCache
from ._sqlite_file import Sync
from ._sqlite_prompt import Prompt
from ._sqlite_rows import Entry
from ._sqlite_store import WAL_BYTES, Bounds, Seen, Store
from ._tail import Tail

logger = logging.getLogger(__name__)

T = TypeVar("T")

run_sync = trio.to_thread.run_sync

TAIL_EVENTS: Final = 16_384
TAIL_BYTES: Final = 16 << 20
"""How much of the newest is also in memory: who comes back soon does not ask the file."""
GROUP_EVENTS: Final = 1024
GROUP_BYTES: Final = 4 << 20
"""How much goes into one transaction."""
CACHE_BYTES: Final = 8 << 20
"""How much of what is older, and was asked for lately."""
READERS: Final = 2
"""How many threads read at once: more would only wait for Python's lock."""
CLOSE_PATIENCE: Final = 10.0
"""Seconds that leaving waits for what is being written, and again for the file to be closed."""
RETRY_EVERY: Final = 1.0
"""Seconds after which it is tried again to write, or to read, what could not be."""
TEND_EVERY: Final = 30.0
"""Seconds between looks for what has become too old, at most."""


@final
class _Waiting:
    """Someone who waits for an event to be committed."""

    __slots__ = ("done", "entry", "result")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.done = trio.Event()
        self.result: str | Exception = ""


@final
class SqliteLog:
    """Keeps events in a file, bounded in number, in bytes and in age.

    Several logs, in as many processes of one machine, may use one file: they see each
    other's events in one order, soon after they were appended. Give them the same bounds.

    Events that wait while others are being written go into the file together, with one
    wait for the disk. Nothing of this happens in Trio's thread.

    Args:
        path: of the file, which is made if there is none. Beside it are two more while it
            is in use, its name with ``-wal`` and ``-shm``: they belong to it. It must be
            on a local disk.
        max_events: at least 1.
        max_bytes: in the file, roughly; at least one event is kept whatever its size. To
            this come up to 16 MiB of ``-wal``. A file does not become smaller.
        max_age: seconds after which an event is forgotten, or up to a tenth later, and
            half a minute at most; ``None`` is never.
        sync: what `append` waits for. ``"full"``: the disk. Nothing that was appended is
            lost, unless the disk lies. ``"normal"`` and ``"off"``: the operating system.
            When the process ends, in whatever way, nothing is lost. When the system
            crashes or loses its power the newest events may be; with ``"off"`` the file
            may also be damaged, and then it is refused. A restart of the system begins
            a new epoch with both: for whoever comes back there is a gap, as the places of
            lost events are given again.

    Raises:
        ValueError: for bounds below 1, or no such ``sync``.

    Entering raises `UnusableLog` if the file is something else, damaged or of a newer
    version, in which case it is not touched; `LogUnavailable` if it cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_events: int = 100_000,
        max_bytes: int = 64 << 20,
        max_age: float | None = None,
        sync: Sync = "full",
    ) -> None:
        if max_events < 1 or max_bytes < 1 or (max_age is not None and not max_age > 0):
            raise ValueError(
                f"SqliteLog(max_events={max_events}, max_bytes={max_bytes}, max_age={max_age}): "
                "a log keeps something, as in SqliteLog(path, max_events=1000, max_age=3600)"
            )
        if sync not in ("full", "normal", "off"):
            raise ValueError(f"SqliteLog(sync={sync!r}): there are 'full', 'normal' and 'off'")
        self._path = os.fspath(path)
        self._bounds = Bounds(max_events, max_bytes, max_age)
        self._sync: Sync = sync
        self._whole: AbstractAsyncContextManager[None] | None = None
        self._is_open = False
        self._opened_store: Store | None = None
        self._tail = Tail(min(max_events, TAIL_EVENTS), min(max_bytes, TAIL_BYTES))
        self._trimmed = 0  # what the file has forgotten, as far as is known here
        # Who waits for the writer, which waits itself if there are none.
        self._waiting: deque[_Waiting] = deque()
        self._some_wait = trio.Event()
        self._to_tend = trio.Event()
        self._pages = PageCache(CACHE_BYTES)
        self._threads = trio.CapacityLimiter(math.inf)  # there are few, see below
        self._read_limiter = trio.CapacityLimiter(READERS)
        # Not behind a thousand sessions that read what is old:
        self._look_limiter = trio.CapacityLimiter(1)
        self._write_problem: str | None = None
        self._read_problem: str | None = None
        # What threads do is not cut short when the log is left, but waited for until then.
        self._leave_by = math.inf
        self._scopes: set[trio.CancelScope] = set()

    def __repr__(self) -> str:
        state = "" if self._is_open else " not open"
        return f"<SqliteLog {self._path!r}{state} positions {self.trimmed + 1} to {self.newest}>"

    @property
    def _store(self) -> Store:
        if self._opened_store is None or not self._is_open:
            raise RuntimeError(
                "the log is not open: use it inside `async with SqliteLog(path) as log:`"
            )
        return self._opened_store

    @property
    def epoch(self) -> str:
        return "" if self._opened_store is None else self._opened_store.epoch

    @property
    def newest(self) -> int:
        return self._tail.newest

    @property
    def trimmed(self) -> int:
        return max(self._trimmed, self.newest - self._bounds.max_events)

    @property
    def problem(self) -> str | None:
        return self._write_problem or self._read_problem

    def place(self, position: int) -> str:
        return str(Cursor(self.epoch, position))

    # Appending.

    async def append(self, event: Event, topics: Sequence[str], *, key: str | None = None) -> str:
        """As `EventLog.append`. If it is cancelled before its turn, nothing was appended.

        Raises:
            RuntimeError: the log is not open.
            ValueError: ``key`` cannot be written as UTF-8.
        """
        _ = self._store
        await trio.lowlevel.checkpoint_if_cancelled()
        if key is not None:
            key.encode()
        one = _Waiting(Entry(encode(event), tuple(topics), key))
        self._waiting.append(one)
        self._some_wait.set()
        try:
            await one.done.wait()
        finally:
            if not one.done.is_set() and one in self._waiting:
                self._waiting.remove(one)
        if isinstance(one.result, Exception):
            raise one.result
        return one.result

    async def _write(self, store: Store) -> None:
        """Commit what waits, for ever, a group at a time."""
        while True:
            await self._some_wait.wait()
            while self._waiting:  # none if the log was left
                await self._commit(store, self._next_group())
            self._some_wait = trio.Event()

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        while self._waiting and len(group) < GROUP_EVENTS and size < GROUP_BYTES:
            one = self._waiting.popleft()
            size += len(one.entry.text)
            group.append(one)
        return group

    async def _commit(self, store: Store, group: Sequence[_Waiting]) -> None:
        entries = [one.entry for one in group]
        results: Sequence[str | Exception]
        try:
            results, seen = await self._in_thread(store.commit, entries, self.newest)
        except LogUnavailable as exc:
            self._failed_to_write(exc)
            results = [LogUnavailable(*exc.args) for _ in group]
        else:
            self._wrote()
            self._take(seen)
            if store.since_checkpoint > WAL_BYTES:
                self._to_tend.set()
        for one, result in zip(group, results, strict=True):
            one.result = result
            one.done.set()

    def _failed_to_write(self, exc: LogUnavailable) -> None:
        if self._write_problem is None:
            logger.error("%s", exc)
        self._write_problem = str(exc)
        self._to_tend.set()

    def _wrote(self) -> None:
        if self._write_problem is not None:
            logger.info("the log %s can be written again", self._path)
        self._write_problem = None

    def _take(self, seen: Seen) -> None:
        """Add what was read or written to the tail, unless somebody else has already."""
        tail = self._tail
        self._trimmed = max(self._trimmed, seen.trimmed)
        if seen.newest <= tail.newest:
            return
        records = [record for record in seen.records if record.position > tail.newest]
        first = records[0].position if records else seen.newest + 1
        if first > tail.newest + 1:  # so much came at once that only its end was read
            tail.restart(first - 1)
        for record in records:
            tail.add(record)

    # Reading.

    async def read(self, after: int, limit: int) -> Sequence[Record]:
        """As `EventLog.read`; no checkpoint if it is in memory, as the newest are.

        While the file cannot be read, it waits until it can.

        Raises:
            RuntimeError: the log is not open.
            UnusableLog: the file is damaged.
        """
        store, tail = self._store, self._tail

        async def load(after: int, upto: int) -> Sequence[Record]:
            records, trimmed = await self._reading(self._read_limiter, store.read, after, upto)
            self._trimmed = max(self._trimmed, trimmed)
            return records

        while (start := max(after, self.trimmed)) < tail.trimmed:
            if records := await self._pages.read(start, min(start + limit, self.newest), load):
                return records
        return tail.read(start, limit)

    async def wait(self, after: int) -> None:
        await self._tail.wait(after)

    async def replay(self, last_event_id: str) -> SequenceReplay:
        """As `EventLog.replay`."""
        store = self._store
        await trio.lowlevel.checkpoint()
        cursor = Cursor.parse(last_event_id)
        if cursor is not None and cursor.epoch == self.epoch and cursor.position > self.newest:
            await self._look(store)  # another process may be ahead of this one
        return SequenceReplay(self, last_event_id)

    async def _look(self, store: Store) -> None:
        """Take what other processes have appended."""
        seen = await self._reading(
            self._look_limiter, store.look, self.newest, TAIL_EVENTS, TAIL_BYTES
        )
        self._take(seen)

    async def _reading(
        self, limiter: trio.CapacityLimiter, function: Callable[..., T], *args: object
    ) -> T:
        """``function(*args)`` in a thread, again and again until it can be done."""
        while True:
            try:
                async with limiter:
                    result = await self._in_thread(function, *args)
            except LogUnavailable as exc:
                if self._read_problem is None:
                    logger.error("%s", exc)
                self._read_problem = str(exc)
            else:
                self._read_problem = None
                return result
            await trio.sleep(RETRY_EVERY)
            _ = self._store  # nor can it ever be done if the log was left

    async def _watch(self, store: Store, prompt: Prompt) -> None:
        """Look whenever another process may have appended something."""
        while True:
            if await prompt.wait() and prompt.time() == store.touched:
                continue  # that was this process
            await self._look(store)

    async def _tend(self, store: Store) -> None:
        """Forget what is too old, copy the write-ahead log, and see whether trouble is over."""
        period = min(TEND_EVERY, (self._bounds.max_age or TEND_EVERY) / 10)
        while True:
            if self._write_problem is not None:
                await self._probe(store)
            if self._write_problem is None:
                await self._tidy(store)
            if self._write_problem is not None:
                await trio.sleep(RETRY_EVERY)
                continue
            with trio.move_on_after(period):
                await self._to_tend.wait()
            self._to_tend = trio.Event()

    async def _probe(self, store: Store) -> None:
        """See whether it can be written again.

        A probe that fails says at most what is wrong by now, never that something is: it
        wants more room than most events, and one of those may have been appended meanwhile.
        """
        try:
            await self._in_thread(store.probe)
        except LogUnavailable as exc:
            if self._write_problem is not None:
                self._write_problem = str(exc)
        else:
            self._wrote()

    async def _tidy(self, store: Store) -> None:
        try:
            while await self._in_thread(store.trim):
                pass
            if store.since_checkpoint > WAL_BYTES:
                await self._in_thread(store.checkpoint)
        except LogUnavailable as exc:
            self._failed_to_write(exc)

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        """``function(*args)`` in a thread; not cut short before `_leave_by`."""
        scope = trio.CancelScope(shield=True, deadline=self._leave_by)
        self._scopes.add(scope)
        try:
            with scope:
                return await run_sync(
                    function, *args, abandon_on_cancel=True, limiter=self._threads
                )
        finally:
            self._scopes.remove(scope)
        raise LogUnavailable(f"the log {self._path} was left while its disk did not answer")

    # Opening and closing.

    async def __aenter__(self) -> SqliteLog:
        if self._whole is not None:
            raise RuntimeError(
                "a log is opened once: make another, as in `async with SqliteLog(path) as log`"
            )
        self._whole = self._opened()
        await self._whole.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        """Close the file, when what is being written is written.

        A disk that does not answer is waited for for 20 seconds at most.
        """
        assert self._whole is not None
        return await self._whole.__aexit__(exc_type, exc, tb)  # noqa: ASYNC102  # nothing more

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[None, None]:
        store = self._opened_store = await self._in_thread(
            Store, self._path, self._bounds, self._sync
        )
        try:
            with Prompt(self._path) as prompt, no_lone_group():
                self._take(await self._in_thread(store.look, 0, TAIL_EVENTS, TAIL_BYTES))
                async with trio.open_nursery() as nursery:
                    self._is_open = True
                    nursery.start_soon(self._write, store, name="log: write")
                    nursery.start_soon(self._watch, store, prompt, name="log: watch")
                    nursery.start_soon(self._tend, store, name="log: tend")
                    try:
                        yield
                    finally:
                        self._leave()
                        nursery.cancel_scope.cancel(reason="the log was left")
        finally:
            self._leave()
            # Anew: a thread that is asked to close does so, though nobody waits any more.
            self._leave_by = trio.current_time() + CLOSE_PATIENCE
            try:
                await self._in_thread(store.close)  # noqa: ASYNC102  # it is shielded
            except LogUnavailable as exc:
                logger.error("%s", exc)

    def _leave(self) -> None:
        self._is_open = False
        self._leave_by = min(self._leave_by, trio.current_time() + CLOSE_PATIENCE)
        for scope in self._scopes:
            scope.deadline = self._leave_by
        for one in self._waiting:
            one.result = LogUnavailable(f"the log {self._path} was closed, nothing was appended")
            one.done.set()
        self._waiting.clear()
