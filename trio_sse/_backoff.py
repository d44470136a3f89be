"""When to connect again: the server's reconnection time, and exponential back-off on top."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect:
    """How a source comes back. All times are in seconds.

    It waits for the reconnection time, as the standard has it (9.2.3), and then for a random
    share, from none to all, of an extra that doubles with each break in a row: clients that
    lost one server together do not come back together. The extra is at most one
    reconnection time at the first break. A break is part of a row unless the connection
    before it lasted `healthy_after`.

    Attributes:
        initial: the reconnection time until the server sends a ``retry``.
        floor: no wait is shorter, whatever the server asks.
        ceiling: no extra is longer.
        longest_wait: no wait that the server asks for, by ``retry`` or ``Retry-After``, is
            longer.
        healthy_after: a connection that lasts this long forgets the breaks before it.
        give_up_after: the number of breaks in a row at which the source fails with the error
            of the last; ``None``: it never gives up.
        statuses: answers to reconnect after that otherwise fail for good, as in
            ``{502, 504}``. A 429 or a 503 with ``Retry-After`` is always waited for.
        jitter: picks a number between two others, for tests; ``None``: any, at random.
    """

    initial: float = 2.0
    floor: float = 0.1
    ceiling: float = 30.0
    longest_wait: float = 3600.0
    healthy_after: float = 10.0
    give_up_after: int | None = None
    statuses: Collection[int] = frozenset()
    jitter: Callable[[float, float], float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.floor <= self.longest_wait < math.inf:
            raise ValueError(
                f"Reconnect(floor={self.floor}, longest_wait={self.longest_wait}): the floor "
                "must be above 0 and at most the longest wait, as in Reconnect(floor=0.1)"
            )
        if not (self.initial >= 0 and 0 <= self.ceiling < math.inf and self.healthy_after >= 0):
            raise ValueError(
                f"Reconnect(initial={self.initial}, ceiling={self.ceiling}, "
                f"healthy_after={self.healthy_after}): seconds cannot be negative, "
                "and the ceiling must be finite"
            )
        if self.give_up_after is not None and self.give_up_after < 1:
            raise ValueError(
                f"Reconnect(give_up_after={self.give_up_after}): at least 1, or None for never; "
                "for a source that does not reconnect write connect(..., reconnect=None)"
            )


@final
class Backoff:
    """The breaks in a row, and the wait that each is followed by.

    Attributes:
        reconnection_time: seconds; as the server last set it.
        breaks: in a row, those since the last healthy connection.
    """

    def __init__(self, policy: Reconnect) -> None:
        self._policy = policy
        self.reconnection_time = policy.initial
        self.breaks = 0

    def next_wait(self, *, lasted: float, asked: float) -> float:
        """Count a break; the seconds to wait now.

        Args:
            lasted: seconds that the connection was open for, 0 if it never was.
            asked: seconds that the server wants to be left alone for, 0 if it said nothing.
        """
        policy = self._policy
        if lasted >= policy.healthy_after:
            self.breaks = 0
        step = max(policy.floor, self.reconnection_time)
        # Past 2 ** 60 any step is over any ceiling, and a float has its end.
        extra = min(policy.ceiling, step * 2.0 ** min(self.breaks, 60))
        self.breaks += 1
        wait = min(max(step, asked), policy.longest_wait)
        return wait + (policy.jitter or random.uniform)(0.0, extra)

    @property
    def exhausted(self) -> bool:
        limit = self._policy.give_up_after
        return limit is not None and self.breaks >= limit
