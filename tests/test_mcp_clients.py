"""Clients as they are released, against a server of ours, and the table of what they do there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import pytest
from mcp_real import matrix
from mcp_real.harness import Proxy, require_node, scripts, served
from mcp_real.matrix import CLIENTS, HEAD, PAGE

pytestmark = [pytest.mark.mcp_real, pytest.mark.timeout(300)]

PATIENCE = 10.0
WRITE = "TRIO_SSE_WRITE_PAGE"
"""The environment variable that has these tests write the page instead of comparing it."""


STATELESS = "2026-07-28"
LISTENERS = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {
        "name": "test_listeners",
        "arguments": {},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": STATELESS,
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    },
}


def what_is_left(origin: str, proxy: Proxy, *, expected: bool) -> list[str]:
    """The sessions that are still known, and whether somebody listens.

    It looks again for a while if nothing, or something, is expected and that is not so.
    """
    headers = {"accept": "application/json, text/event-stream"}
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}

    def is_known(session_id: str) -> bool:
        of_session = {"mcp-session-id": session_id, "mcp-protocol-version": "2025-11-25"}
        answer = httpx.post(f"{origin}/mcp", json=ping, headers={**headers, **of_session})
        return answer.status_code != 404

    def is_open(path: str) -> bool:
        return httpx.post(f"{origin}{path}", json=ping, headers=headers).status_code != 404

    give_up_at = time.monotonic() + PATIENCE
    while True:
        left = [id for id in dict.fromkeys(proxy.session_ids) if is_known(id)]
        left += [path for path in proxy.message_paths if is_open(path)]
        if bool(left) == expected or time.monotonic() > give_up_at:
            break
        time.sleep(0.05)
    mirrored = {
        "mcp-protocol-version": STATELESS,
        "mcp-method": "tools/call",
        "mcp-name": "test_listeners",
    }
    answer = httpx.post(f"{origin}/mcp", json=LISTENERS, headers={**headers, **mirrored})
    [content] = answer.json()["result"]["content"]
    return left if content["text"] == "0" else [*left, f"{content['text']} that listen"]


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_can_do_what_the_table_says(name: str, tmp_path: Path) -> None:
    node = require_node()
    client = CLIENTS[name]
    with served("trio_sse.serve", tmp_path) as server:
        proxy = Proxy(server.port, cut_after=b"cut here")
        lines = client.lines(node, scripts(tmp_path, node), proxy)
        proxy.close()
        said = {line["feature"]: line for line in lines}
        stays = "none" in said.get("end", {})
        left = what_is_left(server.origin, proxy, expected=stays)
    told = "\n".join(map(str, lines))
    assert list(said) == list(matrix.FEATURES), told
    assert [line for line in lines if not line.get("ok", "none" in line)] == [], told
    assert (proxy.cuts > 0) == ("ok" in said["resume"]), told
    assert bool(left) == stays, left
    row = matrix.row(client, node, lines)
    if os.environ.get(WRITE):
        PAGE.write_text(matrix.put_row(PAGE.read_text("utf-8"), client, row), "utf-8")
    assert row in PAGE.read_text("utf-8").splitlines(), f"docs/mcp-clients.md lacks {row}"


def test_the_page_has_all_of_the_table_and_no_more() -> None:
    page = PAGE.read_text("utf-8")
    assert HEAD in page
    assert matrix.notes() in page
    assert page.partition(HEAD)[2].count("\n|") == len(CLIENTS)


def test_a_row_is_written_once_and_in_its_place() -> None:
    clients = list(CLIENTS.values())[:2]
    page = f"# Clients\n\n{HEAD}\n\nNotes.\n"
    for client in clients:
        about = f"| {client.title} | 1.0 | {client.transport} | {client.revision} |"
        page = matrix.put_row(page, client, f"{about} yes |")
        page = matrix.put_row(page, client, f"{about} **no** |")
    assert page.count("**no**") == len(clients)
    assert "yes" not in page
    assert page.endswith("|\n\nNotes.\n")
