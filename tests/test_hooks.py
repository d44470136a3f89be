"""What the application attaches to a session's life: order, containment, bounds."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from _sessions import recorder, stay

from trio_sse import (
    EndReason,
    Event,
    Hooks,
    Hub,
    HubClosed,
    Refused,
    Request,
    Session,
    SessionEnded,
)

Clock = trio.testing.MockClock


async def one_session(hub: Hub) -> None:
    """Open ``hub``, and in it a session, and end it."""
    async with hub, hub.open_session(Request()) as (session, _):
        session.end("test")
        await session.wait_ended()


async def hang(*_args: object) -> None:
    """A hook of any kind that never returns."""
    await trio.sleep_forever()


class TestOrder:
    async def test_register_in_the_order_added_unregister_in_reverse(
        self, autojump_clock: Clock
    ) -> None:
        calls: list[str] = []
        hooks = Hooks()

        @hooks.on_register
        def first(session: Session) -> None:
            calls.append("first")

        @hooks.on_register
        async def second(session: Session) -> None:
            await trio.sleep(1)
            calls.append("second")

        @hooks.on_unregister
        async def outer(session: Session, reason: EndReason) -> None:
            await trio.sleep(1)
            calls.append("outer")

        @hooks.on_unregister
        def inner(session: Session, reason: EndReason) -> None:
            calls.append("inner")

        await one_session(Hub(hooks=hooks))
        assert calls == ["first", "second", "inner", "outer"]

    async def test_a_decorator_leaves_the_function_as_it_is(self, autojump_clock: Clock) -> None:
        hooks = Hooks()
        for add in (hooks.on_register, hooks.on_unregister, hooks.on_error, hooks.around):
            assert add(print) is print
        assert repr(hooks) == "<Hooks register=1 unregister=1 error=1 around=1 timeout=5.0>"

    async def test_managers_are_around_the_hooks_and_each_other(
        self, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hooks = Hooks()

        def manager(name: str) -> Any:
            @asynccontextmanager
            async def around(session: Session) -> AsyncIterator[None]:
                calls.append(f"enter {name}")
                yield
                calls.append(f"leave {name}")

            return around

        hooks.around(manager("outer"))
        hooks.around(manager("inner"))
        hooks.on_register(recorder(calls, "register"))
        hooks.on_unregister(recorder(calls, "unregister"))
        await one_session(Hub(hooks=hooks))
        reason = EndReason.application("test")
        assert calls == [
            "enter outer",
            "enter inner",
            ("register",),
            ("unregister", reason),
            "leave inner",
            "leave outer",
        ]

    async def test_a_plain_function_may_return_an_awaitable(self, autojump_clock: Clock) -> None:
        calls: list[str] = []

        async def work() -> None:
            await trio.sleep(1)
            calls.append("done")

        hooks = Hooks()
        hooks.on_register(lambda session: work())
        await one_session(Hub(hooks=hooks))
        assert calls == ["done"]


class TestRegister:
    async def test_it_may_refuse(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hooks = Hooks()
        hub = Hub(hooks=hooks)
        refusal = Refused(402, "pay first", retry_after=60)

        @hooks.on_register
        async def refuse(session: Session) -> None:
            calls.append(session)
            raise refusal

        hooks.on_register(recorder(calls, "must not be called"))
        hooks.on_unregister(recorder(calls, "must not be called"))
        hooks.on_error(recorder(calls, "must not be called"))
        async with hub:
            with pytest.raises(Refused) as caught:
                async with hub.open_session(Request(client="192.0.2.1")):
                    pytest.fail("it was refused")
            assert caught.value is refusal
            [session] = calls
            assert await session.wait_ended() == EndReason("refused", "402: pay first")
            assert not session.is_open
            statistics = hub.statistics()
        assert (statistics.registered, statistics.unregistered, statistics.refused) == (0, {}, 1)
        assert hub.sessions == {}

    async def test_it_may_refuse_from_within_a_nursery(self, autojump_clock: Clock) -> None:
        hooks = Hooks()
        hub = Hub(hooks=hooks)

        async def refuse() -> None:
            raise Refused(402)

        @hooks.on_register
        async def ask_in_parallel(session: Session) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refuse)
                nursery.start_soon(trio.sleep_forever)

        async with hub:
            with pytest.raises(Refused, match="402"):
                async with hub.open_session(Request()):
                    pytest.fail("it was refused")

    async def test_what_else_it_raises_is_a_500_that_tells_the_client_nothing(
        self, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hooks = Hooks()
        hub = Hub(hooks=hooks)
        failure = LookupError("the password is 1234")

        @hooks.on_register
        def fail(session: Session) -> None:
            raise failure

        hooks.on_error(recorder(calls, "error"))
        async with hub:
            with pytest.raises(Refused) as caught:
                async with hub.open_session(Request()):
                    pytest.fail("it was refused")
        assert caught.value.status == 500
        assert "1234" not in str(caught.value)
        assert caught.value.__cause__ is failure
        assert calls == [("error", failure)]
        assert [record.levelname for record in caplog.records].count("ERROR") == 1

    async def test_its_time_is_bounded(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hooks = Hooks(timeout=3)
        hub = Hub(hooks=hooks)
        hooks.on_register(hang)
        hooks.on_error(recorder(calls, "error"))
        async with hub:
            with pytest.raises(Refused, match="500"):
                async with hub.open_session(Request()):
                    pytest.fail("it was refused")
        assert trio.current_time() == 3
        [(_, failure)] = calls
        assert isinstance(failure, trio.TooSlowError)
        assert "register hook" in str(failure)
        assert "more than 3 s" in str(failure)

    async def test_the_client_leaving_takes_effect_right_after(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hooks = Hooks()
        hub = Hub(hooks=hooks)

        @hooks.on_register
        async def register(session: Session) -> None:
            await trio.sleep(2)
            calls.append("registered")

        async def handler(session: Session) -> None:
            pytest.fail("it has ended already")

        hooks.on_unregister(recorder(calls, "unregister"))
        async with hub:
            with trio.move_on_after(1):
                async with hub.open_session(Request(), handler=handler):
                    pytest.fail("it is not open yet")
            assert calls == []
            await trio.sleep(2)
            assert calls == ["registered", ("unregister", EndReason.CLIENT_LEFT)]

    async def test_what_it_sends_comes_first(self, autojump_clock: Clock) -> None:
        hooks = Hooks()
        hub = Hub(hooks=hooks)
        hooks.on_register(lambda session: session.send_nowait(Event("welcome")))
        async with hub, hub.open_session(Request()) as (_, receive_end):
            assert await receive_end.receive() == b"data: welcome\n\n"

    async def test_it_may_end_the_session_which_then_has_been_one(
        self, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hooks = Hooks()
        hub = Hub(hooks=hooks)
        hooks.on_register(lambda session: session.end("not today"))
        hooks.on_unregister(recorder(calls, "unregister"))
        async with hub:
            assert await stay(hub) == b""
        assert calls == [("unregister", EndReason.application("not today"))]

    async def test_it_has_no_nursery_yet(self, autojump_clock: Clock) -> None:
        hooks = Hooks()
        hub = Hub(hooks=hooks)

        @hooks.on_register
        def register(session: Session) -> None:
            with pytest.raises(RuntimeError, match=r"use session\.nursery in the handler"):
                _ = session.nursery

        await one_session(hub)

    async def test_it_may_set_the_session_s_deadline(self, autojump_clock: Clock) -> None:
        hooks = Hooks()
        hub = Hub(hooks=hooks)

        @hooks.on_register
        def register(session: Session) -> None:
            session.cancel_scope.deadline = trio.current_time() + 7

        async with hub, hub.open_session(Request()) as (session, _):
            assert (await session.wait_ended()).kind == "deadline"
            assert trio.current_time() == 7

    async def test_the_hub_being_cancelled_interrupts_it(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hooks = Hooks()
        hub = Hub(hooks=hooks)
        hooks.on_register(hang)
        hooks.on_unregister(recorder(calls, "must not be called"))

        async def client() -> None:
            with pytest.raises(HubClosed, match="while the session registered"):
                async with hub.open_session(Request()):
                    pytest.fail("it was not opened")
            calls.append("told")

        async with trio.open_nursery() as nursery, hub:
            nursery.start_soon(client)
            await trio.testing.wait_all_tasks_blocked()
        assert calls == ["told"]

    async def test_what_it_raises_when_the_hub_is_cancelled_stays_at_home(
        self, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hooks = Hooks()
        hub = Hub(hooks=hooks)

        async def fail_on_the_way_out() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError

        @hooks.on_register
        async def register(session: Session) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_on_the_way_out)
                nursery.start_soon(trio.sleep_forever)

        hooks.on_error(recorder(calls, "error"))
        async with trio.open_nursery() as nursery:

            async def client() -> None:
                with pytest.raises((HubClosed, Refused)):
                    async with hub.open_session(Request()):
                        pytest.fail("it was not opened")

            async with hub:
                nursery.start_soon(client)
                await trio.testing.wait_all_tasks_blocked()
        [(_, failure)] = calls
        assert isinstance(failure, LookupError)


class TestUnregister:
    async def test_it_sees_a_session_that_is_over(self, autojump_clock: Clock) -> None:
        seen: list[EndReason] = []
        hub = Hub()

        @hub.hooks.on_unregister
        async def unregister(session: Session, reason: EndReason) -> None:
            assert session.id not in hub.sessions
            assert not session.is_open
            assert session.end_reason is reason
            assert session.statistics().state == "ended"
            with pytest.raises(SessionEnded):
                session.send_nowait(Event("too late"))
            with pytest.raises(SessionEnded):
                await session.send(Event("too late"))
            seen.append(reason)

        await one_session(hub)
        assert len(seen) == 1

    async def test_the_response_does_not_wait_for_it(self, autojump_clock: Clock) -> None:
        hub = Hub()

        @hub.hooks.on_unregister
        async def unregister(session: Session, reason: EndReason) -> None:
            await trio.sleep(4)

        async with hub:
            async with hub.open_session(Request()) as (session, receive_end):
                session.end("test")
                with pytest.raises(trio.EndOfChannel):
                    await receive_end.receive()
                assert trio.current_time() == 0
            await session.wait_ended()
            assert trio.current_time() == 4

    async def test_what_it_raises_is_reported_and_the_others_are_called(
        self, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hub = Hub()
        failure = LookupError("gone")

        @hub.hooks.on_unregister
        def outer(session: Session, reason: EndReason) -> None:
            calls.append("outer")

        @hub.hooks.on_unregister
        async def fail(session: Session, reason: EndReason) -> None:
            raise failure

        hub.hooks.on_error(recorder(calls, "error"))
        await one_session(hub)
        assert calls == [("error", failure), "outer"]
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.exc_info is not None
        assert record.exc_info[1] is failure

    async def test_its_time_is_bounded(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hub = Hub()
        hub.hooks.on_unregister(recorder(calls, "outer"))
        hub.hooks.on_unregister(hang)
        hub.hooks.on_error(recorder(calls, "error"))
        await one_session(hub)
        assert trio.current_time() == 5
        (name, failure), (outer, _) = calls
        assert (name, outer) == ("error", "outer")
        assert isinstance(failure, trio.TooSlowError)

    @pytest.mark.parametrize("how", ["left", "cancelled"])
    async def test_it_is_shielded_when_the_hub_goes(self, how: str, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hub = Hub()

        @hub.hooks.on_unregister
        async def unregister(session: Session, reason: EndReason) -> None:
            calls.append(reason)
            await trio.sleep(2)
            calls.append("done")

        async def client() -> None:
            calls.append(await stay(hub))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with hub:
                    nursery.start_soon(client)
                    await trio.testing.wait_all_tasks_blocked()
                    if how == "cancelled":
                        scope.cancel()
        assert calls == [EndReason.CANCELLED, b"", "done"]

    async def test_it_may_hold_a_nursery_whose_crash_is_reported(
        self, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hub = Hub()

        async def fail() -> None:
            raise LookupError

        @hub.hooks.on_unregister
        async def unregister(session: Session, reason: EndReason) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                nursery.start_soon(trio.sleep_forever)

        hub.hooks.on_error(recorder(calls, "error"))
        await one_session(hub)
        [(_, failure)] = calls
        assert isinstance(failure, LookupError)


class TestError:
    async def test_it_is_told_of_what_a_handler_raises(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hub = Hub()
        failures = [LookupError("one"), KeyError("two")]

        async def fail(failure: Exception) -> None:
            raise failure

        async def handler(session: Session) -> None:
            for failure in failures:
                session.nursery.start_soon(fail, failure)
            await trio.sleep_forever()

        hub.hooks.on_error(recorder(calls, "error"))
        hub.hooks.on_unregister(recorder(calls, "unregister"))
        async with hub:
            await stay(hub, handler=handler)
        *errors, (_, reason) = calls
        assert {failure for _, failure in errors} == set(failures)
        assert reason.kind == "handler-failed"
        assert "one" in reason.text or "two" in reason.text

    @pytest.mark.parametrize("wrong", ["raises", "hangs"])
    async def test_what_goes_wrong_in_it_is_logged_and_that_is_all(
        self, wrong: str, caplog: pytest.LogCaptureFixture, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hub = Hub()

        @hub.hooks.on_error
        async def error(session: Session, failure: Exception) -> None:
            calls.append(failure)
            if wrong == "hangs":
                await trio.sleep_forever()
            raise LookupError("in the error hook")

        async def handler(session: Session) -> None:
            raise KeyError("in the handler")

        hub.hooks.on_error(recorder(calls, "next"))
        hub.hooks.on_unregister(recorder(calls, "unregister"))
        async with hub:
            await stay(hub, handler=handler)
        assert [type(call).__name__ for call in calls] == ["KeyError", "tuple", "tuple"]
        assert [call[0] for call in calls[1:]] == ["next", "unregister"]
        assert "error hook" in caplog.text
        assert trio.current_time() == (5 if wrong == "hangs" else 0)

    async def test_several_failures_at_once_are_each_told(self, autojump_clock: Clock) -> None:
        """A hook's exceptions come in a group together with `Cancelled`, and are taken apart."""
        calls: list[Any] = []
        hub = Hub(hooks=Hooks(timeout=1))

        async def fail_late() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError

        @hub.hooks.on_unregister
        async def unregister(session: Session, reason: EndReason) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_late)
                nursery.start_soon(trio.sleep_forever)

        hub.hooks.on_error(recorder(calls, "error"))
        await one_session(hub)
        assert {type(failure) for _, failure in calls} == {LookupError, trio.TooSlowError}


