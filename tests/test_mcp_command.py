"""``trio-sse mcp``, as a user runs it: a real process, and the SDK's own client."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import click
import httpx
import pytest
import trio
import trustme
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from test_cli import COMMAND, PATIENCE, Service, run

from trio_sse import Decoder
from trio_sse.cli._target import load_server

SERVER = """
import trio
from contextlib import asynccontextmanager
from mcp.server import MCPServer, Server
from mcp.server.mcpserver import Context


@asynccontextmanager
async def lifespan(_):
    print("lifespan: open", flush=True)
    yield {}
    print("lifespan: over", flush=True)


demo = MCPServer("demo", lifespan=lifespan)


@demo.tool()
async def count(to: int, ctx: Context) -> str:
    for number in range(to):
        await ctx.report_progress(number, to)
    return str(to)


@demo.tool()
async def wait(seconds: float, ctx: Context) -> str:
    await ctx.report_progress(0)
    await trio.sleep(seconds)
    return "waited"


low = Server("low")
many = {"low": low}
not_one = 5
"""
# The SDK's client leaves its generators to the collector.
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

ACCEPT = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "demos.py").write_text(SERVER)
    return tmp_path


@contextmanager
def serving(folder: Path, *args: str, target: str = "demos:demo", **env: str) -> Iterator[Service]:
    """The command on a free port; ``url`` is where clients are served."""
    bind = [] if "--bind" in args else ["--bind", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*COMMAND, "mcp", target, *bind, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **env},
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"trio-sse serves (\w+) at (https?://[^/]+)(\S*)", line):
                break
        else:
            raise AssertionError(f"did not start: {lines}")
        service = Service(process, found[2])
        service.events = found[2] + found[3]
        yield service
    finally:
        process.kill()
        process.communicate()


def refused(folder: Path, *args: str, **env: str) -> str:
    """What the command says and does not run."""
    result = subprocess.run(
        [*COMMAND, "mcp", *args],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=folder,
        env={**os.environ, **env},
        check=False,
    )
    assert result.returncode in (1, 2), result.stderr
    return result.stderr


@asynccontextmanager
async def connected(url: str, **headers: str) -> AsyncIterator[ClientSession]:
    """The SDK's client, with a session of 2025-11-25."""
    with trio.fail_after(PATIENCE):
        async with (
            httpx.AsyncClient(headers=headers, trust_env=False, timeout=PATIENCE) as http,
            streamable_http_client(url, http_client=http) as (read, write, *_),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            yield client


def post(url: str, message: Any, **headers: str) -> tuple[int, dict[str, str], str]:
    answer = httpx.post(
        url, json=message, headers={**ACCEPT, **headers}, timeout=PATIENCE, trust_env=False
    )
    return answer.status_code, dict(answer.headers), answer.text


def rpc(method: str, id: int = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


INITIALIZE = rpc(
    "initialize",
    protocolVersion="2025-11-25",
    capabilities={},
    clientInfo={"name": "<b>probe</b>", "version": "7"},
)


def opened(url: str) -> dict[str, str]:
    """A session of 2025-11-25; the header that names it."""
    status, headers, _ = post(url, INITIALIZE)
    assert status == 200
    session = {"mcp-session-id": headers["mcp-session-id"]}
    note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert post(url, note, **session)[0] == 202
    return session


# Serving.


async def test_the_sdks_client_calls_a_tool(folder: Path) -> None:
    with serving(folder) as service:
        progress: list[float] = []

        async def on_progress(done: float, total: float | None, message: str | None) -> None:
            progress.append(done)

        async with connected(service.events) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["count", "wait"]
            result = await client.call_tool("count", {"to": 3}, progress_callback=on_progress)
            assert result.content[0].text == "3"  # type: ignore[union-attr]  # it is text
        assert progress == [0, 1, 2]
        code, err = service.stop()
        assert code == 0
        assert "drained: 1 sessions in all" in err
        assert "Traceback" not in err


def test_a_file_in_another_folder_and_the_other_kind_of_server(folder: Path) -> None:
    elsewhere = folder / "empty"
    elsewhere.mkdir()
    with serving(elsewhere, "--path", "/deep/down", target=f"{folder}/demos.py:low") as service:
        assert service.events.endswith("/deep/down")
        status, _, body = post(service.events, INITIALIZE)
        assert (status, json.loads(body)["result"]["serverInfo"]["name"]) == (200, "low")
        assert post(f"{service.url}/mcp", INITIALIZE)[0] == 404


async def test_who_listens_and_who_waits_are_answered_when_it_stops(folder: Path) -> None:
    with serving(folder, "--grace", "30") as service:
        session = opened(service.events)
        async with (
            httpx.AsyncClient(
                headers={**ACCEPT, **session}, timeout=PATIENCE, trust_env=False
            ) as http,
            http.stream("GET", service.events) as own,
        ):
            assert own.status_code == 200
            wait = rpc("tools/call", 2, name="wait", arguments={"seconds": 1})
            wait["params"]["_meta"] = {"progressToken": 1}
            async with http.stream("POST", service.events, json=wait) as call:
                chunks = call.aiter_raw()
                decoder = Decoder()
                events = []
                while not any(event.data for event in events):
                    events += decoder.feed(await chunks.__anext__())
                service.process.send_signal(signal.SIGTERM)
                async for chunk in chunks:
                    events += decoder.feed(chunk)
                answer = json.loads(events[-1].data or "")
                assert answer["result"]["content"][0]["text"] == "waited"
            async for _ in own.aiter_raw():
                pass  # to the proper end of the response, or this raises
        out, err = service.process.communicate(timeout=PATIENCE)
        assert service.process.returncode == 0
        assert out.splitlines() == ["lifespan: open", "lifespan: over"]
        assert "draining: 1 session" in err
        assert "Traceback" not in err


async def test_a_token_for_clients_and_for_the_console(folder: Path) -> None:
    with serving(folder, TRIO_SSE_MCP_TOKEN="hush") as service:
        for wrong in ({}, {"authorization": "Bearer hus"}, {"authorization": "Basic hush"}):
            status, headers, body = post(service.events, INITIALIZE, **wrong)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert "Authorization: Bearer TOKEN" in body
        assert post(f"{service.events}?access_token=hush", INITIALIZE)[0] == 401
        async with connected(service.events, authorization="Bearer hush") as client:
            assert (await client.list_tools()).tools
        assert status_of(f"{service.url}/console/stream") == 401
        _, page = service.get("/")
        assert 'content="subscribe publish"' in page
        code, err = service.stop()
        assert code == 0
        assert "hush" not in err


def status_of(url: str, **headers: str) -> int:
    try:
        with urlopen(Request(url, headers=headers), timeout=PATIENCE) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def test_the_console_shows_sessions_and_ends_one(folder: Path) -> None:
    with serving(folder) as service:
        session = opened(service.events)
        _, page = service.get("/")
        assert '<meta name="trio-sse-clients" content="mcp">' in page
        decoder = Decoder()
        with urlopen(f"{service.url}/console/stream", timeout=PATIENCE) as stream:
            events: list[Any] = []
            while not any(event.type == "status" for event in events):
                events += decoder.feed(stream.read1())
        status = next(json.loads(event.data) for event in events if event.type == "status")
        [row] = [row for row in status["sessions"] if not row["console"]]
        assert session["mcp-session-id"].startswith(row["id"])
        assert row["about"] == "<b>probe</b> 7 · 2025-11-25"
        assert row["client"].startswith("127.0.0.1")
        end = Request(f"{service.url}/console/sessions/{row['id']}", method="DELETE")
        with urlopen(end, timeout=PATIENCE) as response:
            assert response.status == 204
        assert post(service.events, rpc("ping"), **session)[0] == 404
        _, metrics = service.get("/metrics")
        assert 'trio_sse_sessions_unregistered_total{reason="application"} 1.0' in metrics
        assert json.loads(service.get("/healthz")[1])["status"] == "ok"


def test_without_sessions(folder: Path) -> None:
    with serving(folder, "--stateless", "--answers", "json", "--no-console") as service:
        status, headers, body = post(service.events, INITIALIZE)
        assert (status, headers["content-type"]) == (200, "application/json")
        assert "mcp-session-id" not in headers
        assert json.loads(body)["result"]["protocolVersion"] == "2025-11-25"
        assert status_of(f"{service.url}/") == 404
        call = rpc("tools/call", 2, name="count", arguments={"to": 1})
        assert "1" in json.loads(post(service.events, call)[2])["result"]["content"][0]["text"]


async def test_clients_of_2024_11_05(folder: Path) -> None:
    with serving(folder, "--legacy") as service, trio.fail_after(PATIENCE):
        async with (
            sse_client(f"{service.url}/sse") as (read, write),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            result = await client.call_tool("count", {"to": 1})
            assert result.content[0].text == "1"  # type: ignore[union-attr]  # it is text


def test_limits(folder: Path) -> None:
    args = ["--max-sessions", "1", "--max-body", "1000", "--idle", "0.2"]
    with serving(folder, *args) as service:
        large = rpc("ping", filler="x" * 1000)
        assert post(service.events, large)[0] == 413
        session = opened(service.events)
        status, headers, _ = post(service.events, INITIALIZE)
        assert (status, headers["retry-after"]) == (503, "5")
        assert service.process.stderr is not None
        while "idle for 0.2 s" not in service.process.stderr.readline():
            pass
        assert post(service.events, rpc("ping"), **session)[0] == 404
        opened(service.events)


def test_hosts_and_pages(folder: Path) -> None:
    allowed = ["--allow-origin", "https://app.example.org", "--allow-host", "mcp.example.org"]
    with serving(folder, *allowed) as service:
        here = {"host": "mcp.example.org"}
        assert post(service.events, INITIALIZE)[0] == 403
        assert post(service.events, INITIALIZE, **here)[0] == 200
        page = {**here, "origin": "https://app.example.org"}
        status, headers, _ = post(service.events, INITIALIZE, **page)
        assert (status, headers["access-control-allow-origin"]) == (200, page["origin"])
        assert "mcp-session-id" in headers["access-control-expose-headers"]
        elsewhere = {**here, "origin": "https://evil.example.org"}
        assert post(service.events, INITIALIZE, **elsewhere)[0] == 403


def test_tls(folder: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    with serving(folder, "--certfile", "cert.pem", "--keyfile", "key.pem") as service:
        assert service.events.startswith("https://")
        with authority.cert_pem.tempfile() as path:
            answer = httpx.post(
                service.events, json=INITIALIZE, headers=ACCEPT, verify=_trusting(path)
            )
        assert answer.status_code == 200


def _trusting(path: str) -> Any:
    return ssl.create_default_context(cafile=path)


def test_settings_come_from_a_file_and_the_environment(folder: Path) -> None:
    (folder / "mcp.toml").write_text("path = '/from-file'\nstateless = true\nidle = 'none'\n")
    with serving(folder, "--config", "mcp.toml", TRIO_SSE_MCP_STATELESS="false") as service:
        assert service.events.endswith("/from-file")
        assert opened(service.events)
    (folder / "mcp.toml").write_text("statless = true")
    assert "did you mean 'stateless'?" in refused(folder, "demos:demo", "--config", "mcp.toml")


def test_ids_tell_the_node(folder: Path) -> None:
    with serving(folder, "--node", "b", "--legacy") as service:
        one, other = (opened(service.events)["mcp-session-id"] for _ in range(2))
        assert re.fullmatch(r"[\w-]{22}-b", one)
        assert one != other
        with urlopen(f"{service.url}/sse", timeout=PATIENCE) as stream:
            assert re.search(rb"data: /message\?sessionId=[\w-]{22}-b\n", stream.read1())


# Refusing.


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nope:server"], "there is no module 'nope'"),
        (["demos.nope:server"], "there is no module 'demos.nope'"),
        (["nope.py:server"], "there is no file nope.py"),
        ([":server"], "is no module"),
        (["demos:nope"], "It has demos:demo, demos:low"),
        (["demos"], "which server? It has demos:demo, demos:low"),
        (["demos:not_one"], "no MCP server but of type int"),
        (["json"], "It has no server of the SDK's"),
        (["broken:server"], "NameError: name 'undefined' is not defined"),
        (["needy:server"], "No module named 'not_there'"),
        (["wrapped:app"], "trio_sse.serve; here, name what it is made of. It has wrapped:inner"),
        (["guarded:server"], "access=Access(authorize=...)"),
        (["demos:demo", "--path", "mcp"], "a path begins with a slash"),
        (["demos:demo", "--path", "/metrics"], "/metrics is taken"),
        (["demos:demo", "--node", "b c"], "letters and digits"),
        (["demos:demo", "--certfile", "demos.py"], "TLS needs both"),
        (["demos:demo", "--bind", "127.0.0.1:99999"], "choose another place with --bind"),
        (["demos:demo", "--bind", "0.0.0.0:0"], "TRIO_SSE_MCP_TOKEN=... trio-sse mcp demos:demo"),
        (["demos:demo", "--allow-origin", "example.org"], "an origin is scheme and host"),
        (["failing:server"], "lifespan failed"),
        ([], "Missing argument 'MODULE:SERVER'"),
    ],
    ids=str,
)
def test_errors_say_what_to_do(folder: Path, args: list[str], says: str) -> None:
    (folder / "broken.py").write_text("server = undefined")
    (folder / "needy.py").write_text("import not_there")
    (folder / "wrapped.py").write_text(
        "from mcp.server import Server\nfrom trio_sse.mcp import McpApp\n"
        "inner = Server('inner')\napp = McpApp(inner)"
    )
    (folder / "guarded.py").write_text(GUARDED)
    (folder / "failing.py").write_text(
        "from contextlib import asynccontextmanager\nfrom mcp.server import Server\n"
        "@asynccontextmanager\nasync def lifespan(_):\n    raise OSError('no database')\n"
        "    yield\n"
        "server = Server('failing', lifespan=lifespan)"
    )
    said = refused(folder, *args)
    assert says in " ".join(said.split()), said
    assert "click" not in said


GUARDED = """
from mcp.server import MCPServer
from mcp.server.auth.settings import AuthSettings


class Verifier:
    async def verify_token(self, token):
        return None


server = MCPServer(
    "guarded",
    token_verifier=Verifier(),
    auth=AuthSettings(issuer_url="https://a.example.org", resource_server_url="https://b.example.org"),
)
"""


def test_the_extra_is_asked_for(folder: Path) -> None:
    """The command is there without it, with its help."""
    (folder / "mcp").mkdir()
    (folder / "mcp" / "__init__.py").write_text("raise ModuleNotFoundError('no mcp', name='mcp')")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    assert "pip install 'trio-sse[mcp]'" in refused(folder, "demos:demo", PYTHONPATH=path)
    assert "MODULE:SERVER" in run("mcp", "--help", PYTHONPATH=path).stdout


def test_an_anyone_server_is_said_to_be_meant(folder: Path) -> None:
    with serving(folder, "--bind", "0.0.0.0:0", "--no-auth") as service:
        port = service.url.rpartition(":")[2]
        assert post(f"http://127.0.0.1:{port}/mcp", INITIALIZE)[0] == 200


def test_a_module_is_found_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(click.UsageError, match="which server"):
        load_server("demos")
    assert load_server("demos:low").name == "low"
    monkeypatch.delitem(sys.modules, "demos")
