"""What tests of connections and servers share: who came and went, and what is left."""

from __future__ import annotations

from typing import Any

import pytest
from sockets import eventually, living_tasks, open_descriptors

from trio_sse import EndReason, Hooks, Hub, OutboxLimits, Session

MANY = OutboxLimits(max_bytes=1 << 26, max_events=1 << 20)
"""An outbox that a stalled client does not fill: what ends its session is something else."""


class Recorder:
    """A hub of this test's own, and the sessions that came and went."""

    def __init__(self, **options: Any) -> None:
        self.registered: list[Session] = []
        self.unregistered: list[tuple[Session, EndReason]] = []
        self.hooks = Hooks()
        self.hooks.on_register(self.registered.append)
        self.hooks.on_unregister(
            lambda session, reason: self.unregistered.append((session, reason))
        )
        self.hub = Hub(hooks=self.hooks, **options)

    def reasons(self) -> list[str]:
        return [reason.kind for _, reason in self.unregistered]


class Baseline:
    """What was there before; `restored` waits until it is all that there is."""

    def __init__(self) -> None:
        self.tasks = living_tasks()
        self.descriptors = open_descriptors()

    async def restored(self, *, but_descriptors: int = 0) -> None:
        await eventually(lambda: living_tasks() <= self.tasks, "the tasks end")
        await eventually(
            lambda: open_descriptors() <= self.descriptors + but_descriptors, "sockets are closed"
        )


def through_asgi(app: Any) -> Any:
    """``app`` behind a middleware that wraps ``send``, as most do: no direct writes."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def wrapped_send(message: Any) -> None:
            await send(message)

        await app(scope, receive, wrapped_send)

    return wrapped


def directly(app: Any) -> Any:
    return app


PATHS = pytest.mark.parametrize("path", [directly, through_asgi])
