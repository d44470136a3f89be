"""Which log, by URL: where the engines meet."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from ._protocol import EventLog
from .memory import MemoryLog

Sync = Literal["full", "normal", "off"]

OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "memory": frozenset({"max_events", "max_bytes"}),
    "sqlite": frozenset({"max_events", "max_bytes", "max_age", "sync"}),
    "redis": frozenset({"max_events", "max_age", "name", "shards"}),
}
"""What can be said of each engine's log beside its URL."""

SHARED: Final = frozenset({"sqlite", "redis"})
"""The engines whose log several processes can use at once."""

_EXAMPLES: Final = "memory, sqlite:events.db, redis://localhost:6379/0"


def engine_of(url: str) -> str:
    """The key of `OPTIONS` that ``url`` belongs to.

    Raises:
        ValueError: to none.
    """
    scheme, colon, _ = url.partition(":")
    if url == "memory" or (scheme == "sqlite" and colon):
        return scheme
    if colon and re.fullmatch(r"unix|(redis|rediss|valkey|valkeys)(\+\w+)?", scheme):
        return "redis"
    known = ["memory", "sqlite", "redis", "rediss", "valkey", "valkeys"]
    [*close] = difflib.get_close_matches(scheme, known, n=1)
    hint = f"; did you mean {close[0]}{':' if close[0] != 'memory' else ''}?" if close else ""
    if scheme == "memory":
        hint = "; the one in memory is called memory, and nothing more"
    raise ValueError(f"there is no log {without_password(url)!r}; there are {_EXAMPLES}{hint}")


def without_password(url: str) -> str:
    """``url`` as it may be shown: who reads it learns no password that is in it."""
    if url.startswith("sqlite:"):
        return url
    # To the last "@" before a query: a password may hold what it should not.
    url = re.sub(r"^([\w+.-]+:/*)?[^?]*@", r"\1***@", url)
    return re.sub(r"([?&](?!db=|ssl_)[^=&]*=)[^&]*", r"\1***", url)


def open_log(
    url: str,
    *,
    max_events: int | None = None,
    max_bytes: int | None = None,
    max_age: float | None = None,
    sync: Sync | None = None,
    name: str | None = None,
    shards: int | None = None,
) -> EventLog:
    """The log that ``url`` names. The hub that is given it opens it.

    Args:
        url: ``memory``; ``sqlite:events.db``, with any path, in which ``~`` is the home
            directory; ``redis://host:6379/0``, and what else `trio_sse.log.redis.RedisLog`
            takes.
        max_events: how many it keeps, in Redis of each shard; 100,000 if it is left out.
        max_bytes: and how many bytes, roughly; 64 MiB. Not for Redis.
        max_age: seconds after which it forgets an event; ``None`` is never. Not for the
            log in memory.
        sync: SQLite's only; what a publication waits for: ``"full"``, ``"normal"``, ``"off"``.
        name: Redis' only; what its keys begin with.
        shards: Redis' only; the number of streams.

    Raises:
        ValueError: no such log, or it has no such option, or bounds that leave nothing.
        ImportError: the engine needs a package that is not there; the text says which.
    """
    engine = engine_of(url)
    given: dict[str, Any] = {
        "max_events": max_events,
        "max_bytes": max_bytes,
        "max_age": max_age,
        "sync": sync,
        "name": name,
        "shards": shards,
    }
    given = {option: value for option, value in given.items() if value is not None}
    if unknown := sorted(given.keys() - OPTIONS[engine]):
        raise ValueError(
            f"open_log({without_password(url)!r}, {unknown[0]}={given[unknown[0]]!r}): this log "
            f"has no such option; it has {', '.join(sorted(OPTIONS[engine]))}"
        )
    if engine == "memory":
        return MemoryLog(**given)
    return _sqlite(url, given) if engine == "sqlite" else _redis(url, given)


def _sqlite(url: str, given: dict[str, Any]) -> EventLog:
    # Imported here: a Python may have been built without SQLite, and a hub without it.
    from .sqlite import SqliteLog  # noqa: PLC0415  # see above

    path = url.removeprefix("sqlite:")
    if path in ("", ":memory:") or path.startswith("//"):
        instead = {"": "sqlite:events.db", ":memory:": "memory"}.get(path) or (
            "sqlite:/" + path.lstrip("/") + " for a path from the root, or sqlite:"
            + path.lstrip("/") + " for one from here"
        )  # fmt: skip
        raise ValueError(f"{url!r} names no file; write {instead}")
    return SqliteLog(os.path.expanduser(path), **given)


def _redis(url: str, given: dict[str, Any]) -> EventLog:
    try:
        from .redis import RedisLog  # noqa: PLC0415  # its client is an extra
    except ImportError as exc:
        missing = (exc.name or "coredis").partition(".")[0]
        raise ImportError(
            f"a log in Redis needs {missing}: pip install 'trio-sse[redis]'", name=missing
        ) from exc
    return RedisLog(url, **given)
