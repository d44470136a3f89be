"""One HTTP request and its response, as a transport sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, final

import trio

from .._respond import NO_STORE, Headers, Message, Receive, Scope, Send, respond
from ..asgi import direct_connection, wait_disconnected
from ..outbox import OutboxReceiveEnd
from ..session import Request
from ._messages import Rejected

KEEP_ALIVE: Final = b":\n\n"

STREAM_HEADERS: Final[Headers] = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx holds responses back otherwise
]


@final
@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that has passed the application's checks, to be answered once.

    Attributes:
        scope: ASGI's.
        receive: ASGI's; the request's body has been read.
        send: ASGI's.
        request: with its identity. It is what handlers find as ``ctx.request``.
        headers: of the request, by lower-case name.
        cors: headers that go with every response.
    """

    scope: Scope
    receive: Receive
    send: Send
    request: Request
    headers: Mapping[str, str]
    cors: Headers

    async def answer(self, status: int, *, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Answer without a body."""
        await respond(self.send, status, headers=[NO_STORE, *headers, *self.cors])

    async def answer_json(
        self, status: int, body: bytes, *, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """Answer with JSON."""
        await respond(
            self.send,
            status,
            body,
            content_type="application/json",
            headers=[NO_STORE, *headers, *self.cors],
        )

    async def reject(self, rejected: Rejected) -> None:
        """Answer with a JSON-RPC error."""
        await self.answer_json(rejected.status, rejected.body(), headers=rejected.headers)

    async def stream(
        self,
        receive_end: OutboxReceiveEnd,
        *,
        head: bytes = b"",
        keep_alive: float,
        headers: Iterable[tuple[bytes, bytes]] = (),
        when_gone: Callable[[], None] | None = None,
    ) -> None:
        """Answer with an event stream: ``head``, then what ``receive_end`` has, to its end.

        Returns when the response is complete, or the client has gone: then ``receive_end``
        is closed, and ``when_gone`` was called.

        Args:
            keep_alive: seconds of silence after which a comment is sent.
        """

        def gone(too_slow: bool = False) -> None:
            receive_end.close()
            if when_gone is not None:
                when_gone()

        await self.send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [*STREAM_HEADERS, *headers, *self.cors],
            }
        )
        await self.send(_part(head or KEEP_ALIVE))
        direct = direct_connection(self.scope, self.send)
        if direct is not None:
            direct.when_gone(gone)
            receive_end.write_directly(direct)
            await self._carry(receive_end, direct.send_all, direct.frame, keep_alive, gone)
            return
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await wait_disconnected(self.receive)
                gone()
                nursery.cancel_scope.cancel(reason="the client left")

            nursery.start_soon(watch)
            await self._carry(
                receive_end, lambda data: self.send(_part(data)), _as_it_is, keep_alive, gone
            )
            nursery.cancel_scope.cancel(reason="the response is complete")

    async def _carry(
        self,
        receive_end: OutboxReceiveEnd,
        write: Callable[[bytes], Awaitable[None]],
        frame: Callable[[bytes], bytes],
        keep_alive: float,
        gone: Callable[[], None],
    ) -> None:
        try:
            while True:
                data = b""
                with trio.move_on_after(keep_alive):
                    data = await receive_end.receive()
                await write(data or frame(KEEP_ALIVE))
        except trio.EndOfChannel:
            # A server may report the disconnect before this send returns: a watcher must
            # not cancel it. It ends by itself or with the connection.
            with trio.CancelScope(shield=True):
                await self.send({"type": "http.response.body", "body": b"", "more_body": False})
        except trio.ClosedResourceError:
            pass  # the client has gone, or was given up
        except (trio.TooSlowError, OSError):
            gone()


def _part(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


def _as_it_is(data: bytes) -> bytes:
    return data
