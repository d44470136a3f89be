"""The application around the transports: where it is, and who may ask."""

from __future__ import annotations

import contextlib
import contextvars
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from mcp.server import MCPServer
from mcp_parts import Parts, call, initialize, rpc, said, serving
from starlette.applications import Starlette
from starlette.routing import Mount

from trio_sse import Access, Hub, Refused, Request
from trio_sse.mcp import McpApp
from trio_sse.mcp.testing import ACCEPT, HttpFailed, connect
from trio_sse.testing import lifespan, request

HEADERS = {"accept": ACCEPT}
LOCAL = {"server": ("127.0.0.1", 80)}


def test_the_core_does_without_the_sdk() -> None:
    code = "import sys, trio_sse, trio_sse.testing, trio_sse.cli; assert 'mcp' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class TestWhere:
    async def test_alone(self) -> None:
        app = McpApp(Parts().server)
        async with lifespan(app) as running, connect(running) as client:
            await client.request("ping")
            assert app.hub.state == "open"
        assert app.hub.state == "closed"

    async def test_the_servers_own_lifespan_is_around_it(self) -> None:
        parts = Parts()

        @contextlib.asynccontextmanager
        async def around(_: Any) -> AsyncIterator[dict[str, str]]:
            parts.log.append("starts")
            yield {"state": "made"}
            parts.log.append("stops")

        async def tool_state(ctx: Any) -> Any:
            return ctx.lifespan_context

        parts.tool_state = tool_state  # type: ignore[attr-defined]  # a tool of this test's
        parts.server.lifespan = around
        async with serving(parts) as (_, client, _):
            assert said(await client.request("tools/call", call("state"))) == {"state": "made"}
            assert parts.log == ["starts"]
        assert parts.log == ["starts", "stops"]

    async def test_the_other_kind_of_server(self) -> None:
        server = MCPServer("other")

        @server.tool()
        async def add(a: int, b: int) -> int:
            return a + b

        async with McpApp(server) as app, connect(app) as client:
            result = await client.request("tools/call", call("add", a=1, b=2))
            assert result["structuredContent"] == {"result": 3}

    @pytest.mark.parametrize(
        ("prefix", "path", "url"),
        [("/api", "/mcp", "/api/mcp"), ("/mcp", "/", "/mcp/"), ("/a/b", "/{tenant}/x", "/a/b/1/x")],
    )
    async def test_mounted(self, prefix: str, path: str, url: str) -> None:
        app = McpApp(Parts().server, path=path)

        @contextlib.asynccontextmanager
        async def parent_lifespan(_: Any) -> AsyncIterator[None]:
            async with app:
                yield

        parent = Starlette(routes=[Mount(prefix, app)], lifespan=parent_lifespan)
        async with lifespan(parent) as running:
            async with connect(running, url) as client:
                await client.request("ping")
            with pytest.raises(HttpFailed, match="403"):
                async with connect(running, url, headers={"host": "evil.example"}):
                    pass
            response = await request(running, "POST", f"{prefix}/elsewhere", headers=HEADERS)
            assert response.status == 404

    async def test_a_hub_that_somebody_else_keeps_open(self) -> None:
        async with Hub() as hub:
            async with McpApp(Parts().server, hub=hub) as app, connect(app):
                assert len(hub.sessions) == 1
            assert hub.state == "open"
            response = await request(app, "POST", "/mcp", headers=HEADERS, json=initialize())
            assert response.status == 503

    async def test_before_it_is_open(self) -> None:
        app = McpApp(Parts().server)
        response = await request(app, "POST", "/mcp", headers=HEADERS, json=initialize())
        assert response.status == 503

    async def test_other_methods(self) -> None:
        async with McpApp(Parts().server) as app:
            response = await request(app, "PUT", "/mcp", headers=HEADERS, json=initialize())
            assert response.status == 405
            assert response.headers["allow"] == "GET, POST, DELETE"

    @pytest.mark.parametrize("options", [{"path": "mcp"}, {"resource_metadata": {}}])
    def test_what_makes_no_sense(self, options: Any) -> None:
        with pytest.raises(ValueError, match="McpApp"):
            McpApp(Parts().server, **options)

    async def test_context_variables_of_middleware_reach_the_handler(self) -> None:
        variable = contextvars.ContextVar("variable", default="unset")
        parts = Parts()

        async def tool_variable(_ctx: Any) -> str:
            return variable.get()

        parts.tool_variable = tool_variable  # type: ignore[attr-defined]  # a tool of this test's
        async with McpApp(parts.server) as app:

            async def middleware(scope: Any, receive: Any, send: Any) -> None:
                variable.set(dict(scope["headers"]).get(b"x-test", b"none").decode())
                await app(scope, receive, send)

            async with connect(middleware, headers={"x-test": "set"}) as client:
                assert said(await client.request("tools/call", call("variable"))) == "set"


