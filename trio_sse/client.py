"""An event source for Trio that comes back: `connect`, `EventSource`.

The processing model is that of the WHATWG HTML standard, 9.2.2 to 9.2.4, without the DOM.
What the standard leaves open is `Reconnect`'s to say.

There is no background task. Iterating does it all: it connects, reads, waits and connects
again; so what the application does not ask for is not read, and the peer's sending stops
when the kernel's buffers are full. All state lives on the object and changes between two
awaits only, never across one: whatever is cancelled, the next call goes on from there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final, NoReturn, final

import trio

from ._backoff import Backoff, Reconnect
from ._client_errors import (
    ClientError,
    NetworkError,
    ProtocolError,
    RequestRefused,
    SourceClosed,
)
from ._client_types import ReadyState, SourceStatistics, StateChange
from ._construct import NoPublicConstructor
from ._dial import DEFAULT_TRANSPORT, Dialer, Transport
from ._event_stream import EventStream
from ._fetch import build_request, open_event_stream, request, retry_after
from ._http1 import Headers, Incoming, Request, Response, header_value
from .wire import DEFAULT_MAX_SIZE, Event, EventTooLarge

__all__ = [
    "ClientError",
    "EventSource",
    "Headers",
    "NetworkError",
    "ProtocolError",
    "ReadyState",
    "Reconnect",
    "RequestRefused",
    "Response",
    "SourceClosed",
    "SourceStatistics",
    "StateChange",
    "Transport",
    "connect",
    "request",
]

_DEFAULT_HEADERS: Final = {
    "accept": b"text/event-stream",
    "accept-encoding": b"identity",
    "cache-control": b"no-cache",
    "user-agent": b"trio-sse",
}
_RESERVED_HEADERS: Final = {"last-event-id": "write connect(..., last_event_id=...)"}
_DEFAULT_RECONNECT: Final = Reconnect()


def connect(  # noqa: PLR0913  # those of a request, of an event stream, and two groups
    url: str,
    *,
    headers: Headers | None = None,
    last_event_id: str = "",
    method: str = "GET",
    body: bytes | None = None,
    every_block: bool = False,
    max_event_size: int = DEFAULT_MAX_SIZE,
    reconnect: Reconnect | None = _DEFAULT_RECONNECT,
    transport: Transport = DEFAULT_TRANSPORT,
    on_state_change: Callable[[StateChange], object] | None = None,
) -> EventSource:
    """An event source, to be opened by ``async with`` and iterated.

    ::

        async with trio_sse.connect("https://example.org/events") as source:
            async for event in source:
                print(event.type, event.data)

    Nothing is sent before the first iteration, or `EventSource.wait_open`.

    Args:
        url: ``http`` or ``https``. ``user:password@`` in it is sent as Basic credentials.
        headers: further request headers. A redirect to another origin drops those that could
            be credentials: all but a few that are known to be none.
        last_event_id: where to go on, as `EventSource.last_event_id` once told.
        method: sent again at each connection, as is the body.
        body: for a POST; give its ``Content-Type`` in the headers.
        every_block: also deliver what the standard dispatches nothing for: comments, a
            `retry` or an `id` alone come as an `Event` whose ``data`` is ``None``.
        max_event_size: bytes of one line, of an event's data, and of its comments.
        reconnect: how to come back; ``None``: not at all. Then the end of the response is
            the end of the iteration, and a break raises.
        transport: time-outs, trust, proxies, Unix sockets.
        on_state_change: called, synchronously, at each change of state. What it raises
            comes out of the call that made the change.

    Raises:
        ValueError: for an argument that cannot be sent.
    """
    request = build_request(
        method, url, headers, body, defaults=_DEFAULT_HEADERS, reserved=_RESERVED_HEADERS
    )
    if header_value(last_event_id) is None:
        raise ValueError(
            f"connect(last_event_id={last_event_id!r}): a line break or another control "
            "character cannot be sent; an id is text on one line, as in last_event_id='42'"
        )
    if max_event_size < len(last_event_id.encode()) + len("id: "):
        raise ValueError(
            f"connect(max_event_size={max_event_size}): too few bytes for a line with the id; "
            "some kilobytes at least, as in max_event_size=65536"
        )
    return EventSource._create(  # pyright: ignore[reportPrivateUsage]  # it is ours
        request, last_event_id, every_block, max_event_size, reconnect, transport, on_state_change
    )


@final
class EventSource(metaclass=NoPublicConstructor):
    """Iterate it: its events come, across as many connections as that takes.

    An event that a break cuts short is dropped, and asked for again by the last event ID.
    Nothing is delivered twice, unless the server sends it twice.

    Iterating raises, when it is over:

    - `RequestRefused` for an answer that is no event stream (any status but 200, 204 among
      them, or another content type), unless `Reconnect` says to come again;
    - `EventTooLarge` after the events before it;
    - `NetworkError` or `ProtocolError` if connecting again is of no use (a certificate that
      is not trusted, redirects without end), or `Reconnect.give_up_after` is reached;
    - `SourceClosed` if it was closed, or had ended by one of the above.

    One task at a time may iterate. Cancelling it at any point, as by a time-out, loses no
    event and repeats none; what a cancelled attempt to connect had reached is given up.
    """

    _made_by = "call trio_sse.connect(url)"

    def __init__(
        self,
        request: Request,
        last_event_id: str,
        every_block: bool,
        max_event_size: int,
        reconnect: Reconnect | None,
        transport: Transport,
        on_state_change: Callable[[StateChange], object] | None,
    ) -> None:
        self._request = request
        self._every_block = every_block
        self._max_event_size = max_event_size
        self._reconnect = reconnect
        self._transport = transport
        self._on_state_change = on_state_change
        self._dialer = Dialer(transport)
        self._backoff = Backoff(reconnect or _DEFAULT_RECONNECT)
        self._entered = False
        self._state = ReadyState.CONNECTING
        # Of the task that iterates; aclose() cancels it.
        self._scope: trio.CancelScope | None = None
        self._attempts = self._connections = self._delivered = self._received = 0
        # As the application has seen it: `_events` may hold later ones.
        self._last_event_id = last_event_id
        # Decoded and not taken. Nothing is read while there are any, so a break always
        # comes after the last of them.
        self._events: deque[Event] = deque()
        # To raise when `_events` are taken.
        self._too_large: EventTooLarge | None = None
        # Why it is CLOSED, if not by aclose().
        self._failure: Exception | None = None
        # The response has ended and there is to be no other.
        self._exhausted = False
        self._connect_at = -math.inf  # on Trio's clock
        # The connection, while there is one.
        self._stream: EventStream | None = None

    def __repr__(self) -> str:
        return (
            f"<EventSource {self._request.url.shown} {self._state.name} "
            f"last_event_id={self._last_event_id!r} events={self._delivered} "
            f"connections={self._connections}>"
        )

    @property
    def url(self) -> str:
        """What it was made for, without credentials; redirects do not change it (9.2.2)."""
        return self._request.url.absolute

    @property
    def ready_state(self) -> ReadyState:
        """As the last step of iterating left it; nobody watches the connection meanwhile."""
        return self._state

    @property
    def last_event_id(self) -> str:
        """What to give `connect` to go on after the event that was delivered last.

        ``""`` if the server has set none. It is sent as ``Last-Event-ID`` (9.2.4).
        """
        return self._last_event_id

    @property
    def reconnection_time(self) -> float:
        """Seconds; what the server last sent as ``retry``, or `Reconnect.initial`."""
        return self._backoff.reconnection_time

    def statistics(self) -> SourceStatistics:
        """The counts as of now."""
        return SourceStatistics(
            attempts=self._attempts,
            connections=self._connections,
            breaks=self._backoff.breaks,
            events=self._delivered,
            waiting=len(self._events),
            bytes_received=self._received,
        )

    async def __aenter__(self) -> EventSource:
        if self._entered:
            raise RuntimeError("a source is opened once; call connect() again for another")
        self._entered = True
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection now, without waiting for anyone. A second call does nothing.

        A task that is iterating gets `SourceClosed`. Events that were received and not
        taken are forgotten; `last_event_id` is from before them. Cancelled or not, it closes.
        """
        stream, self._stream = self._stream, None
        self._events.clear()
        try:
            if self._scope is not None:
                self._scope.cancel(reason="the event source was closed")
            if self._state is not ReadyState.CLOSED:
                self._set_state(StateChange(state=ReadyState.CLOSED))
        finally:
            with trio.move_on_after(1, shield=True):
                if stream is not None:
                    await stream.aclose()

    def __aiter__(self) -> EventSource:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event, over as many connections as it takes.

        A cancellation point always; other tasks run at each read from the network.
        """
        if not self._events:  # there are none in a source that is closed, or not open yet
            self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        while (event := self._take()) is None:
            if self._exhausted:
                raise StopAsyncIteration
            await self._step()
        return event

    async def wait_open(self) -> None:
        """Wait until there is a connection; connect if need be.

        Raises what iterating would. It reads nothing, so a connection that is gone is found
        out by iterating only.
        """
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._state is not ReadyState.OPEN:
            if self._exhausted:
                raise SourceClosed(f"{self!r} has ended", for_good=True)
            await self._step()

    def _check_open(self) -> None:
        if not self._entered:
            raise RuntimeError(
                "the source is not open; write `async with connect(url) as source:` "
                "and then `async for event in source:`"
            )
        if self._scope is not None:
            raise trio.BusyResourceError("another task is using this event source")
        if self._state is ReadyState.CLOSED and not self._exhausted:
            raise SourceClosed(f"{self!r} is closed", for_good=True) from self._failure

    def _take(self) -> Event | None:
        """The next event for the application, if one is there."""
        while self._events:
            event = self._events.popleft()
            self._last_event_id = event.id or ""
            if event.data is not None or self._every_block:
                self._delivered += 1
                return event
        return None

    async def _step(self) -> None:
        """Connect once, or read once. Cancelled, it can be called again."""
        if self._too_large is not None:
            self._fail(self._too_large)
        stream = self._stream
        with trio.CancelScope() as scope:
            self._scope = scope
            try:
                if stream is None:
                    await self._connect()
                else:
                    await self._read(stream)
            finally:
                self._scope = None
        if self._state is ReadyState.CLOSED and not self._exhausted:
            raise SourceClosed(f"{self!r} was closed while in use", for_good=True)

    async def _connect(self) -> None:
        await trio.sleep_until(self._connect_at)
        request = self._resuming_request()
        self._attempts += 1
        seconds = self._transport.connect_timeout
        error: ClientError = NetworkError(
            f"{self._request.url.shown}: no answer within {seconds:g} seconds"
        )
        incoming: Incoming | None = None
        with trio.move_on_after(seconds):
            try:
                incoming = await open_event_stream(request, self._dialer)
            except ClientError as exc:
                error = exc
        if self._state is ReadyState.CLOSED:  # just as the answer came
            if incoming is not None:
                with trio.move_on_after(1, shield=True):
                    await incoming.aclose()
            return
        if incoming is None:
            self._broken(error, lasted=0.0)
            return
        self._stream = EventStream(
            incoming,
            last_event_id=self._last_event_id,
            max_event_size=self._max_event_size,
            idle_timeout=self._transport.idle_timeout,
        )
        self._connections += 1
        self._set_state(StateChange(state=ReadyState.OPEN))

    def _resuming_request(self) -> Request:
        request = self._request
        if not self._last_event_id:
            return request
        value = header_value(self._last_event_id)
        if value is None:
            self._fail(
                ProtocolError(
                    f"{request.url.shown}: the server set an event id that no header can carry, "
                    f"{self._last_event_id[:40]!r}, so there is no going on after it",
                    for_good=True,
                )
            )
        headers = (*request.headers, ("last-event-id", value))
        return Request(request.method, request.url, headers, request.body)

    async def _read(self, stream: EventStream) -> None:
        error: ClientError | None = None
        events: list[Event] | None = None
        before = stream.bytes_received
        try:
            events = await stream.read()
        except EventTooLarge as exc:
            self._too_large, events = exc, exc.events
        except ClientError as exc:
            error = exc
        if self._state is ReadyState.CLOSED:  # just as this came
            return
        self._received += stream.bytes_received - before
        if stream.reconnection_time is not None:
            self._backoff.reconnection_time = stream.reconnection_time
        if events is not None:
            self._events.extend(events)
        if events is None or self._too_large is not None:
            self._stream = None
            try:
                if self._too_large is None:
                    self._broken(error, lasted=stream.age)
            finally:
                with trio.move_on_after(1, shield=True):
                    await stream.aclose()

    def _broken(self, error: ClientError | None, *, lasted: float) -> None:
        """Plan the next attempt, or fail. ``None``: the response ended properly (9.2.3)."""
        if self._reconnect is None:
            if error is not None:
                self._fail(error)
            self._exhausted = True
            self._set_state(StateChange(state=ReadyState.CLOSED))
            return
        asked = self._asked_to_wait(error, self._reconnect)
        if error is not None and error.for_good and asked is None:
            self._fail(error)
        wait = self._backoff.next_wait(lasted=lasted, asked=asked or 0.0)
        if self._backoff.exhausted:
            where = self._request.url.shown
            self._fail(error or NetworkError(f"{where}: the server keeps ending its response"))
        self._connect_at = trio.current_time() + wait
        self._set_state(StateChange(state=ReadyState.CONNECTING, cause=error, wait=wait))

    @staticmethod
    def _asked_to_wait(error: ClientError | None, policy: Reconnect) -> float | None:
        """Seconds, if the answer was one to come back after."""
        if not isinstance(error, RequestRefused):
            return None
        seconds = retry_after(error.headers)
        if seconds is None and error.status in policy.statuses:
            return 0.0
        return seconds if error.status in {429, 503, *policy.statuses} else None

    def _fail(self, error: Exception) -> NoReturn:
        """ "Fail the connection" (9.2.3)."""
        self._failure = error
        self._set_state(StateChange(state=ReadyState.CLOSED, cause=error))
        raise error

    def _set_state(self, change: StateChange) -> None:
        self._state = change.state
        if self._on_state_change is not None:
            self._on_state_change(change)
