"""The streams of one Streamable HTTP session: what belongs on which response, in order.

A stream is what one POST asked for, or what the session has to say by itself (the GET). Its
messages are numbered and kept, within bounds, so that a client that was cut off, or sent
away, comes back and misses nothing; one response at a time carries them. Nothing here waits
for another stream's client.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, final

import trio
from mcp_types import (
    CONNECTION_CLOSED,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCResponse,
    RequestId,
)

from ..hub import Hub
from ..log import Record
from ..outbox import Batch, OutboxLimits, OutboxReceiveEnd, OutboxSendEnd
from ._core import McpLimits
from ._messages import Rejected, dump, kernel_id
from ._session import Fate

_JOIN: Final = 2.0
"""Seconds that a newer response waits for an older one to end."""


@final
@dataclass(slots=True)
class _Call:
    """A request that is not answered: where its answer goes, its id as the client has it."""

    stream: Stream
    id: RequestId
    answered: Callable[[], None]


@final
class Streams:
    """A session's outlet (see `_session.Outlet`).

    Args:
        hub: whose drain waits for the responses.
        limits: on what is kept, and on patience.
    """

    def __init__(self, hub: Hub, limits: McpLimits) -> None:
        self.hub = hub
        self.limits = limits
        self.is_resumable = limits.max_kept_events > 0
        self.outbox = OutboxLimits(
            max_events=max(limits.max_kept_events, 64), max_bytes=limits.max_kept_bytes
        )
        self.is_closed = False
        self.responses = 0  # event streams that are open
        # So that an event ID of another session is not taken for one of this.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self.own = Stream(self, 0, 0)
        self._streams: dict[int, Stream] = {0: self.own}
        # By the id that the kernel was given.
        self._calls: dict[RequestId, _Call] = {}
        # Answered and read to their end, oldest first: they give way first.
        self._done: list[Stream] = []  # not a deque: an empty one takes 700 bytes
        self._kept_events = 0
        self._kept_bytes = 0

    # What the kernel's tasks do: `_session.Outlet`.

    async def send(self, message: JSONRPCMessage, related: RequestId | None) -> None:
        """Give ``message`` its place: an answer always has one, if this is cancelled too."""
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            call = self._calls.pop(message.id, None) if message.id is not None else None
            if call is None:
                raise trio.ClosedResourceError("nobody waits for this answer")
            message.id = call.id
            text = dump(message)
            try:
                await call.stream.wait_for_room(len(text))
            finally:
                call.stream.put(text, answers=1)
                call.answered()
        elif related is None:
            self.send_nowait(dump(message))
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            call = self._calls.get(related)
            if call is None:
                raise trio.ClosedResourceError("the request was answered already")
            text = dump(message)
            await call.stream.wait_for_room(len(text))
            call.stream.put(text)
            await trio.lowlevel.cancel_shielded_checkpoint()

    def send_nowait(self, text: str) -> Fate:
        if self.is_closed:
            return "lost"
        self.own.put(text)
        if self.own.is_carried:
            return "sent"
        return "kept"

    def close(self) -> None:
        self.is_closed = True
        for call in self._calls.values():
            # The kernel does not answer what the client has cancelled; but it waits here.
            error = ErrorData(code=CONNECTION_CLOSED, message="the session has ended")
            call.stream.put(dump(JSONRPCError(jsonrpc="2.0", id=call.id, error=error)), answers=1)
            call.answered()
        self._calls.clear()
        for stream in self._streams.values():
            stream.end()

    def __len__(self) -> int:
        """How many streams are known: open, or kept for who comes back."""
        return len(self._streams)

    # What requests do.

    def check_free(self, ids: Sequence[RequestId]) -> None:
        """Do nothing if none of ``ids`` is in flight already, and none comes twice.

        Raises:
            Rejected: 400.
        """
        names = {kernel_id(id) for id in ids}
        if len(names) < len(ids) or not self._calls.keys().isdisjoint(names):
            raise Rejected(400, "a request with this id is not answered yet")

    def open_call(self, ids: Sequence[RequestId], answered: Callable[[], None]) -> Stream:
        """A stream for the answers to the requests ``ids``, which are free."""
        number = next(self._numbers)
        stream = self._streams[number] = Stream(self, number, len(ids))
        for id in ids:
            self._calls[kernel_id(id)] = _Call(stream, id, answered)
        return stream

    def abandon(self, id: RequestId) -> None:
        """The kernel never got the request ``id``: there will be no answer."""
        call = self._calls.pop(kernel_id(id), None)
        if call is not None:
            call.answered()
            call.stream.unanswered -= 1
            if call.stream.is_complete:
                call.stream.forget()

    def locate(self, event_id: str) -> tuple[Stream, int]:
        """The stream that an event is of, and its number there.

        Raises:
            Rejected: 400; it is no event of this session's, or of a stream long forgotten.
        """
        prefix, _, place = event_id.partition("-")
        number, _, event = place.partition("-")
        if prefix == self._prefix and number.isdecimal() and event.isdecimal():
            stream = self._streams.get(int(number))
            if stream is not None:
                return stream, int(event)
        raise Rejected(400, "no event of this session that is known has this id")

    def event_id(self, stream: Stream, event: int) -> str:
        return f"{self._prefix}-{stream.number}-{event}"

    # What streams do.

    def count_kept(self, events: int, size: int) -> None:
        """Count what is kept; if that is too much, let something go."""
        self._kept_events += events
        self._kept_bytes += size
        while (
            self._kept_events > max(self.limits.max_kept_events, 64)
            or self._kept_bytes > self.limits.max_kept_bytes
        ) and self._kept_events > 1:
            if self._done:
                self._done[0].forget()
            else:
                max(self._streams.values(), key=lambda stream: stream.kept_bytes).forget_oldest()

    def done(self, stream: Stream) -> None:
        """``stream`` was answered and read to its end."""
        if stream not in self._done:
            self._done.append(stream)

    def remove(self, stream: Stream) -> None:
        """Nobody will ask for ``stream`` again."""
        self._streams.pop(stream.number, None)
        if stream in self._done:
            self._done.remove(stream)


@final
class Stream:
    """What one response carries, or several, one after the other.

    Attributes:
        number: within its session; 0 is the session's own.
        unanswered: requests whose answers are still to come on it.
        events: number and JSON of what is kept, oldest first.
        kept_bytes: and how much that is.
        taken: the newest event that was handed to a connection.
        wants_response: whether the handler wants an event stream, whatever comes on it.
    """

    def __init__(self, streams: Streams, number: int, unanswered: int) -> None:
        self._streams = streams
        self.number = number
        self.unanswered = unanswered
        self.events: list[tuple[int, str]] = []
        self.kept_bytes = 0
        self.wants_response = False
        self._newest = 0
        self._answers = 0
        self.taken = 0
        self._is_ended = False
        self._parts_next = False
        self._begun = False  # its first response
        # The response that carries it: its outbox. One at a time.
        self._carrier: tuple[OutboxSendEnd, OutboxReceiveEnd] | None = None
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def is_carried(self) -> bool:
        """Whether a response carries it now."""
        return self._carrier is not None

    @property
    def is_complete(self) -> bool:
        """Whether nothing more comes."""
        return self._is_ended or (self.number > 0 and not self.unanswered)

    @property
    def has_only_answers(self) -> bool:
        """Whether all that came are answers, and all of them."""
        return self.is_complete and self._answers == self._newest and not self.wants_response

    def put(self, text: str, *, answers: int = 0) -> None:
        """Add a message; ``answers`` is 1 if it is the answer to a request."""
        if self._is_ended:
            return
        self._newest += 1
        self._answers += answers
        self.unanswered -= answers
        if self._streams.is_resumable or self._carrier is None:
            self.events.append((self._newest, text))
            self.kept_bytes += len(text)
            self._streams.count_kept(1, len(text))
        if self._carrier is not None:
            send_end, _ = self._carrier
            if not send_end.put(Batch((self._record(self._newest, text),))) or self.is_complete:
                send_end.close()
        self._settle()

    def _record(self, event: int, text: str) -> Record:
        name = self._streams.event_id(self, event)
        head = f"id: {name}\n" if self._streams.is_resumable else ""
        return Record(0, str(event), (), f"{head}data: {text}\n\n".encode())

    def end(self) -> None:
        """Nothing more comes, whatever is unanswered. Idempotent."""
        self._is_ended = True
        if self._carrier is not None:
            self._carrier[0].close()
        self._changed.unpark_all()

    def part(self) -> None:
        """End the response that carries it, so that the client comes back for the rest."""
        self.wants_response = True
        if self._carrier is None:
            self._parts_next = True
        else:
            self._carrier[0].close()
        self._changed.unpark_all()

    def forget_oldest(self) -> None:
        _, text = self.events.pop(0)
        self.kept_bytes -= len(text)
        self._streams.count_kept(-1, -len(text))
        if not self.events and self.is_complete and not self.is_carried:
            self._streams.remove(self)

    def forget(self) -> None:
        """Nobody comes back for it."""
        self._streams.remove(self)
        events, size = len(self.events), self.kept_bytes
        self.events.clear()
        self.kept_bytes = 0
        self._streams.count_kept(-events, -size)

    async def wait_for_room(self, size: int) -> None:
        """Wait until the response that carries it has room, or none does.

        A client that takes nothing for ``limits.patience`` seconds loses the response.
        """
        if self._carrier is None or self._streams.is_closed:
            return
        send_end, receive_end = self._carrier
        if send_end.has_room(1, size):
            return
        with trio.move_on_after(self._streams.limits.patience) as patience:
            await send_end.wait_for_room(1, size)
        if patience.cancelled_caught:
            receive_end.close()

    async def wait_complete(self) -> None:
        """Wait until all answers are there, or the session is over."""
        while not self.is_complete:
            await self._changed.park()

    async def wait_begun(self) -> None:
        """Wait until there is something else than answers, or nothing more to come."""
        while not (self.is_complete or self._newest > self._answers or self.wants_response):
            await self._changed.park()

    async def take_over(self) -> None:
        """End the response that carries it, and wait until it has; not for ever."""
        while (carrier := self._carrier) is not None:
            send_end, receive_end = carrier
            send_end.discard()
            send_end.close()
            with trio.move_on_after(_JOIN):
                while self._carrier is carrier:
                    await self._changed.park()
            if self._carrier is carrier:
                self._leave(carrier)
                receive_end.close()

    @contextmanager
    def carried(self, after: int | None) -> Generator[OutboxReceiveEnd, None, None]:
        """Have a response carry it: what is kept of it first, then what comes.

        Args:
            after: what the client has already; ``None`` is what earlier responses had.
        """
        assert self._carrier is None
        with self._streams.hub.open_stream(self._streams.outbox) as carrier:
            send_end, receive_end = self._carrier = carrier
            self._begun = True
            if after is not None:
                self.taken = after
            missed = [self._record(*event) for event in self.events if event[0] > self.taken]
            if missed:
                send_end.put(Batch(missed))
            if self.is_complete or self._parts_next:
                self._parts_next = False
                send_end.close()
            if not self._streams.is_resumable:
                self.forget_events()
            try:
                yield receive_end
            finally:
                self._leave(carrier)

    def forget_events(self) -> None:
        while self.events:
            self.forget_oldest()

    def _leave(self, carrier: tuple[OutboxSendEnd, OutboxReceiveEnd]) -> None:
        if self._carrier is not carrier:
            return
        self._carrier = None
        newest_sent = carrier[1].statistics().last_event_id
        if newest_sent:
            self.taken = int(newest_sent)
        self._settle()

    def _settle(self) -> None:
        """Something has changed; see whether it is over."""
        self._changed.unpark_all()
        if self.is_complete and self.number and self._carrier is None and self._begun:
            if not self._streams.is_resumable:
                self.forget()
            elif self.taken == self._newest:
                self._streams.done(self)
