"""What an application does with its sessions beside answering: tell, offer, watch, end."""

from __future__ import annotations

from typing import Any

import mcp_desk as desk
import mcp_types as types
import pytest
import trio
from mcp.server import MCPServer, Server
from mcp.server.mcpserver import Context
from mcp.server.subscriptions import InMemorySubscriptionBus, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_parts import OPEN, Parts, call, said, serving, text

from trio_sse import EndReason, Hooks, Hub
from trio_sse.mcp import Call, McpApp, RequestHooks
from trio_sse.mcp.testing import RequestFailed, connect


async def own_tool(_ctx: Any, params: Any) -> Any:
    return text({"own": params.name})


def tool(name: str) -> types.Tool:
    return types.Tool(name=name, input_schema=OPEN)


class TestTelling:
    async def test_one(self) -> None:
        async with serving() as (app, client, _), connect(app) as other, client.listen() as stream:
            assert app.send(client.session_id or "", "notifications/x", {"a": 1}) == "sent"
            assert app.send(other.session_id or "", "notifications/y") == "kept"
            assert app.send("made-up", "notifications/x") == "lost"
            found = await client.receive(stream)
            assert found == {"jsonrpc": "2.0", "method": "notifications/x", "params": {"a": 1}}
            app.notify_all("notifications/z")
            assert (await client.receive(stream))["method"] == "notifications/z"

    async def test_all_and_those_that_pass(self) -> None:
        async with serving() as (app, a, _), connect(app) as b, connect(app) as c:
            ids = [client.session_id or "" for client in (a, b, c)]
            async with a.listen():
                told = app.notify_all("notifications/x")
                assert (told.sent, told.kept, told.lost) == ((ids[0],), (ids[1], ids[2]), ())
                told = app.notify_all("notifications/x", where=lambda s: s.id == ids[1])
                assert (told.sent, told.kept, told.lost) == ((), (ids[1],), ())

    async def test_one_that_has_ended_or_is_not_initialised(self) -> None:
        async with serving() as (app, client, _):
            (session,) = app.sessions.values()
            await client.delete()
            assert session.notify("notifications/x") == "lost"

    async def test_ending(self) -> None:
        async with serving() as (app, client, _), connect(app), connect(app):
            assert app.end(client.session_id or "", "enough")
            assert not app.end("made-up", "enough")
            await trio.testing.wait_all_tasks_blocked()
            assert len(app.sessions) == 2
            assert app.end_all(EndReason.REPLACED) == 2
            await trio.testing.wait_all_tasks_blocked()
            assert not app.sessions
            assert app.hub.statistics().unregistered == {"application": 1, "replaced": 2}


