"""Events as Redis keeps them, and last event IDs of several sequences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, final

from ..wire import Event, encode
from ._protocol import Record

Vector = tuple[int, ...]
"""For each shard the number of its newest event that somebody has had."""

_MOST_TOPICS: Final = 10_000
"""How many sets of topics are remembered as read: few are used, and often."""


class Entry(NamedTuple):
    """One event of a shard.

    Attributes:
        number: its place there.
        time: when it was stored, in milliseconds since 1970, by Redis's clock.
        field: the epoch that it was written in.
        stored: as in Redis: its topics, a line feed, what goes over the wire without id.
    """

    number: int
    time: int
    field: bytes
    stored: bytes

    @classmethod
    def of(cls, raw: Any) -> Entry:
        [entry_id, [field, stored, *_]] = raw
        number, _, time = entry_id.partition(b"-")
        return cls(int(number), int(time), field, stored)

    def digest(self) -> tuple[bytes, bytes, bytes]:
        """What `LOOK` answers for it."""
        sha = hashlib.sha1(self.stored).hexdigest()  # told from another, no more
        return b"%d-%d" % (self.number, self.time), self.field, sha.encode()


def stored(event: Event, topics: Sequence[str]) -> bytes:
    return b"%s\n%s" % (json.dumps(list(topics)).encode(), encode(event))


@final
class TopicsReader:
    """What is stored, taken apart. Topics that are the same are one object."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, ...]] = {}

    def read(self, stored: bytes) -> tuple[tuple[str, ...], bytes]:
        """The topics, and what goes over the wire without an id."""
        head, _, wire = stored.partition(b"\n")
        topics = self._known.get(head)
        if topics is None:
            if len(self._known) >= _MOST_TOPICS:
                self._known.clear()
            topics = self._known[head] = tuple(json.loads(head))
        return topics, wire


@final
class Held:
    """An event that was read for those who come back; several may get it.

    Attributes:
        number: its place in its shard.
        time: as `Entry.time`.
        topics: what it was published to.
        wire: what goes over the wire, without an id.
        record: as all get it, if it is the same for all.
    """

    __slots__ = ("number", "record", "time", "topics", "wire")

    def __init__(self, entry: Entry, reader: TopicsReader) -> None:
        self.number, self.time = entry.number, entry.time
        self.topics, self.wire = reader.read(entry.stored)
        self.record: Record | None = None


def with_id(wire: bytes, event_id: str) -> bytes:
    """``wire`` with an id, as its first field: where it stands makes no difference (9.2.6)."""
    return b"id: %s\n%s" % (event_id.encode(), wire)


def without_id(data: bytes) -> bytes:
    """The reverse of `with_id`."""
    return data.partition(b"\n")[2]


def place_id(epoch: str, vector: Vector) -> str:
    """The last event ID of who has had each shard up to there."""
    return f"{epoch}.{'-'.join(map(str, vector))}"


def parse_place(last_event_id: str, shards: int) -> tuple[str, Vector] | None:
    """What `place_id` made, or ``None`` if it did not."""
    epoch, dot, numbers = last_event_id.rpartition(".")
    parts = numbers.split("-") if len(numbers) <= 20 * shards else []
    if not dot or len(parts) != shards:
        return None
    if not all(part.isascii() and part.isdigit() for part in parts):
        return None
    return epoch, tuple(map(int, parts))


def vector_of(event_id: str) -> Vector:
    """The vector of an id that is ours."""
    return tuple(map(int, event_id.rpartition(".")[2].split("-")))


def advanced(vector: Vector, shard: int, number: int) -> Vector:
    """``vector`` after event ``number`` of ``shard``."""
    return (*vector[:shard], number, *vector[shard + 1 :])


def common_epoch(epochs: Sequence[str]) -> str:
    """The epoch of all shards together: a new one if any of them has."""
    if len(epochs) == 1:
        return epochs[0]
    text = " ".join((str(len(epochs)), *epochs))
    return hashlib.blake2s(text.encode(), digest_size=6).hexdigest()


def shard_of(topics: Sequence[str], shards: int) -> int:
    """Where events on ``topics`` go.

    Raises:
        ValueError: to different shards.
    """
    if shards == 1:
        return 0
    [first, *others] = topics
    shard = _shard(first, shards)
    for topic in others:
        if _shard(topic, shards) != shard:
            raise ValueError(
                f"the topics {first!r} and {topic!r} are on different shards of the log, which "
                "has no order between them: publish to each, or give them one tag in braces, "
                "as in '{orders}/new' and '{orders}/all'"
            )
    return shard


def _shard(topic: str, shards: int) -> int:
    _, brace, rest = topic.partition("{")
    tag, closed, _ = rest.partition("}")
    text = tag if brace and closed and tag else topic
    digest = hashlib.blake2s(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards
