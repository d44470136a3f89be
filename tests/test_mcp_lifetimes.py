"""What lives how long, and what ends it: nothing outlives its session, and nobody waits in vain."""

from __future__ import annotations

import gc
import json
from typing import Any

import mcp_types as types
import pytest
import trio
import trio.testing
from mcp_parts import Parts, call, initialize, rpc, serving
from test_mcp_streamable import PROGRESS, kinds, messages

import trio_sse
from trio_sse import EndReason, Hooks, Hub, Request
from trio_sse.mcp import McpApp, McpLimits
from trio_sse.mcp._streams import Streams
from trio_sse.mcp.testing import ACCEPT, HttpFailed, connect
from trio_sse.testing import request


class Doubles:
    """Hooks that note who comes and goes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.hooks = Hooks()
        self.hooks.on_register(lambda _: self.log.append("register"))
        self.hooks.on_unregister(lambda _, reason: self.log.append(f"unregister: {reason}"))


class TestSessions:
    async def test_a_session_is_one_of_the_hubs(self) -> None:
        doubles = Doubles()
        hub = Hub(hooks=doubles.hooks)
        async with serving(hub=hub) as (app, client, _):
            assert list(hub.sessions) == [client.session_id] == list(app.sessions)
            assert doubles.log == ["register"]
            assert hub.statistics().sessions == 1
        assert doubles.log == ["register", "unregister: client-left (DELETE)"]
        assert hub.statistics().unregistered == {"client-left": 1}

    @pytest.mark.parametrize("answers", ["auto", "sse"])
    async def test_an_idle_one_keeps_nothing_of_the_requests_in_it(self, answers: Any) -> None:
        gc.collect()
        before = {id(each) for each in gc.get_objects() if type(each) is Request}
        async with serving(answers=answers) as (_, client, _):
            for _ in range(3):
                await client.request("tools/call", call("echo", text="x" * 100_000))
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            kept = [r for r in gc.get_objects() if type(r) is Request and id(r) not in before]
        assert [request.headers.get("mcp-session-id") for request in kept] == [None], (
            "that which began it, and no other"
        )

    async def test_a_post_that_leaves_does_not_end_its_request(self) -> None:
        async with serving(answers="sse") as (_, client, parts):
            async with client.open_request("tools/call", call("wait")) as stream:
                await parts.waiting.wait()
                primed = await stream.receive_event()
            await trio.testing.wait_all_tasks_blocked()
            assert parts.log == ["begins"]
            parts.go.set()
            async with client.listen(primed.id) as stream:
                assert kinds(await messages(stream)) == ["answer"]
            assert parts.log == ["begins", "returns"]

    async def test_delete_ends_and_joins_before_it_answers(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with (
            serving(answers="sse") as (app, client, parts),
            client.listen() as own,
            client.open_request("tools/call", call("stubborn")) as stream,
        ):
            await parts.waiting.wait()
            assert (await client.delete()).status == 204
            assert parts.log == ["has ended"]
            assert not app.sessions
            assert not app.hub.sessions
            assert kinds(await messages(own)) == []
            (answer,) = await messages(stream)
            assert answer["error"]["code"] == -32000
            assert own.is_complete
            assert stream.is_complete

    @pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
    async def test_an_ended_one_is_not_found(self, method: str) -> None:
        async with serving() as (app, client, _):
            assert (await client.delete()).status == 204
            body = rpc(1, "ping") if method == "POST" else None
            response = await request(app, method, "/mcp", headers=client.headers, json=body)
            assert response.status == 404

    async def test_from_the_moment_that_it_is_told_to_end(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        stubborn = call("stubborn")
        async with (
            serving(answers="sse") as (app, client, parts),
            client.open_request("tools/call", stubborn),
        ):
            await parts.waiting.wait()
            assert app.end(client.session_id or "", "enough")
            assert not app.end(client.session_id or "", "again")
            assert (await client.post(rpc(1, "ping"))).status == 404

    async def test_a_crash_in_a_handler_is_its_answer_alone(self) -> None:
        async with serving() as (app, client, _):
            response = await client.post(rpc(1, "tools/call", call("fail")))
            assert response.json()["error"]["message"] == "on purpose"
            assert app.sessions

    async def test_no_task_outlives_it(self) -> None:
        """Also not one that a handler started in the session's nursery."""
        parts = Parts()

        async def forever() -> None:
            try:
                await trio.sleep_forever()
            finally:
                parts.log.append("task ended")

        async def tool_start(ctx: Any) -> str:
            app.sessions[ctx.session._connection.session_id].session.nursery.start_soon(forever)
            return "started"

        parts.tool_start = tool_start  # type: ignore[attr-defined]  # a tool of this test's
        async with serving(parts) as (app, client, _):
            await client.request("tools/call", call("start"))
            await trio.testing.wait_all_tasks_blocked()
            assert parts.log == []
            await client.delete()
            assert parts.log == ["task ended"]


