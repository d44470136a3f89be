"""Who is in a hub: who may come in, what their tasks report, who has left.

Sessions are in `Registry.sessions` from the moment they have registered until they
unregister, each once; in `Registry.alive` as long as they have a task.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, final

import trio

from ._keeper import Keeper
from .dispatch import Dispatcher
from .errors import Refused
from .hooks import Hooks
from .outbox import OutboxLimits, OutboxReceiveEnd, Tally
from .session import EndReason, Handler, Request, Session

logger = logging.getLogger("trio_sse")

_NOTHING: Final = frozenset[str]()
"""One for all: an empty set has two hundred bytes."""
RETRY_AFTER: Final = 5
"""Seconds that a refused client is asked to wait."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HubLimits:
    """What a hub bounds, beside each outbox.

    Args:
        max_sessions: in all; the next one is refused with 503.
        max_sessions_per_client: from one address; the next one is refused with 429.
        max_topics: that one session may name.
        max_age: seconds after which a session is ended (``deadline``); the client
            reconnects and resumes.
        max_idle: seconds without an event after which a session is ended.
        keep_alive: seconds without a write after which a session gets a comment, so
            that proxies and dead peers are noticed; ``None`` for never.

    Raises:
        ValueError: for anything not positive.
    """

    max_sessions: int | None = None
    max_sessions_per_client: int | None = None
    max_topics: int = 256
    max_age: float | None = None
    max_idle: float | None = None
    keep_alive: float | None = 15.0

    def __post_init__(self) -> None:
        if not self.max_topics or self.max_topics < 1:
            raise ValueError(
                f"HubLimits(max_topics={self.max_topics}): at least 1, "
                "as in HubLimits(max_topics=256)"
            )
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"HubLimits({name}={value}): a positive, finite number, "
                    f"or None to have no such limit, as in HubLimits({name}=None)"
                )


@final
class Registry:
    """The sessions of one hub, and the requests that carry them.

    Args:
        check: raises what keeps the hub from taking a session now, if anything does.

    Attributes:
        nursery: the parent nursery, once the hub is open.
        sessions: the registered ones, by id.
        alive: those whose task is not over, registered or not, and whether their last
            event ID is a place in the log.
        receive_ends: what requests receive from, until each is done with it.
        tally: what all outboxes count in.
        refused: how many were turned down before they registered.
        registered: how many ever were.
        unregistered: how many are not any more, by `EndReason.kind`.
    """

    def __init__(
        self,
        check: Callable[[], None],
        hooks: Hooks,
        limits: HubLimits,
        outbox: OutboxLimits,
        dispatcher: Dispatcher,
        drain_begun: trio.Event,
    ) -> None:
        self._check = check
        self.hooks = hooks
        self.limits = limits
        self._outbox = outbox
        self.dispatcher = dispatcher
        self._drain_begun = drain_begun
        self.nursery: trio.Nursery | None = None
        self.sessions: dict[str, Session] = {}
        self.alive: dict[Session, bool] = {}
        self.alive_per_client: Counter[str] = Counter()
        self._ids: set[str] = set()  # given ones, of those that are alive
        self.receive_ends: dict[OutboxReceiveEnd, None] = {}
        self._carried = trio.lowlevel.ParkingLot()
        self.keeper = Keeper(limits.keep_alive, limits.max_idle, self.sessions)
        self.tally = Tally()
        self.refused = 0
        self.registered = 0
        self.unregistered: Counter[str] = Counter()

    def admit(
        self,
        request: Request,
        topics: Iterable[str] | None,
        outbox: OutboxLimits | None,
        id: str | None = None,
    ) -> Session:
        """A new session, not started yet.

        Raises:
            Refused: there is no room, or ``id`` is another's.
            TypeError: ``topics`` is one string.
        """
        if isinstance(topics, str):
            raise TypeError(
                f"open_session(topics={topics!r}) would be one topic for each letter; "
                f"several are expected, as in open_session(topics=[{topics!r}])"
            )
        wanted = None if topics is None else frozenset(topics) or _NOTHING
        try:
            self._check()
            self._check_limits(request, wanted)
            if id in self._ids:
                raise Refused(409, "there is a session with this id")
        except Refused:
            self.refused += 1
            raise
        return Session._create(  # pyright: ignore[reportPrivateUsage]  # made here, and only here
            request,
            topics=wanted,
            limits=self._outbox if outbox is None else outbox,
            tally=self.tally,
            drain_begun=self._drain_begun,
            id=id,
        )

    def _check_limits(self, request: Request, topics: frozenset[str] | None) -> None:
        limits = self.limits
        if topics is not None and len(topics) > limits.max_topics:
            raise Refused(400, f"{len(topics)} topics; at most {limits.max_topics} are allowed")
        if limits.max_sessions is not None and len(self.alive) >= limits.max_sessions:
            raise Refused(503, "no room for more sessions", retry_after=RETRY_AFTER)
        if (
            limits.max_sessions_per_client is not None
            and request.client is not None
            and self.alive_per_client[request.client] >= limits.max_sessions_per_client
        ):
            raise Refused(429, "too many sessions from this address", retry_after=RETRY_AFTER)

    def start(
        self, session: Session, handler: Handler | None, *, resume: bool, has_given_id: bool = False
    ) -> None:
        """Start the session's task. What is counted here `over` uncounts."""
        assert self.nursery is not None
        client = session.request.client
        self.alive[session] = resume
        if client is not None:
            self.alive_per_client[client] += 1
        if has_given_id:
            self._ids.add(session.id)
        stay = _Stay(self, session, handler, session.request.last_event_id if resume else "")
        self.nursery.start_soon(session.run, stay, name=f"session {session.short_id}")

    def over(self, session: Session) -> None:
        """The session's task has ended."""
        if isinstance(session.refusal, Refused):
            self.refused += 1
        del self.alive[session]
        self._ids.discard(session.id)
        client = session.request.client
        if client is not None:
            self.alive_per_client[client] -= 1
            if not self.alive_per_client[client]:
                del self.alive_per_client[client]

    def register(self, session: Session, *, joins: bool) -> None:
        """It has registered. If it does not join now, it does after a replay."""
        self.sessions[session.id] = session
        self.registered += 1
        if joins:
            self.dispatcher.join(session)
        else:  # when it has had what it missed
            self.dispatcher.replaying[session] = None
        if not session.receive_end.closed:  # it has a response of its own
            self.keeper.watch(session)
        logger.info(
            "session %s registered from %s for %s",
            session.short_id,
            session.request.client,
            "all topics" if session.topics is None else sorted(session.topics),
        )

    def tell_start(self, session: Session) -> None:
        """It has joined, and lives on what is published: let its client know where it is.

        Should the connection break before there is an event, nothing is missed.
        """
        if self.alive[session]:
            session.start_after(self.dispatcher.place)

    def unregister(self, session: Session, reason: EndReason) -> None:
        """It is not to be heard of any more."""
        del self.sessions[session.id]
        self.unregistered[reason.kind] += 1
        self.dispatcher.leave(session)
        counts = session.statistics()
        logger.info(
            "session %s ended: %s, after %.1f s and %d events",
            session.short_id,
            reason,
            counts.age,
            counts.sent_events + counts.queued_events,
        )

    # The requests.

    @contextmanager
    def carrying(self, receive_end: OutboxReceiveEnd) -> Generator[None, None, None]:
        """A request receives from it, and closes it in the end: a drain waits for that."""
        self.carry(receive_end)
        try:
            yield
        finally:
            self.has_carried(receive_end)

    def carry(self, receive_end: OutboxReceiveEnd) -> None:
        """See `carrying`, of which this is the first half."""
        self.receive_ends[receive_end] = None

    def has_carried(self, receive_end: OutboxReceiveEnd) -> None:
        """And this the second."""
        receive_end.close()
        del self.receive_ends[receive_end]
        if not self.receive_ends:
            self._carried.unpark_all()

    async def wait_carried(self) -> None:
        """Wait until no request carries anything."""
        while self.receive_ends:
            await self._carried.park()


