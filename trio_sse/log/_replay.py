"""Replay for a log whose positions are the same for everyone who reads it."""

from __future__ import annotations

from typing import final

from ._protocol import Cursor, EventLog, Gap, Page


@final
class SequenceReplay:
    """A `Replay` by `EventLog.read`, for engines in which a cursor is a position.

    Args:
        log: whose ``read`` gives all that is held, however old.
        last_event_id: what the reader has had.
    """

    def __init__(self, log: EventLog, last_event_id: str) -> None:
        self._log = log
        cursor = Cursor.parse(last_event_id)
        known = cursor is not None and cursor.epoch == log.epoch and cursor.position <= log.newest
        self.position = cursor.position if known and cursor is not None else -1

    async def ready(self) -> None:
        """Nothing is waited for: `read` does what is to be done."""

    async def read(self, limit: int, upto: int) -> Page:
        """As `Replay.read`."""
        log = self._log
        after = max(self.position, 0)
        records = await log.read(after, limit)
        oldest = log.trimmed
        if records:  # what of them was trimmed since is no hole: it is at hand
            oldest = min(oldest, records[0].position - 1)
        gap = None
        if self.position < 0:
            gap = Gap("epoch", log.place(oldest))
        elif oldest > after:
            gap = Gap("trimmed", log.place(oldest))
        found = [record for record in records if record.position <= upto]
        if found and len(found) == len(records):
            self.position = found[-1].position
        else:
            self.position = max(after, oldest, upto)
        return Page(gap, found)
