"""Teardown exactly once: every pair of causes, the second at every task step after the first.

The first cause comes at its natural place, in a session that is open or, where a register
hook is what goes wrong, still registers. Then the second is injected at each step until
nothing is left of the session or of the hub. See `Life.check` for what must hold.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from _logs import MemoryLogWith

from trio_sse import (
    EndReason,
    Event,
    Hub,
    HubClosed,
    HubLimits,
    OutboxLimits,
    Record,
    Refused,
    Request,
    Session,
    encode,
)
from trio_sse._registry import Registry
from trio_sse.asgi import Endpoint
from trio_sse.hooks import Hooks, collect
from trio_sse.outbox import Batch
from trio_sse.testing import (
    BrokenInterleaving,
    Exploration,
    Moment,
    explore,
)
from trio_sse.testing._asgi import _Exchange, _http_scope

CAUSES: dict[str, str | None] = {
    "client leaves": "client-left",
    "hub drains": "drained",
    "hub is cancelled": "cancelled",
    "hub is left": "cancelled",
    "hub fails": "cancelled",
    "handler returns": "handler-returned",
    "handler raises": "handler-failed",
    "end() is called": "application",
    "overflow": "too-slow",
    "too old": "deadline",
    "idle": "deadline",
    "register hook raises": "refused",
    "register hook refuses": "refused",
    "unregister hook raises": None,
    "unregister hook hangs": None,
    "error hook raises": None,
    "manager raises on exit": None,
    "manager's nursery fails": "cancelled",
}
"""What can end a session, or go wrong when it ends, and the reason that it gives."""

AT_ONCE = {"end() is called", "overflow"}
"""Causes that give their reason in the step in which they come: no other can be first."""
IN_HANDLER = {"handler returns", "handler raises"}
IN_REGISTRATION = {"register hook raises", "register hook refuses"}
MAX_AGE, MAX_IDLE = 60, 30
RECORD = Record(1, "e.1", ("t",), encode(Event("x", id="e.1")))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What thousands of sessions log is a third of the time, and nobody's to read."""
    monkeypatch.setattr(logging.getLogger("trio_sse"), "disabled", True)


