"""Who may listen, and to what: a coroutine decides."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass

import trio
from hypercorn.config import Config

import trio_sse


@dataclass(frozen=True)
class User:
    name: str
    is_admin: bool


USERS = {  # instead of a database
    "token-of-ada": User("ada", is_admin=True),
    "token-of-bob": User("bob", is_admin=False),
}


async def authorise(request: trio_sse.Request) -> User:
    """What this returns becomes ``request.identity``; `Refused` says no."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        # A browser's EventSource cannot send headers.
        token = request.query.get("access_token", [""])[0]
    await trio.lowlevel.checkpoint()  # ask the database here
    given = token.encode(errors="replace")
    user = next(
        (u for known, u in USERS.items() if hmac.compare_digest(known.encode(), given)), None
    )
    if user is None:
        raise trio_sse.Refused(401, "who are you?", headers=(("www-authenticate", "Bearer"),))
    if request.method == "POST" and not user.is_admin:
        raise trio_sse.Refused(403, f"{user.name} may not publish")
    return user


def topics(request: trio_sse.Request) -> Iterable[str]:
    """Everybody hears the news, and what is for them alone."""
    return ["news", f"user/{request.identity.name}"]


def make_app() -> trio_sse.Endpoint:
    access = trio_sse.Access(
        authorize=authorise,
        allowed_origins=("https://app.example.org",),
    )
    return trio_sse.Endpoint(trio_sse.Hub(), topics=topics, access=access, publish=True)


if __name__ == "__main__":
    trio.run(trio_sse.serve, make_app(), Config())