class TestSubscriptions:
    """To resources, and to what changes: in the revisions with sessions and without."""

    @staticmethod
    def server() -> tuple[Any, Any]:
        server: Any = MCPServer("notes")
        notes: dict[str, str] = {"a": "1"}

        @server.resource("note://{name}")
        def note(name: str) -> str:
            return notes[name]

        @server.tool()
        async def write(note: str, text: str, ctx: Context) -> str:
            notes[note] = text
            await ctx.notify_resource_updated(f"note://{note}")
            await ctx.notify_resources_changed()
            return "written"

        return server, notes

    async def test_who_has_subscribed_is_told(self) -> None:
        app = McpApp(self.server()[0])
        async with app, connect(app) as client, connect(app) as other:
            assert client.server["capabilities"]["resources"]["subscribe"] is True
            await client.request("resources/subscribe", {"uri": "note://a"})
            mine = app.sessions[client.session_id or ""]
            assert mine.subscriptions == {"note://a"}
            async with client.listen() as stream:
                assert app.notify_updated("note://a").sent == (mine.id,)
                assert app.notify_updated("note://b").sent == ()
                await other.request("tools/call", call("write", note="a", text="2"))
                found = [await client.receive(stream) for _ in range(3)]
                assert [message["method"].rpartition("/")[2] for message in found] == [
                    "updated",
                    "updated",
                    "list_changed",
                ]
                assert found[1]["params"] == {"uri": "note://a"}
                await client.request("resources/unsubscribe", {"uri": "note://a"})
                assert app.notify_updated("note://a").sent == ()

    async def test_they_are_bounded(self) -> None:
        app = McpApp(self.server()[0])
        async with app, connect(app) as client:
            (session,) = app.sessions.values()
            with pytest.raises(RequestFailed, match="more than 4096"):
                await client.request("resources/subscribe", {"uri": f"note://{'a' * 4096}"})
            session.subscriptions |= {f"note://{number}" for number in range(1024)}
            with pytest.raises(RequestFailed, match="more than 1024"):
                await client.request("resources/subscribe", {"uri": "note://a"})

    async def test_a_servers_own_handlers_are_asked_too(self) -> None:
        asked: list[str] = []

        async def note(_ctx: Any, params: Any) -> types.EmptyResult:
            asked.append(str(params.uri))
            if "secret" in str(params.uri):
                raise MCPError(types.INVALID_PARAMS, "not for you")
            return types.EmptyResult()

        async def nothing(_ctx: Any, _params: Any) -> Any:
            raise AssertionError

        server: Any = Server(
            "own",
            on_read_resource=nothing,
            on_list_resources=nothing,
            on_subscribe_resource=note,
            on_unsubscribe_resource=note,
        )
        app = McpApp(server)
        async with app, connect(app) as client:
            (session,) = app.sessions.values()
            await client.request("resources/subscribe", {"uri": "x://a"})
            with pytest.raises(RequestFailed, match="not for you"):
                await client.request("resources/subscribe", {"uri": "x://secret"})
            assert session.subscriptions == {"x://a"}
            await client.request("resources/unsubscribe", {"uri": "x://a"})
            assert (session.subscriptions, asked) == (set(), ["x://a", "x://secret", "x://a"])

    async def test_without_resources_there_is_nothing_to_subscribe_to(self) -> None:
        async with serving() as (_, client, _):
            with pytest.raises(RequestFailed, match="not found"):
                await client.request("resources/subscribe", {"uri": "x://a"})

    async def test_those_without_a_session_are_told_as_well(self) -> None:
        app = McpApp(self.server()[0])
        wanted = {"resourceSubscriptions": ["note://a"], "resourcesListChanged": True}
        listen = desk.message("subscriptions/listen", 7, notifications=wanted)
        async with app, desk.sending(app, listen) as stream:
            acknowledged = await desk.next_message(stream)
            assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
            assert len(app.notify_updated("note://a").sent) == 1
            assert app.notify_updated("note://b").sent == ()
            assert len(app.notify_all("notifications/resources/list_changed").sent) == 1
            assert app.notify_all("notifications/tools/list_changed").sent == ()
            nobody = app.notify_all("notifications/resources/list_changed", where=lambda _: True)
            assert nobody.sent == ()
            await desk.send(app, desk.calling("write", note="a", text="2"))
            methods = [(await desk.next_message(stream))["method"] for _ in range(4)]
            assert [method.rpartition("/")[2] for method in methods] == [
                *("updated", "list_changed"),
                *("updated", "list_changed"),  # each once: what the server publishes itself
            ]

    async def test_a_bus_is_left_when_the_application_closes(self) -> None:
        bus = InMemorySubscriptionBus()
        app = McpApp(Parts().server, changes=bus)
        async with app, connect(app) as client, client.listen() as stream:
            await bus.publish(ToolsListChanged())
            assert (await client.receive(stream))["method"] == "notifications/tools/list_changed"
        assert not bus._listeners


class TestOffers:
    async def test_tools_of_one_session(self) -> None:
        async with serving() as (app, client, _), connect(app) as other:
            session = app.sessions[client.session_id or ""]
            async with client.listen() as stream:
                session.offers.add_tool(tool("mine"), own_tool)
                session.offers.add_tool(tool("echo"), own_tool)
                changed = await client.receive(stream)
                assert changed["method"] == "notifications/tools/list_changed"
            mine = [tool["name"] for tool in (await client.request("tools/list"))["tools"]]
            theirs = [tool["name"] for tool in (await other.request("tools/list"))["tools"]]
            assert sorted(mine) == sorted([*theirs, "mine"])
            assert said(await client.request("tools/call", call("mine"))) == {"own": "mine"}
            assert said(await client.request("tools/call", call("echo", a=1))) == {"own": "echo"}
            assert said(await other.request("tools/call", call("echo", a=1))) == {"a": 1}
            session.offers.remove_tool("echo")
            assert said(await client.request("tools/call", call("echo", a=1))) == {"a": 1}
            with pytest.raises(KeyError):
                session.offers.remove_tool("echo")

    async def test_prompts_and_resources_that_the_server_has_not(self) -> None:
        hooks = Hooks()

        @hooks.on_register
        def offer(session: Any) -> None:
            mine = app.session_of(session)
            assert mine is not None
            mine.offers.add_prompt(types.Prompt(name="p"), get_prompt)
            mine.offers.add_resource(types.Resource(name="r", uri="x://r"), read)
            template = types.ResourceTemplate(name="t", uri_template="x://t/{name}")
            mine.offers.add_template(template, read)

        async def get_prompt(_ctx: Any, params: Any) -> Any:
            return types.GetPromptResult(messages=[], description=params.name)

        async def read(_ctx: Any, params: Any) -> Any:
            contents = types.TextResourceContents(uri=params.uri, text="read")
            return types.ReadResourceResult(contents=[contents])

        app = McpApp(Parts().server, hub=Hub(hooks=hooks))
        async with app, connect(app) as client:
            assert client.server["capabilities"]["prompts"] == {"listChanged": True}
            assert client.server["capabilities"]["resources"] == {
                "listChanged": True,
                "subscribe": True,
            }
            assert [p["name"] for p in (await client.request("prompts/list"))["prompts"]] == ["p"]
            assert (await client.request("prompts/get", {"name": "p"}))["description"] == "p"
            (listed,) = (await client.request("resources/list"))["resources"]
            assert listed["uri"] == "x://r"
            (listed,) = (await client.request("resources/templates/list"))["resourceTemplates"]
            assert listed["uriTemplate"] == "x://t/{name}"
            for uri in ("x://r", "x://t/any"):
                result = await client.request("resources/read", {"uri": uri})
                assert result["contents"][0]["uri"] == uri
            with pytest.raises(RequestFailed):
                await client.request("resources/read", {"uri": "x://none"})


