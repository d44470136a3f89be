"""The revision 2026-07-28: one request, one response, and nothing that outlives it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from mcp.server.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPError
from mcp_desk import (
    ENVELOPE,
    META,
    TOOLS,
    Desk,
    calling,
    headers_for,
    message,
    messages,
    next_message,
    send,
    sending,
    sessions_over,
    text_of,
)
from sockets import FAR, GRACE, Subscriber, connected, eventually, living_tasks, post, serving

from trio_sse import Access, Hub, OutboxLimits, Request
from trio_sse.mcp import Call, McpApp, McpLimits, RequestHooks
from trio_sse.testing import Moment, explore, lifespan, request

LISTEN = "subscriptions/listen"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
SUBSCRIPTION = f"{META}subscriptionId"


def listening(id: Any = 1, /, **wanted: Any) -> dict[str, Any]:
    return message(LISTEN, id, notifications=wanted)


@asynccontextmanager
async def opened(desk: Desk, **options: Any) -> AsyncIterator[McpApp]:
    app = McpApp(desk.server, **options)
    async with app:
        yield app


def is_quiet(app: McpApp) -> bool:
    """Whether no request is left, in any way."""
    return (
        repr(app._stateless) == "<StatelessTransport 0 calls, 0 listeners>" and not app.hub.sessions
    )


# Answers.


async def test_a_result_alone_is_json(autojump_clock: trio.testing.MockClock) -> None:
    async with opened(Desk()) as app:
        response = await send(app, calling("echo", text="hello"))
        assert response.status == 200
        assert response.headers["content-type"] == "application/json"
        assert text_of(response.json()) == "hello"
        assert response.json()["result"]["resultType"] == "complete"
        assert is_quiet(app)


async def test_notifications_come_before_their_result_and_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(Desk()) as app:
        async with sending(app, calling("chat", 7, times=500)) as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            assert stream.headers["x-accel-buffering"] == "no"
            *progress, result = await messages(stream)
            assert stream.is_complete
        assert [each["params"]["progress"] for each in progress] == list(range(500))
        assert {each["params"]["progressToken"] for each in progress} == {"token"}
        assert (result["id"], text_of(result)) == (7, "ok")


@pytest.mark.parametrize(
    ("accept", "status", "content_type"),
    [
        ("application/json", 200, "application/json"),
        ("text/event-stream", 200, "text/event-stream"),
        ("text/*;q=0.5, application/json;q=0", 200, "text/event-stream"),
        (None, 200, "text/event-stream"),
        ("*/*", 200, "text/event-stream"),
        ("text/html", 406, "application/json"),
    ],
)
async def test_what_the_client_accepts_decides(
    accept: str | None, status: int, content_type: str, autojump_clock: trio.testing.MockClock
) -> None:
    """For a handler that has something to say before its result."""
    async with opened(Desk()) as app:
        response = await send(app, calling("chat", times=2), accept=accept)
        assert (response.status, response.headers["content-type"]) == (status, content_type)
        if status == 200:
            assert "result" in response.text
            assert response.text.count("notifications/progress") == (
                2 if content_type == "text/event-stream" else 0
            )


async def test_a_client_of_event_streams_alone_gets_its_result_in_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        opened(Desk()) as app,
        sending(app, calling("echo"), accept="text/event-stream") as stream,
    ):
        [result] = await messages(stream)
        assert text_of(result) == "ok"


async def test_a_silent_handler_is_kept_alive(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    async with (
        opened(desk, limits=McpLimits(keep_alive=15)) as app,
        sending(app, calling("wait")) as stream,
    ):
        for number in (1, 2, 3):
            assert (await stream.receive_block()).comment == ""
            assert 15 * number <= trio.current_time() <= 20 * number
        desk.go.set()
        [result] = await messages(stream)
        assert text_of(result) == "ok"


async def test_a_silent_handler_of_a_json_client_is_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    desk = Desk()

    async def let_go() -> None:
        await trio.sleep(100)
        desk.go.set()

    async with opened(desk) as app, trio.open_nursery() as nursery:
        nursery.start_soon(let_go)
        response = await send(app, calling("wait"), accept="application/json")
        assert text_of(response.json()) == "ok"


@pytest.mark.parametrize(
    ("tool", "code", "told"),
    [("fail", -32603, "Internal server error"), ("refuse", -32099, "not today")],
)
async def test_an_error_is_the_answer(
    tool: str, code: int, told: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(Desk()) as app:
        response = await send(app, calling(tool, "x"))
        assert response.status == 200
        assert response.json()["error"] == {"code": code, "message": told}
        assert response.json()["id"] == "x"
        assert "secret" not in response.text
        assert is_quiet(app)


async def test_a_result_that_json_has_not_is_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(Desk()) as app:
        response = await send(app, message("desk/odd"))
        assert response.json()["error"]["code"] == -32603


async def test_ids_1_and_the_string_1_differ(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    answers: list[Any] = []

    async def call(app: McpApp, id: Any) -> None:
        answers.append((await send(app, calling("wait", id, text=repr(id)))).json())

    async with opened(desk) as app, trio.open_nursery() as nursery:
        nursery.start_soon(call, app, 1)
        nursery.start_soon(call, app, "1")
        await desk.until(lambda: desk.begun["wait"] == 2)
        desk.go.set()
    assert {(repr(each["id"]), text_of(each)) for each in answers} == {("1", "1"), ("'1'", "'1'")}


async def test_discovery(autojump_clock: trio.testing.MockClock) -> None:
    async with opened(Desk()) as app:
        result = (await send(app, message("server/discover"))).json()["result"]
        assert result["supportedVersions"] == ["2026-07-28"]
        assert result["capabilities"]["tools"] == {"listChanged": True}
        assert result["_meta"][f"{META}serverInfo"] == {"name": "desk", "version": "1"}


# What is refused.


def without(key: str) -> dict[str, Any]:
    body = calling("echo")
    del body["params"]["_meta"][META + key]
    return body


def with_version(version: Any) -> dict[str, Any]:
    body = calling("echo")
    body["params"]["_meta"][f"{META}protocolVersion"] = version
    return body


ECHO = calling("echo")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (ECHO, {"mcp_protocol_version": "2026-07-29"}, 400, -32020),
        (ECHO, {"mcp_protocol_version": None}, 400, -32020),
        (ECHO, {"mcp_method": None}, 400, -32020),
        (ECHO, {"mcp_method": "TOOLS/CALL"}, 400, -32020),
        (ECHO, {"mcp_method": "tools/list"}, 400, -32020),
        (ECHO, {"mcp_name": None}, 400, -32020),
        (ECHO, {"mcp_name": "chat"}, 400, -32020),
        (ECHO, {"mcp_name": "=?base64?ZWNobw?="}, 400, -32020),  # not canonical
        (ECHO, {"mcp_name": "=?base64?ZWNobw==?="}, 200, None),
        (ECHO, {"mcp_name": " \t echo  "}, 200, None),  # RFC 9110, 5.5
        (ECHO, {"mcp_session_id": "made-up", "last_event_id": "7"}, 200, None),  # ignored
        (with_version("2030-01-01"), {"mcp_protocol_version": "2030-01-01"}, 400, -32022),
        (with_version(7), {}, 400, -32020),
        (without("protocolVersion"), {}, 400, -32602),
        (without("clientCapabilities"), {}, 400, -32602),
        ({**ECHO, "params": {"name": "echo"}}, {}, 400, -32602),
        ({**ECHO, "params": None}, {}, 400, -32602),
        ({**ECHO, "id": None}, {}, 400, -32600),
        ({**ECHO, "jsonrpc": "1.0"}, {}, 400, -32600),
        (message("no/such"), {}, 404, -32601),
        (message("initialize"), {}, 404, -32601),
        (message("ping"), {}, 404, -32601),
        (message("resources/list"), {}, 404, -32601),
        (message("tools/call", name=7), {"mcp_name": "7"}, 400, -32020),
    ],
)
async def test_a_request_is_checked(
    body: dict[str, Any],
    headers: dict[str, str | None],
    status: int,
    code: int | None,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(Desk()) as app:
        response = (
            await send(app, {**body}, **{"mcp_name": "echo", **headers})
            if body.get("params") is None
            else await send(app, body, **headers)
        )
        found = response.json()
        assert (response.status, found.get("error", {}).get("code")) == (status, code), found
        assert response.headers["content-type"] == "application/json"
        assert found["id"] == (body["id"] if code != -32600 else None)


async def test_a_version_that_is_not_served_is_told_what_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(Desk()) as app:
        response = await send(app, with_version("2030-01-01"), mcp_protocol_version="2030-01-01")
        assert response.json()["error"]["data"] == {
            "supported": ["2026-07-28"],
            "requested": "2030-01-01",
        }


@pytest.mark.parametrize("twice", ["mcp-protocol-version", "mcp-method", "mcp-name"])
async def test_a_mirrored_header_comes_once(
    twice: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(Desk()) as app:
        headers = list(headers_for(ECHO).items())
        headers.append((twice, dict(headers)[twice]))
        body = json.dumps(ECHO).encode()
        response = await request(app, "POST", "/mcp", headers=headers, body=body)
        assert (response.status, response.json()["error"]["code"]) == (400, -32020)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"NaN",
        b"\xff",
        b"[" * 100_000,
        json.dumps([ECHO]).encode(),
        b'{"jsonrpc": "2.0", "id": 1, "result": {}}',
        b'{"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "x"}}',
        b'{"jsonrpc": "2.0", "id": 1}',
    ],
)
async def test_what_is_no_request_is_refused(
    body: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    desk = Desk()
    async with opened(desk) as app:
        response = await request(app, "POST", "/mcp", headers=headers_for(ECHO), body=body)
        assert response.status == 400
        assert response.json()["id"] is None
        assert response.json()["error"]["code"] in (-32700, -32600)
    assert not desk.begun


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_there_are_no_streams_to_open_and_no_sessions_to_end(
    method: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(Desk()) as app:
        response = await request(app, method, "/mcp", headers=headers_for(ECHO))
        assert (response.status, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(("version", "status"), [("2026-07-28", 202), ("2030-01-01", 400)])
async def test_a_notification_is_taken_and_has_no_effect(
    version: str, status: int, autojump_clock: trio.testing.MockClock
) -> None:
    """By the id of a stranger's request one could cancel it."""
    desk = Desk()
    cancel = {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 1, "_meta": ENVELOPE},
    }
    async with opened(desk) as app, trio.open_nursery() as nursery:
        nursery.start_soon(send, app, calling("wait"))
        await desk.until(lambda: desk.running)
        response = await send(app, cancel, mcp_protocol_version=version)
        assert response.status == status
        assert desk.running == 1
        desk.go.set()


