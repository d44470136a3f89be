"""HTTP+SSE of 2024-11-05: a stream, a URL to post to, and a session that is both."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import mcp_types as types
import pytest
import trio
import trio.testing
from mcp_desk import Desk, messages, next_message, sessions_over, text_of
from sockets import (
    FAR,
    GRACE,
    Client,
    Subscriber,
    connected,
    eventually,
    get,
    living_tasks,
    post,
    serving,
)

from trio_sse import Access, Hub, HubLimits, OutboxLimits, Refused, Request
from trio_sse.mcp import LegacySse, McpApp, McpLimits
from trio_sse.testing import Moment, Response, Stream, explore, open_stream, request

JSON = {"content-type": "application/json"}
CLIENT_INFO = {"name": "test", "version": "1"}


def rpc(method: str, id: Any = None, /, **params: Any) -> dict[str, Any]:
    """A request, or without an id a notification."""
    return {"jsonrpc": "2.0", "method": method, "params": params} | (
        {} if id is None else {"id": id}
    )


def calling(tool: str, id: Any, /, **arguments: Any) -> dict[str, Any]:
    return rpc("tools/call", id, name=tool, arguments=arguments, _meta={"progressToken": "t"})


INITIALIZE = rpc(
    "initialize", 0, protocolVersion="2024-11-05", capabilities={}, clientInfo=CLIENT_INFO
)


class Visitor:
    """A client: its stream, and where it posts to."""

    def __init__(self, app: Any, stream: Stream, url: str, headers: dict[str, str]) -> None:
        self.app = app
        self.stream = stream
        self.url = url
        self.headers = headers

    async def post(self, body: Any) -> Response:
        return await request(
            self.app,
            "POST",
            self.url,
            headers={**JSON, **self.headers},
            body=json.dumps(body).encode(),
        )

    async def tell(self, body: Any) -> None:
        response = await self.post(body)
        assert (response.status, response.body) == (202, b""), response.text

    async def next(self) -> Any:
        return await next_message(self.stream)

    @property
    def session_id(self) -> str:
        return self.url.partition("sessionId=")[2]


@asynccontextmanager
async def visiting(
    app: Any, *, initialize: bool = True, window: int = 1 << 16, **headers: str
) -> AsyncIterator[Visitor]:
    """A client whose session is open and, unless told otherwise, initialised."""
    async with open_stream(app, "/sse", headers=headers, window=window) as stream:
        endpoint = await stream.receive_event()
        assert endpoint.type == "endpoint"
        visitor = Visitor(app, stream, str(endpoint.data), headers)
        if initialize:
            await visitor.tell(INITIALIZE)
            assert (await visitor.next())["result"]["protocolVersion"] == "2024-11-05"
            await visitor.tell(rpc("notifications/initialized"))
        yield visitor


@asynccontextmanager
async def opened(
    desk: Desk, legacy: LegacySse | None = None, **options: Any
) -> AsyncIterator[McpApp]:
    async with McpApp(desk.server, legacy=legacy or LegacySse(), **options) as app:
        yield app


# Where things are.


async def test_it_is_off_unless_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    async with McpApp(Desk().server) as app:
        assert (await request(app, "GET", "/sse")).status == 404
        assert (await request(app, "POST", "/message", json=INITIALIZE)).status == 404


def tenant_base(asked: Request) -> str:
    return f"/of-{asked.query['tenant'][0]}"


@pytest.mark.parametrize(
    ("options", "url", "root_path", "expected"),
    [
        (LegacySse(), "/sse", "", "/message?sessionId="),
        (LegacySse(), "/sse/", "", "/message?sessionId="),
        (LegacySse(), "/api/sse", "/api", "/api/message?sessionId="),
        (LegacySse(sse_path="/a/events", message_path="/b"), "/a/events", "", "/b?sessionId="),
        (LegacySse(base_url="https://x.org/a/"), "/sse", "", "https://x.org/a/message?sessionId="),
        (LegacySse(base_url="/proxied"), "/api/sse", "/api", "/proxied/message?sessionId="),
        (LegacySse(base_url=""), "/api/sse", "/api", "/message?sessionId="),
        (LegacySse(base_url=tenant_base), "/sse?tenant=7", "", "/of-7/message?sessionId="),
        (
            LegacySse(sse_path="/{tenant}/sse", message_path="/{tenant}/message"),
            "/api/7%20a/sse",
            "/api",
            "/api/7%20a/message?sessionId=",
        ),
    ],
)
async def test_the_first_event_says_where_to_post(
    options: LegacySse,
    url: str,
    root_path: str,
    expected: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        opened(Desk(), options) as app,
        open_stream(app, url, scope={"root_path": root_path}) as stream,
    ):
        assert stream.headers["content-type"] == "text/event-stream"
        endpoint = await stream.receive_event()
        [session_id] = app.sessions
        assert (endpoint.type, endpoint.data) == ("endpoint", expected + session_id)


async def test_ids_of_ones_own_making(autojump_clock: trio.testing.MockClock) -> None:
    """One that is taken is refused, and the first is untouched."""
    async with (
        opened(Desk(), new_session_id=lambda asked: asked.query["as"][0]) as app,
        open_stream(app, "/sse?as=me") as stream,
    ):
        url = (await stream.receive_event()).data
        assert url == "/message?sessionId=me"
        assert (await request(app, "GET", "/sse?as=me")).status == 409
        assert list(app.sessions) == ["me"]
        assert (await request(app, "POST", str(url), json=INITIALIZE)).status == 202
        assert (await stream.receive_event()).data
    async with opened(Desk(), new_session_id=lambda _: "free again") as app:
        with pytest.raises(ValueError, match="visible ASCII"):
            await request(app, "GET", "/sse")


async def test_the_streams_query_can_come_with_it(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        opened(Desk(), LegacySse(append_query=True)) as app,
        open_stream(app, "/sse?token=a%26b&sessionId=mine") as stream,
    ):
        url = (await stream.receive_event()).data
        [session_id] = app.sessions
        assert url == f"/message?sessionId={session_id}&token=a%26b&sessionId=mine"
        assert (await request(app, "POST", str(url), json=INITIALIZE)).status == 202


def test_a_name_must_come_from_somewhere() -> None:
    with pytest.raises(ValueError, match="tenant"):
        LegacySse(message_path="/{tenant}/message")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/sse", JSON, 405),
        ("GET", "/message?sessionId=x", {}, 405),
        ("DELETE", "/message?sessionId=x", {}, 405),
        ("GET", "/sse", {"accept": "application/json"}, 406),
        ("GET", "/sse", {"host": "evil.example"}, 403),
        ("GET", "/sse", {"origin": "https://evil.example"}, 403),
        ("POST", "/message?sessionId=x", {**JSON, "origin": "https://evil.example"}, 403),
        ("POST", "/message", JSON, 400),
        ("POST", "/message?sessionId=", JSON, 400),
        ("POST", "/message?sessionId=made-up", JSON, 404),
        ("POST", "/message?session_id=made-up", JSON, 404),
        ("POST", "/message?sessionId=made-up", {"content-type": "text/plain"}, 415),
    ],
)
async def test_what_is_refused(
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(Desk()) as app:
        body = json.dumps(INITIALIZE).encode() if method == "POST" else None
        response = await request(app, method, path, headers=headers, body=body)
        assert response.status == status
        assert not app.hub.sessions


# A conversation.


async def test_notifications_come_before_their_result_and_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(Desk()) as app, visiting(app) as visitor:
        await visitor.tell(calling("chat", 7, times=500))
        progress = [(await visitor.next())["params"]["progress"] for _ in range(500)]
        assert progress == list(range(500))
        result = await visitor.next()
        assert (result["id"], text_of(result)) == (7, "ok")


async def test_ids_1_and_the_string_1_differ(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    async with opened(desk) as app, visiting(app) as visitor:
        await visitor.tell(calling("wait", 1, text="the number"))
        await visitor.tell(calling("wait", "1", text="the string"))
        await desk.until(lambda: desk.running == 2)
        assert (await visitor.post(calling("echo", 1))).status == 400
        await visitor.tell(rpc("notifications/cancelled", requestId="1"))
        await desk.until(lambda: desk.running == 1)
        desk.go.set()
        result = await visitor.next()
        assert (result["id"], text_of(result)) == (1, "the number")
        await visitor.tell(calling("echo", "1"))  # free again
        assert (await visitor.next())["id"] == "1"


@pytest.mark.parametrize(
    "body", [[INITIALIZE], {"jsonrpc": "2.0", "id": 1}, {"jsonrpc": "2.0", "method": 7}, "x", None]
)
async def test_what_is_no_message_is_refused(
    body: object, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(Desk()) as app, visiting(app) as visitor:
        assert (await visitor.post(body)).status == 400
        await visitor.tell(calling("echo", 1))
        assert text_of(await visitor.next()) == "ok"


async def test_the_server_asks_and_the_client_answers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also while the server drains: without the answer the call could not be finished."""

    async def call_tool(ctx: Any, params: Any) -> types.CallToolResult:
        await ctx.session.send_request(types.PingRequest(), types.EmptyResult)
        return types.CallToolResult(content=[types.TextContent(type="text", text="you live")])

    desk = Desk(on_call_tool=call_tool)
    async with opened(desk) as app, trio.open_nursery() as nursery, visiting(app) as visitor:
        await visitor.tell(calling("any", 5))
        asked = await visitor.next()
        assert asked["method"] == "ping"
        nursery.start_soon(app.drain)
        await trio.testing.wait_all_tasks_blocked()
        assert (await visitor.post(calling("any", 6))).status == 503
        await visitor.tell({"jsonrpc": "2.0", "id": asked["id"], "result": {}})
        assert text_of(await visitor.next()) == "you live"