class TestWho:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"host": "127.0.0.1:8000"}, 200),
            ({"host": "localhost"}, 200),
            ({"host": "[::1]:80"}, 200),
            ({"host": "evil.example"}, 403),
            ({"host": "evil.example", "origin": "http://evil.example"}, 403),
            ({"origin": "http://127.0.0.1:8000"}, 200),
            ({"origin": "http://localhost:3000"}, 403),
            ({"origin": "null"}, 403),
        ],
    )
    async def test_hosts_and_origins(self, headers: dict[str, str], status: int) -> None:
        async with McpApp(Parts().server) as app:
            response = await request(
                app, "POST", "/mcp", headers={**HEADERS, **headers}, json=initialize()
            )
            assert response.status == status

    async def test_pages_that_are_let_in(self) -> None:
        access = Access(allowed_origins=("https://page.example",))
        async with McpApp(Parts().server, access=access) as app:
            origin = {"origin": "https://page.example"}
            asks = {
                "access-control-request-method": "POST",
                "access-control-request-headers": "mcp-session-id, mcp-param-city",
            }
            preflight = await request(app, "OPTIONS", "/mcp", headers={**origin, **asks})
            assert preflight.status == 204
            assert "DELETE" in preflight.headers["access-control-allow-methods"]
            allowed = preflight.headers["access-control-allow-headers"]
            assert allowed == "mcp-session-id, mcp-param-city"
            response = await request(
                app, "POST", "/mcp", headers={**HEADERS, **origin}, json=initialize()
            )
            assert response.headers["access-control-allow-origin"] == "https://page.example"
            assert "mcp-session-id" in response.headers["access-control-expose-headers"]
            other = {"origin": "https://other.example"}
            refused = await request(
                app, "POST", "/mcp", headers={**HEADERS, **other}, json=initialize()
            )
            assert refused.status == 403
            assert "access-control-allow-origin" not in refused.headers

    async def test_a_session_is_its_openers(self) -> None:
        async with serving(
            access=Access(authorize=authorize), headers={"authorization": "Bearer ann"}
        ) as (app, ann, _):
            result = said(await ann.request("tools/call", call("who")))
            assert result["identity"] == "ann"
            async with connect(app, headers={"authorization": "Bearer bob"}) as bob:
                bob.headers["mcp-session-id"] = ann.session_id or ""
                assert (await bob.post(rpc(1, "ping"))).status == 404
                assert (await bob.delete()).status == 404
                async with bob.listen() as stream:
                    assert stream.status == 404
                bob.headers["mcp-session-id"] = bob.session_id or ""
            await ann.request("ping")

    async def test_who_has_no_token_is_told_where_to_get_one(self) -> None:
        document = {
            "resource": "https://example.org/base/mcp",
            "authorization_servers": ["https://login.example.org"],
        }
        app = McpApp(Parts().server, access=Access(authorize=authorize), resource_metadata=document)
        async with app:
            refused = await request(app, "POST", "/mcp", headers=HEADERS, json=initialize())
            assert refused.status == 401
            where = "https://example.org/.well-known/oauth-protected-resource/base/mcp"
            assert refused.headers["www-authenticate"] == f'Bearer resource_metadata="{where}"'
            path = "/.well-known/oauth-protected-resource/base/mcp"
            found = await request(app, "GET", path)
            assert found.json() == {**document, "bearer_methods_supported": ["header"]}
            assert found.headers["access-control-allow-origin"] == "*"
            assert (await request(app, "HEAD", path)).body == b""
            assert (await request(app, "OPTIONS", path)).status == 204
            assert (await request(app, "POST", path)).status == 405

    async def test_a_token_for_all(self) -> None:
        access = Access(publish_token="t", subscribe_token="t")
        async with serving(access=access, headers={"authorization": "Bearer t"}) as (_, client, _):
            await client.request("ping")
            del client.headers["authorization"]
            assert (await client.post(rpc(1, "ping"))).status == 401
            client.headers["authorization"] = "Bearer t"


async def authorize(request: Request) -> str:
    await trio.lowlevel.checkpoint()
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme != "Bearer":
        raise Refused(401, "who are you?")
    return token