class Life:
    """One hub with one session, and what can happen to them."""

    def __init__(self, causes: Iterable[str], *, handler: bool, resume: bool) -> None:
        self.causes = set(causes)
        self.has_handler = handler
        self.resumes = resume
        self.registers = bool(self.causes & IN_REGISTRATION)
        self.log = MemoryLogWith()
        self.hub = Hub(
            log=self.log,
            limits=HubLimits(
                max_age=MAX_AGE if "too old" in self.causes else None,
                max_idle=MAX_IDLE if "idle" in self.causes else None,
                max_sessions_per_client=1,
            ),
            # So small that a replay is still under way when the first cause comes.
            outbox=OutboxLimits(max_events=1),
        )
        hooks = self.hub.hooks
        if handler:  # not always, for the sake of time
            hooks.around(self.manager_with_nursery)
        hooks.around(self.manager)
        if "manager's nursery fails" in self.causes:
            hooks.around(self.failing_manager)
        hooks.on_register(self.register)
        hooks.on_unregister(self.unregister)
        hooks.on_error(self.error)
        # What the causes do:
        self.client_scope = trio.CancelScope()
        self.hub_scope = trio.CancelScope()
        self.leave_hub = trio.Event()
        self.read = trio.Event()
        self.may_register = trio.Event()
        self.told_handler = trio.Event()
        self.manager_fails = trio.Event()
        self.happened: set[str] = set()
        # What came of it:
        self.session: Session | None = None
        self.reason: EndReason | None = None
        self.outcome = ""
        self.calls: list[str] = []
        self.reasons: list[EndReason] = []
        self.errors: list[Exception] = []

    # The application.

    @asynccontextmanager
    async def manager_with_nursery(self, session: Session) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            yield
            nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint()
        self.calls.append("left outer manager")

    @asynccontextmanager
    async def manager(self, session: Session) -> AsyncIterator[None]:
        """It has no ``finally``: what follows the ``yield`` is reached whatever happened."""
        self.session = session
        yield
        await trio.lowlevel.checkpoint()
        self.calls.append("left inner manager")
        if "manager raises on exit" in self.happened:
            raise LookupError("manager")

    @asynccontextmanager
    async def failing_manager(self, session: Session) -> AsyncIterator[None]:
        async def fail() -> None:
            await self.manager_fails.wait()
            raise LookupError("manager's nursery")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            yield
            nursery.cancel_scope.cancel()

    async def register(self, session: Session) -> None:
        if self.registers:
            await self.may_register.wait()
        else:
            await trio.lowlevel.checkpoint()
        if "register hook raises" in self.happened:
            raise LookupError("register hook")
        if "register hook refuses" in self.happened:
            raise Refused(402)
        self.calls.append("register")

    async def handler(self, session: Session) -> None:
        await self.told_handler.wait()
        if "handler raises" in self.happened:
            raise LookupError("handler")

    async def unregister(self, session: Session, reason: EndReason) -> None:
        self.calls.append("unregister")
        self.reasons.append(reason)
        assert session.id not in self.hub.sessions
        assert not session.is_open
        await trio.lowlevel.checkpoint()
        if "unregister hook hangs" in self.happened:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if "unregister hook raises" in self.happened:
            raise LookupError("unregister hook")
        self.calls.append("unregistered")

    async def error(self, session: Session, failure: Exception) -> None:
        self.errors.append(failure)
        await trio.lowlevel.checkpoint()
        if "error hook raises" in self.happened:
            raise LookupError("error hook")

    # The client.

    async def client(self) -> None:
        request = Request(
            client="192.0.2.1", last_event_id=f"{self.log.epoch}.0" if self.resumes else ""
        )
        with self.client_scope:
            try:
                async with self.hub.open_session(
                    request, handler=self.handler if self.has_handler else None
                ) as (_, receive_end):
                    await self.read.wait()
                    while True:
                        await receive_end.receive()
            except trio.EndOfChannel:
                self.outcome = "ended"
            except trio.ClosedResourceError:
                self.outcome = "cut off"
            except Refused:
                self.outcome = "refused"
            except HubClosed:
                self.outcome = "hub closed"
        if self.client_scope.cancelled_caught:
            self.outcome = "left"

    # What happens.

    def happens(self, cause: str) -> object:
        """Let it. Called between any two steps; to be awaited if it can be."""
        self.happened.add(cause)
        effects: dict[str, Callable[[], object]] = {
            "client leaves": self.client_scope.cancel,
            "hub drains": lambda: self.hub.drain(1),
            "hub is cancelled": self.hub_scope.cancel,
            "hub is left": self.leave_hub.set,
            "hub fails": lambda: self.log.break_(OSError("the log")),
            "handler returns": self.told_handler.set,
            "handler raises": self.told_handler.set,
            "end() is called": lambda: self.session and self.session.end("whoever"),
            "overflow": self.overflow,
            "too old": lambda: self.clock.jump(MAX_AGE),
            "idle": lambda: self.clock.jump(MAX_IDLE),
            "register hook raises": self.may_register.set,
            "register hook refuses": self.may_register.set,
            "manager's nursery fails": self.manager_fails.set,
        }
        return effects[cause]() if cause in effects else None

    def overflow(self) -> None:
        if self.session is not None:
            for _ in range(2):
                self.session.deliver(Batch([RECORD]), trio.current_time())

    def natural(self, cause: str) -> None:
        """The same, with what brings it about: a hook is called when a session ends."""
        result = self.happens(cause)
        if isinstance(result, Coroutine):
            self.nursery.start_soon(lambda: result)
        if cause == "error hook raises":
            self.happens("unregister hook raises")
        if CAUSES[cause] is None and self.session is not None:
            self.session.end("to have the hooks called")

    async def live(
        self,
        moment: Moment,
        *,
        at_start: Callable[[], None] = lambda: None,
        at_rest: Callable[[], None] = lambda: None,
    ) -> None:
        """The whole of it.

        ``at_start`` is called before the client comes, ``at_rest`` when all has been done
        that there is to do: the session is open, or waits for its register hook.
        """
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        self.clock = clock
        before = trio.lowlevel.current_statistics().tasks_living
        if self.resumes:
            for text in ("1", "2", "3"):
                await self.log.append(Event(text), ["t"])
        failures: list[Exception] = []
        async with trio.open_nursery() as self.nursery:
            with self.hub_scope, collect(failures):
                async with self.hub:
                    at_start()
                    self.nursery.start_soon(self.client_then_leave)
                    await trio.testing.wait_all_tasks_blocked()
                    at_rest()
                    await self.rest_of_hub()
            self.read.set()
        moment.end()
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before
        self.check(failures)

    async def rest_of_hub(self) -> None:
        self.read.set()
        with trio.move_on_after(1):
            await self.leave_hub.wait()
        self.may_register.set()
        with trio.move_on_after(100) as lives_on:
            await self.leave_hub.wait()
        if lives_on.cancelled_caught:
            assert self.session is not None
            self.session.end("the natural end")
            await self.leave_hub.wait()

    async def client_then_leave(self) -> None:
        await self.client()
        if self.session is not None:
            await self.session.wait_ended()
        self.leave_hub.set()

    # What must hold.

    def invariant(self) -> None:
        """At every step: a reason once given stays, and nothing is done twice."""
        if self.session is not None:
            if self.reason is None:
                self.reason = self.session.end_reason
            assert self.session.end_reason is self.reason
        assert len(self.calls) == len(set(self.calls)), self.calls

    def check(self, failures: list[Exception]) -> None:
        """In the end: registered means torn down, once, and nothing is left."""
        hub, statistics = self.hub, self.hub.statistics()
        assert hub.state == "closed"
        assert dict(hub.sessions) == {}
        there = hub._registry
        assert (there.alive, there.alive_per_client, there.receive_ends) == ({}, {}, {})
        assert hub._dispatcher._audiences._all == {}
        if "register" in self.calls:
            self.check_teardown()
            assert self.reason is not None
            assert self.reasons == [self.reason]
            assert statistics.registered == 1
            assert statistics.unregistered == {self.reason.kind: 1}
        else:
            assert self.calls in ([], ["left outer manager"]) or (
                "manager's nursery fails" in self.happened
            )
            assert (statistics.registered, statistics.unregistered) == (0, {})
            assert self.outcome in ("refused", "hub closed", "left")
        self.check_outcome()
        self.check_failures(failures)

    def check_teardown(self) -> None:
        """In order, and whole."""
        expected = [
            "register",
            "unregister",
            "unregistered",
            "left inner manager",
        ]
        if self.has_handler:
            expected.append("left outer manager")
        if self.happened & {"unregister hook hangs", "unregister hook raises"}:
            expected = [call for call in expected if call in self.calls or call != "unregistered"]
        if self.hooks_timed_out:
            expected = [call for call in expected if call in self.calls or call.startswith("un")]
            assert "unregister" in self.calls
        else:
            assert self.calls == expected

    @property
    def hooks_timed_out(self) -> bool:
        """Whether a jump of the clock may have taken a hook over its time."""
        return bool(self.happened & {"too old", "idle"})

    def check_outcome(self) -> None:
        """The response ended properly, or the client was gone, or was refused."""
        allowed = {"ended", "hub closed"}
        if "client leaves" in self.happened:
            allowed.add("left")
        if "hub drains" in self.happened:
            allowed |= {"cut off", "refused"}
        if self.registers or self.hooks_timed_out or self.manager_fails.is_set():
            allowed.add("refused")
        assert self.outcome in allowed

    def check_failures(self, failures: list[Exception]) -> None:
        """Nothing came out of the hub but its own failure; hooks' went to the error hook."""
        assert all(failure is self.log.read_failure for failure in failures)
        for failure in self.errors:
            own = isinstance(failure, (LookupError, trio.TooSlowError))
            assert own or failure is self.log.read_failure, "it may fail a replay first"
        if self.reason is not None and self.reason.kind == "handler-failed":
            assert self.errors


