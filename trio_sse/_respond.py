"""Small pieces of HTTP over ASGI: whole responses, problems, bounded bodies."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, final

import trio

from .errors import Refused

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

Headers = list[tuple[bytes, bytes]]

NO_STORE: Final = (b"cache-control", b"no-store")


@final
class ClientGone(Exception):
    """The client left before its request was complete."""


async def respond(
    send: Send,
    status: int,
    body: bytes = b"",
    *,
    content_type: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
    head: bool = False,
) -> None:
    """Send a whole response; for a HEAD request, its headers only."""
    raw: Headers = list(headers)
    if content_type is not None:
        raw.append((b"content-type", content_type.encode()))
    if status != HTTPStatus.NO_CONTENT:
        raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def respond_json(
    send: Send,
    status: int,
    obj: object,
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
    head: bool = False,
) -> None:
    """Send ``obj`` as JSON."""
    body = json.dumps(obj).encode() + b"\n"
    await respond(
        send,
        status,
        body,
        content_type="application/json",
        headers=[NO_STORE, *headers],
        head=head,
    )


async def respond_problem(
    send: Send,
    refusal: Refused,
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
    head: bool = False,
) -> None:
    """Say no, as ``application/problem+json`` (RFC 9457)."""
    problem: dict[str, object] = {"type": "about:blank"}
    with suppress(ValueError):  # a status that HTTP has no phrase for
        problem["title"] = HTTPStatus(refusal.status).phrase
    problem |= {"status": refusal.status, "detail": refusal.text}
    raw: Headers = [NO_STORE, *headers]
    raw += [(name.lower().encode(), value.encode()) for name, value in refusal.headers]
    if refusal.retry_after is not None:
        raw.append((b"retry-after", str(refusal.retry_after).encode()))
    await respond(
        send,
        refusal.status,
        json.dumps(problem).encode() + b"\n",
        content_type="application/problem+json",
        headers=raw,
        head=head,
    )


async def read_body(receive: Receive, *, limit: int, seconds: float) -> bytes:
    """The request's whole body.

    Args:
        limit: bytes.
        seconds: how long the client may take.

    Raises:
        Refused: 413, 408.
        ClientGone: the client left meanwhile.
    """
    parts: list[bytes] = []
    size = 0
    with trio.move_on_after(seconds):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise Refused(413, f"the body is larger than {limit} bytes")
            if not message.get("more_body", False):
                return b"".join(parts)
    raise Refused(408, f"the body did not arrive within {seconds:g} s")