# Arguments that are mirrored into headers.

ROUTED = calling("routed", region="us west", count=42)


@pytest.mark.parametrize("known_by", ["schema", "list", "pages"])
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (ROUTED, {"mcp_param_region": "us west", "mcp_param_count": "42"}, 200),
        (ROUTED, {"mcp_param_region": " us west ", "mcp_param_count": "42.0"}, 200),
        (ROUTED, {"mcp_param_region": "=?base64?dXMgd2VzdA==?=", "mcp_param_count": "42"}, 200),
        (ROUTED, {"mcp_param_region": "eu", "mcp_param_count": "42"}, 400),
        (ROUTED, {"mcp_param_region": "us west"}, 400),
        (ROUTED, {}, 400),
        (calling("routed"), {}, 200),
        (calling("routed"), {"mcp_param_region": "eu"}, 400),
        (calling("routed", region=None), {}, 200),
        (calling("echo", text="x"), {"mcp_param_region": "eu"}, 200),  # not recognised
    ],
)
async def test_mirrored_arguments_are_checked(
    known_by: str,
    body: dict[str, Any],
    headers: dict[str, str],
    status: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    def schema(name: str) -> dict[str, Any]:
        return {"type": "object", "properties": TOOLS[name]}

    desk = Desk(**({"get_tool_input_schema": schema} if known_by == "schema" else {}))
    desk.page_size = 1 if known_by == "pages" else 100
    async with opened(desk) as app:
        response = await send(app, body, **headers)
        assert response.status == status, response.text
        if status == 400:
            assert response.json()["error"]["code"] == -32020
            assert not desk.begun


async def test_a_schema_that_cannot_be_had_is_no_fault_of_the_clients(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def schema(name: str) -> dict[str, Any]:
        raise RuntimeError("no schema today")

    async with opened(Desk(get_tool_input_schema=schema)) as app:
        assert (await send(app, ROUTED)).status == 200
    assert "no schema today" in caplog.text


# The application's part.


async def test_request_hooks(autojump_clock: trio.testing.MockClock) -> None:
    hooks = RequestHooks()
    notes: list[object] = []

    @hooks.before
    async def before(call: Call) -> None:
        assert call.session is None
        notes.append(("before", call.method))
        if call.params and call.params.get("name") == "chat":
            raise MCPError(code=-32050, message="no chatting")

    @hooks.on_success
    def success(call: Call, result: dict[str, Any]) -> None:
        notes.append(("success", result["content"][0]["text"]))

    @hooks.on_error
    def error(call: Call, exc: Exception) -> None:
        notes.append(("error", type(exc).__name__))

    desk = Desk()
    async with opened(desk, hooks=hooks) as app:
        assert (await send(app, calling("echo"))).status == 200
        response = await send(app, calling("chat", times=1))
        assert response.json()["error"] == {"code": -32050, "message": "no chatting"}
        await send(app, calling("fail"))
    assert "chat" not in desk.begun
    assert notes == [
        ("before", "tools/call"),
        ("success", "ok"),
        ("before", "tools/call"),
        ("error", "MCPError"),
        ("before", "tools/call"),
        ("error", "RuntimeError"),
    ]


async def test_handlers_know_who_asks(autojump_clock: trio.testing.MockClock) -> None:
    async def authorize(request: Request) -> str:
        return request.headers["x-user"].upper()

    async with opened(Desk(), access=Access(authorize=authorize)) as app:
        response = await send(app, calling("whoami"), x_user="ada")
        assert text_of(response.json()) == "ADA"


# The response is the request's scope.


async def test_closing_the_response_cancels_the_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    desk = Desk()
    async with opened(desk) as app:
        before = living_tasks()
        async with sending(app, calling("wait", say="begun")) as stream:
            assert (await next_message(stream))["params"]["message"] == "begun"
            assert desk.running == 1
            stream.leave()
            await stream.wait_finished()
            assert desk.notes == ["wait begun", "wait cancelled"]
            assert is_quiet(app)
        assert living_tasks() == before


@asynccontextmanager
async def raw_request(
    app: McpApp, body: dict[str, Any]
) -> AsyncIterator[tuple[list[str], trio.CancelScope]]:
    """A request by a server that tells of the end before the last send is over, as Hypercorn.

    What is handed out are the messages whose sending came to an end, and how to cancel.
    """
    sent: list[str] = []
    inbox: list[dict[str, Any]] = [{"type": "http.request", "body": json.dumps(body).encode()}]
    gone = trio.Event()

    async def receive() -> dict[str, Any]:
        if inbox:
            return inbox.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send_message(what: Any) -> None:
        last = what["type"] == "http.response.body" and not what.get("more_body", False)
        if last:
            gone.set()
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        sent.append("end" if last else what["type"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/mcp",
        "headers": [(k.encode(), v.encode()) for k, v in headers_for(body).items()],
    }
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app, scope, receive, send_message)
        yield sent, nursery.cancel_scope


@pytest.mark.parametrize("body", [calling("echo"), calling("chat", times=1), listening()])
async def test_the_last_send_is_not_cancelled_by_the_end_it_brings(
    body: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    """A server would otherwise wait for the rest of the response for ever."""
    async with opened(Desk()) as app:
        async with raw_request(app, body) as (sent, _):
            await trio.testing.wait_all_tasks_blocked()
            if body["method"] == LISTEN:
                await app.drain()
        assert sent[-1] == "end"


async def test_a_listener_that_the_server_cuts_did_not_leave(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(Desk()) as app:
        async with raw_request(app, listening()) as (_, scope):
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
        await sessions_over(app.hub)
        assert app.hub.statistics().unregistered == {"cancelled": 1}


@pytest.mark.parametrize("how", ["leave", "drain", "end_all"])
def test_a_listener_may_end_at_any_time(how: str, figure: Callable[[str], None]) -> None:
    async def scenario(moment: Moment) -> None:
        desk = Desk()
        hub = Hub()
        log: list[str] = []
        hub.hooks.on_register(lambda session: log.append("registered"))
        hub.hooks.on_unregister(lambda session, reason: log.append("unregistered"))
        async with opened(desk, hub=hub) as app:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(desk.publish, ToolsListChanged(), ToolsListChanged())
                async with sending(app, listening(7, toolsListChanged=True)) as stream:
                    causes: dict[str, Callable[[], object]] = {
                        "leave": stream.leave,
                        "drain": app.drain,
                        "end_all": lambda: hub.end_all("all of them"),
                    }
                    moment.inject(causes[how])
                    seen: list[Any] = []
                    with suppress(trio.EndOfChannel, trio.ClosedResourceError):
                        while True:
                            seen.append(await next_message(stream))
                            await desk.publish(ToolsListChanged())
                            if len(seen) > 5:
                                stream.leave()
                assert [each.get("method") for each in seen[:1]] in ([], [ACKNOWLEDGED])
                if moment.injected and how == "drain" and stream.is_complete:
                    assert seen[-1]["id"] == 7
                assert sum("id" in each for each in seen[:-1]) == 0
            await sessions_over(hub)
            moment.end()
            assert is_quiet(app)
        assert log == ["registered", "unregistered"]

    figure(str(explore(scenario, seeds=range(2))))


def test_whenever_the_client_leaves_nothing_is_left(figure: Callable[[str], None]) -> None:
    async def scenario(moment: Moment) -> None:
        desk = Desk()
        desk.go.set()
        async with opened(desk) as app:
            over = trio.Event()
            body = json.dumps(calling("wait", say="x")).encode()
            gone = trio.Event()

            async def receive_message() -> dict[str, Any]:
                if not over.is_set():
                    over.set()
                    return {"type": "http.request", "body": body, "more_body": False}
                await gone.wait()
                return {"type": "http.disconnect"}

            sent: list[dict[str, Any]] = []

            async def send_message(what: Any) -> None:
                await trio.lowlevel.checkpoint()
                if not gone.is_set():
                    sent.append(what)

            headers = [(k.encode(), v.encode()) for k, v in headers_for(calling("wait")).items()]
            scope = {
                "type": "http",
                "method": "POST",
                "path": "/mcp",
                "headers": headers,
                "extensions": {},
            }
            moment.inject(gone.set)
            await app(scope, receive_message, send_message)
            moment.end()
            assert not desk.running
            assert is_quiet(app)
            assert living_tasks() < 20
            complete = bool(sent) and not sent[-1].get("more_body", sent[-1]["type"][-4:] != "body")
            assert complete or gone.is_set()
            if complete:
                text = b"".join(each.get("body", b"") for each in sent).decode()
                assert text.index("notifications/progress") < text.index('"result"')

    figure(str(explore(scenario, seeds=range(4))))


async def test_a_request_that_was_never_read_ends_with_its_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its response has not begun: there is nothing but the connection to tell of it."""
    desk = Desk()
    async with opened(desk) as app, trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(_until, desk, lambda: desk.running, scope.cancel)
            async with sending(app, calling("wait")):
                raise AssertionError("there should be no response")
    assert desk.notes[:2] == ["wait begun", "wait cancelled"]


async def _until(desk: Desk, condition: Callable[[], object], then: Callable[[], None]) -> None:
    await desk.until(condition)
    then()


async def test_a_stalled_reader_is_given_up_and_holds_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    desk = Desk()
    limits = McpLimits(patience=10, keep_alive=1000)
    outbox = OutboxLimits(max_events=10, max_bytes=200_000)
    async with opened(desk, limits=limits, hub=Hub(outbox=outbox)) as app:
        async with sending(app, calling("flood"), window=20_000) as stalled:
            await trio.testing.wait_all_tasks_blocked()
            assert desk.sent < 40, "what waits for a client is bounded"
            assert text_of((await send(app, calling("echo"))).json()) == "ok"
            await desk.until(lambda: not desk.running)
            assert 10 <= trio.current_time() < 11
            assert desk.notes[-1] == "flood cancelled"
            # What was queued is dropped: there is an end, and no result.
            assert len(await messages(stalled)) <= 4
            assert stalled.is_complete
        assert is_quiet(app)


async def test_a_slow_reader_gets_all_there_is(autojump_clock: trio.testing.MockClock) -> None:
    outbox = OutboxLimits(max_events=3)
    async with opened(Desk(), hub=Hub(outbox=outbox)) as app:
        async with sending(app, calling("chat", times=50), window=10) as stream:
            seen: list[Any] = []
            for _ in range(51):
                await trio.sleep(5)
                seen.append(await next_message(stream))
        assert [each["params"]["progress"] for each in seen[:-1]] == list(range(50))
        assert "result" in seen[-1]


async def test_requests_in_progress_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    async with opened(desk, limits=McpLimits(max_requests=2)) as app:
        async with trio.open_nursery() as nursery:
            for id in range(2):
                nursery.start_soon(send, app, calling("wait", id))
            await desk.until(lambda: desk.running == 2)
            response = await send(app, calling("echo"))
            assert response.status == 503
            assert int(response.headers["retry-after"]) > 0
            assert "echo" not in desk.begun
            desk.go.set()
        assert (await send(app, calling("echo"))).status == 200


# Shutdown.


async def test_a_drain_lets_calls_finish(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    async with opened(desk) as app:
        async with trio.open_nursery() as nursery, sending(app, calling("wait", say="x")) as stream:
            await next_message(stream)
            nursery.start_soon(app.drain, 10.0)
            await trio.sleep(1)
            refused = await send(app, calling("echo"))
            assert (refused.status, "retry-after" in refused.headers) == (503, True)
            desk.go.set()
            [result] = await messages(stream)
            assert text_of(result) == "ok"
        assert trio.current_time() < 2, "nobody is waited for in vain"


@pytest.mark.parametrize("said", [True, False])
async def test_a_call_that_takes_too_long_is_answered_all_the_same(
    said: bool, autojump_clock: trio.testing.MockClock
) -> None:
    desk = Desk()
    limits = McpLimits(keep_alive=1000)
    answers: list[Any] = []

    async def call(app: McpApp) -> None:
        arguments = {"say": "x"} if said else {}
        async with sending(app, calling("wait", 3, **arguments)) as stream:
            answers.append(stream.status)
            if said:
                answers.append((await messages(stream))[-1])
            else:
                answers.append(json.loads(await stream.read()))
            assert stream.is_complete

    async with opened(desk, limits=limits) as app, trio.open_nursery() as nursery:
        nursery.start_soon(call, app)
        await desk.until(lambda: desk.running)
        await app.drain(10.0)
        assert trio.current_time() == pytest.approx(5.0, abs=0.01)
    assert answers[0] == (200 if said else 503)
    assert answers[1]["id"] == 3
    assert "shutting down" in answers[1]["error"]["message"]
    assert desk.notes[1:] == ["wait cancelled", "lifespan over"]


async def test_nothing_outlives_the_application(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    async with trio.open_nursery() as nursery, opened(desk) as app:
        nursery.start_soon(send, app, calling("wait"))
        nursery.start_soon(send, app, listening(toolsListChanged=True))
        await desk.until(lambda: desk.running)
    assert desk.notes == ["wait begun", "wait cancelled", "lifespan over"]


async def test_a_drain_is_bounded_whatever_a_stalled_reader_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    desk = Desk()
    limits = McpLimits(patience=1000, keep_alive=1000)
    async with (
        opened(desk, limits=limits) as app,
        sending(app, calling("flood"), window=100) as call,
    ):
        async with sending(app, listening(toolsListChanged=True), window=100) as listen:
            await trio.testing.wait_all_tasks_blocked()
            start = trio.current_time()
            await app.drain(10.0)
            assert trio.current_time() - start <= 10
            assert not desk.running
            assert is_quiet(app)
            listen.leave()
        call.leave()


# Listening.


async def test_a_listener_is_acknowledged_first_and_gets_what_it_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    desk = Desk()
    async with opened(desk) as app:
        wanted = {"toolsListChanged": True, "resourceSubscriptions": ["file:///a", "file:///b"]}
        async with sending(app, listening("me", **wanted)) as stream:
            acknowledged = await next_message(stream)
            assert acknowledged["method"] == ACKNOWLEDGED
            assert acknowledged["params"]["notifications"] == wanted
            await desk.publish(
                PromptsListChanged(),
                ResourcesListChanged(),
                ResourceUpdated("file:///c"),
                ResourceUpdated("file:///b"),
                ToolsListChanged(),
            )
            updated, changed = await next_message(stream), await next_message(stream)
            assert updated["method"] == "notifications/resources/updated"
            assert updated["params"]["uri"] == "file:///b"
            assert changed["method"] == "notifications/tools/list_changed"
            for each in (acknowledged, updated, changed):
                assert each["params"]["_meta"][SUBSCRIPTION] == "me"


async def test_a_listener_is_a_session(autojump_clock: trio.testing.MockClock) -> None:
    hub = Hub()
    notes: list[str] = []
    hub.hooks.on_register(lambda session: notes.append("registered"))
    hub.hooks.on_unregister(lambda session, reason: notes.append(str(reason)))
    async with opened(Desk(), hub=hub) as app:
        async with sending(app, listening(toolsListChanged=True)) as stream:
            await next_message(stream)
            [session] = hub.sessions.values()
            assert session.statistics().sent_events == 1
            await stream.receive_block()  # the hub keeps it alive
        assert is_quiet(app)
    assert notes == ["registered", "client-left"]


async def test_an_operator_ends_a_listener(autojump_clock: trio.testing.MockClock) -> None:
    async with opened(Desk()) as app, sending(app, listening(toolsListChanged=True)) as stream:
        await next_message(stream)
        app.hub.end_all("by an operator")
        assert await messages(stream) == []
        assert stream.is_complete


async def test_the_application_notifies_listeners(autojump_clock: trio.testing.MockClock) -> None:
    async with opened(Desk()) as app:
        async with sending(app, listening(5, toolsListChanged=True)) as stream:
            await next_message(stream)
            [session_id] = app.hub.sessions
            transport = app._stateless
            assert transport.notify("notifications/prompts/list_changed") == []
            assert transport.notify("notifications/message", {"level": "info"}) == []
            assert transport.notify("notifications/tools/list_changed") == [session_id]
            told = await next_message(stream)
            assert told["method"] == "notifications/tools/list_changed"
            assert told["params"] == {"_meta": {SUBSCRIPTION: 5}}
        assert transport.notify("notifications/tools/list_changed") == []


async def test_a_drain_answers_listeners_last(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    hub = Hub()
    reasons: list[str] = []
    hub.hooks.on_unregister(lambda session, reason: reasons.append(str(reason)))
    async with (
        opened(desk, hub=hub) as app,
        trio.open_nursery() as nursery,
        sending(app, listening(9, toolsListChanged=True)) as stream,
    ):
        await next_message(stream)
        nursery.start_soon(_publish_much_then, desk, app.drain)
        *changes, result = await messages(stream)
        assert stream.is_complete
    assert len(changes) == 20, "what was published before goes out before"
    assert result["id"] == 9
    assert result["result"]["resultType"] == "complete"
    assert result["result"]["_meta"] == {
        SUBSCRIPTION: 9,
        f"{META}serverInfo": {"name": "desk", "version": "1"},
    }
    assert reasons == ["drained"]
    assert trio.current_time() < 0.1, "who listens is no reason to wait"


async def _publish_much_then(desk: Desk, then: Callable[[], Any]) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(desk.publish, ToolsListChanged())
        await trio.lowlevel.checkpoint()
        nursery.start_soon(then)


async def test_the_servers_own_end_of_a_subscription(
    autojump_clock: trio.testing.MockClock,
) -> None:
    desk = Desk()
    async with opened(desk) as app, sending(app, listening(9, toolsListChanged=True)) as stream:
        await next_message(stream)
        desk.listen.close()
        [result] = await messages(stream)
        assert result["result"]["_meta"][SUBSCRIPTION] == 9


@pytest.mark.parametrize(
    ("options", "body", "changed", "status", "code"),
    [
        ({"on_subscriptions_listen": None}, listening(), {}, 404, -32601),
        ({}, listening(), {"accept": "application/json"}, 406, -32000),
        ({}, message(LISTEN), {}, 400, -32602),
        ({}, listening(resourceSubscriptions=7), {}, 400, -32602),
        ({}, listening(), {"mcp_method": "tools/call"}, 400, -32020),
    ],
)
async def test_who_may_not_listen(
    options: dict[str, Any],
    body: dict[str, Any],
    changed: dict[str, str],
    status: int,
    code: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with opened(Desk(**options)) as app:
        response = await send(app, body, **changed)
        assert (response.status, response.json()["error"]["code"]) == (status, code)
        assert response.headers["content-type"] == "application/json"
        assert is_quiet(app)


async def test_listeners_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    async with opened(Desk(), limits=McpLimits(max_listens=1)) as app:
        async with sending(app, listening(1)) as stream:
            await next_message(stream)
            response = await send(app, listening(2))
            assert (response.status, "retry-after" in response.headers) == (503, True)
        async with sending(app, listening(3)) as stream:
            assert stream.status == 200


async def test_a_listener_that_stalls_is_ended_and_holds_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    desk = Desk()
    hub = Hub(outbox=OutboxLimits(max_events=5))
    reasons: list[str] = []
    hub.hooks.on_unregister(lambda session, reason: reasons.append(str(reason)))
    async with (
        opened(desk, hub=hub) as app,
        sending(app, listening(1, toolsListChanged=True), window=1) as stalled,
    ):
        async with sending(app, listening(2, toolsListChanged=True)) as other:
            await next_message(other)
            for _ in range(50):
                await desk.publish(ToolsListChanged())
                assert "list_changed" in (await next_message(other))["method"]
            assert reasons == ["too-slow"]
            assert len(hub.sessions) == 1
        stalled.leave()


async def test_leaving_before_the_acknowledgement_cancels(
    autojump_clock: trio.testing.MockClock,
) -> None:
    notes: list[str] = []
    begun = trio.Event()

    async def slow(ctx: Any, params: Any) -> Any:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            notes.append("over")

    async with opened(Desk(on_subscriptions_listen=slow)) as app:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, app, listening())
            await begun.wait()
            assert len(app.hub.sessions) == 1
            nursery.cancel_scope.cancel()
        assert notes == ["over"]
        await sessions_over(app.hub)
        assert is_quiet(app)


async def test_a_drain_before_the_acknowledgement(autojump_clock: trio.testing.MockClock) -> None:
    async def slow(ctx: Any, params: Any) -> Any:
        await trio.sleep_forever()

    responses: list[Any] = []

    async def listen(app: McpApp) -> None:
        responses.append(await send(app, listening(4)))

    async with opened(Desk(on_subscriptions_listen=slow)) as app, trio.open_nursery() as nursery:
        nursery.start_soon(listen, app)
        await trio.testing.wait_all_tasks_blocked()
        await app.drain()
    assert (responses[0].status, responses[0].json()["id"]) == (503, 4)


# Real sockets.


def as_posted(body: dict[str, Any]) -> bytes:
    headers = [f"{k}: {v}" for k, v in headers_for(body).items() if k != "content-type"]
    return post("/mcp", json.dumps(body).encode(), *headers)


async def socket_message(subscriber: Subscriber) -> Any:
    data = (await subscriber.event()).data
    assert data is not None
    return json.loads(data)


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_socket_that_closes_cancels_its_request(how: str, begun: bool) -> None:
    desk = Desk()
    async with serving(McpApp(desk.server)) as running, connected(running) as client:
        await client.send(as_posted(calling("wait", **({"say": "x"} if begun else {}))))
        with trio.fail_after(FAR):
            await desk.until(lambda: desk.running)
            if begun:
                await client.until(b"notifications/progress")
            getattr(client, how)()
            await desk.until(lambda: not desk.running)
        assert desk.notes == ["wait begun", "wait cancelled"]
    assert running.logged() == []


async def test_a_connection_serves_one_request_after_another() -> None:
    async with serving(McpApp(Desk().server)) as running, connected(running) as client:
        for tool, arguments in [("echo", {}), ("chat", {"times": 3}), ("echo", {}), ("fail", {})]:
            client.received.clear()
            await client.send(as_posted(calling(tool, **arguments)))
            await client.until(b'"id":1')
            end = b"0\r\n\r\n" if tool == "chat" else b"}"
            await client.until(end)
            assert client.received.startswith(b"HTTP/1.1 200")


async def test_a_listener_on_a_socket_leaves() -> None:
    desk = Desk()
    app = McpApp(desk.server)
    async with serving(app) as running:
        async with connected(running) as client:
            await client.send(as_posted(listening(toolsListChanged=True)))
            subscriber = Subscriber(client)
            assert (await socket_message(subscriber))["method"] == ACKNOWLEDGED
            await desk.publish(ToolsListChanged())
            assert "list_changed" in (await socket_message(subscriber))["method"]
        await eventually(lambda: is_quiet(app))
        assert app.hub.statistics().unregistered == {"client-left": 1}
    assert running.logged() == []


async def test_the_server_stops_in_time_and_answers_who_listens() -> None:
    """With listeners, one of them stalled, a call in progress and a call nobody reads."""
    desk = Desk()
    app = McpApp(desk.server)
    async with (
        serving(app, stop_on_exit=False, grace=2.0) as running,
        connected(running) as listener,
        connected(running, receive_buffer=1024) as stalled,
        connected(running) as caller,
        connected(running, receive_buffer=1024) as flooded,
    ):
        for client in (listener, stalled):
            await client.send(as_posted(listening(3, toolsListChanged=True)))
        await caller.send(as_posted(calling("wait")))
        await flooded.send(as_posted(calling("flood")))
        subscriber = Subscriber(listener)
        assert (await socket_message(subscriber))["method"] == ACKNOWLEDGED
        with trio.fail_after(FAR):
            await desk.until(lambda: desk.running == 2 and desk.sent > 10)
        await eventually(lambda: len(app.hub.sessions) == 2)
        assert await running.stopped() < GRACE
        assert (await socket_message(subscriber))["result"]["_meta"][SUBSCRIPTION] == 3
        await subscriber.rest()
        assert subscriber.ended == "complete"
        assert b"shutting down" in await caller.to_end()
    assert not desk.running
    assert desk.notes[-1] == "lifespan over"
    assert app.hub.statistics().unregistered == {"drained": 2}


async def test_the_lifespan_opens_the_application(autojump_clock: trio.testing.MockClock) -> None:
    desk = Desk()
    async with lifespan(McpApp(desk.server)) as app:
        assert (await send(app, calling("echo"))).status == 200
    assert desk.notes[-1] == "lifespan over"