class TestIdle:
    async def test_one_that_nobody_uses_ends(self, autojump_clock: trio.testing.MockClock) -> None:
        async with serving() as (app, client, _):
            (session,) = app.sessions.values()
            await trio.sleep(1799)
            await client.request("ping")
            await trio.sleep(1799)
            assert app.sessions
            await trio.sleep(2)
            assert not app.sessions
            assert session.session.end_reason == EndReason("deadline", "idle for 1800 s")
            assert (await client.post(rpc(1, "ping"))).status == 404

    async def test_a_stream_that_is_open_is_use(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with serving(limits=McpLimits(idle=60)) as (app, client, _):
            async with client.listen():
                await trio.sleep(600)
                assert app.sessions
            await trio.sleep(61)
            assert not app.sessions

    async def test_one_whose_client_never_comes_back_takes_its_requests_along(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with serving(limits=McpLimits(idle=60), answers="sse") as (app, client, parts):
            async with client.open_request("tools/call", call("wait")):
                await parts.waiting.wait()
            await trio.sleep(61)
            assert parts.log == ["begins", "cancelled"]
            assert not app.sessions

    async def test_never(self, autojump_clock: trio.testing.MockClock) -> None:
        async with serving(limits=McpLimits(idle=None)) as (app, _, _):
            await trio.sleep(20_000)
            assert app.sessions


class TestBounds:
    async def test_sessions(self) -> None:
        async with serving(limits=McpLimits(max_sessions=1)) as (app, client, _):
            with pytest.raises(HttpFailed) as failed:
                async with connect(app):
                    pass
            assert failed.value.response.status == 503
            assert failed.value.response.headers["retry-after"]
            await client.delete()
            async with connect(app):
                pass

    async def test_sessions_that_are_registering_count(self) -> None:
        hooks = Hooks()
        go = trio.Event()

        async def register(_: Any) -> None:
            await go.wait()

        hooks.on_register(register)
        limits = McpLimits(max_sessions=1)
        app = McpApp(Parts().server, hub=Hub(hooks=hooks), limits=limits)
        async with app, trio.open_nursery() as nursery:
            accept = {"accept": ACCEPT}
            nursery.start_soon(
                lambda: request(app, "POST", "/mcp", headers=accept, json=initialize())
            )
            await trio.testing.wait_all_tasks_blocked()
            second = await request(app, "POST", "/mcp", headers=accept, json=initialize())
            assert second.status == 503
            go.set()

    async def test_sessions_of_the_hub(self) -> None:
        hub = Hub(limits=trio_sse.HubLimits(max_sessions_per_client=1))
        async with serving(hub=hub) as (app, _, _):
            with pytest.raises(HttpFailed) as failed:
                async with connect(app):
                    pass
            assert failed.value.response.status == 429

    async def test_requests_in_flight(self) -> None:
        async with serving(limits=McpLimits(max_in_flight=1)) as (_, client, parts):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.request, "tools/call", call("wait"))
                await parts.waiting.wait()
                refused = await client.post(rpc(99, "ping"))
                assert refused.status == 429
                assert (await client.post(note())).status == 202
                parts.go.set()
            await client.request("ping")

    async def test_streams(self) -> None:
        async with serving(limits=McpLimits(max_streams=1)) as (_, client, _):
            async with client.listen(), client.listen() as second:
                assert second.status == 429
            async with client.listen() as third:
                assert third.status == 200

    @pytest.mark.parametrize("name", ["max_sessions", "max_body", "idle", "keep_alive"])
    def test_a_bound_is_positive(self, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            McpLimits(**{name: 0})  # type: ignore[arg-type]  # one of many types


class TestNothingIsLeft:
    """A session that has been used a thousand times is as large as it was."""

    async def test_of_messages_that_have_no_answer_and_answers_at_once(self) -> None:
        async with serving() as (app, client, _):
            (session,) = app.sessions.values()
            assert isinstance(session.outlet, Streams)
            for _ in range(100):
                await client.post(note())
                await client.post({"jsonrpc": "2.0", "id": 99, "result": {}})
                await client.request("ping")
            assert len(session.outlet) == 1
            assert session.in_flight == 0

    @pytest.mark.parametrize("kept", [0, 64])
    async def test_of_event_streams(self, kept: int) -> None:
        """Those that were taken give way, the oldest first; none stays where none is kept."""
        limits = McpLimits(max_kept_events=kept)
        async with serving(answers="sse", limits=limits) as (app, client, _):
            (session,) = app.sessions.values()
            assert isinstance(session.outlet, Streams)
            for _ in range(200):
                await client.request("ping")
            assert len(session.outlet) <= kept + 1


class TestPlaces:
    """202 means that the message has its place; an answer always has one."""

    async def test_of_a_notification(self) -> None:
        parts = Parts()
        seen: list[str] = []

        async def on_roots(_ctx: Any, _params: Any) -> None:
            seen.append("seen")

        parts.server.add_notification_handler(
            "notifications/roots/list_changed", types.NotificationParams, on_roots
        )
        async with serving(parts) as (_, client, _):
            for _ in range(100):
                response = await client.post(note("notifications/roots/list_changed"))
                assert response.status == 202
            await trio.testing.wait_all_tasks_blocked()
            assert len(seen) == 100

    async def test_of_an_answer_when_its_client_takes_nothing(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        limits = McpLimits(max_kept_events=64, max_kept_bytes=1000, patience=5)
        async with serving(limits=limits, answers="sse") as (_, client, _):
            params = call("progress", times=50) | PROGRESS
            async with client.open_request("tools/call", params, window=1) as stuck:
                await trio.sleep(60)
                primed = (await stuck.receive_event()).id
            async with client.listen(primed) as stream:
                assert kinds(await messages(stream))[-1] == "answer"


class TestStalled:
    async def test_one_stream_does_not_hold_another(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with serving() as (app, client, _):
            params = call("progress", times=10_000) | PROGRESS
            async with (
                client.open_request("tools/call", params, window=1),
                client.listen(window=1),
                client.listen() as own,
            ):
                start = trio.current_time()
                for number in range(200):
                    app.notify_all("notifications/x", {"number": number, "long": "." * 1000})
                    await client.request("ping")
                    found = await client.receive(own)
                    assert found["params"]["number"] == number
                assert trio.current_time() == start

    async def test_a_handler_waits_for_its_client_and_not_for_ever(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        limits = McpLimits(max_kept_bytes=1000, patience=5)
        async with serving(limits=limits, answers="sse") as (app, client, _):
            (session,) = app.sessions.values()
            params = call("progress", times=100) | PROGRESS
            async with client.open_request("tools/call", params, window=1):
                await trio.sleep(4)
                assert session.in_flight == 1
                await trio.sleep(2)
                assert session.in_flight == 0


class TestDrain:
    async def test_new_ones_are_refused_and_those_in_flight_are_answered(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        doubles = Doubles()
        async with serving(hub=Hub(hooks=doubles.hooks), answers="sse") as (app, client, parts):
            async with (
                client.listen() as own,
                client.open_request("tools/call", call("wait")) as stream,
                trio.open_nursery() as nursery,
            ):
                await parts.waiting.wait()
                nursery.start_soon(app.drain, 10)
                await trio.sleep(1)
                refused = await client.post(rpc(99, "ping"))
                assert refused.status == 503
                assert refused.headers["retry-after"]
                assert (await client.post(initialize())).status == 503
                parts.go.set()
                assert "result" in (await messages(stream))[-1]
                assert kinds(await messages(own)) == []
                assert own.is_complete
            assert doubles.log == ["register", "unregister: drained"]
            client.session_id = None

    async def test_it_is_bounded(self, autojump_clock: trio.testing.MockClock) -> None:
        """With an open stream, a stuck one, and a request that does not end."""
        doubles = Doubles()
        async with serving(hub=Hub(hooks=doubles.hooks), answers="sse") as (app, client, parts):
            async with (
                client.open_request(
                    "tools/call", call("progress", times=9999) | PROGRESS, window=1
                ),
                client.listen() as own,
                client.open_request("tools/call", call("wait")) as stream,
            ):
                await parts.waiting.wait()
                start = trio.current_time()
                await app.drain(10)
                assert trio.current_time() <= start + 10
                assert parts.log == ["begins", "cancelled"]
                assert doubles.log == ["register", "unregister: drained"]
                assert "error" in (await messages(stream))[-1]
                assert kinds(await messages(own)) == []
            client.session_id = None

    async def test_leaving_the_application_ends_all(self) -> None:
        doubles = Doubles()
        parts = Parts()
        async with trio.open_nursery() as nursery:

            async def ask(app: McpApp) -> None:
                async with connect(app) as client:
                    client.session_id = None
                    async with client.open_request("tools/call", call("wait")) as stream:
                        found.extend(await messages(stream))

            found: list[Any] = []
            async with McpApp(parts.server, hub=Hub(hooks=doubles.hooks)) as app:
                nursery.start_soon(ask, app)
                await parts.waiting.wait()
        assert parts.log == ["begins", "cancelled"]
        assert doubles.log == ["register", "unregister: cancelled"]
        assert "error" in found[-1]


class TestIds:
    async def test_of_ones_own_making(self) -> None:
        async with serving(
            new_session_id=lambda r: r.headers["x-name"], headers={"x-name": "me"}
        ) as (
            app,
            client,
            _,
        ):
            assert client.session_id == "me"
            assert list(app.hub.sessions) == ["me"]

    async def test_a_duplicate_is_refused_and_the_first_is_untouched(self) -> None:
        async with serving(new_session_id=lambda _: "same") as (app, client, _parts):
            (session,) = app.sessions.values()
            async with client.listen() as stream:
                again = await request(
                    app, "POST", "/mcp", headers={"accept": ACCEPT}, json=initialize()
                )
                assert again.status == 409
                assert list(app.sessions.values()) == [session]
                app.notify_all("notifications/x")
                assert (await client.receive(stream))["method"] == "notifications/x"
            await client.request("ping")

    async def test_also_while_the_first_is_registering(self) -> None:
        hooks = Hooks()
        go = trio.Event()

        async def register(_: Any) -> None:
            await go.wait()

        hooks.on_register(register)
        app = McpApp(Parts().server, hub=Hub(hooks=hooks), new_session_id=lambda _: "same")
        statuses: list[int] = []

        async def ask() -> None:
            accept = {"accept": ACCEPT}
            response = await request(app, "POST", "/mcp", headers=accept, json=initialize())
            statuses.append(response.status)

        async with app, trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert statuses == [409]
            go.set()
        assert statuses == [409, 200]

    async def test_one_that_no_header_can_carry(self) -> None:
        async with McpApp(Parts().server, new_session_id=lambda _: "a b") as app:
            with pytest.raises(ValueError, match="new_session_id returned 'a b'"):
                await request(app, "POST", "/mcp", headers={"accept": ACCEPT}, json=initialize())


class TestWithoutSessions:
    async def test_every_request_stands_alone(self) -> None:
        doubles = Doubles()
        async with serving(stateful=False, hub=Hub(hooks=doubles.hooks)) as (app, client, _parts):
            assert client.session_id is None
            result = await client.request("tools/call", call("echo", a=1))
            assert json.loads(result["content"][0]["text"]) == {"a": 1}
            async with client.listen() as stream:
                assert stream.status == 405
            assert (await client.delete()).status in (400, 405)
            assert not app.sessions
            assert set(doubles.log) == {"register", "unregister: handler-returned"}

    async def test_a_client_that_leaves_takes_its_request_along(self) -> None:
        async with serving(stateful=False, answers="sse") as (app, client, parts):
            async with client.open_request("tools/call", call("wait")):
                await parts.waiting.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert parts.log == ["begins", "cancelled"]
            assert not app.sessions

    async def test_asking_the_client_is_refused(self) -> None:
        async with serving(stateful=False) as (_, client, _):
            response = await client.post(rpc(1, "tools/call", call("elicit")))
            assert "error" in response.json()

    async def test_as_each_request_has_it(self) -> None:
        async with serving(
            stateful=lambda r: "x-alone" not in r.headers, headers={"x-alone": "yes"}
        ) as (app, alone, _):
            assert alone.session_id is None
            async with connect(app) as client:
                assert client.session_id
                await client.request("ping")
                await alone.request("ping")


def note(method: str = "notifications/initialized") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method}