async def test_the_application_sends_to_one_and_to_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(Desk()) as app, visiting(app) as first, visiting(app) as second:
        assert app.send(first.session_id, "notifications/x", {"to": "one"}) == "sent"
        assert (await first.next())["params"] == {"to": "one"}
        result = app.notify_all("notifications/x", {"to": "all"})
        assert sorted(result.sent) == sorted([first.session_id, second.session_id])
        for each in (first, second):
            assert (await each.next())["params"] == {"to": "all"}


async def test_a_silent_stream_is_kept_alive(autojump_clock: trio.testing.MockClock) -> None:
    async with opened(Desk()) as app, visiting(app) as visitor:
        for _ in range(3):
            start = trio.current_time()
            assert (await visitor.stream.receive_block()).comment == ""
            assert trio.current_time() - start <= 15.1
        await trio.sleep(10_000)
        assert len(app.sessions) == 1, "a session with a stream is not idle"


# Whose session it is.


async def test_a_session_is_its_clients_own(autojump_clock: trio.testing.MockClock) -> None:
    async def authorize(asked: Request) -> str:
        if "x-user" not in asked.headers:
            raise Refused(401, "who are you?")
        return asked.headers["x-user"]

    access = Access(authorize=authorize)
    async with opened(Desk(), access=access) as app:
        assert (await request(app, "GET", "/sse")).status == 401
        async with visiting(app, **{"x-user": "ada"}) as visitor:
            for headers, status in (({"x-user": "eve"}, 404), ({}, 401)):
                stranger = Visitor(app, visitor.stream, visitor.url, headers)
                assert (await stranger.post(calling("whoami", 1))).status == status
            await visitor.tell(calling("whoami", 1))
            assert text_of(await visitor.next()) == "ada"


