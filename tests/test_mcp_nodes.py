"""`docs/nginx-mcp.conf` as it stands, run by Debian's nginx: two nodes, and what belongs where."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from _parts import PARTS, require
from mcp_desk import headers_for, message
from test_cli import COMMAND, PATIENCE, free_port
from test_mcp_command import ACCEPT, INITIALIZE, SERVER, rpc
from test_nginx import ROOM_FOR_ALL

pytestmark = [pytest.mark.exhaustive, pytest.mark.nginx, pytest.mark.timeout(120)]

CONFIG = Path(__file__).parent.parent / "docs" / "nginx-mcp.conf"
NAME = "mcp.example.org"


@contextmanager
def started(command: list[str], until: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd)
    assert process.stderr is not None
    try:
        while until not in (line := process.stderr.readline()):
            assert line, "it did not start"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A client of both nodes, which are started as the comment in the configuration says.

    And the process of the second.
    """
    (tmp_path / "notes.py").write_text(SERVER.replace("demo =", "server = demo ="))
    text = CONFIG.read_text("utf-8")
    commands = re.findall(r"#   trio-sse (mcp .*)", text)
    assert len(commands) == 2
    port, nodes = free_port(), {8001: free_port(), 8002: free_port()}
    authority = trustme.CA()
    certificate = authority.issue_cert(NAME, "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "chain.pem"))
    changes = {
        "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
        f"/etc/ssl/{NAME}/fullchain.pem": f"{tmp_path}/chain.pem",
        f"/etc/ssl/{NAME}/key.pem": f"{tmp_path}/key.pem",
        **{f":{old};": f":{new};" for old, new in nodes.items()},
    }
    for here, there in changes.items():
        assert here in text
        text = text.replace(here, there)
    (tmp_path / "site.conf").write_text(text)
    room = ROOM_FOR_ALL.format(folder=tmp_path)
    (tmp_path / "nginx.conf").write_text(room)
    [(program, how_to_get)] = PARTS["nginx"].items()
    nginx = [require(program, how_to_get), "-e", "stderr", "-p", str(tmp_path), "-c", "nginx.conf"]
    bound = [re.sub(r"800\d", lambda found: str(nodes[int(found[0])]), each) for each in commands]
    first, second = ([*COMMAND, *each.split(), "--legacy"] for each in bound)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        started(first, "trio-sse serves", tmp_path),
        started(second, "trio-sse serves", tmp_path) as process,
        started(nginx, "event method", tmp_path),
        httpx.Client(
            base_url=f"https://127.0.0.1:{port}",
            headers={"host": f"{NAME}:{port}", **ACCEPT},
            verify=context,
            timeout=PATIENCE,
            trust_env=False,
        ) as client,
    ):
        yield client, process


@pytest.fixture
def client(site: tuple[httpx.Client, subprocess.Popen[str]]) -> httpx.Client:
    return site[0]


def ask(client: httpx.Client, message: Any, **headers: str) -> httpx.Response:
    return client.post("/mcp", json=message, headers=headers)


def test_each_session_stays_with_its_node(client: httpx.Client) -> None:
    sessions = []
    for _ in range(6):
        answer = ask(client, INITIALIZE)
        assert answer.status_code == 200
        sessions.append({"mcp-session-id": answer.headers["mcp-session-id"]})
    assert {session["mcp-session-id"][-2:] for session in sessions} == {"-a", "-b"}
    for _ in range(3):
        for session in sessions:
            assert ask(client, rpc("ping"), **session).status_code == 200
    end = client.delete("/mcp", headers=sessions[0])
    assert end.status_code == 204
    assert ask(client, rpc("ping"), **sessions[0]).status_code == 404


def test_a_session_ends_with_its_node(
    site: tuple[httpx.Client, subprocess.Popen[str]],
) -> None:
    client, second = site
    while True:
        session = ask(client, INITIALIZE).headers["mcp-session-id"]
        if session.endswith("-b"):
            break
    second.terminate()
    assert second.wait(PATIENCE) == 0
    assert ask(client, rpc("ping"), **{"mcp-session-id": session}).status_code == 404
    answer = ask(client, INITIALIZE)
    assert (answer.status_code, answer.headers["mcp-session-id"][-2:]) == (200, "-a")


def test_without_a_session_any_node_answers(client: httpx.Client) -> None:
    for _ in range(4):
        listing = message("tools/list")
        answer = ask(client, listing, **headers_for(listing))
        assert answer.status_code == 200
        assert len(answer.json()["result"]["tools"]) == 2


def test_clients_of_2024_11_05_post_to_their_node(client: httpx.Client) -> None:
    nodes = set()
    for _ in range(4):
        with client.stream("GET", "/sse") as stream:
            chunks = stream.iter_raw()
            url = re.search(rb"data: (\S+-([ab]))\n", next(chunks))
            assert url is not None
            nodes.add(url[2])
            post = client.post(url[1].decode(), json=INITIALIZE)
            assert post.status_code == 202
            answer = re.search(rb"data: (.+)\n", next(chunks))
            assert answer is not None
            assert json.loads(answer[1])["result"]["serverInfo"]["name"] == "demo"
    assert nodes == {b"a", b"b"}
