"""What was published, and what one client that resumes must therefore see. No I/O.

An event's id is ``epoch.position``. Its data carry two numbers: ``n`` counts all events,
``k`` those of its topic; within one life of the server none is missing. An event that is
not known to have been accepted is published again with the same idempotency key.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, final

from trio_sse import Event

TOPICS: Final = ("a", "b", "c")


@final
@dataclass(slots=True)
class Epoch:
    """The events of one life of the server that were accepted.

    Attributes:
        newest: the position of the last one.
        n: its number.
        first: the number of the first one of each topic.
        last: and of the last.
    """

    newest: int = 0
    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)


@final
class Ledger:
    """What publishers were told was accepted; what clients found wrong; counts of it all."""

    def __init__(self) -> None:
        self.epochs: dict[str, Epoch] = {}
        self.current = ""
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._epochs_cut_short: set[str] = set()

    def accepted(self, event_id: str, topic: str, k: int) -> None:
        name, position = split(event_id)
        self.current = name
        epoch = self.epochs.setdefault(name, Epoch())
        if position != epoch.newest + 1:
            self.fail(f"the event after {name}.{epoch.newest} was given the id {event_id}")
        epoch.newest = position
        epoch.first.setdefault(topic, k)
        epoch.last[topic] = k
        self.counts["events accepted"] += 1

    def cut_short(self, name: str, position: int) -> None:
        """A client was told goodbye there, though more had been accepted."""
        self.counts["goodbyes that came too early"] += 1
        if name not in self._epochs_cut_short:
            self._epochs_cut_short.add(name)
            newest = self.epochs[name].newest
            self.fail(f"goodbye at {position} of epoch {name}, of which {newest} were accepted")

    def fail(self, what: str) -> None:
        self.failures.append(what)


def split(event_id: str) -> tuple[str, int]:
    epoch, _, position = event_id.rpartition(".")
    return epoch, int(position)


@final
class Follower:
    """Checks what a client that resumes receives, across all its connections.

    Args:
        topic: what it subscribes to; ``None`` is everything.
    """

    def __init__(self, name: str, topic: str | None, ledger: Ledger) -> None:
        self.name = name
        self.topic = topic
        self.last_id = ""  # what it asks to go on from
        self.is_listening = False  # whether it has a stream now
        self._ledger = ledger
        self._epoch = ""
        self._position = 0  # where it is in the epoch
        # The number of the event it had last; None where any may be next: at its very
        # first event, and after a gap that was announced.
        self._number: int | None = None
        self._after_gap = False  # and nothing yet: the epoch's first is what comes next
        # To be compared when no more is accepted: what it heard first after a gap, and
        # where it was when it was told goodbye.
        self._firsts: list[tuple[str, int]] = []
        self._ends: list[tuple[str, int]] = []

    def __repr__(self) -> str:
        where = "listening" if self.is_listening else "away"
        at = f"{self._epoch}.{self._position}, number {self._number}"
        return f"<{self.name} of {self.topic or 'all topics'}, {where}, at {at}>"

    def take(self, event: Event) -> None:
        """Check the next block of the stream."""
        if event.data is None:
            if event.id:  # which is kept from block to block
                self._take_place(event.id)
            return
        if event.id is None:
            self._fail(f"an event without an id: {event}")
        elif event.type == "gap":
            self._take_gap(event, event.id)
        else:
            self._take_published(event, event.id)
        self.last_id = event.id or self.last_id

    def _take_place(self, event_id: str) -> None:
        """The server says where the client is, before the first event or after the last."""
        self.last_id = event_id
        epoch, position = split(event_id)
        if not self._epoch:
            self._epoch, self._position = epoch, position
        elif epoch != self._epoch or position < self._position:
            self._fail(f"it was said to be at {event_id}, and is at {self._position}")
        elif self.topic is None and position != self._position:
            self._fail(f"it was said to be at {event_id}, and has had up to {self._position}")
        self._position = position

    def _take_gap(self, event: Event, event_id: str) -> None:
        why = json.loads(event.data or "{}").get("reason")
        self._ledger.counts[f"gaps announced: {why}"] += 1
        epoch, position = split(event_id)
        # The log is never trimmed here and nothing is dropped: only a restart loses.
        if why != "epoch" or epoch == self._epoch:
            self._fail(f"a gap within an epoch: {event.data}")
        self._epoch, self._position, self._number = epoch, position, None
        self._after_gap = True

    def _take_published(self, event: Event, event_id: str) -> None:
        epoch, position = split(event_id)
        data = json.loads(event.data or "{}")
        number = data["n"] if self.topic is None else data["k"]
        first = not self._epoch
        if first:
            self._epoch = epoch
        elif epoch != self._epoch:
            self._fail(f"epoch {epoch} after {self._epoch} without word of a gap")
            self._epoch, self._number = epoch, None
        elif self.topic is None and position != self._position + 1:
            self._fail(f"position {position} after {self._position} of epoch {epoch}")
        elif position <= self._position:
            self._fail(f"position {position} after {self._position}: again, or out of order")
        if self._number is not None and number != self._number + 1:
            self._fail(f"number {number} after {self._number} in epoch {epoch}")
        if self._after_gap:
            self._firsts.append((epoch, number))
        self._position, self._number, self._after_gap = position, number, False
        self._ledger.counts["events checked"] += 1

    def heard_farewell(self) -> None:
        """The server ended the stream in good order: all of the epoch must have been in it."""
        if self._epoch and self.topic is None:
            self._ends.append((self._epoch, self._position))

    @property
    def is_complete(self) -> bool:
        """Whether it has all that was accepted in the current epoch."""
        epoch = self._ledger.epochs.get(self._ledger.current)
        if epoch is None:
            return True
        if self._epoch != self._ledger.current:
            return False
        if self.topic is None:
            return self._position >= epoch.newest
        last = epoch.last.get(self.topic)
        return last is None or (self._number is not None and self._number >= last)

    def check_ends(self) -> None:
        """To be called when no more is accepted."""
        for name, number in self._firsts:
            epoch = self._ledger.epochs.get(name)
            if epoch is not None and self.topic in epoch.first:
                if number > epoch.first[self.topic]:
                    self._fail(f"after a gap, {number} came first of epoch {name}")
        for name, position in self._ends:
            epoch = self._ledger.epochs.get(name)
            if epoch is not None and position < epoch.newest:
                self._ledger.cut_short(name, position)

    def _fail(self, what: str) -> None:
        self._ledger.fail(f"{self.name} ({self.topic or 'all topics'}): {what}")
