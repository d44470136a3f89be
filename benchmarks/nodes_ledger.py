"""What was published, and whether every listener has it: once, and in one order. No I/O.

An event's data name its publisher, its number there, and its topics. The first listener
that gets the next event of a topic settles which that is; for all others it has to be the
same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Final, final

from trio_sse import Event

TOPICS: Final = tuple(f"topic-{number}" for number in range(8))
EVERYTHING: Final = "*"
_KEPT: Final = 40
"""Failures, of many that may be alike."""


@final
class Ledger:
    """What all are to have, and what was found wrong.

    Args:
        one_order: whether all topics together have one order, too.

    Attributes:
        orders: for each topic, the keys of its events as listeners have them.
        ids: what publishers were told, by key: what was acknowledged.
        failures: the first of them.
        failed: how many there were.
    """

    def __init__(self, *, one_order: bool) -> None:
        self.one_order = one_order
        self.orders: dict[str, list[str]] = {topic: [] for topic in (*TOPICS, EVERYTHING)}
        self.ids: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.failed = 0
        self._published: Counter[str] = Counter()

    def acknowledged(self, key: str, topics: Iterable[str], event_id: str) -> None:
        """A publisher was told that its event is in the log, and under which id."""
        known = self.ids.get(key)
        if known is None:
            self.ids[key] = event_id
            self.counts["publications acknowledged"] += 1
            self._published.update([*topics, EVERYTHING])
        elif known == event_id or not self.one_order:  # an id tells of other streams, too
            self.counts["publications acknowledged again"] += 1
        else:
            self.fail(f"{key} was published as {known}, and once more as {event_id}")

    def expected(self, topic: str) -> int:
        """How many events listeners of ``topic`` are to have."""
        return self._published[topic]

    def check_orders(self) -> None:
        """At the end: what is in the orders is what was acknowledged, in its publishers' order."""
        for topic, keys in self.orders.items():
            last: dict[str, int] = {}
            for key in keys:
                publisher, _, number = key.partition("-")
                if key not in self.ids:
                    self.fail(f"{key} in {topic} was never acknowledged")
                if last.get(publisher, -1) >= int(number):
                    self.fail(f"{key} in {topic} comes after number {last[publisher]}")
                last[publisher] = int(number)

    def fail(self, what: str) -> None:
        self.failed += 1
        if len(self.failures) < _KEPT:
            self.failures.append(what)


@final
class Listener:
    """Checks what one client gets, across all its connections.

    Args:
        topics: what it subscribes to; none is everything.
    """

    def __init__(self, name: str, topics: Iterable[str], ledger: Ledger) -> None:
        self.name = name
        self.topics = frozenset(topics)
        self._ledger = ledger
        # How many events of each topic it has had, which is where it is in its order.
        self._had = dict.fromkeys(self.topics or TOPICS, 0)
        if not self.topics and ledger.one_order:
            self._had[EVERYTHING] = 0
        self._keys: set[str] = set()

    def __repr__(self) -> str:
        missing = {topic: -short for topic, short in self._short().items()}
        return f"<{self.name} of {sorted(self.topics) or 'everything'}: {missing or 'complete'}>"

    def take(self, event: Event) -> None:
        """Check the next event."""
        ledger = self._ledger
        if event.type == "gap":
            ledger.fail(f"{self.name} was told of a gap: {event.data}")
            return
        data = json.loads(event.data or "{}")
        key = data["key"]
        ledger.counts["events received, and checked"] += 1
        if key in self._keys:
            ledger.counts["events received twice"] += 1
            ledger.fail(f"{self.name} got {key} twice")
            return
        self._keys.add(key)
        for topic in (*data["topics"], EVERYTHING):
            if topic in self._had:
                self._check_place(topic, key)

    def _check_place(self, topic: str, key: str) -> None:
        order, place = self._ledger.orders[topic], self._had[topic]
        if place == len(order):
            order.append(key)
        elif order[place] != key:
            self._ledger.counts["events out of order"] += 1
            self._ledger.fail(
                f"{self.name} got {key} as number {place} of {topic}; others {order[place]}"
            )
        self._had[topic] += 1

    def _short(self) -> dict[str, int]:
        expected = self._ledger.expected
        return {t: expected(t) - had for t, had in self._had.items() if expected(t) != had}

    @property
    def has_any(self) -> bool:
        return bool(self._keys)

    @property
    def is_complete(self) -> bool:
        return not self._short()

    def check_end(self) -> None:
        """At the end: nothing is missing, and there is nothing that nobody published."""
        for topic, short in self._short().items():
            if topic != EVERYTHING:
                self._ledger.counts["events lost"] += max(0, short)
            self._ledger.fail(f"{self.name} has {-short:+} events of {topic}")