async def test_another_transports_session_is_not_found(
    autojump_clock: trio.testing.MockClock,
) -> None:
    headers = {**JSON, "accept": "application/json, text/event-stream"}
    async with opened(Desk()) as app:
        body = json.dumps(INITIALIZE).encode()
        response = await request(app, "POST", "/mcp", headers=headers, body=body)
        session_id = response.headers["mcp-session-id"]
        url = f"/message?sessionId={session_id}"
        assert (await request(app, "POST", url, json=calling("echo", 1))).status == 404
        async with visiting(app) as visitor:
            response = await request(
                app,
                "POST",
                "/mcp",
                headers={**headers, "mcp-session-id": visitor.session_id},
                body=json.dumps(calling("echo", 1)).encode(),
            )
            assert response.status == 404


# Bounds, and places.


async def test_202_means_that_the_answer_has_its_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A client that reads slowly gets every answer that it was promised, and no other."""
    desk = Desk()
    hub = Hub(outbox=OutboxLimits(max_events=2))
    async with (
        opened(desk, hub=hub, limits=McpLimits(max_in_flight=8)) as app,
        visiting(app, window=1) as visitor,
    ):
        promised: list[int] = []
        for id in range(30):
            response = await visitor.post(calling("echo", id))
            if response.status == 202:
                promised.append(id)
            else:
                assert (response.status, "retry-after" in response.headers) == (429, True)
            await trio.sleep(0.01)
        assert 8 <= len(promised) < 30
        answered = [(await visitor.next())["id"] for _ in promised]
        assert sorted(answered) == promised
        await visitor.tell(calling("echo", 99))
        assert (await visitor.next())["id"] == 99


async def test_requests_in_flight_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    async with opened(desk, limits=McpLimits(max_in_flight=2)) as app:
        async with visiting(app) as visitor:
            for id in (1, 2):
                await visitor.tell(calling("wait", id))
            assert (await visitor.post(calling("wait", 3))).status == 429
            await visitor.tell(rpc("notifications/cancelled", requestId=1))
            await desk.until(lambda: desk.running == 1)
            await visitor.tell(calling("wait", 3))
            desk.go.set()
            assert {(await visitor.next())["id"], (await visitor.next())["id"]} == {2, 3}
        await sessions_over(app.hub)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (lambda: {"limits": McpLimits(max_sessions=1)}, 503),
        (lambda: {"hub": Hub(limits=HubLimits(max_sessions=1))}, 503),
        (lambda: {"hub": Hub(limits=HubLimits(max_sessions_per_client=1))}, 429),
    ],
)
async def test_sessions_are_bounded(
    options: Callable[[], dict[str, Any]], status: int, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(Desk(), **options()) as app:
        async with visiting(app):
            response = await request(app, "GET", "/sse")
            assert (response.status, "retry-after" in response.headers) == (status, True)
        await sessions_over(app.hub)
        async with visiting(app):
            pass


async def test_a_stalled_reader_is_ended_and_holds_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    desk = Desk()
    hub = Hub(outbox=OutboxLimits(max_events=10, max_bytes=200_000))
    reasons: list[str] = []
    hub.hooks.on_unregister(lambda session, reason: reasons.append(str(reason)))
    async with (
        opened(desk, hub=hub, limits=McpLimits(patience=10)) as app,
        visiting(app, window=1000) as stalled,
        visiting(app) as other,
    ):
        await stalled.tell(calling("flood", 1))
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < desk.sent < 40, "what waits for a client is bounded"
        start = trio.current_time()
        await other.tell(calling("echo", 1))
        assert text_of(await other.next()) == "ok"
        assert trio.current_time() == start
        await desk.until(lambda: not desk.running)
        assert 10 <= trio.current_time() - start < 11
        assert (await stalled.post(calling("echo", 2))).status == 404
        assert reasons == ["too-slow"]
        stalled.stream.leave()


async def test_a_notification_to_a_stalled_reader_never_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hub = Hub(outbox=OutboxLimits(max_events=3))
    async with (
        opened(Desk(), hub=hub) as app,
        visiting(app, window=1) as stalled,
        visiting(app) as other,
    ):
        for _ in range(10):
            app.notify_all("notifications/x")
            assert (await other.next())["method"] == "notifications/x"
        assert app.send(stalled.session_id, "notifications/x") == "lost"
        assert list(app.sessions) == [other.session_id]
        stalled.stream.leave()


# Its end.


@pytest.mark.parametrize("how", ["leave", "operator", "hub"])
async def test_nothing_outlives_the_session(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    desk = Desk()
    hub = Hub()
    notes: list[str] = []
    hub.hooks.on_register(lambda session: notes.append("registered"))
    hub.hooks.on_unregister(lambda session, reason: notes.append(reason.kind))
    async with opened(desk, hub=hub) as app:
        before = living_tasks()
        async with visiting(app) as visitor:
            for id in range(3):
                await visitor.tell(calling("wait", id))
            await desk.until(lambda: desk.running == 3)
            if how == "leave":
                visitor.stream.leave()
            elif how == "operator":
                app.end(visitor.session_id, "by an operator")
            else:
                hub.end_all("all of them")
            await visitor.stream.wait_finished()
            await sessions_over(hub)
            assert desk.notes[-3:] == ["wait cancelled"] * 3
            assert visitor.stream.is_complete == (how != "leave")
            assert (await visitor.post(calling("echo", 9))).status == 404
        assert living_tasks() == before
        assert not app.sessions
    assert notes == ["registered", "client-left" if how == "leave" else "application"]


async def test_a_stream_that_the_server_cuts_did_not_leave(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def send_message(message: Any) -> None:
        await trio.lowlevel.checkpoint()

    async with opened(Desk()) as app:
        async with trio.open_nursery() as nursery:
            scope = {"type": "http", "method": "GET", "path": "/sse", "headers": []}
            nursery.start_soon(app, scope, trio.sleep_forever, send_message)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await sessions_over(app.hub)
        assert app.hub.statistics().unregistered == {"cancelled": 1}


def test_whenever_the_client_leaves_nothing_is_left(figure: Callable[[str], None]) -> None:
    async def scenario(moment: Moment) -> None:
        desk = Desk()
        desk.go.set()
        hub = Hub()
        log: list[str] = []
        hub.hooks.on_register(lambda session: log.append("registered"))
        hub.hooks.on_unregister(lambda session, reason: log.append("unregistered"))
        async with opened(desk, hub=hub) as app:
            async with visiting(app) as visitor:
                moment.inject(visitor.stream.leave)
                response = await visitor.post(calling("wait", 1, say="x"))
                assert response.status == 202 or moment.injected
                try:
                    seen = [await visitor.next(), await visitor.next()]
                except (trio.ClosedResourceError, trio.EndOfChannel):
                    assert moment.injected
                else:
                    assert [each.get("id") for each in seen] == [None, 1]
            await sessions_over(hub)
            moment.end()
            assert not desk.running
            assert not app.sessions
            assert not hub.sessions
        assert log == ["registered", "unregistered"]

    figure(str(explore(scenario, seeds=range(4))))


async def test_a_drain_answers_what_is_in_flight(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    reasons: list[str] = []
    hub = Hub()
    hub.hooks.on_unregister(lambda session, reason: reasons.append(str(reason)))
    async with (
        opened(desk, hub=hub) as app,
        trio.open_nursery() as nursery,
        visiting(app) as busy,
        visiting(app) as idle,
    ):
        await busy.tell(calling("wait", 1))
        nursery.start_soon(app.drain, 10.0)
        await trio.sleep(1)
        assert (await request(app, "GET", "/sse")).status == 503
        desk.go.set()
        assert text_of(await busy.next()) == "ok"
        assert await messages(busy.stream) == await messages(idle.stream) == []
        assert busy.stream.is_complete
        assert idle.stream.is_complete
        assert trio.current_time() < 2
    assert reasons == ["drained", "drained"]


async def test_a_drain_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    async with (
        opened(desk, limits=McpLimits(patience=1000)) as app,
        visiting(app, window=100) as stalled,
        visiting(app) as busy,
    ):
        await stalled.tell(calling("flood", 1))
        await busy.tell(calling("wait", 1))
        await desk.until(lambda: desk.running == 2)
        start = trio.current_time()
        await app.drain(10.0)
        assert trio.current_time() - start <= 10
        assert not desk.running
        assert not app.sessions
        stalled.stream.leave()


# Real sockets.


async def initialized(client: Client, running: Any) -> tuple[Subscriber, str]:
    """The stream of ``client``, and where its messages go."""
    await client.send(get("/sse"))
    subscriber = Subscriber(client)
    endpoint = await subscriber.event()
    assert endpoint.type == "endpoint"
    url = str(endpoint.data)
    assert await posted(running, url, INITIALIZE) == 202
    assert "result" in await socket_message(subscriber)
    assert await posted(running, url, rpc("notifications/initialized")) == 202
    return subscriber, url


async def posted(running: Any, url: str, body: object) -> int:
    async with connected(running) as client:
        await client.send(post(url, json.dumps(body).encode()))
        answer = Subscriber(client)
        await answer.head()
        return answer.status


async def socket_message(subscriber: Subscriber) -> Any:
    return json.loads(str((await subscriber.event()).data))


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
async def test_a_socket_that_closes_ends_its_session(how: str) -> None:
    desk = Desk()
    app = McpApp(desk.server, legacy=LegacySse())
    async with serving(app) as running, connected(running) as client:
        subscriber, url = await initialized(client, running)
        assert await posted(running, url, calling("wait", 1, say="x")) == 202
        assert (await socket_message(subscriber))["method"] == "notifications/progress"
        with trio.fail_after(FAR):
            getattr(client, how)()
            await desk.until(lambda: not desk.running)
        await eventually(lambda: not app.hub.sessions)
        assert desk.notes == ["wait begun", "wait cancelled"]
        assert await posted(running, url, calling("echo", 2)) == 404
        assert app.hub.statistics().unregistered == {"client-left": 1}
    assert running.logged() == []


async def test_the_server_stops_in_time() -> None:
    """With an idle stream, a stalled one, and a call in flight."""
    desk = Desk()
    app = McpApp(desk.server, legacy=LegacySse())
    async with (
        serving(app, stop_on_exit=False, grace=2.0) as running,
        connected(running) as idle,
        connected(running, receive_buffer=1024) as stalled,
        connected(running) as busy,
    ):
        subscriber, _ = await initialized(idle, running)
        _, flooded = await initialized(stalled, running)
        _, waiting = await initialized(busy, running)
        assert await posted(running, flooded, calling("flood", 1)) == 202
        assert await posted(running, waiting, calling("wait", 1)) == 202
        with trio.fail_after(FAR):
            await desk.until(lambda: desk.running == 2 and desk.sent > 10)
        assert await running.stopped() < GRACE
        await subscriber.rest()
        assert subscriber.ended == "complete"
        assert b"draining" in await busy.to_end()
    assert not desk.running
    assert desk.notes[-1] == "lifespan over"
    assert app.hub.statistics().unregistered == {"drained": 3}
