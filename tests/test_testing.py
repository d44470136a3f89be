"""The tools for users' own tests: the explorer's honesty, clients without sockets."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sse import EndReason, Event, Hub, testing
from trio_sse._respond import Message, Receive, Scope, Send
from trio_sse.asgi import Endpoint
from trio_sse.testing import (
    BrokenInterleaving,
    Deadlock,
    Moment,
    NotRepeatable,
    explore,
)

Clock = trio.testing.MockClock


class TestExplore:
    def test_it_runs_once_for_each_step(self) -> None:
        places: list[int] = []

        async def scenario(moment: Moment) -> None:
            done = 0
            moment.inject(lambda: places.append(done))
            for done in range(1, 6):  # noqa: B007  # the injection looks at it
                await trio.lowlevel.checkpoint()

        explored = explore(scenario)
        assert places == [1, 2, 3, 4, 5], "before each of the steps after a checkpoint"
        assert (explored.interleavings, explored.steps) == (5, (5,))
        assert str(explored) == "5 interleavings, 1 scheduling orders"

    def test_steps_before_the_call_and_after_the_end_do_not_count(self) -> None:
        async def scenario(moment: Moment) -> None:
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            moment.inject(lambda: None)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            moment.end()
            for _ in range(10):
                await trio.lowlevel.checkpoint()

        assert explore(scenario).steps == (2,)

    def test_it_finds_the_one_interleaving_that_breaks(self) -> None:
        """A check, a checkpoint, and the change that the check was for."""

        async def scenario(moment: Moment) -> None:
            closed = 0

            async def close() -> None:
                nonlocal closed
                if not closed:
                    await trio.lowlevel.checkpoint()
                    closed += 1

            for _ in range(5):
                await trio.lowlevel.checkpoint()
            moment.inject(close)
            await trio.lowlevel.checkpoint()
            await close()
            moment.end()
            await trio.testing.wait_all_tasks_blocked()
            assert closed == 1

        with pytest.raises(BrokenInterleaving) as caught:
            explore(scenario, seeds=range(4))
        assert isinstance(caught.value.__cause__, AssertionError)
        seed, step = caught.value.at
        assert f"only=({seed}, {step})" in str(caught.value)
        with pytest.raises(BrokenInterleaving):
            explore(scenario, only=caught.value.at)
        assert explore(scenario, only=(seed, None)).interleavings == 0

    def test_what_is_injected_may_be_async(self) -> None:
        finished: list[bool] = []

        async def scenario(moment: Moment) -> None:
            async def slow() -> None:
                await trio.sleep(100)
                finished.append(moment.injected)

            moment.inject(slow)
            await trio.sleep(1)

        explored = explore(scenario)
        assert finished == [True] * explored.interleavings

    def test_what_is_injected_may_fail(self) -> None:
        def fail() -> None:
            raise LookupError

        async def fail_later() -> None:
            await trio.sleep(1)
            raise LookupError

        for function in (fail, fail_later):

            async def scenario(moment: Moment, function: Any = function) -> None:
                moment.inject(function)
                await trio.sleep(5)

            with pytest.raises(BrokenInterleaving) as caught:
                explore(scenario)
            assert isinstance(caught.value.__cause__, LookupError)
            assert caught.value.at == (0, 0)

    def test_an_invariant_holds_at_every_step(self) -> None:
        async def scenario(moment: Moment) -> None:
            balance = 0

            def check() -> None:
                assert balance == 0

            moment.invariant(check)
            moment.inject(lambda: None)
            await trio.lowlevel.checkpoint()
            balance += 1
            balance -= 1
            await trio.lowlevel.checkpoint()
            if moment.injected:
                balance += 1
                await trio.lowlevel.checkpoint()
                balance -= 1

        with pytest.raises(BrokenInterleaving) as caught:
            explore(scenario)
        assert isinstance(caught.value.__cause__, AssertionError)
        assert caught.value.at == (0, 0)

    def test_time_costs_nothing(self) -> None:
        async def scenario(moment: Moment) -> None:
            moment.inject(lambda: None)
            await trio.sleep(10**6)
            assert trio.current_time() == 10**6

        explore(scenario)

    @pytest.mark.parametrize("shielded", [False, True])
    @pytest.mark.parametrize("also_swallows", [False, True])
    def test_a_deadlock_is_found_and_told_where(self, shielded: bool, also_swallows: bool) -> None:
        async def wait_for_nobody(event: trio.Event) -> None:
            with trio.CancelScope(shield=shielded):
                try:
                    await event.wait()
                finally:
                    if also_swallows:
                        with trio.CancelScope(shield=True):
                            await trio.lowlevel.checkpoint()

        async def scenario(moment: Moment) -> None:
            taken = trio.Event()
            moment.inject(taken.__init__)  # type: ignore[misc]  # whatever
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_nobody, taken, name="the philosopher")
                await trio.lowlevel.checkpoint()

        with pytest.raises(BrokenInterleaving) as caught:
            explore(scenario)
        cause = caught.value.__cause__
        assert isinstance(cause, Deadlock)
        assert "the philosopher" in str(cause)
        assert "await event.wait()" in str(cause)
        assert caught.value.at == (0, None)

    def test_what_never_stops_running_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trio_sse.testing._explorer.MAX_STEPS", 500)

        async def scenario(moment: Moment) -> None:
            moment.inject(lambda: None)
            while True:
                await trio.lowlevel.checkpoint()

        with pytest.raises(BrokenInterleaving) as caught:
            explore(scenario)
        assert isinstance(caught.value.__cause__, Deadlock)
        assert "after 500 task steps" in str(caught.value.__cause__)

    def test_a_scenario_that_does_not_repeat_itself(self) -> None:
        async def scenario(moment: Moment) -> None:
            moment.inject(lambda: None)
            async with trio.open_nursery() as nursery:
                for _ in range(random.randrange(2, 20)):
                    nursery.start_soon(trio.lowlevel.checkpoint)

        with pytest.raises(BrokenInterleaving) as caught:
            explore(scenario)
        assert isinstance(caught.value.__cause__, NotRepeatable)

    def test_seeds_are_other_orders(self) -> None:
        orders: dict[int, set[str]] = {}

        for seed in range(5):

            async def scenario(moment: Moment, seed: int = seed) -> None:
                order = ""

                async def step(name: str) -> None:
                    nonlocal order
                    for _ in range(3):
                        order += name
                        await trio.lowlevel.checkpoint()

                moment.inject(lambda: None)
                async with trio.open_nursery() as nursery:
                    for name in "abc":
                        nursery.start_soon(step, name)
                orders.setdefault(seed, set()).add(order)

            assert explore(scenario, seeds=[seed]).interleavings > 5
        assert all(len(found) == 1 for found in orders.values()), "each repeats itself"
        assert len({order for found in orders.values() for order in found}) > 1

    def test_two_injections_or_none_are_mistakes(self) -> None:
        async def twice(moment: Moment) -> None:
            moment.inject(lambda: None)
            moment.inject(lambda: None)

        async def never(moment: Moment) -> None:
            await trio.lowlevel.checkpoint()

        with pytest.raises(BrokenInterleaving) as caught:
            explore(twice)
        assert "a run has one injection" in str(caught.value.__cause__)
        with pytest.raises(RuntimeError, match=r"as in moment\.inject\(session\.end"):
            explore(never)

    @settings(max_examples=5, deadline=None)
    @given(st.integers())
    def test_the_scheduler_is_left_as_it_was(self, seed: int) -> None:
        """Here it is Hypothesis that makes it repeatable."""
        import trio._core._run as scheduler  # noqa: PLC0415  # only here, and private

        async def scenario(moment: Moment) -> None:
            moment.inject(lambda: None)
            await trio.lowlevel.checkpoint()

        before = (scheduler._r.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING)
        explore(scenario, seeds=[seed])
        assert (scheduler._r.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING) == before

    def test_the_example(self) -> None:
        """As the documentation has it."""

        async def scenario(moment: Moment) -> None:
            ended: list[EndReason] = []
            hub = Hub()
            hub.hooks.on_unregister(lambda session, reason: ended.append(reason))
            async with hub, testing.open_stream(Endpoint(hub)):
                [session] = hub.sessions.values()
                moment.inject(session.end, "by an operator")
                await hub.publish(Event("hello"))
            assert len(ended) == 1

        assert explore(scenario).interleavings > 5


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what came."""
    body = (await receive())["body"]
    answer = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        "client": scope["client"],
        "body": body.decode(),
        "state": scope.get("state"),
    }
    headers = [(b"content-type", b"application/json"), (b"x-answer", b"42")]
    await send({"type": "http.response.start", "status": 203, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def counting(messages: list[Message], *, until: int = 10**9) -> Any:
    """An application that sends one event a second, and notes what it receives."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def watch() -> None:
            while True:
                messages.append(await receive())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for n in range(until):
                data = f": comment\n\nid: {n}\ndata: {n}\n\n".encode()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                await trio.sleep(1)
                if any(message["type"] == "http.disconnect" for message in messages):
                    break
            await send({"type": "http.response.body"})
            nursery.cancel_scope.cancel()

    return app


class TestRequest:
    async def test_it_is_what_a_server_makes_of_a_request(self) -> None:
        response = await testing.request(
            echo, "POST", "/a%20b?x=1&y=%20", headers={"X-Own": "yes"}, json={"n": 1}
        )
        assert (response.status, response.headers["x-answer"]) == (203, "42")
        answer = response.json()
        assert (answer["method"], answer["path"], answer["query"]) == ("POST", "/a b", "x=1&y=%20")
        assert answer["body"] == '{"n": 1}'
        assert answer["headers"] == {
            "host": "127.0.0.1:8000",
            "content-length": "8",
            "content-type": "application/json",
            "x-own": "yes",
        }
        assert answer["client"] == ["127.0.0.1", 50000]
        assert json.loads(response.text) == json.loads(response.body)

    async def test_a_form_and_a_body_as_it_is(self) -> None:
        response = await testing.request(echo, "POST", "/", form={"a": "1 2", "b": "é"})
        assert response.json()["body"] == "a=1+2&b=%C3%A9"
        response = await testing.request(echo, "POST", "/", form=[("a", "1"), ("a", "2")])
        assert response.json()["body"] == "a=1&a=2"
        response = await testing.request(
            echo, "PUT", "/", body=b"raw", headers=[("content-type", "x/y"), ("host", "h")]
        )
        assert response.json()["body"] == "raw"
        assert response.json()["headers"]["content-type"] == "x/y"
        assert response.json()["headers"]["host"] == "h"
        response = await testing.request(echo, "GET", "/")
        assert "content-length" not in response.json()["headers"]

    async def test_two_bodies_are_a_mistake(self) -> None:
        with pytest.raises(ValueError, match="one body, as in request"):
            await testing.request(echo, "POST", "/", body=b"", json=1)


class TestStream:
    async def test_events_as_they_come(self, autojump_clock: Clock) -> None:
        async with testing.open_stream(counting([], until=3), "/events") as stream:
            assert stream.status == 200
            assert stream.headers == {"content-type": "text/event-stream"}
            for n in range(3):
                event = await stream.receive_event()
                assert (event.data, event.id, trio.current_time()) == (str(n), str(n), n)
            assert stream.last_event_id == "2"
            for _ in range(2):
                with pytest.raises(trio.EndOfChannel):
                    await stream.receive_event()
            assert stream.is_complete
            assert stream.body.count(b"data: ") == 3
            assert repr(stream) == f"<Stream 200, {len(stream.body)} bytes, complete>"

    async def test_what_listeners_do_not_see(self, autojump_clock: Clock) -> None:
        async with testing.open_stream(counting([], until=1)) as stream:
            assert (await stream.receive_block()).comment == "comment"
            assert (await stream.receive_block()).data == "0"

    async def test_leaving_is_told_once_and_sends_are_for_nobody(
        self, autojump_clock: Clock
    ) -> None:
        messages: list[Message] = []
        async with testing.open_stream(counting(messages)) as stream:
            await stream.receive_event()
            stream.leave()
            stream.leave()
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_event()
            await trio.testing.wait_all_tasks_blocked()
            assert [m["type"] for m in messages] == ["http.request", "http.disconnect"]
            await stream.wait_finished()
            assert trio.current_time() == 1
            assert [m["type"] for m in messages] == ["http.request", "http.disconnect"]
        assert stream.body.count(b"data: ") == 1

    async def test_leaving_the_block_waits_for_the_application(self, autojump_clock: Clock) -> None:
        async with testing.open_stream(counting([])):
            pass
        assert trio.current_time() == 1
        async with testing.open_stream(counting([])) as stream:
            await stream.aclose()
            assert trio.current_time() == 2

    async def test_the_disconnect_may_come_before_the_last_send_returns(self) -> None:
        order: list[str] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                order.append("disconnect")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await send({"type": "http.response.start", "status": 200})
                await trio.testing.wait_all_tasks_blocked()
                await send({"type": "http.response.body"})
                order.append("sent")

        async with testing.open_stream(app) as stream:
            assert await stream.read() == b""
        assert order == ["disconnect", "sent"]

    async def test_a_client_that_does_not_read_holds_up_the_sender(
        self, autojump_clock: Clock
    ) -> None:
        sent = 0
        cancelled = False

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal sent, cancelled
            await send({"type": "http.response.start", "status": 200})
            while sent < 10:
                with trio.move_on_after(5) as scope_:
                    body = b": %d\n\n" % sent
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                cancelled = cancelled or scope_.cancelled_caught
                sent += 1
            await send({"type": "http.response.body"})

        async with testing.open_stream(app, window=11) as stream:
            await trio.testing.wait_all_tasks_blocked()
            assert sent == 2, "the third is over the window"
            await trio.sleep(60)
            assert sent == 2
            for n in range(10):
                assert (await stream.receive_block()).comment == str(n)
            with pytest.raises(trio.EndOfChannel):
                await stream.receive_block()
        assert not cancelled, "a send that waits for a client cannot be cancelled"
        sent = 0
        async with testing.open_stream(app, window=11) as stream:
            await trio.testing.wait_all_tasks_blocked()
            assert sent == 2
        assert sent == 10, "leaving frees it"

    async def test_a_received_event_is_not_lost_by_cancellation(
        self, autojump_clock: Clock
    ) -> None:
        async with testing.open_stream(counting([], until=3)) as stream:
            found: list[str | None] = []
            with suppress(trio.EndOfChannel):
                while True:
                    with trio.move_on_after(0.3):
                        found.append((await stream.receive_event()).data)
        assert found == ["0", "1", "2"]

    async def test_what_the_application_raises_comes_out(self, autojump_clock: Clock) -> None:
        async def before(scope: Scope, receive: Receive, send: Send) -> None:
            raise LookupError("before")

        async def meanwhile(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200})
            await trio.sleep(1)
            raise LookupError("meanwhile")

        with pytest.raises(LookupError, match="before"):
            async with testing.open_stream(before):
                pytest.fail("there is no response")
        with pytest.raises(LookupError, match="meanwhile"):
            async with testing.open_stream(meanwhile) as stream:
                await stream.receive_event()

    async def test_what_the_block_raises_comes_out(self) -> None:
        with pytest.raises(LookupError, match="mine"):
            async with testing.open_stream(counting([])):
                raise LookupError("mine")

    @pytest.mark.parametrize(
        ("messages", "error"),
        [
            ([], "returned with its response waiting"),
            ([{"type": "http.response.body"}], "must not send 'http.response.body'"),
            (
                [{"type": "http.response.start", "status": 200}],
                "returned with its response started",
            ),
            ([{"type": "http.response.start", "status": 200}] * 2, "must not send"),
            (
                [
                    {"type": "http.response.start", "status": 200},
                    {"type": "http.response.body"},
                    {"type": "http.response.body"},
                ],
                "must not send 'http.response.body': response complete",
            ),
            (
                [{"type": "http.response.start", "status": 200, "headers": [("a", "b")]}],
                "ASGI wants both as bytes",
            ),
            (
                [{"type": "http.response.start", "status": 200, "headers": [(b"A", b"b")]}],
                "ASGI wants names in lower case",
            ),
        ],
    )
    async def test_what_an_application_must_not_do(
        self, messages: list[Message], error: str
    ) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for message in messages:
                await send(message)

        with pytest.raises((RuntimeError, TypeError, ValueError), match=error):
            await testing.request(app, "GET", "/")


class TestLifespan:
    async def test_requests_find_the_state(self) -> None:
        order: list[str] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await echo(scope, receive, send)
                return
            assert (await receive())["type"] == "lifespan.startup"
            scope["state"]["answer"] = 42
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            order.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})

        async with testing.lifespan(app) as started:
            response = await testing.request(started, "GET", "/")
            assert response.json()["state"] == {"answer": 42}
            assert order == []
        assert order == ["shutdown"]

    async def test_an_endpoint_opens_its_hub(self, autojump_clock: Clock) -> None:
        hub = Hub()
        async with testing.lifespan(Endpoint(hub)) as app:
            assert hub.statistics().state == "open"
            async with testing.open_stream(app, "/?topic=a") as stream:
                await hub.publish(Event("hello"), "a")
                assert (await stream.receive_event()).data == "hello"
        assert hub.statistics().state == "closed"

    @pytest.mark.parametrize("when", ["startup", "shutdown"])
    async def test_failing_is_told(self, when: str) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for phase in ("startup", "shutdown"):
                await receive()
                outcome = "failed" if phase == when else "complete"
                message = {"type": f"lifespan.{phase}.{outcome}", "message": "no database"}
                await send(message)

        with pytest.raises(RuntimeError, match=f"lifespan.{when}.failed: no database"):
            async with testing.lifespan(app):
                assert when == "shutdown"

    async def test_returning_early_is_told(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()

        with pytest.raises(RuntimeError, match="the application returned at startup"):
            async with testing.lifespan(app):
                pytest.fail("it has not started")

    async def test_a_crash_ends_the_block(self, autojump_clock: Clock) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await trio.sleep(1)
            raise LookupError

        with pytest.raises(LookupError):
            async with testing.lifespan(app):
                await trio.sleep_forever()
