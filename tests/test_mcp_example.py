"""The example server of notes, run as its first line says, with the SDK's client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
import trio
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated
from test_cli import PATIENCE, Service
from test_mcp_command import serving

EXAMPLES = Path(__file__).parent.parent / "examples"
LEGACY, MODERN = "legacy", "2026-07-28"
# The SDK's client leaves its generators to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path, target=f"{EXAMPLES / 'notes.py'}:server") as service:
        yield service


@asynccontextmanager
async def connected(service: Service, mode: Any, **options: Any) -> AsyncIterator[Client]:
    with trio.fail_after(PATIENCE):
        async with Client(service.events, mode=mode, **options) as client:
            yield client


def said(result: Any) -> str:
    assert not result.is_error, result
    return "\n".join(content.text for content in result.content)


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
async def test_notes_are_written_searched_and_deleted(
    service: Service, tmp_path: Path, mode: str
) -> None:
    progress: list[Any] = []
    asked: list[str] = []
    wanted: dict[str, Any] = {"delete": False}

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        progress.append((done, total, message))

    async def on_question(_ctx: Any, params: Any) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content=wanted)

    async with connected(service, mode, elicitation_callback=on_question) as client:
        for name, text in (("a", "Buy milk"), ("b", "Buy nothing")):
            assert said(await client.call_tool("write_note", {"name": name, "text": text}))
        assert (tmp_path / "notes" / "a.md").read_text() == "Buy milk"
        found = await client.call_tool(
            "search_notes", {"text": "MILK"}, progress_callback=on_progress
        )
        assert said(found) == "a"
        assert progress == [(1, 2, "a"), (2, 2, "b")]
        [read] = (await client.read_resource("note://a")).contents
        assert isinstance(read, types.TextResourceContents)
        assert read.text == "Buy milk"
        kept = await client.call_tool("delete_note", {"name": "a"})
        assert said(kept) == "The user wants to keep it."
        wanted["delete"] = True
        assert said(await client.call_tool("delete_note", {"name": "a"})) == "It is deleted."
        assert asked == ["Delete the note 'a'? It cannot be had back."] * 2
        assert [path.name for path in (tmp_path / "notes").iterdir()] == ["b.md"]
        assert (await client.call_tool("delete_note", {"name": "a"})).is_error
        assert (await client.call_tool("write_note", {"name": "../x", "text": ""})).is_error
        with pytest.raises(MCPError):
            await client.read_resource("note://..%2Fx")
    code, err = service.stop()
    assert code == 0
    assert "Traceback" not in err


@pytest.mark.filterwarnings("ignore:resources/subscribe is removed")  # in the newer revision
async def test_who_subscribes_is_told_in_a_session(service: Service) -> None:
    told: list[str] = []
    heard = trio.Event()

    async def on_message(message: object) -> None:
        if isinstance(message, types.ResourceUpdatedNotification):
            told.append(str(message.params.uri))
            heard.set()

    async with (
        connected(service, LEGACY, message_handler=on_message) as one,
        connected(service, LEGACY) as other,
    ):
        await one.session.subscribe_resource("note://b")
        for name in ("a", "b"):
            await other.call_tool("write_note", {"name": name, "text": "x"})
        await heard.wait()
        assert told == ["note://b"]


async def test_who_listens_is_told_without_one(service: Service) -> None:
    async with (
        connected(service, MODERN) as one,
        connected(service, LEGACY) as other,
        one.listen(resource_subscriptions=["note://b"]) as events,
    ):
        for name in ("a", "b"):
            await other.call_tool("write_note", {"name": name, "text": "x"})
        assert await events.__anext__() == ResourceUpdated(uri="note://b")
