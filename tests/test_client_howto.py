"""The client's how-to is run as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from scripted_server import EVEN, Answer, Received, ScriptedServer, answer, sse, status

import trio_sse
from trio_sse.wire import Event

HOWTO = Path(__file__).parent.parent / "docs" / "howto-client.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", HOWTO.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def howto() -> dict[str, Any]:
    """All that the page's blocks define."""
    names: dict[str, Any] = {"__name__": "howto"}
    for block in BLOCKS:
        exec(compile(block, str(HOWTO), "exec"), names)
    return names


@pytest.fixture
def scripted(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Have `trio_sse.connect` lead to a script, whatever the page says."""

    def start(*script: Answer | Callable[[Received], Answer]) -> ScriptedServer:
        server = ScriptedServer(nursery, list(script))

        def connect(url: str, **options: Any) -> trio_sse.EventSource:
            options.setdefault("reconnect", EVEN)
            options["transport"] = server.transport()
            return real(url, **options)

        monkeypatch.setattr(trio_sse, "connect", connect)
        return server

    real = trio_sse.connect
    return start


async def test_resume_in_ten_lines(
    howto: dict[str, Any],
    scripted: Callable[..., ScriptedServer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    autojump_clock: trio.testing.MockClock,
) -> None:
    lines = [line for line in BLOCKS[0].splitlines() if line]
    assert "last_event_id=last" in BLOCKS[0]
    assert len(lines) <= 10

    def serve_log(request: Received) -> Answer:
        """Three more of a log of nine, cut in the middle of a fourth; then silence."""
        start = int(request.headers.get("last-event-id", b"0"))
        events = [b"id: %d\ndata: event %d\n\n" % (n, n) for n in range(start + 1, 10)]
        body = b"".join(events[:3]) + b"".join(events[3:4])[:12]
        return sse(body, then="close" if start < 3 else "hold")

    server = scripted(*[serve_log] * 3)
    place = tmp_path / "last-event-id"
    for seen in (6, 9):  # each run ends in the silence
        with trio.move_on_after(5):
            await howto["follow"]("http://example.org/events", place)
        assert place.read_text() == str(seen)
    assert capsys.readouterr().out.split("\n") == [*(f"event {n}" for n in range(1, 10)), ""]
    ids = [request.headers.get("last-event-id") for request in server.requests]
    assert ids == [None, b"3", b"6"]


async def test_the_other_blocks_do_what_they_say(
    howto: dict[str, Any],
    scripted: Callable[..., ScriptedServer],
    capsys: pytest.CaptureFixture[str],
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripted(sse(b"data: 1\n\n"), answer(), sse(b"data: 2\n\n", then="hold"))
    async with howto["source_that_tells"]("http://example.org/") as source:
        events = await howto["for_a_minute"](source)
    assert events == [Event("1", id=""), Event("2", id="")]
    assert capsys.readouterr().out.splitlines() == [
        "OPEN",
        "lost: the server ended it; again in 1.0 s",
        "lost: http://example.org/: the connection ended too early; again in 1.0 s",
        "OPEN",
        "CLOSED",
    ]

    scripted(status(502), sse(b"data: 1\n\n"))
    async with howto["patient_source"]("http://example.org/") as source:
        assert (await source.__anext__()).data == "1"

    server = scripted(sse(b"data: forty\n\ndata: -two\n\n"))
    assert await howto["ask"]("http://example.org/", "what?") == "forty-two"
    assert (server.requests[0].method, server.requests[0].body) == (
        "POST",
        b'{"question": "what?"}',
    )
    assert howto["attentive"].idle_timeout == 45


async def test_the_test_in_it_passes(howto: dict[str, Any]) -> None:
    await howto["test_reads_an_event"]()