Pair = tuple[str, str, bool, bool]
"""Two causes, whether there is a handler, and whether the client comes back."""


def explore_pair(first: str, second: str, handler: bool, resume: bool) -> Exploration:
    """The first at rest, the second at every step after it."""

    async def scenario(moment: Moment) -> None:
        life = Life((first, second), handler=handler, resume=resume)

        def at_rest() -> None:
            moment.invariant(life.invariant)
            life.natural(first)
            moment.inject(life.happens, second)

        await life.live(moment, at_rest=at_rest)
        assert life.reason is not None
        expected = {CAUSES[first] or "application"}
        if first not in AT_ONCE and CAUSES[first] is not None:
            expected.add(CAUSES[second] or "application")
            if life.registers:  # its hook may be cut off, or outlive what came first
                expected |= {"cancelled", "refused", "application"}
        assert life.reason.kind in expected, (life.reason, expected)

    return explore(scenario)


def explore_single(cause: str, handler: bool, resume: bool) -> Exploration:
    """One alone, at every step from before the client comes."""

    async def scenario(moment: Moment) -> None:
        life = Life((cause,), handler=handler, resume=resume)

        def at_start() -> None:
            moment.invariant(life.invariant)
            moment.inject(life.happens, cause)

        await life.live(moment, at_start=at_start)
        if life.reason is not None:
            expected = {CAUSES[cause], "application", "refused", "cancelled"}
            if cause == "hub fails" and resume:
                expected.add("handler-failed")
            assert life.reason.kind in expected

    return explore(scenario)


