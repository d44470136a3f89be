"""A stateless request in progress: its handler, and the response that is the handler's scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, final

import trio
from mcp_types import RequestId

from ..hooks import collect
from ..log import Record
from ..outbox import Batch, OutboxReceiveEnd, OutboxSendEnd
from ._core import McpLimits
from ._exchange import KEEP_ALIVE, Exchange
from ._reply import Outcome, answer, frame, notification_json, stream


@final
class RunningCall:
    """One request, from when its handler is called until its response is complete.

    Args:
        send_end: the handler's end of the response, should it become an event stream.
        receive_end: the other one.

    Attributes:
        may_stream: whether the client takes an event stream. If not, what the handler has to
            say before its result is dropped.
        must_stream: whether it takes nothing else.
    """

    def __init__(
        self,
        exchange: Exchange,
        id: RequestId,
        limits: McpLimits,
        send_end: OutboxSendEnd,
        receive_end: OutboxReceiveEnd,
    ) -> None:
        self.may_stream = True
        self.must_stream = False
        self._exchange = exchange
        self._id = id
        self._patience = limits.patience
        self._send_end = send_end
        self._receive_end = receive_end
        self._nursery: trio.Nursery
        self._scope = trio.CancelScope()  # the handler's life, inside the response's
        self._outcome: Outcome | None = None  # what comes of it; the first one stays
        self._last_write_at = trio.current_time()
        self._written: trio.Event | None = None  # if it streams: when all has been written

    async def handle(
        self, nursery: trio.Nursery, serve: Callable[[], Awaitable[dict[str, Any]]]
    ) -> None:
        """Run the handler to its end, or until it is given up.

        Args:
            nursery: the response's.
        """
        self._nursery = nursery
        if self.must_stream:
            self._begin_stream()
        failures: list[Exception] = []
        outcome: Outcome | None = None
        with self._scope, collect(failures):
            outcome = Outcome.of_result(self._id, await serve())
        if failures:
            outcome = Outcome.of_failure(self._id, failures[0])
        self._outcome = self._outcome or outcome

    async def emit(self, method: str, params: Mapping[str, Any] | None) -> None:
        """Send a notification, waiting for a client that is slow, but not for ever."""
        if not self.may_stream:
            await trio.lowlevel.checkpoint()
            return
        self._begin_stream()
        self._last_write_at = trio.current_time()
        batch = Batch((Record(0, "", (), frame(notification_json(method, params))),))
        try:
            self._send_end.put_nowait(batch)
            await trio.lowlevel.checkpoint()
        except trio.WouldBlock:
            with trio.move_on_after(self._patience) as waiting:
                await self._send_end.send(batch)
            if waiting.cancelled_caught:
                await self._lose_patience()

    def keep_alive(self, silent_since: float) -> None:
        """Send a comment if nothing was sent since then."""
        if self.may_stream and self._last_write_at <= silent_since:
            self._last_write_at = trio.current_time()
            self._begin_stream()
            if not self._receive_end.has_backlog:
                self._send_end.put(Batch.control(KEEP_ALIVE))

    def give_up(self, why: str) -> None:
        """Cancel the handler; its client is told why."""
        self._end(Outcome.unavailable(self._id, why), why)

    async def answer(self) -> None:
        """Send the result, and end the response."""
        assert self._outcome is not None
        self._send_end.close()  # what is queued is all there is before the result
        if self._written is None:
            await answer(self._exchange, self._outcome)
        else:
            await self._written.wait()

    async def _lose_patience(self) -> None:
        """The client takes nothing: what is queued will not be read in time, if at all."""
        self._send_end.discard()
        self._end(Outcome(503, ""), "the client is too slow")
        await trio.lowlevel.checkpoint()

    def _end(self, outcome: Outcome, why: str) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._scope.cancel(reason=why)

    def _begin_stream(self) -> None:
        """From now on the response is an event stream, written by a task of its own."""
        if self._written is None:
            self._written = trio.Event()
            self._nursery.start_soon(self._write, name=f"response to {self._id!r}")

    async def _write(self) -> None:
        assert self._written is not None
        try:
            await stream(self._exchange, self._receive_end, last=self._last)
        except (OSError, trio.ClosedResourceError):
            self._nursery.cancel_scope.cancel(reason="nobody takes the response any more")
        self._written.set()

    def _last(self) -> bytes:
        text = "" if self._outcome is None else self._outcome.text
        return frame(text) if text else b""
