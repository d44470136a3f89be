"""The log that many nodes share: Redis or Valkey Streams, through coredis.

Of the package's modules this one alone needs the extra ``redis``::

    pip install 'trio-sse[redis]'

An event is in one *shard*: a stream in which events are numbered 1, 2, 3, … by Redis
itself, so that whoever misses a number has missed an event. Each node reads all shards with
one task, keeps the newest in memory, and gives them out in the order in which they came to
it; all nodes agree on the order within a shard, and thereby within each topic.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Final, NamedTuple, final

import trio

from .._groups import no_lone_group
from ..errors import KeyReused, LogUnavailable
from ..wire import Event
from ._protocol import Record
from ._redis_entries import shard_of, stored
from ._redis_fetch import Fetcher
from ._redis_link import Pause, Trouble, open_link
from ._redis_merge import Merge
from ._redis_reader import Reader, Shown, look
from ._redis_replay import RedisReplay
from ._redis_scripts import Keys
from ._redis_target import Target
from ._redis_writer import Writer

_FETCHERS: Final = 2
"""How many pages of older events are on their way at once."""
_MAX_SHARDS: Final = 256


class RedisLogStatistics(NamedTuple):
    """What a `RedisLog` has done since it was opened.

    Attributes:
        batches: times that Redis was given events, one or many.
        asked: times that Redis was asked for older events, for those who came back.
    """

    batches: int
    asked: int


@final
class RedisLog:
    """Keeps events in Redis 6.2 or later, or Valkey; as durable as that is configured.

    Events that Redis acknowledged survive whatever happens to nodes. What Redis itself
    may lose is a matter of its ``appendfsync`` and of its replicas; if it does lose some
    that a node had read, or all, last event IDs belong to a new epoch, and everyone is
    told with a gap.

    Entering it takes Redis to be there within ``timeout`` and a few seconds: a service
    that starts without its log could do nothing, and a supervisor sees why. From then on
    Redis may go and come back: `append` raises `LogUnavailable` at once meanwhile, and who
    reads waits.

    With several shards an idempotency key holds for one shard: published again on topics
    of another, it is another event.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://…`` with TLS,
            ``unix://[[user]:password@]/path[?db=1]``, ``redis+cluster://host:port,…`` and
            ``redis+sentinel://host:port,…/name-of-the-primary[/db]``, these two with
            ``rediss+`` for TLS. User and password are percent-encoded. Options in the
            query: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``,
            ``ssl_check_hostname=false``, ``ssl_cert_reqs=none``, and the Sentinels'
            ``sentinel_username`` and ``sentinel_password``.
        name: of the log: what its keys in Redis begin with, in braces.
        shards: how many streams; the same for all nodes. A topic is on one of them; one
            event's topics must be on the same. Topics with the same ``{tag}`` in their
            name are.
        max_events: how many events Redis keeps, of each shard.
        max_age: seconds; older events are deleted within half a minute. ``None``: never.
        tail_events: how many of the newest are kept in memory, of all shards together,
            for those who come back soon.
        tail_bytes: and how many bytes, roughly.
        timeout: seconds that Redis may take for an answer.

    Raises:
        ValueError: no such URL, or bounds that leave nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "trio_sse",
        shards: int = 1,
        max_events: int = 100_000,
        max_age: float | None = None,
        tail_events: int = 20_000,
        tail_bytes: int = 64 << 20,
        timeout: float = 2.0,
    ) -> None:
        _check(name, shards, max_events, max_age, tail_events, tail_bytes, timeout)
        self._target = Target(url)
        self._name = name
        self._keys = [Keys.of(name, shard) for shard in range(shards)]
        self._max_events = max_events
        self._max_age = max_age
        self._tail_events = min(tail_events, max_events * shards)
        self._tail_bytes = tail_bytes
        self._timeout = timeout
        self._whole: AbstractAsyncContextManager[None] | None = None
        self._merge = Merge([""] * shards, (0,) * shards, self._tail_events, tail_bytes)
        self._readers = list[Reader]()
        self._writers = list[Writer]()
        self._fetcher = Fetcher(self._target, timeout)

    def __repr__(self) -> str:
        return (
            f"<RedisLog {self._name} at {self._target}, epoch {self.epoch}, "
            f"positions {self.trimmed + 1} to {self.newest} in memory>"
        )

    @property
    def epoch(self) -> str:
        return self._merge.epoch

    @property
    def newest(self) -> int:
        return self._merge.tail.newest

    @property
    def trimmed(self) -> int:
        """What lies before the newest, which are in memory; `replay` goes back further."""
        return self._merge.tail.trimmed

    @property
    def problem(self) -> str | None:
        """Why it cannot write or read at the moment, in Redis's words if it has any."""
        problems = [writer.problem for writer in self._writers]
        problems += [reader.problem for reader in self._readers]
        problems.append(self._fetcher.problem)
        return next((problem for problem in problems if problem is not None), None)

    def statistics(self) -> RedisLogStatistics:
        return RedisLogStatistics(
            batches=sum(writer.batches for writer in self._writers), asked=self._fetcher.asked
        )

    def place(self, position: int) -> str:
        return self._merge.place(position)

    async def append(self, event: Event, topics: Sequence[str], *, key: str | None = None) -> str:
        """As `EventLog.append`: when it returns, Redis has the event.

        If cancelled before the event was sent, it is not appended. This node may not have
        read it when this returns, if it has trouble reading.

        Raises:
            LogUnavailable: Redis is away, or refuses, at once if that was known before;
                it says so if the event may have been stored all the same.
        """
        shard = shard_of(topics, len(self._keys))
        if not self._writers:
            raise LogUnavailable("the log is not open: use it in `async with log:`")
        epoch, number = await self._writers[shard].append(stored(event, topics), key)
        merge = self._merge
        if number < 0:
            raise KeyReused(key or "", merge.id_of(shard, -number, epoch))
        with trio.move_on_after(self._timeout):
            while merge.vector[shard] < number or merge.epochs[shard] != epoch:
                if any(reader.problem is not None for reader in self._readers):
                    break
                await merge.moved.park()
        return merge.id_of(shard, number, epoch)

    async def read(self, after: int, limit: int) -> Sequence[Record]:
        """As `EventLog.read`; never a checkpoint."""
        records = self._merge.tail.read(after, limit)
        if records:
            self._merge.took(records[-1].position)
        return records

    async def wait(self, after: int) -> None:
        """As `EventLog.wait`. Who waits is taken for the one who gives events out.

        What it has not read stays in memory; so that this has a bound, reading from Redis
        stops when it is far behind.
        """
        self._merge.took(after, follows=True)
        await self._merge.tail.wait(after)

    async def replay(self, last_event_id: str) -> RedisReplay:
        await trio.lowlevel.checkpoint()
        return RedisReplay(self._merge, self._fetcher, self._keys, self._max_events, last_event_id)

    # Opening and closing.

    async def __aenter__(self) -> RedisLog:
        """Raises `LogUnavailable` if Redis is not there, or refuses."""
        if self._whole is not None:
            raise RuntimeError("a log is opened once: make another, as in RedisLog(url)")
        self._whole = self._opened()
        await self._whole.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        assert self._whole is not None
        return await self._whole.__aexit__(exc_type, exc, tb)  # noqa: ASYNC102  # nothing more

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[None, None]:
        shown = await self._first_look()
        epochs = [shard.epoch for shard in shown]
        vector = tuple(shard.newest for shard in shown)
        self._merge = Merge(epochs, vector, self._tail_events, self._tail_bytes)
        self._make_parts()
        with no_lone_group():
            async with trio.open_nursery() as nursery:
                for reader in self._readers:
                    nursery.start_soon(reader.run, name="trio_sse redis reader")
                for writer in self._writers:
                    nursery.start_soon(writer.run, name="trio_sse redis writer")
                for _ in range(_FETCHERS):
                    nursery.start_soon(self._fetcher.run, name="trio_sse redis fetcher")
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel(reason="the log was left")

    async def _first_look(self) -> list[Shown]:
        pause, deadline = Pause(), trio.current_time() + 2 * self._timeout
        while True:
            try:
                async with open_link(self._target, self._timeout) as link:
                    return [await look(link, keys) for keys in self._keys]
            except Trouble as exc:
                if exc.refused or trio.current_time() > deadline:
                    raise LogUnavailable(f"the log cannot be opened: {exc}") from exc
            await pause.wait()

    def _make_parts(self) -> None:
        everything = dict(enumerate(self._keys))
        # In a Cluster one command cannot read what lies on different servers.
        parts = [{s: k} for s, k in everything.items()] if self._target.is_cluster else [everything]
        self._readers = [
            Reader(
                self._target,
                part,
                self._merge,
                timeout=self._timeout,
                max_age=self._max_age,
                troubled=self._suspect,
            )
            for part in parts
        ]
        self._writers = [
            Writer(self._target, keys, max_events=self._max_events, timeout=self._timeout)
            for keys in self._keys
        ]

    def _suspect(self) -> None:
        """Reading has failed: writing is tried, so that who publishes hears of it at once."""
        for writer in self._writers:
            writer.suspect()


def _check(
    name: str,
    shards: int,
    max_events: int,
    max_age: float | None,
    tail_events: int,
    tail_bytes: int,
    timeout: float,
) -> None:
    if not name or set(name) & set("{}"):
        raise ValueError(
            f"RedisLog(name={name!r}): keys have it in braces, so it is not empty and has none, "
            "as in RedisLog(url, name='news')"
        )
    if not 1 <= shards <= _MAX_SHARDS:
        raise ValueError(
            f"RedisLog(shards={shards}): from 1 to {_MAX_SHARDS}, as in RedisLog(url, shards=4)"
        )
    if max_events < 1 or tail_events < 1 or tail_bytes < 1:
        raise ValueError(
            f"RedisLog(max_events={max_events}, tail_events={tail_events}, "
            f"tail_bytes={tail_bytes}): a log keeps something, as in "
            "RedisLog(url, max_events=1000)"
        )
    if not timeout > 0 or (max_age is not None and not max_age > 0):
        raise ValueError(
            f"RedisLog(timeout={timeout}, max_age={max_age}): seconds, more than 0, "
            "as in RedisLog(url, max_age=3600)"
        )