def variants(*causes: str) -> Iterator[tuple[bool, bool]]:
    for handler, resume in itertools.product((False, True), (False, True)):
        if handler or not IN_HANDLER & set(causes):
            yield handler, resume


@pytest.mark.exhaustive
@pytest.mark.parametrize("first", CAUSES)
def test_every_second_cause_at_every_step_after(first: str, figure: Callable[[str], None]) -> None:
    explored = [
        explore_pair(first, second, handler, resume).interleavings
        for second in CAUSES
        for handler, resume in variants(first, second)
    ]
    assert min(explored) > 0
    figure(f"{sum(explored)} interleavings of {len(explored)} pairs, nothing left over")


def test_every_cause_at_every_step_of_a_session(figure: Callable[[str], None]) -> None:
    explored = [
        explore_single(cause, handler, resume).interleavings
        for cause in CAUSES
        for handler, resume in variants(cause)
    ]
    assert min(explored) > 10
    figure(f"{sum(explored)} interleavings of {len(explored)} lives, nothing left over")


# Through the endpoint: the same for the request, which only moves bytes.

REQUEST_CAUSES = {
    "client leaves": {"client-left"},
    "client stalls": {"too-slow", "client-left"},
    # Before its session is open, that is like the client's leaving.
    "request is cancelled": {"cancelled", "client-left"},
    "hub drains": {"drained"},
    "hub is left": {"cancelled"},
    "end() is called": {"application"},
}


class Response:
    """One request to an endpoint, on a server in memory that can be told to do its worst."""

    def __init__(self) -> None:
        self.hub = Hub(limits=HubLimits(keep_alive=None), outbox=OutboxLimits(max_events=1))
        self.registered = 0
        self.reasons: list[EndReason] = []
        self.hub.hooks.on_register(self.register)
        self.hub.hooks.on_unregister(self.unregister)
        self.exchange = _Exchange(b"", window=0)
        self.request_scope = trio.CancelScope()
        self.leave_hub = trio.Event()
        self.stalls = False
        self.happened: set[str] = set()

    async def register(self, session: Session) -> None:
        await trio.lowlevel.checkpoint()
        self.registered += 1

    async def unregister(self, session: Session, reason: EndReason) -> None:
        self.reasons.append(reason)
        await trio.lowlevel.checkpoint()

    def happens(self, cause: str) -> object:
        self.happened.add(cause)
        effects: dict[str, Callable[[], object]] = {
            "client leaves": self.exchange.leave,
            "client stalls": lambda: setattr(self, "stalls", True),
            "request is cancelled": self.request_scope.cancel,
            "hub drains": lambda: self.hub.drain(1),
            "hub is left": self.leave_hub.set,
            "end() is called": lambda: self.hub.end_all("whoever"),
        }
        return effects[cause]()

    async def request(self) -> None:
        scope = _http_scope("GET", "/?topic=t", (), ("192.0.2.1", 1))
        with self.request_scope:
            await Endpoint(self.hub)(scope, self.exchange.receive, self.exchange.send)
        self.exchange.stop()
        self.leave_hub.set()

    async def client(self) -> None:
        """Read, and give up on a stalled response after a minute."""
        exchange = self.exchange
        with trio.move_on_after(60) as patience:
            while not exchange.stopped:
                if not self.stalls:
                    exchange.take()
                await exchange.changed.park()
        if patience.cancelled_caught:
            exchange.leave()

    async def live(
        self, moment: Moment, *, at_start: Callable[[], None], at_rest: Callable[[], object]
    ) -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        async with trio.open_nursery() as nursery, self.hub:
            at_start()
            nursery.start_soon(self.client)
            nursery.start_soon(self.request)
            await trio.testing.wait_all_tasks_blocked()
            result = at_rest()
            if isinstance(result, Coroutine):
                nursery.start_soon(lambda: result)
            with trio.move_on_after(10) as lives_on, suppress(HubClosed):
                for text in ("1", "2", "3"):
                    await self.hub.publish(Event(text), "t")
                    await trio.testing.wait_all_tasks_blocked()
                await self.leave_hub.wait()
            if lives_on.cancelled_caught:
                self.hub.end_all("the natural end")
            await self.leave_hub.wait()
        moment.end()
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before
        self.check()

    def check(self) -> None:
        hub, exchange = self.hub, self.exchange
        assert len(self.reasons) == self.registered <= 1
        assert dict(hub.sessions) == {}
        assert (hub._registry.alive, hub._registry.receive_ends) == ({}, {})
        if not self.happened & {"client leaves", "client stalls", "request is cancelled"}:
            cut_off = {"started"} if "hub drains" in self.happened else set[str]()
            assert exchange.state in {"complete"} | cut_off
            assert exchange.status == (200 if self.registered else 503)
        expected = set().union(*(REQUEST_CAUSES[cause] for cause in self.happened))
        assert all(reason.kind in expected | {"application"} for reason in self.reasons)


