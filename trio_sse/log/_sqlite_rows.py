"""Events as rows of a `SqliteLog`'s file, and rows as records again.

SQLite lets go of Python's lock at each step of a statement, and a busy program is slow to
give it back: 5 ms each time. So there are few steps. Many rows go in by one, and a whole
page comes out as one row: texts that are joined, for on the wire events are told apart.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, final

from ._protocol import Cursor, Record

PAGE_BYTES: Final = 256 << 10
"""How much is read at once, unless one event alone has more."""
ROW_OVERHEAD: Final = 24
"""Bytes that an event takes in the file beside its texts, roughly."""
ROWS_AT_ONCE: Final = 64
"""How many rows one statement takes; fewer by powers of two, so that few are prepared."""
MAX_NAMES: Final = 4096
"""How many different lists of topics are remembered by who reads."""

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be appended.

    Attributes:
        text: the event on the wire, without an id.
    """

    text: bytes
    topics: tuple[str, ...]
    key: str | None

    def record(self, position: int, epoch: str) -> Record:
        """Itself with its place: what `Pages` would read."""
        id = str(Cursor(epoch, position))
        return Record(position, id, self.topics, _with_id(id.encode(), self.text))


@final
class Pages:
    """Makes records of what is read; for one thread at a time.

    Args:
        epoch: of the positions.
    """

    def __init__(self, epoch: str) -> None:
        self._prefix = epoch + "."
        # Lists of topics are few, and to parse one takes longer than all the rest.
        self._names: dict[bytes, tuple[str, ...]] = {}

    def read(self, connection: sqlite3.Connection, after: int, upto: int) -> list[Record]:
        """What follows ``after``, up to ``upto`` or about `PAGE_BYTES`; at least one."""
        return self.read_with_oldest(connection, after, upto)[0]

    def read_with_oldest(
        self, connection: sqlite3.Connection, after: int, upto: int
    ) -> tuple[list[Record], int | None]:
        """The same, and the oldest position that there is at the same moment, if any is."""
        parameters = {"after": after, "upto": upto, "size": PAGE_BYTES}
        row = connection.execute(_PAGE, parameters).fetchone()
        [oldest, count, last, names, texts] = row
        if not count:
            return [], oldest
        topics = self._topics(names.split(b"\n"))
        return self._records(last - count + 1, topics, texts.split(b"\n\n")), oldest

    def _topics(self, names: list[bytes]) -> Iterator[tuple[str, ...]]:
        known = self._names
        if len(known) > MAX_NAMES:
            known.clear()
        for text in set(names).difference(known):
            known[text] = tuple(json.loads(text))
        return map(known.__getitem__, names)

    def _records(
        self, first: int, topics: Iterator[tuple[str, ...]], texts: list[bytes]
    ) -> list[Record]:
        records: list[Record] = []
        append, prefix = records.append, self._prefix
        for position, (names, text) in enumerate(zip(topics, texts, strict=False), first):
            id = f"{prefix}{position}"
            if text[0] == _COLON or b"\n0" in text:
                data = _with_id(id.encode(), _unescaped(text) + b"\n\n")
            else:
                data = b"id: %b\n%b\n\n" % (id.encode(), text)
            append(Record(position, id, names, data))
        return records


# The first of them is given whatever its size, for that is in both totals. The sum of
# sizes needs no sum, and where to begin and to end is sought: positions are dense.
_PAGE: Final = """
SELECT (SELECT min(position) FROM event),
  count(*), max(position), group_concat(topics, char(10)), group_concat(data, '')
FROM (
  SELECT position, topics, data FROM event
  WHERE position > :after AND position <= :upto AND total <= :size + (
    SELECT total FROM event WHERE position > :after ORDER BY position LIMIT 1)
  ORDER BY position)
"""

_COLON: Final = ord(":")


def _with_id(id: bytes, text: bytes) -> bytes:
    """``text`` as `wire.encode` writes it with an id: behind the comment."""
    at = 0
    while text[at] == _COLON:
        at = text.index(b"\n", at) + 1
    return b"%bid: %b\n%b" % (text[:at], id, text[at:])


# SQLite may take NUL for the end of a text. In an event no line begins with a digit.
def _escaped(text: bytes) -> bytes:
    return text.replace(b"\0", b"\n0") if b"\0" in text else text


def _unescaped(text: bytes) -> bytes:
    return text.replace(b"\n0", b"\0")


def insert(
    connection: sqlite3.Connection, entries: Sequence[Entry], position: int, total: int, now: int
) -> int:
    """Write ``entries`` behind ``position``, up to which there are ``total`` bytes.

    Args:
        now: milliseconds.

    Returns:
        The total after them.
    """
    rows: list[tuple[Any, ...]] = []
    for number, entry in enumerate(entries, position + 1):
        topics = json.dumps(entry.topics, separators=(",", ":"))
        total += len(entry.text) + len(topics) + 2 * len(entry.key or "") + ROW_OVERHEAD
        rows.append((number, now, total, topics, entry.key, _escaped(entry.text)))
    for some in _powers_of_two(rows):
        values = ",".join(["(?,?,?,?,?,CAST(? AS TEXT))"] * len(some))
        connection.execute(
            f"INSERT INTO event (position, time, total, topics, key, data) VALUES {values}",
            [value for row in some for value in row],
        )
    return total


def held(
    connection: sqlite3.Connection, keys: Iterable[str]
) -> dict[str, tuple[int, bytes, tuple[str, ...]]]:
    """For each of ``keys`` that is remembered: position, text and topics."""
    found: dict[str, tuple[int, bytes, tuple[str, ...]]] = {}
    for some in _powers_of_two(list(keys)):
        marks = ",".join("?" * len(some))
        for key, position, text, topics in connection.execute(
            f"SELECT key, position, data, topics FROM event WHERE key IN ({marks})", some
        ):
            found[key.decode()] = position, _unescaped(text), tuple(json.loads(topics))
    return found


def _powers_of_two(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """``items`` in order, in parts whose sizes are few different ones."""
    start, size = 0, ROWS_AT_ONCE
    while left := len(items) - start:
        while size > left:
            size //= 2
        yield items[start : start + size]
        start += size