@final
class _Stay:
    """One session's stay in a hub, as the session's own task sees it: a `session.Home`."""

    __slots__ = ("_last_event_id", "_registry", "_session", "handler")

    def __init__(
        self, registry: Registry, session: Session, handler: Handler | None, last_event_id: str
    ) -> None:
        self._registry = registry
        self._session = session
        self._last_event_id = last_event_id  # what to resume from
        self.handler = handler

    @property
    def hooks(self) -> Hooks:
        return self._registry.hooks

    @property
    def max_age(self) -> float:
        return math.inf if self._registry.limits.max_age is None else self._registry.limits.max_age

    def registered(self) -> None:
        self._registry.register(self._session, joins=not self._last_event_id)
        if self.handler is None and not self._last_event_id:
            self._registry.tell_start(self._session)

    def began(self) -> None:
        if self._last_event_id:
            replay = self._registry.dispatcher.replay
            self._session.nursery.start_soon(replay, self._session, self._last_event_id)

    def unregistered(self, reason: EndReason) -> None:
        self._registry.unregister(self._session, reason)

    def over(self) -> None:
        self._registry.over(self._session)


@final
class Visit(AbstractAsyncContextManager[tuple[Session, OutboxReceiveEnd]]):
    """The hold that a request has on its session: see `Hub.open_session`.

    Not a generator, which would be a frame more for a session's life.
    """

    __slots__ = ("_registry", "_session", "_wanted")

    def __init__(
        self,
        registry: Registry,
        request: Request,
        topics: Iterable[str] | None,
        handler: Handler | None,
        outbox: OutboxLimits | None,
        resume: bool,
        id: str | None,
    ) -> None:
        self._registry = registry
        self._wanted: Any = (request, topics, handler, outbox, resume, id)
        self._session: Session

    async def __aenter__(self) -> tuple[Session, OutboxReceiveEnd]:
        request, topics, handler, outbox, resume, id = self._wanted
        del self._wanted
        session = self._session = self._registry.admit(request, topics, outbox, id)
        self._registry.carry(session.receive_end)
        try:
            self._registry.start(session, handler, resume=resume, has_given_id=id is not None)
            return session, await session.wait_open()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self._session.end(EndReason.CLIENT_LEFT)
        self._registry.has_carried(self._session.receive_end)
