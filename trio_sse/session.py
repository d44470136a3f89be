"""One session: a nursery with a cancel scope, a reason, an outbox.

Its task holds the send end of the outbox, and is the only one that does. Leaving the
task's nursery closes it. Everyone else asks, with `Session.end`.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Final, Literal, Protocol, final
from urllib.parse import parse_qs

import trio

from ._construct import NoPublicConstructor
from .errors import HubClosed, Refused, SessionEnded
from .hooks import Hooks, collect
from .log import Record
from .outbox import Batch, OutboxLimits, OutboxReceiveEnd, OutboxSendEnd, Tally, open_outbox
from .wire import Event, encode

_NOT_REGISTERED: Final = "the session could not be registered"

Handler = Callable[["Session"], Awaitable[None]]

EndKind = Literal[
    "client-left",
    "handler-returned",
    "handler-failed",
    "drained",
    "too-slow",
    "deadline",
    "replaced",
    "application",
    "cancelled",
    "refused",
]


@final
@dataclass(frozen=True, slots=True)
class EndReason:
    """Why a session ended. The first one given stays.

    Attributes:
        kind: one of a fixed few; what counters are labelled with.
        text: the particulars: the application's words, an exception, a deadline.
    """

    kind: EndKind
    text: str = ""

    CLIENT_LEFT: ClassVar[EndReason]
    """The client closed the connection, or lost it."""
    HANDLER_RETURNED: ClassVar[EndReason]
    DRAINED: ClassVar[EndReason]
    """The server is shutting down, in an orderly way."""
    TOO_SLOW: ClassVar[EndReason]
    """The outbox was full, and the overflow policy is to end the session."""
    REPLACED: ClassVar[EndReason]
    """A newer session took its place."""
    CANCELLED: ClassVar[EndReason]
    """The hub was left, was cancelled, or failed, without being drained.

    Or a context manager around the session was, whose failure the error hooks then get.
    """

    @classmethod
    def application(cls, text: str) -> EndReason:
        """Ended by the application, which says why."""
        return cls("application", text)

    def __str__(self) -> str:
        return f"{self.kind} ({self.text})" if self.text else self.kind


EndReason.CLIENT_LEFT = EndReason("client-left")
EndReason.HANDLER_RETURNED = EndReason("handler-returned")
EndReason.DRAINED = EndReason("drained")
EndReason.TOO_SLOW = EndReason("too-slow")
EndReason.REPLACED = EndReason("replaced")
EndReason.CANCELLED = EndReason("cancelled")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The request that asks for an event stream, as far as a session needs it.

    Attributes:
        method: ``"GET"`` for a subscription; ``"POST"`` where ``authorize`` is asked
            about publishing.
        path: percent-decoded.
        query_string: as it came.
        raw_headers: name (lower case) and value, in order, as they came.
        client: the peer's address, without the port; ``None`` if it has none.
        last_event_id: from the ``Last-Event-ID`` header (9.2.3) or, for clients that
            cannot set headers, the ``last-event-id`` query parameter; ``""`` if neither.
        identity: whatever ``authorize`` returned.
    """

    method: str = "GET"
    path: str = "/"
    query_string: str = ""
    raw_headers: tuple[tuple[bytes, bytes], ...] = ()
    client: str | None = None
    last_event_id: str = ""
    identity: Any = None

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name; where a name comes more than once, the values joined by commas."""
        found: dict[str, str] = {}
        for raw_name, raw_value in self.raw_headers:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            found[name] = f"{found[name]}, {value}" if name in found else value
        return found

    @property
    def query(self) -> Mapping[str, list[str]]:
        """By name, all values of each, in order."""
        return parse_qs(self.query_string, keep_blank_values=True)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatistics:
    """What a session is doing.

    Attributes:
        state: ``"opening"``, ``"open"``, ``"ended"``.
        age: seconds since it was made.
        queued_events: waiting for the client.
        queued_bytes: the same, in bytes.
        sent_events: handed to the client's connection.
        sent_bytes: the same, comments and notices included.
        dropped_events: lost to the overflow policy, and told to the client.
        last_event_id: of the newest event handed to the client's connection, or of what
            was before the first.
    """

    state: Literal["opening", "open", "ended"]
    age: float
    queued_events: int
    queued_bytes: int
    sent_events: int
    sent_bytes: int
    dropped_events: int
    last_event_id: str


class Home(Protocol):
    """Whose session it is: told once each, in this order, of what becomes of it.

    `registered` and `unregistered` come both or not at all; `over` always comes.
    """

    @property
    def hooks(self) -> Hooks: ...

    @property
    def max_age(self) -> float:
        """Seconds."""
        ...

    @property
    def handler(self) -> Handler | None: ...

    def registered(self) -> None: ...

    def began(self) -> None:
        """The session has its nursery, and nothing runs in it yet."""
        ...

    def unregistered(self, reason: EndReason) -> None: ...

    def over(self) -> None: ...


@final
class Session(metaclass=NoPublicConstructor):
    """A client's event stream, as the application sees it.

    Made by a hub for each request it accepts. Its methods are to be called from the
    hub's Trio run.

    Attributes:
        id: 128 random bits, as 22 URL-safe characters, unless it was given.
        request: what the client asked for.
        topics: what it is subscribed to; ``None`` means all.
        state: the application's own; the library never looks at it.
        cancel_scope: the session's life. Its deadline is the maximum age, and may be
            moved; to end the session, `end` also says why.
    """

    _made_by = "a hub makes it for each request: async def handler(session): ..."

    __slots__ = (
        "__weakref__",
        "_drain_begun",
        "_end_reason",
        "_is_over",
        "_nursery",
        "_opened",
        "_over",
        "_phase",
        "_send_end",
        "_started_at",
        "awaits_drain",
        "cancel_scope",
        "id",
        "last_event_at",
        "last_write_at",
        "receive_end",
        "refusal",
        "request",
        "state",
        "topics",
    )

    def __init__(
        self,
        request: Request,
        *,
        topics: frozenset[str] | None,
        limits: OutboxLimits,
        tally: Tally,
        drain_begun: trio.Event,
        id: str | None = None,
    ) -> None:
        self.id = secrets.token_urlsafe(16) if id is None else id
        self.request = request
        self.topics = topics
        self.state: dict[str, Any] = {}
        self.cancel_scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._phase: Literal["opening", "open", "ended"] = "opening"
        self._end_reason: EndReason | None = None
        self._started_at = self.last_write_at = self.last_event_at = trio.current_time()
        self._drain_begun = drain_begun
        self._opened: trio.Event | None = trio.Event()  # until it has opened, or will not
        self._is_over = False
        self._over: trio.Event | None = None  # made when somebody waits
        # For the hub: whether the handler has asked to be told of a drain; why the
        # session did not register.
        self.awaits_drain = False
        self.refusal: Exception | None = None
        self._send_end: OutboxSendEnd
        self.receive_end: OutboxReceiveEnd
        self._send_end, self.receive_end = open_outbox(limits, tally)

    def __repr__(self) -> str:
        topics = "all topics" if self.topics is None else f"topics {sorted(self.topics)}"
        why = f", {self._end_reason}" if self._end_reason else ""
        queued = self.receive_end.statistics().queued_events
        return f"<Session {self.short_id} {self._phase}{why}, {topics}, {queued} queued>"

    @property
    def short_id(self) -> str:
        """Enough of the id to tell sessions apart in a log, and too little to guess the rest."""
        return self.id[:8]

    @property
    def nursery(self) -> trio.Nursery:
        """For tasks that live no longer than the session.

        Raises:
            RuntimeError: before the session has registered.
        """
        if self._nursery is None:
            raise RuntimeError(
                "a session has its nursery once it is registered: "
                "use session.nursery in the handler, not in a register hook"
            )
        return self._nursery

    @property
    def end_reason(self) -> EndReason | None:
        """Why the session has ended or is about to; ``None`` while it lives."""
        return self._end_reason

    @property
    def is_open(self) -> bool:
        """Whether it is registered and has not been told to end."""
        return self._phase == "open" and self._end_reason is None

    def statistics(self) -> SessionStatistics:
        counts = self.receive_end.statistics()
        return SessionStatistics(
            state=self._phase,
            age=trio.current_time() - self._started_at,
            queued_events=counts.queued_events,
            queued_bytes=counts.queued_bytes,
            sent_events=counts.sent_events,
            sent_bytes=counts.sent_bytes,
            dropped_events=counts.dropped_events,
            last_event_id=counts.last_event_id,
        )

    # What the application asks for.

    async def send(self, event: Event) -> None:
        """Send ``event`` to this client alone, waiting while its outbox is full.

        Returns when it is queued, in order with what else the session is sent. If
        cancelled, it was not queued.

        Raises:
            SessionEnded: the session has ended, or ends while this waits.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # a handler is cancelled, not told
        self.check_alive()
        await self._send_end.send(_single(event))
        self.check_alive()
        self.last_write_at = self.last_event_at = trio.current_time()

    def send_nowait(self, event: Event) -> None:
        """The same, at once.

        Raises:
            trio.WouldBlock: there is no room.
            SessionEnded: the session has ended.
        """
        self.check_alive()
        self._send_end.put_nowait(_single(event))
        self.last_write_at = self.last_event_at = trio.current_time()

    def end(self, reason: EndReason | str) -> None:
        """Ask the session to end. Idempotent; the first reason stays.

        What is queued is still sent to a client that reads, then the response ends.

        Args:
            reason: a string is the application's own text.
        """
        if self._end_reason is None:
            self._end_reason = EndReason.application(reason) if isinstance(reason, str) else reason
            if self._end_reason.kind == "too-slow":
                self._send_end.discard()  # it would be read too late, if at all
            self.cancel_scope.cancel(reason=str(self._end_reason))

    async def draining(self) -> None:
        """Return when the server begins to drain: time to say goodbye and return.

        A handler that waits for this is given the drain's grace to finish; one that
        does not is ended as soon as what was published has been sent.
        """
        self.awaits_drain = True
        await self._drain_begun.wait()

    async def wait_ended(self) -> EndReason:
        """Wait until the session is over, its unregister hooks included; the reason."""
        if self._is_over:
            await trio.lowlevel.checkpoint()
        else:
            if self._over is None:
                self._over = trio.Event()
            await self._over.wait()
        assert self._end_reason is not None
        return self._end_reason

    # What the hub does.

    async def run(self, home: Home) -> None:
        """The session's whole life, in the calling task."""
        self.cancel_scope.deadline = trio.current_time() + home.max_age
        try:
            if home.hooks.has_managers:
                await home.hooks.around_session(self, partial(self._live, home))
            else:
                await self._live(home)
            if self._phase == "opening":  # cut off, by the hub or by a manager
                await trio.lowlevel.checkpoint_if_cancelled()
                raise Refused(500, _NOT_REGISTERED)
        except Exception as exc:
            await self._refuse(home.hooks, exc)
        finally:
            if self._phase == "opening" and self.refusal is None:
                self.refusal = HubClosed("the hub was closed while the session registered")
            self.end(EndReason.CANCELLED)
            self._phase = "ended"
            self._is_over = True
            self._set_opened()
            if self._over is not None:
                self._over.set()
            home.over()

    def _set_opened(self) -> None:
        if self._opened is not None:
            self._opened.set()
            self._opened = None  # ten thousand of them add up

    async def _refuse(self, hooks: Hooks, failure: Exception) -> None:
        """Registration failed, on purpose or not; the client is told the proper amount."""
        if isinstance(failure, Refused):
            self.refusal = failure
        else:
            self.refusal = Refused(500, _NOT_REGISTERED)
            self.refusal.__cause__ = failure
            with trio.CancelScope(shield=True):  # bounded: hooks are
                await hooks.error(self, failure)
        self.end(EndReason("refused", str(self.refusal)))

    async def _live(self, home: Home) -> None:
        failures: list[Exception] = []
        did_register = False
        try:
            with self._send_end:
                await home.hooks.register(self)
                # Registered: from here on there is one way out, and it unregisters.
                did_register = True
                self._phase = "open"
                self.last_write_at = self.last_event_at = trio.current_time()
                home.registered()
                self._set_opened()
                with self.cancel_scope:
                    try:
                        with collect(failures):
                            await self._in_nursery(home)
                    finally:
                        # The shield comes first: with it, the scope absorbs even a
                        # cancellation that came from above, and the rest is reached.
                        self.cancel_scope.shield = True
                        self._settle(failures)
        finally:
            if did_register:
                assert self._end_reason is not None
                self._phase = "ended"
                home.unregistered(self._end_reason)
                # Of its own: a context manager around the session may be what is cancelled.
                with trio.CancelScope(shield=True):  # bounded: each hook is
                    await home.hooks.error(self, *failures)
                    failures.clear()  # their tracebacks lead here
                    await home.hooks.unregister(self, self._end_reason)

    async def _in_nursery(self, home: Home) -> None:
        async with trio.open_nursery() as self._nursery:
            if self._end_reason is None:  # it may have come while hooks ran
                home.began()
                if home.handler is None:
                    await trio.sleep_forever()
                else:
                    await home.handler(self)
            self.end(EndReason.HANDLER_RETURNED)

    def _settle(self, failures: list[Exception]) -> None:
        """Give the end its reason, if nobody gave one, and cancel what is left."""
        if self._end_reason is not None:
            # That what it was sending to has ended is no news, and no fault of a handler.
            failures[:] = [exc for exc in failures if not isinstance(exc, SessionEnded)]
        elif failures:
            self.end(EndReason("handler-failed", repr(failures[0])))
        elif trio.current_time() >= self.cancel_scope.deadline:
            age = trio.current_time() - self._started_at
            self.end(EndReason("deadline", f"open for {age:.0f} s"))
        elif self.cancel_scope.cancel_called:
            self.end(EndReason.application("its cancel scope was cancelled"))
        else:
            self.end(EndReason.CANCELLED)

    async def wait_open(self) -> OutboxReceiveEnd:
        """Wait until the session has registered; the end to receive from.

        Raises:
            HubClosed: the hub was closed meanwhile.
            Refused: a register hook said so, or failed.
        """
        if self._opened is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._opened.wait()
        if self.refusal is not None:
            raise self.refusal
        return self.receive_end

    def start_after(self, last_event_id: str) -> None:
        """Say what was before the first event that it will be given."""
        self._send_end.start_after(last_event_id)

    def deliver(self, batch: Batch, now: float) -> None:
        """Hand over what was published; ends the session if it does not keep up."""
        if self._end_reason is None:
            if self._send_end.put(batch):
                self.last_write_at = self.last_event_at = now
            else:
                self.end(EndReason.TOO_SLOW)

    async def deliver_paced(self, batch: Batch) -> None:
        """The same, waiting for room: for a replay, at the client's own speed."""
        await self._send_end.send(batch)
        self.last_write_at = self.last_event_at = trio.current_time()

    def deliver_control(self, data: bytes) -> None:
        """Hand over bytes that are no event: a keep-alive comment, a farewell."""
        if self._end_reason is None:
            self._send_end.put(Batch.control(data))
            self.last_write_at = trio.current_time()

    def client_gone(self, too_slow: bool) -> None:
        """The client has left, or was given up: nothing can be sent to it any more."""
        self.end(EndReason.TOO_SLOW if too_slow else EndReason.CLIENT_LEFT)
        self.receive_end.close()

    @property
    def has_backlog(self) -> bool:
        """Whether anything waits for the client."""
        return self.receive_end.has_backlog

    def check_alive(self) -> None:
        if self._end_reason is not None:
            raise SessionEnded(f"session {self.short_id} has ended: {self._end_reason}")


def _single(event: Event) -> Batch:
    """An event that was sent rather than published: it has no position and no topic."""
    return Batch((Record(0, event.id or "", (), encode(event)),))
