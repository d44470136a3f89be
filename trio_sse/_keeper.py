"""Keep-alive comments and idle deadlines for all sessions of a hub, by one task."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Final, final

import trio

from .session import EndReason, Session

KEEP_ALIVE: Final = b":\n\n"
_YIELD_EVERY: Final = 256


@final
class Keeper:
    """Wakes when the next session could be due, and only then looks at it."""

    def __init__(
        self, keep_alive: float | None, max_idle: float | None, sessions: Mapping[str, Session]
    ) -> None:
        self._keep_alive = keep_alive
        self._max_idle = max_idle
        self._sessions = sessions
        # When to look at which session. One entry each; those of ended sessions are
        # dropped when their time comes, or when they are the most of it. An entry of a
        # new session is never due before the others.
        self._due: list[tuple[float, str]] = []
        self._added = trio.lowlevel.ParkingLot()

    def watch(self, session: Session) -> None:
        """Look after ``session`` from now on."""
        due = self._next_due(session)
        if due is None:
            return
        if len(self._due) > 2 * len(self._sessions) + _YIELD_EVERY:
            self._due = [entry for entry in self._due if entry[1] in self._sessions]
            heapq.heapify(self._due)
        heapq.heappush(self._due, (due, session.id))
        self._added.unpark_all()

    def _next_due(self, session: Session) -> float | None:
        times: list[float] = []
        if self._keep_alive is not None:
            times.append(session.last_write_at + self._keep_alive)
        if self._max_idle is not None:
            times.append(session.last_event_at + self._max_idle)
        return min(times, default=None)

    async def run(self) -> None:
        """Keep, for ever."""
        turns = 0
        while True:
            if not self._due:
                await self._added.park()
            await trio.sleep_until(self._due[0][0])
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                session = self._sessions.get(heapq.heappop(self._due)[1])
                if session is not None:
                    self._look_after(session, now)
                turns += 1
                if turns % _YIELD_EVERY == 0:
                    await trio.lowlevel.checkpoint()

    def _look_after(self, session: Session, now: float) -> None:
        if self._max_idle is not None and now >= session.last_event_at + self._max_idle:
            session.end(EndReason("deadline", f"idle for {self._max_idle:g} s"))
            return
        if self._keep_alive is not None and now >= session.last_write_at + self._keep_alive:
            # One that has a backlog is not idle: its next write is waiting already.
            if session.has_backlog:
                session.last_write_at = now
            else:
                session.deliver_control(KEEP_ALIVE)
        self.watch(session)