class TestLogLevel:
    async def test_each_session_has_its_own(self) -> None:
        levels = ["debug", "info", "warning", "emergency"]

        async def logged(client: Any) -> list[str]:
            client.received.clear()
            await client.request("tools/call", call("log", levels=levels))
            return [message["params"]["level"] for message in client.received]

        async with serving() as (app, client, _), connect(app) as other:
            assert client.server["capabilities"]["logging"] == {}
            assert await logged(client) == levels
            await client.request("logging/setLevel", {"level": "warning"})
            assert await logged(client) == ["warning", "emergency"]
            assert await logged(other) == levels
            told = app.notify_all("notifications/message", {"level": "info", "data": 1})
            assert told.unwanted == (client.session_id,)
            assert told.kept == (other.session_id,)

    async def test_one_that_there_is_not(self) -> None:
        async with serving() as (_, client, _):
            with pytest.raises(RequestFailed):
                await client.request("logging/setLevel", {"level": "loud"})


class TestHooks:
    async def test_around_requests(self) -> None:
        hooks = RequestHooks()
        log: list[Any] = []

        @hooks.before
        async def before(call: Call) -> None:
            log.append(("before", call.method))
            if call.params and call.params.get("name") == "wait":
                raise MCPError(-32001, "not today")

        @hooks.on_success
        def success(call: Call, result: dict[str, Any]) -> None:
            log.append(("success", call.method, sorted(result)))

        @hooks.on_error
        def error(call: Call, exc: Exception) -> None:
            log.append(("error", call.method, str(exc)))

        async with serving(hooks=hooks) as (_, client, parts):
            del log[:]
            await client.request("ping")
            with pytest.raises(RequestFailed, match="on purpose"):
                await client.request("tools/call", call("fail"))
            with pytest.raises(RequestFailed, match="not today"):
                await client.request("tools/call", call("wait"))
            assert parts.log == []
        assert log == [
            ("before", "ping"),
            ("success", "ping", []),
            ("before", "tools/call"),
            ("error", "tools/call", "on purpose"),
            ("before", "tools/call"),
            ("error", "tools/call", "not today"),
        ]

    async def test_they_know_the_session_and_the_request(self) -> None:
        hooks = RequestHooks()
        seen: list[Call] = []
        hooks.before(seen.append)
        async with serving(hooks=hooks, headers={"x-test": "t"}) as (app, client, _):
            await client.request("ping")
            assert seen[-1].session is app.sessions[client.session_id or ""]
            assert seen[-1].request.headers["x-test"] == "t"

    async def test_one_that_fails_is_logged_and_changes_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        hooks = RequestHooks()

        @hooks.on_success
        def fails(_call: Call, _result: Any) -> None:
            raise ValueError("the hook's")

        async with serving(hooks=hooks) as (_, client, _):
            await client.request("ping")
        assert "the hook's" in caplog.text

    async def test_around_sessions(self) -> None:
        hooks = Hooks()
        log: list[Any] = []

        @hooks.on_register
        def register(session: Any) -> None:
            mine = app.session_of(session)
            assert mine is not None
            log.append(("register", mine.request.headers["x-test"]))

        @hooks.on_unregister
        def unregister(session: Any, reason: EndReason) -> None:
            mine = app.session_of(session)
            assert mine is not None
            assert mine.client_info is not None
            log.append(("unregister", mine.client_info.name, reason.kind))

        app = McpApp(Parts().server, hub=Hub(hooks=hooks))
        async with app, connect(app, headers={"x-test": "t"}):
            assert log == [("register", "t")]
        assert log[1:] == [("unregister", "trio_sse.mcp.testing", "client-left")]


class TestWhatASessionKnows:
    async def test_of_its_client(self) -> None:
        async with serving(capabilities={"roots": {}}, headers={"x-test": "t"}) as (app, client, _):
            (session,) = app.sessions.values()
            assert session.id == client.session_id
            assert session.protocol_version == "2025-11-25"
            assert session.client_info is not None
            assert session.client_info.name == "trio_sse.mcp.testing"
            assert session.client_capabilities is not None
            assert session.client_capabilities.roots is not None
            assert session.request.headers["x-test"] == "t"
            assert session.session is app.hub.sessions[session.id]
            assert "2025-11-25" in repr(session)
            assert "1 sessions" in repr(app)

    async def test_each_request_brings_its_own(self) -> None:
        async with serving(headers={"x-test": "first"}) as (_, client, _):
            client.headers["x-test"] = "second"
            assert said(await client.request("tools/call", call("who")))["header"] == "second"