def explore_request(first: str | None, second: str) -> Exploration:
    async def scenario(moment: Moment) -> None:
        response = Response()

        def at_start() -> None:
            if first is None:
                moment.inject(response.happens, second)

        def at_rest() -> object:
            if first is None:
                return None
            result = response.happens(first)
            moment.inject(response.happens, second)
            return result

        await response.live(moment, at_start=at_start, at_rest=at_rest)

    return explore(scenario)


def test_requests_too_at_every_step(figure: Callable[[str], None]) -> None:
    explored = [
        explore_request(first, second).interleavings
        for first in (None, *REQUEST_CAUSES)
        for second in REQUEST_CAUSES
    ]
    assert min(explored) > 0
    figure(f"{sum(explored)} interleavings of {len(explored)} requests, nothing left over")


# That it can fail: sessions that are wrong on purpose.


def mutated(function: Callable[..., Any], old: str, new: str) -> Any:
    """``function`` with another text in its source."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1
    namespace: dict[str, Any] = {}
    exec(
        compile(
            "from __future__ import annotations\n" + source.replace(old, new), "mutated", "exec"
        ),
        function.__globals__,
        namespace,
    )
    return namespace[function.__name__]


@pytest.mark.parametrize(
    ("owner", "name", "old", "new", "pair"),
    [
        # The shield around the unregister hooks, and the one that lets them be reached.
        (
            Session,
            "_live",
            "self.cancel_scope.shield = True",
            "pass",
            ("hub is cancelled", "client leaves", False, False),
        ),
        (
            Session,
            "_live",
            "trio.CancelScope(shield=True)",
            "trio.CancelScope()",
            ("manager's nursery fails", "client leaves", False, False),
        ),
        # Leaving the nursery no longer closes the channel: the client waits for ever.
        (
            Session,
            "_live",
            "with self._send_end:",
            "if True:",
            ("end() is called", "hub drains", False, False),
        ),
        # The last reason wins.
        (
            Session,
            "end",
            "if self._end_reason is None:",
            "if True:",
            ("client leaves", "end() is called", False, False),
        ),
        # Whoever waits for a session that never registers is not told.
        (
            Session,
            "run",
            "self._is_over = True",
            "return",
            ("hub is cancelled", "register hook raises", False, False),
        ),
        # Something stays behind.
        (
            Registry,
            "unregister",
            "del self.sessions[session.id]",
            "pass",
            ("end() is called", "end() is called", False, False),
        ),
        (
            Registry,
            "unregister",
            "self.dispatcher.leave(session)",
            "pass",
            ("end() is called", "end() is called", False, False),
        ),
        # A crash does not stay at home.
        (
            Session,
            "_live",
            "with collect(failures):",
            "if True:",
            ("handler raises", "client leaves", True, False),
        ),
        # A hook's hanging has no end.
        (
            Hooks,
            "_bound",
            "trio.move_on_after(self.timeout)",
            "trio.CancelScope()",
            ("unregister hook hangs", "hub drains", False, False),
        ),
    ],
)
def test_a_defect_is_found(
    owner: type, name: str, old: str, new: str, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    explore_pair(*pair)
    function = inspect.unwrap(getattr(owner, name))
    broken = mutated(function, old, new)
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(BrokenInterleaving):
        explore_pair(*pair)


def test_the_second_close_is_found_whatever_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug that started it: the request of a client that left tears down too.

    It looks first whether that was done. In most interleavings that is enough.
    """

    class TwoOwners(Life):
        async def handler(self, session: Session) -> None:
            try:
                await super().handler(session)
            finally:
                with trio.CancelScope(shield=True):
                    for _ in range(5):  # it takes its time
                        await trio.lowlevel.checkpoint()

        async def client(self) -> None:
            await super().client()
            session = self.session
            if session is not None and session.id in self.hub.sessions:
                await self.hub.hooks.unregister(session, EndReason.CLIENT_LEFT)

    monkeypatch.setitem(globals(), "Life", TwoOwners)
    explore_pair("end() is called", "end() is called", True, True)
    with pytest.raises(BrokenInterleaving) as caught:
        explore_pair("end() is called", "client leaves", True, True)
    assert caught.value.at[1] is not None, "without the second cause all was well"