class TestAround:
    async def test_it_may_hold_a_nursery(self, autojump_clock: Clock) -> None:
        calls: list[str] = []
        hub = Hub()

        async def tick() -> None:
            try:
                while True:
                    await trio.sleep(1)
                    calls.append("tick")
            finally:
                calls.append("stopped")

        @hub.hooks.around
        @asynccontextmanager
        async def background(session: Session) -> AsyncIterator[None]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick)
                yield
                nursery.cancel_scope.cancel()

        async with hub, hub.open_session(Request()) as (session, _):
            await trio.sleep(2.5)
            session.end("test")
            await session.wait_ended()
        assert calls == ["tick", "tick", "stopped"]

    @pytest.mark.parametrize("how", ["left", "cancelled"])
    async def test_leaving_it_is_shielded_when_the_hub_goes(
        self, how: str, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hub = Hub()

        @hub.hooks.around
        @asynccontextmanager
        async def around(session: Session) -> AsyncIterator[None]:
            yield
            await trio.sleep(2)
            calls.append("done")

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with hub:
                    nursery.start_soon(stay, hub)
                    await trio.testing.wait_all_tasks_blocked()
                    if how == "cancelled":
                        scope.cancel()
        assert calls == ["done"]

    async def test_failing_to_enter_refuses(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hub = Hub()
        failure = LookupError("no database")

        @hub.hooks.around
        @asynccontextmanager
        async def outer(session: Session) -> AsyncIterator[None]:
            try:
                yield
            except LookupError:
                calls.append("raised at the outer yield")
                raise

        @hub.hooks.around
        @asynccontextmanager
        async def around(session: Session) -> AsyncIterator[None]:
            raise failure
            yield

        hub.hooks.on_register(recorder(calls, "must not be called"))
        hub.hooks.on_error(recorder(calls, "error"))
        async with hub:
            with pytest.raises(Refused, match="500"):
                async with hub.open_session(Request()):
                    pytest.fail("it was refused")
        assert calls == ["raised at the outer yield", ("error", failure)]

    async def test_it_may_refuse(self, autojump_clock: Clock) -> None:
        hub = Hub()

        @hub.hooks.around
        @asynccontextmanager
        async def around(session: Session) -> AsyncIterator[None]:
            raise Refused(402)
            yield

        async with hub:
            with pytest.raises(Refused, match="402"):
                async with hub.open_session(Request()):
                    pytest.fail("it was refused")
            assert hub.statistics().refused == 1

    @pytest.mark.parametrize("wrapped", [False, True])
    @pytest.mark.parametrize("swallowed", [False, True])
    async def test_a_refused_registration_is_raised_at_its_yield(
        self, wrapped: bool, swallowed: bool, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hub = Hub()
        refusal = Refused(402)

        @hub.hooks.around
        @asynccontextmanager
        async def around(session: Session) -> AsyncIterator[None]:
            try:
                if wrapped:
                    async with trio.open_nursery():
                        yield
                else:
                    yield
            except Exception:
                calls.append("raised at its yield")
                if not swallowed:
                    raise

        @hub.hooks.on_register
        def refuse(session: Session) -> None:
            raise refusal

        hub.hooks.on_error(recorder(calls, "must not be called"))
        async with hub:
            with pytest.raises(Refused) as caught:
                async with hub.open_session(Request()):
                    pytest.fail("it was refused")
        assert caught.value is refusal
        assert calls == ["raised at its yield"]

    async def test_what_it_raises_on_the_way_out_is_reported(self, autojump_clock: Clock) -> None:
        calls: list[Any] = []
        hub = Hub()
        failure = LookupError()

        @hub.hooks.around
        @asynccontextmanager
        async def around(session: Session) -> AsyncIterator[None]:
            yield
            raise failure

        hub.hooks.on_unregister(recorder(calls, "unregister"))
        hub.hooks.on_error(recorder(calls, "error"))
        await one_session(hub)
        assert calls == [("unregister", EndReason.application("test")), ("error", failure)]

    async def test_both_its_halves_are_bounded_and_what_is_between_is_not(
        self, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hub = Hub()

        @hub.hooks.around
        @asynccontextmanager
        async def around(session: Session) -> AsyncIterator[None]:
            await trio.sleep(4)
            yield
            await trio.sleep_forever()

        hub.hooks.on_error(recorder(calls, "error"))
        async with hub, hub.open_session(Request()) as (session, _):
            assert trio.current_time() == 4
            await trio.sleep(100)
            session.end("test")
            await session.wait_ended()
        assert trio.current_time() == 4 + 100 + 5
        [(_, failure)] = calls
        assert isinstance(failure, trio.TooSlowError)

    async def test_entering_takes_too_long(self, autojump_clock: Clock) -> None:
        hub = Hub()

        @hub.hooks.around
        @asynccontextmanager
        async def around(session: Session) -> AsyncIterator[None]:
            await trio.sleep_forever()
            yield

        async with hub:
            with pytest.raises(Refused, match="500"):
                async with hub.open_session(Request()):
                    pytest.fail("it was refused")
        assert trio.current_time() == 5

    async def test_a_crash_in_its_nursery_ends_the_session_in_good_order(
        self, autojump_clock: Clock
    ) -> None:
        """The unregister hooks run inside a scope that is cancelled then, and must not notice."""
        calls: list[Any] = []
        hub = Hub()
        failure = LookupError()

        async def fail() -> None:
            await trio.sleep(1)
            raise failure

        @hub.hooks.around
        @asynccontextmanager
        async def around(session: Session) -> AsyncIterator[None]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                yield

        @hub.hooks.on_unregister
        def last(session: Session, reason: EndReason) -> None:
            calls.append("last")

        @hub.hooks.on_unregister
        async def first(session: Session, reason: EndReason) -> None:
            await trio.sleep(1)
            calls.append(reason)

        hub.hooks.on_error(recorder(calls, "error"))
        async with hub:
            assert await stay(hub) == b""
            await trio.sleep(2)
            assert hub.sessions == {}
        assert calls == [EndReason.CANCELLED, "last", ("error", failure)]

    @pytest.mark.parametrize("how", ["the hub is cancelled", "the outer one crashes"])
    async def test_one_inside_another_that_holds_a_nursery_is_left_in_good_order(
        self, how: str, autojump_clock: Clock
    ) -> None:
        """The outer one's nursery is cancelled then, and the inner one must not notice."""
        calls: list[str] = []
        hub = Hub()
        crash = trio.Event()

        async def background() -> None:
            await crash.wait()
            raise LookupError

        @hub.hooks.around
        @asynccontextmanager
        async def outer(session: Session) -> AsyncIterator[None]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(background)
                yield
            await trio.sleep(1)
            calls.append("left outer")

        @hub.hooks.around
        @asynccontextmanager
        async def inner(session: Session) -> AsyncIterator[None]:
            yield
            await trio.sleep(1)
            calls.append("left inner")

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with hub:
                    nursery.start_soon(stay, hub)
                    await trio.testing.wait_all_tasks_blocked()
                    if how == "the hub is cancelled":
                        scope.cancel()
                    else:
                        crash.set()
                        await trio.sleep(5)
        assert calls[0] == "left inner"
        assert calls[1:] == (["left outer"] if how == "the hub is cancelled" else [])

    async def test_a_crash_while_the_session_registers_refuses_it(
        self, autojump_clock: Clock
    ) -> None:
        calls: list[Any] = []
        hub = Hub()
        failure = LookupError()

        async def fail() -> None:
            raise failure

        @hub.hooks.around
        @asynccontextmanager
        async def around(session: Session) -> AsyncIterator[None]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                yield

        hub.hooks.on_register(hang)
        hub.hooks.on_error(recorder(calls, "error"))
        async with hub:
            with pytest.raises(Refused, match="500"):
                async with hub.open_session(Request()):
                    pytest.fail("it was refused")
        assert calls == [("error", failure)]
        assert trio.current_time() == 0


@pytest.mark.parametrize("timeout", [0, -1, math.inf, math.nan])
def test_unbounded_hooks_are_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match=r"Hooks\(timeout=.*as in Hooks\(timeout=5\)"):
        Hooks(timeout=timeout)
