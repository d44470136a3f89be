"""Who is there: every kind of hook, and what each is for."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from hypercorn.config import Config

import trio_sse


class Presence:
    """Tells everyone on the topic ``presence`` who came and who left."""

    def __init__(self) -> None:
        self.hub = trio_sse.Hub(hooks=trio_sse.Hooks(timeout=2))
        self.hub.hooks.on_register(self.admit)
        self.hub.hooks.around(self.announced)
        self.hub.hooks.on_unregister(self.note)
        self.hub.hooks.on_error(self.complain)

    def admit(self, session: trio_sse.Session) -> None:
        """Before the client is answered: the last moment to say no."""
        name = session.request.query.get("name", [""])[0]
        if not name:
            raise trio_sse.Refused(400, "say who you are, as in ?name=ada")
        session.state["name"] = name

    @asynccontextmanager
    async def announced(self, session: trio_sse.Session) -> AsyncIterator[None]:
        """Around the whole session: what is opened before it is closed after it."""
        yield  # where a refusal is raised, and then there is nothing to announce
        if self.hub.state == "open":
            await self.hub.publish(trio_sse.Event(f"-{session.state['name']}"), "presence")

    async def handle(self, session: trio_sse.Session) -> None:
        await self.hub.publish(trio_sse.Event(f"+{session.state['name']}"), "presence")
        await trio.sleep_forever()

    def note(self, session: trio_sse.Session, reason: trio_sse.EndReason) -> None:
        """Exactly once for each session that was admitted."""
        age = session.statistics().age
        print(session.state["name"], "left after", f"{age:.0f} s:", reason.kind, file=sys.stderr)

    def complain(self, session: trio_sse.Session, exception: Exception) -> None:
        """What the handler or another hook raised."""
        print(session.short_id, "had a problem:", repr(exception), file=sys.stderr)


def make_app() -> trio_sse.Endpoint:
    presence = Presence()
    return trio_sse.Endpoint(presence.hub, presence.handle, topics=lambda _: ["presence"])


if __name__ == "__main__":
    trio.run(trio_sse.serve, make_app(), Config())
