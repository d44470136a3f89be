"""The hub: the parent nursery, who is registered, who hears what.

Everything that a hub runs is in one nursery: a dispatcher, a keeper, and the sessions.
Leaving the hub cancels it; draining does so in good order.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Final, Literal, final

import trio

from ._groups import no_lone_group
from ._registry import RETRY_AFTER, HubLimits, Registry, Visit
from .dispatch import YIELD_EVERY, Dispatcher
from .errors import HubClosed, Refused
from .hooks import Hooks
from .log import EventLog, MemoryLog
from .outbox import OutboxLimits, OutboxReceiveEnd, OutboxSendEnd, open_outbox
from .session import EndReason, Handler, Request, Session
from .wire import Event, encode

logger = logging.getLogger("trio_sse")

DEFAULT_TOPIC: Final = "default"

HubState = Literal["new", "open", "draining", "closed"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HubStatistics:
    """What a hub is doing, and has done since it was opened.

    Attributes:
        state: ``"new"``, ``"open"``, ``"draining"``, ``"closed"``.
        sessions: registered now.
        registered: how many ever were.
        unregistered: how many are not any more, by `EndReason.kind`.
        refused: turned down before they registered.
        published: events, by this hub's own `Hub.publish`.
        dispatched: events, whoever published them.
        delivered: events handed to a client's connection, each counted once per session.
        delivered_bytes: and how many bytes, comments and notices included.
        dropped: events lost to overflow policies, likewise.
        replayed: events that sessions got from the log, likewise.
        gaps: sessions that were told of a gap in what they missed.
        dispatch_passes: times that the dispatcher went round.
        dispatch_seconds: time it spent.
    """

    state: HubState
    sessions: int
    registered: int
    unregistered: Mapping[str, int]
    refused: int
    published: int
    dispatched: int
    delivered: int
    delivered_bytes: int
    dropped: int
    replayed: int
    gaps: int
    dispatch_passes: int
    dispatch_seconds: float


@final
class Hub:
    """Sessions, and what is published to them. Configure it, then open it, once::

        hub = trio_sse.Hub()
        async with hub:
            await hub.publish(Event("hello"))

    Leaving the ``async with`` ends every session as ``cancelled`` and waits for their
    unregister hooks; `drain` first to say goodbye. If the hub itself fails, as when its
    log cannot be read, the body is cancelled and the failure comes out there. Two hubs
    know nothing of each other.

    Args:
        log: where events are kept for those who come back; by default a `MemoryLog`.
        hooks: what to call when sessions come and go.
        limits: on sessions and their ages.
        outbox: the bounds and the overflow policy of each session, unless
            `open_session` is given others.
        rng: for jitter; pass a seeded one to make tests repeatable.
    """

    def __init__(
        self,
        *,
        log: EventLog | None = None,
        hooks: Hooks | None = None,
        limits: HubLimits | None = None,
        outbox: OutboxLimits | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.log: EventLog = MemoryLog() if log is None else log
        self.hooks = Hooks() if hooks is None else hooks
        self.limits = HubLimits() if limits is None else limits
        self.outbox = OutboxLimits() if outbox is None else outbox
        self._rng = random.Random() if rng is None else rng
        self._state: HubState = "new"
        self._failure: BaseException | None = None
        self._whole: AbstractAsyncContextManager[None] | None = None
        # The parent nursery: cancelled once, and every session with it. The outer one
        # holds it, the task that drains it, and the body of the `async with`.
        self._nursery: trio.Nursery | None = None
        self._outer: trio.Nursery | None = None
        self._drain_begun = trio.Event()
        self._drain_deadline = math.inf
        self._is_parting = False  # what is published now would reach nobody here
        self._herd = 0  # how many there were to drain, and may all come back
        self._closed = trio.Event()
        self._dispatcher = Dispatcher(self.log)
        self._registry = Registry(
            self._check_entry,
            self.hooks,
            self.limits,
            self.outbox,
            self._dispatcher,
            self._drain_begun,
        )
        self._published = 0

    def __repr__(self) -> str:
        return f"<Hub {self._state}, {len(self.sessions)} sessions, {self.log!r}>"

    @property
    def sessions(self) -> Mapping[str, Session]:
        """The registered sessions by id; a live, read-only view."""
        return MappingProxyType(self._registry.sessions)

    @property
    def state(self) -> HubState:
        return self._state

    def statistics(self) -> HubStatistics:
        dispatcher, registry = self._dispatcher, self._registry
        return HubStatistics(
            state=self._state,
            sessions=len(registry.sessions),
            registered=registry.registered,
            unregistered=dict(registry.unregistered),
            refused=registry.refused,
            published=self._published,
            dispatched=dispatcher.events,
            delivered=registry.tally.delivered,
            delivered_bytes=registry.tally.delivered_bytes,
            dropped=registry.tally.dropped,
            replayed=dispatcher.replayed,
            gaps=dispatcher.gaps,
            dispatch_passes=dispatcher.passes,
            dispatch_seconds=dispatcher.seconds,
        )

    # Opening and closing.

    async def __aenter__(self) -> Hub:
        if self._state != "new" or self._whole is not None:
            raise RuntimeError(
                "a hub is opened once: make another, as in `async with trio_sse.Hub() as hub`"
            )
        self._whole = self._opened()
        await self._whole.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        assert self._whole is not None
        return await self._whole.__aexit__(exc_type, exc, tb)  # noqa: ASYNC102  # nothing more

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[None, None]:
        with no_lone_group():
            async with trio.open_nursery() as self._outer:
                await self._outer.start(self._run)
                try:
                    yield
                finally:
                    self._outer.cancel_scope.cancel(reason="the hub was left")

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with self.log:
                with no_lone_group():
                    await self._hold_parent_nursery(task_status)
        except Exception as exc:
            self._failure = self._failure or exc
            raise
        finally:
            self._state = "closed"
            self._closed.set()

    async def _hold_parent_nursery(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as self._nursery:
            self._registry.nursery = self._nursery
            self._dispatcher.start_at(self.log.newest)
            for service, name in (
                (self._dispatcher.run, "dispatcher"),
                (self._registry.keeper.run, "keeper"),
            ):
                self._nursery.start_soon(self._keep_up, service, name=f"trio_sse {name}")
            self._state = "open"
            task_status.started()

    async def _keep_up(self, service: Callable[[], Awaitable[None]]) -> None:
        """Run what the hub cannot do without: from when it stops the hub takes nothing more.

        Sessions may go on for as long as their unregister hooks need.
        """
        try:
            await service()
        except Exception as exc:
            self._failure = exc
            raise
        finally:
            self._state = "closed"

    @property
    def failure(self) -> BaseException | None:
        """What closed the hub, if that was a failure."""
        return self._failure

    async def wait_draining(self) -> float:
        """Wait until `drain` is called, by whomever; when it is to be over, by Trio's clock."""
        await self._drain_begun.wait()
        return self._drain_deadline

    async def wait_closed(self) -> None:
        """Wait until nothing of the hub runs any more: drained, left, or failed."""
        await self._closed.wait()

    def check_open(self) -> None:
        """Do nothing if sessions and events are accepted.

        Raises:
            HubClosed: not open yet, not any more, or failed, which then is the cause.
        """
        if self._state in ("open", "draining"):
            return
        if self._failure is not None:
            raise HubClosed("the hub has failed; open a new one") from self._failure
        raise HubClosed(
            "the hub is not open yet: publish inside `async with hub:`"
            if self._state == "new"
            else "the hub is closed"
        )

    def _check_entry(self) -> None:
        self.check_open()
        if self._state == "draining":
            raise Refused(503, "the server is shutting down", retry_after=RETRY_AFTER)

    def _check_accepting(self) -> None:
        self.check_open()
        if self._is_parting:
            raise HubClosed("the hub says goodbye, and takes no more events")

    # What the application asks for.

    async def publish(
        self,
        event: Event,
        topic: str | Iterable[str] = DEFAULT_TOPIC,
        *,
        key: str | None = None,
    ) -> str:
        """Append ``event`` to the log, from where it goes to all who subscribe to ``topic``.

        Waits while the dispatcher is more than a thousand events behind. If cancelled,
        what `EventLog.append` says.

        Args:
            event: with data, and without an id: its id is its place in the log.
            topic: one or several; who subscribes to any of them gets the event, once.
            key: an idempotency key: however often it is published, that is one event.

        Returns:
            The event's id; with a key that the log remembers, the id it had then.

        Raises:
            HubClosed: the hub is not open.
            KeyReused: the key belongs to another event.
            LogUnavailable: the log is away; repeat it, with a key to be safe.
            ValueError: the event has an id or no data, or there is no topic, or the log
                cannot keep the topics in one order.
        """
        if event.id is not None:
            raise ValueError(
                f"hub.publish(Event(id={event.id!r})): the log numbers what is published; "
                "leave id out, or send to one session with session.send(event)"
            )
        if event.data is None:
            raise ValueError(
                f"hub.publish({event}): without data it would reach no listener; "
                'for an empty event write Event("")'
            )
        topics = (topic,) if isinstance(topic, str) else tuple(dict.fromkeys(topic))
        if not topics:
            raise ValueError('hub.publish(event, []): to which topic? As in publish(event, "news")')
        self._check_accepting()
        if not self._dispatcher.has_room:
            await self._dispatcher.wait_for_room()
            self._check_accepting()
        self._dispatcher.appending += 1
        try:
            event_id = await self.log.append(event, topics, key=key)
        finally:
            self._dispatcher.appended()
        self._published += 1
        return event_id

    def end_all(self, reason: EndReason | str) -> int:
        """End every session, for ``reason``; how many that were."""
        alive = [session for session in self._registry.alive if session.end_reason is None]
        for session in alive:
            session.end(reason)
        return len(alive)

    async def drain(self, grace: float = 10.0) -> None:
        """Close the hub in good order: refuse, tell, flush, say goodbye, end.

        New sessions are refused. Handlers that wait for `Session.draining` have half of
        ``grace`` to finish, and may publish. What was published goes out, then a ``retry:`` that is
        different for each client, so that they do not all come back at once, and every
        session ends as ``drained``. Clients have the rest of ``grace`` to take what is
        theirs. Then the hub is closed: every unregister hook has run. Calling it again
        waits for the same.

        Whatever clients do, it takes ``grace`` seconds at most, and what unregister
        hooks may take.

        Args:
            grace: seconds; 0 says goodbye only to those who listen right now.

        Raises:
            HubClosed: the hub was never opened.
            ValueError: ``grace`` is negative.
        """
        if not grace >= 0:
            raise ValueError(f"hub.drain({grace}): seconds, 0 or more, as in hub.drain(10)")
        if self._state == "new":
            raise HubClosed("a hub that is not open has nothing to drain")
        if self._state == "open":
            self._state = "draining"
            logger.info("draining %d sessions", len(self._registry.alive))
            # The hub's own task does it: who asked may be a session, and end by it.
            assert self._outer is not None
            self._outer.start_soon(self._drain, grace)
        await self._closed.wait()

    async def _drain(self, grace: float) -> None:
        assert self._nursery is not None
        deadline = self._drain_deadline = trio.current_time() + grace
        self._herd = len(self._registry.alive)
        self._drain_begun.set()
        with trio.move_on_after(grace / 2):
            await trio.lowlevel.checkpoint()  # those who were told have heard it
            for session in list(self._registry.alive):
                if session.awaits_drain:
                    await session.wait_ended()
        # From here on nothing is accepted, so that all that was accepted can be given out.
        self._is_parting = True
        settled_at = None
        middle = (trio.current_time() + deadline) / 2
        with trio.move_on_at(middle):
            settled_at = await self._dispatcher.wait_settled()
        replaying = self._dispatcher.replaying
        await self._say_goodbye([s for s in self._registry.alive if s not in replaying], settled_at)
        with trio.move_on_at(middle):  # who is catching up gets the rest first
            await self._dispatcher.wait_replayed()
        await self._say_goodbye(list(self._registry.alive), settled_at)
        for _ in range(2):  # whoever listens right now has taken it then
            await trio.lowlevel.cancel_shielded_checkpoint()
        with trio.CancelScope(deadline=deadline):
            await self._registry.wait_carried()
        for receive_end in list(self._registry.receive_ends):
            receive_end.close()
        self._nursery.cancel_scope.cancel(reason="drained")

    async def _say_goodbye(self, sessions: Iterable[Session], settled_at: int | None) -> None:
        for number, session in enumerate(sessions, 1):
            if number % YIELD_EVERY == 0:
                await trio.lowlevel.checkpoint()
            if session.end_reason is None:
                session.deliver_control(self._goodbye(session, settled_at))
                session.end(EndReason.DRAINED)

    def _goodbye(self, session: Session, settled_at: int | None) -> bytes:
        # Where it was, also for one that was sent nothing yet: it comes back as one that
        # was here before, and misses nothing.
        where = None
        position = self._dispatcher.position
        resumes = self._registry.alive.get(session) and self._dispatcher.has_joined(session)
        if resumes and settled_at == position:  # it had all up to there
            where = self.log.place(position)
        return encode(Event(id=where, retry=self.jittered_retry(), comment="draining"))

    def jittered_retry(self) -> int:
        """A reconnection time, in milliseconds, that is not the same for all."""
        # At five hundred a second they can all be served again.
        spread = min(30_000, max(2_000, 2 * self._herd))
        return self._rng.randrange(1_000, 1_000 + spread)

    # Sessions.

    def open_session(
        self,
        request: Request,
        *,
        topics: Iterable[str] | None = None,
        handler: Handler | None = None,
        outbox: OutboxLimits | None = None,
        resume: bool = True,
        id: str | None = None,
    ) -> AbstractAsyncContextManager[tuple[Session, OutboxReceiveEnd]]:
        """Accept a client: for who writes an endpoint of their own.

        Entering waits until the session has registered; from then on it misses nothing.
        Leaving closes the receive end and ends the session as ``client-left``, unless
        it has ended already. The session's task is the hub's: it may outlive this.

        Args:
            topics: what to subscribe to; ``None`` is everything, ``()`` is nothing.
            handler: runs in the session's nursery; its return ends the session.
                Without one the session lives on what is published.
            outbox: other bounds than the hub's.
            resume: replay what followed the request's last event ID. Pass ``False``
                if the handler sends ids of its own.
            id: for the session, in place of a random one.

        Raises:
            Refused: the hub is full or drains, or a register hook said so or failed; 409 if
                a session has that ``id``, which it keeps.
            HubClosed: the hub is not open.
            TypeError: ``topics`` is one string.
        """
        return Visit(self._registry, request, topics, handler, outbox, resume, id)

    async def start_session(
        self, request: Request, *, handler: Handler, id: str | None = None
    ) -> Session:
        """Accept a client whose session is no one response's, and outlives its requests.

        It lives until ``handler`` returns or it is ended. What it is sent goes through
        streams that the handler knows of, see `open_stream`; it is subscribed to nothing,
        and `Session.send` has nowhere to send to. Returns when it has registered; if
        cancelled, it is ended.

        Args:
            id: for the session, in place of a random one.

        Raises:
            Refused: as for `open_session`; 409 if a session has that ``id``, which it keeps.
            HubClosed: the hub is not open.
        """
        session = self._registry.admit(request, (), None, id)
        session.receive_end.close()
        try:
            self._registry.start(session, handler, resume=False, has_given_id=id is not None)
            await session.wait_open()
        except BaseException:
            session.end(EndReason.CLIENT_LEFT)
            raise
        return session

    @contextmanager
    def open_stream(
        self, limits: OutboxLimits
    ) -> Generator[tuple[OutboxSendEnd, OutboxReceiveEnd], None, None]:
        """An outbox for one response, beside those of sessions; leaving it closes both ends.

        What goes through it is counted with the rest, and a drain waits until it is left.
        """
        send_end, receive_end = open_outbox(limits, self._registry.tally)
        with self._registry.carrying(receive_end), send_end:
            yield send_end, receive_end
