"""The console without a browser: who may have what, and what its stream says."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
import trio
from _logs import MemoryLogWith
from _sessions import stay
from trio.testing import MockClock

from trio_sse import Access, EndReason, Event, Hooks, Hub, HubLimits, MemoryLog, OutboxLimits
from trio_sse.console import Console
from trio_sse.testing import Stream, open_stream, request

STREAM = "/console/stream"
PUBLISH = {"authorization": "Bearer publish"}
SUBSCRIBE = {"authorization": "Bearer subscribe"}
TOKENS = Access(publish_token="publish", subscribe_token="subscribe")


@pytest.fixture
async def hub(nursery: trio.Nursery) -> AsyncIterator[Hub]:
    async with Hub() as hub:
        yield hub


def app(hub: Hub, access: Access | None = None) -> Any:
    return Console(hub, access or Access()).answer


async def next_of(stream: Stream, type: str) -> Any:
    """What the next event of this type says; what comes before it is passed over."""
    while (event := await stream.receive_event()).type != type:
        pass
    assert event.data is not None
    return json.loads(event.data)


async def until_silent(stream: Stream) -> list[tuple[str, Any]]:
    """What comes within less than a second: type and object of each event."""
    events = []
    with trio.move_on_after(0.9):
        while True:
            event = await stream.receive_event()
            assert event.data is not None
            events.append((event.type, json.loads(event.data)))
    return events


async def published(stream: Stream) -> list[Any]:
    return [data for type, data in await until_silent(stream) if type == "published"]


# The page and its files.


async def test_the_page_needs_no_token_and_holds_none(hub: Hub) -> None:
    access = Access(publish_token="hush-1", subscribe_token="hush-2")
    page = await request(app(hub, access), "GET", "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert '<meta name="trio-sse-needs" content="subscribe publish">' in page.text
    assert "hush" not in page.text
    assert "{{" not in page.text


async def test_without_tokens_the_page_asks_for_none(hub: Hub) -> None:
    page = await request(app(hub), "GET", "/")
    assert '<meta name="trio-sse-needs" content="">' in page.text


async def test_the_page_knows_where_to_publish_relative_to_itself(hub: Hub) -> None:
    console = Console(hub, Access(), events_path='/a"b/events')
    page = await request(console.answer, "GET", "/")
    assert '<meta name="trio-sse-events" content="a&quot;b/events">' in page.text


async def files_of(hub: Hub) -> dict[str, str]:
    """All that a browser loads, by path, found as it finds them."""
    found: dict[str, str] = {}
    wanted = ["/"]
    while wanted:
        path = wanted.pop()
        response = await request(app(hub), "GET", path)
        assert response.status == 200, path
        found[path] = response.text
        names = re.findall(r'(?:src|href)="(console/[^"]+)"', response.text)
        names += re.findall(r'(?:from|import) "\./([^"]+)"', response.text)
        paths = (name if name.startswith("console/") else f"console/{name}" for name in names)
        wanted += [f"/{name}" for name in paths if f"/{name}" not in found]
    return found


async def test_every_file_of_the_page_is_there_and_has_its_type(hub: Hub) -> None:
    found = await files_of(hub)
    assert len(found) == 10
    for path in found:
        response = await request(app(hub), "GET", path)
        kind = {"css": "text/css", "js": "text/javascript"}.get(path.rpartition(".")[2])
        assert response.headers["content-type"] == f"{kind or 'text/html'}; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        head = await request(app(hub), "HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert head.headers == response.headers


async def test_nothing_on_the_page_needs_a_looser_policy(hub: Hub) -> None:
    response = await request(app(hub), "GET", "/")
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]
    page = response.text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    for path, text in (await files_of(hub)).items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text), path
        # Nothing is loaded from elsewhere; what is named is a namespace.
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}, path


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("POST", "/", 405, "GET, HEAD"),
        ("DELETE", "/console/main.js", 405, "GET, HEAD"),
        ("GET", "/console/sessions/12345678", 405, "DELETE"),
        ("POST", STREAM, 405, "GET, HEAD, OPTIONS"),
        ("GET", "/console/", 404, None),
        ("GET", "/console/../_feed.py", 404, None),
        ("GET", "/console/__init__.py", 404, None),
    ],
)
async def test_other_methods_and_paths_are_problems(
    hub: Hub, method: str, path: str, status: int, allow: str | None
) -> None:
    response = await request(app(hub), method, path)
    assert (response.status, response.headers.get("allow")) == (status, allow)
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/console/", "/console/stream", "/console/sessions/x"])
def test_it_owns_its_paths(path: str) -> None:
    assert Console(Hub(), Access()).owns(path)


@pytest.mark.parametrize("path", ["/events", "/console", "/consoles/x", "/x/console/y"])
def test_it_owns_no_other_paths(path: str) -> None:
    assert not Console(Hub(), Access()).owns(path)


# Who may.


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/console/main.js"),
        ("HEAD", STREAM),
        ("DELETE", "/console/sessions/12345678"),
    ],
)
async def test_a_foreign_host_name_gets_nothing(hub: Hub, method: str, path: str) -> None:
    response = await request(app(hub), method, path, headers={"host": "rebound.example"})
    assert response.status == 403


@pytest.mark.parametrize("access", [Access(), Access(allowed_origins=("https://other.example",))])
@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", STREAM), ("DELETE", "/console/sessions/12345678")]
)
async def test_pages_of_other_origins_may_use_none_of_it(
    hub: Hub, access: Access, method: str, path: str
) -> None:
    headers = {"origin": "https://other.example"}
    response = await request(app(hub, access), method, path, headers=headers)
    assert response.status == 403
    assert "access-control-allow-origin" not in response.headers


async def test_the_stream_needs_the_subscribe_token(hub: Hub) -> None:
    console = app(hub, TOKENS)
    assert (await request(console, "HEAD", STREAM)).status == 401
    async with open_stream(console, f"{STREAM}?access_token=subscribe") as stream:
        assert stream.status == 200
    async with open_stream(console, STREAM, headers=SUBSCRIBE) as stream:
        assert stream.status == 200


@pytest.mark.parametrize("headers", [{}, SUBSCRIBE])
async def test_ending_a_session_needs_the_publish_token(
    hub: Hub, nursery: trio.Nursery, headers: dict[str, str]
) -> None:
    session = await nursery.start(stay, hub)
    url = f"/console/sessions/{session.id}"
    assert (await request(app(hub, TOKENS), "DELETE", url, headers=headers)).status == 401
    assert session.is_open
    assert (await request(app(hub, TOKENS), "DELETE", url, headers=PUBLISH)).status == 204
    assert not session.is_open


async def test_authorize_is_asked_about_publishing_before_a_session_is_ended(
    hub: Hub, nursery: trio.Nursery
) -> None:
    asked = []

    async def authorize(asking: Any) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(asking.method)

    session = await nursery.start(stay, hub)
    await request(
        app(hub, Access(authorize=authorize)), "DELETE", f"/console/sessions/{session.id}"
    )
    assert asked == ["POST"]


# Ending a session.


@pytest.mark.parametrize("length", [8, 15, 22])
async def test_a_session_is_ended_by_its_id_or_what_it_begins_with(
    hub: Hub, nursery: trio.Nursery, length: int
) -> None:
    other = await nursery.start(stay, hub)
    session = await nursery.start(stay, hub)
    response = await request(app(hub), "DELETE", f"/console/sessions/{session.id[:length]}")
    assert (response.status, response.body) == (204, b"")
    assert await session.wait_ended() == EndReason.application("ended at the console")
    assert other.is_open


async def test_too_little_of_an_id_names_no_session(hub: Hub, nursery: trio.Nursery) -> None:
    session = await nursery.start(stay, hub)
    for part in ("", session.id[:7], session.id + "x"):
        response = await request(app(hub), "DELETE", f"/console/sessions/{part}")
        assert (response.status, "no such session" in response.json()["detail"]) == (404, True)
    assert session.is_open


async def test_an_id_that_begins_two_names_neither(
    hub: Hub, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = count()
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: f"the-same-{next(numbers)}")
    first = await nursery.start(stay, hub)
    second = await nursery.start(stay, hub)
    response = await request(app(hub), "DELETE", "/console/sessions/the-same")
    assert response.status == 409
    assert first.is_open
    assert second.is_open
    assert (await request(app(hub), "DELETE", "/console/sessions/the-same-1")).status == 204
    assert first.is_open
    assert not second.is_open


async def test_a_hub_that_is_closed_says_so() -> None:
    hub = Hub()
    for method, path in (("DELETE", "/console/sessions/12345678"), ("GET", STREAM)):
        assert (await request(app(hub), method, path)).status == 503


# The stream.


async def test_the_stream_greets_with_the_state_of_the_hub(
    hub: Hub, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    listener = await nursery.start(lambda **kw: stay(hub, topics=["b", "a"], **kw))
    await trio.sleep(89)
    await hub.publish(Event("x"), "a")
    await trio.sleep(1)
    async with open_stream(app(hub), STREAM) as stream:
        hello = await next_of(stream, "hello")
        status = await next_of(stream, "status")
    assert (status["state"], status["newest"]) == ("open", f"{hub.log.epoch}.1")
    counts = {name: status["counts"][name] for name in ("sessions", "published", "delivered")}
    assert counts == {"sessions": 2, "published": 1, "delivered": 1}
    own, other = status["sessions"]
    assert own["id"] == hello["session"]
    assert (own["console"], own["topics"]) == (True, [])
    assert other == {
        "id": listener.short_id,
        "console": False,
        "topics": ["a", "b"],
        "topic_count": 2,
        "age": 90.0,
        "queued": 0,
        "queued_bytes": 0,
        "sent": 1,
        "dropped": 0,
        "last_event_id": f"{hub.log.epoch}.1",
        "client": "",
        "about": "",
    }


async def test_a_hub_without_events_has_clients_and_something_to_say_of_each(
    hub: Hub, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(stay, hub)
    console = Console(
        hub, Access(), clients_path='/a"b', about=lambda session: f"{session.short_id} " * 50
    )
    page = await request(console.answer, "GET", "/")
    assert '<meta name="trio-sse-clients" content="a&quot;b">' in page.text
    async with open_stream(console.answer, STREAM) as stream:
        for row in (await next_of(stream, "status"))["sessions"]:
            assert row["about"].startswith(f"{row['id']} {row['id']}")
            assert len(row["about"]) == 100


async def test_no_more_of_an_id_is_told_than_names_a_session(
    hub: Hub, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    session = await nursery.start(stay, hub)
    async with open_stream(app(hub), STREAM) as stream:
        await next_of(stream, "status")
        assert session.id[:8].encode() in stream.body
        assert session.id[:9].encode() not in stream.body


async def test_a_status_comes_every_second_and_looking_changes_no_count(
    hub: Hub, autojump_clock: MockClock
) -> None:
    async with open_stream(app(hub), STREAM) as stream:
        started = trio.current_time()
        statuses = [await next_of(stream, "status") for _ in range(4)]
        assert trio.current_time() - started == pytest.approx(3)
        assert [round(status["at"] - started) for status in statuses] == [0, 1, 2, 3]
        await hub.publish(Event("x"))
        await next_of(stream, "published")
        last = await next_of(stream, "status")
    assert (last["counts"]["published"], last["counts"]["delivered"]) == (1, 0)
    assert last["sessions"][0]["sent"] == 0


async def test_two_consoles_share_one_status(hub: Hub, autojump_clock: MockClock) -> None:
    console = app(hub)
    async with open_stream(console, STREAM) as one, open_stream(console, STREAM) as two:
        await next_of(one, "status")
        assert len((await next_of(two, "status"))["sessions"]) == 2
        assert await next_of(one, "status") == await next_of(two, "status")


async def test_two_consoles_are_both_sent_every_event(hub: Hub, autojump_clock: MockClock) -> None:
    console = app(hub)
    async with open_stream(console, STREAM) as one, open_stream(console, STREAM) as two:
        for number in range(100):
            await hub.publish(Event(str(number)))
            for stream in (one, two):
                assert (await next_of(stream, "published"))["data"] == str(number)


async def test_of_many_sessions_the_newest_are_shown_and_all_are_counted(
    hub: Hub, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    for _ in range(201):
        session = await nursery.start(stay, hub)
    async with open_stream(app(hub), STREAM) as stream:
        hello = await next_of(stream, "hello")
        status = await next_of(stream, "status")
    assert status["counts"]["sessions"] == 202
    assert len(status["sessions"]) == 200
    assert [row["id"] for row in status["sessions"][:2]] == [hello["session"], session.short_id]


async def test_what_was_published_before_comes_first_and_what_follows_at_once(
    hub: Hub, autojump_clock: MockClock
) -> None:
    for number in range(60):
        await hub.publish(Event(str(number)))
    async with open_stream(app(hub), STREAM) as stream:
        events = await until_silent(stream)
        assert [type for type, _ in events] == ["published"] * 50 + ["hello", "status"]
        assert [data["data"] for _, data in events[:50]] == [str(n) for n in range(10, 60)]
        before = trio.current_time()
        await hub.publish(Event("now"))
        assert (await next_of(stream, "published"))["data"] == "now"
        assert trio.current_time() == before


async def test_a_last_event_id_is_not_for_the_console(hub: Hub, autojump_clock: MockClock) -> None:
    async with open_stream(app(hub), STREAM, headers={"last-event-id": "other.5"}) as stream:
        assert [type for type, _ in await until_silent(stream)] == ["hello", "status"]


async def test_an_event_is_shown_with_its_fields(hub: Hub, autojump_clock: MockClock) -> None:
    async with open_stream(app(hub), STREAM) as stream:
        event_id = await hub.publish(Event("a\nb", type="tick", retry=1500), ["x", "y"])
        shown = await next_of(stream, "published")
    assert shown.pop("size") > 20
    assert shown == {
        "id": event_id,
        "topics": ["x", "y"],
        "topic_count": 2,
        "type": "tick",
        "data": "a\nb",
        "cut": False,
        "retry": 1500,
    }


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "\u202etxt.exe",
    "\0\x07\x1b[31m",
    "👩\u200d👩\u200d👧 \U0001f1ec\U0001f1e7 e\u0301",
    "\u2028\u2029\x85\x0b",
    'data: x\n\nevent: status\ndata: {"state": "closed"}\n\n',
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_what_is_published_comes_as_it_is_and_forges_nothing(
    hub: Hub, text: str, autojump_clock: MockClock
) -> None:
    async with open_stream(app(hub), STREAM) as stream:
        await next_of(stream, "status")
        name = text.replace("\n", " ")
        await hub.publish(Event(text, type=name), text)
        events = await until_silent(stream)
    assert [type for type, _ in events] == ["published"]
    shown = events[0][1]
    assert (shown["data"], shown["type"], shown["topics"]) == (text, name, [text])


async def test_a_topic_that_utf8_cannot_carry_does_not_end_the_console(
    hub: Hub, autojump_clock: MockClock
) -> None:
    async with open_stream(app(hub), STREAM) as stream:
        await next_of(stream, "status")
        await hub.publish(Event("x"), "\ud800")
        assert (await next_of(stream, "published"))["topics"] == ["\ud800"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * 2_000, 2_000),
        ("x" * 2_001, 2_000),
        ("x" * 100_000, 2_000),
        ("\U0001f600" * 100_000, 2_000),
        ("\n" * 100_000, 2_000),
        ("", 0),
    ],
)
async def test_long_data_is_cut_and_marked(
    hub: Hub, text: str, kept: int, autojump_clock: MockClock
) -> None:
    async with open_stream(app(hub), STREAM) as stream:
        await hub.publish(Event(text))
        shown = await next_of(stream, "published")
    assert shown["data"] == text[:kept]
    assert shown["cut"] == (len(text) > kept)
    assert shown["size"] >= len(text.encode())


async def test_names_are_cut_too(hub: Hub, autojump_clock: MockClock) -> None:
    async with open_stream(app(hub), STREAM) as stream:
        topics = ["t" * 300_000, *(f"topic {n}" for n in range(20))]
        await hub.publish(Event("x", type="y" * 300_000), topics)
        await next_of(stream, "published")
        await hub.publish(Event("x", type="y" * 300), topics)
        shown = await next_of(stream, "published")
        assert len(stream.body) < 10_000
    assert shown["type"] == "y" * 99 + "…"
    assert shown["topics"] == ["t" * 99 + "…", *(f"topic {n}" for n in range(7))]
    assert shown["topic_count"] == 21


# A console hurts nobody.


async def test_of_a_flood_a_console_gets_a_few_and_is_told_so(
    hub: Hub, autojump_clock: MockClock
) -> None:
    async with open_stream(app(hub), STREAM) as stream:
        await next_of(stream, "status")
        for number in range(2_000):
            await hub.publish(Event(str(number)))
        events = await until_silent(stream)
        assert events[-1] == ("skipped", {})
        shown = [int(data["data"]) for type, data in events if type == "published"]
        assert len(shown) < 200
        assert shown == sorted(shown)
        await hub.publish(Event("after"))
        assert (await published(stream))[-1]["data"] == "after"


async def test_events_that_do_not_all_fit_leave_a_mark_where_they_are_missing(
    hub: Hub, autojump_clock: MockClock
) -> None:
    async with open_stream(app(hub), STREAM) as stream:
        await next_of(stream, "status")
        await hub.publish(Event("first"))
        assert (await next_of(stream, "published"))["data"] == "first"
        for number in range(130):  # within the pause that follows
            await hub.publish(Event(str(number)))
        events = await until_silent(stream)
    assert events[0] == ("skipped", {})
    assert [data["data"] for _, data in events[1:]] == [str(n) for n in range(30, 130)]


async def test_what_is_sent_at_a_time_is_bounded_in_bytes(
    hub: Hub, autojump_clock: MockClock
) -> None:
    for _ in range(50):
        await hub.publish(Event("\U0001f600" * 100_000))
    async with open_stream(app(hub), STREAM) as stream:
        events = await until_silent(stream)
        assert len(stream.body) < 200_000
    assert [type for type, _ in events] == ["skipped"] + ["published"] * 5 + ["hello", "status"]


async def test_a_console_that_does_not_read_holds_nothing_up_and_little_memory(
    hub: Hub, autojump_clock: MockClock
) -> None:
    async with open_stream(app(hub), STREAM, window=1_000) as stream:
        (session,) = hub.sessions.values()
        most = 0
        for _ in range(3_000):
            await hub.publish(Event("x" * 3_000))
            await trio.sleep(0.01)
            most = max(most, session.statistics().queued_bytes)
        assert session.is_open
        assert 0 < most < 200_000
        # When it reads again, it has what is new, and knows that something is missing.
        events = await until_silent(stream)
        assert ("skipped", {}) in events
        await hub.publish(Event("after"))
        assert (await published(stream))[-1]["data"] == "after"


async def test_a_console_that_does_not_read_is_sent_no_second_status(
    hub: Hub, autojump_clock: MockClock
) -> None:
    async with open_stream(app(hub), STREAM, window=1) as stream:
        (session,) = hub.sessions.values()
        await trio.sleep(5)
        waiting = session.statistics().queued_bytes
        await trio.sleep(500)
        assert session.statistics().queued_bytes == waiting > 0
        await next_of(stream, "status")
        await next_of(stream, "status")
        assert (await next_of(stream, "status"))["at"] == pytest.approx(trio.current_time())


async def test_a_console_is_not_idle(autojump_clock: MockClock) -> None:
    async with Hub(limits=HubLimits(max_idle=3)) as hub, open_stream(app(hub), STREAM) as stream:
        await trio.sleep(10)
        assert not stream.is_complete


async def test_small_outboxes_are_no_matter(autojump_clock: MockClock) -> None:
    limits = OutboxLimits(max_events=1, max_bytes=1)
    async with Hub(outbox=limits) as hub, open_stream(app(hub), STREAM) as stream:
        await hub.publish(Event("x"))
        await next_of(stream, "published")
        await trio.sleep(5)
        assert not stream.is_complete


@pytest.mark.parametrize("max_events", [1, 10])
async def test_a_log_that_has_forgotten_most_is_followed(
    max_events: int, autojump_clock: MockClock
) -> None:
    async with Hub(log=MemoryLog(max_events=max_events)) as hub:
        for number in range(30):
            await hub.publish(Event(str(number)))
        async with open_stream(app(hub), STREAM) as stream:
            shown = [event["data"] for event in await published(stream)]
            assert shown == [str(n) for n in range(30 - max_events, 30)]
            await hub.publish(Event("new"))
            assert (await next_of(stream, "published"))["data"] == "new"


async def test_what_is_published_while_the_past_is_read_comes_once_and_in_order(
    autojump_clock: MockClock,
) -> None:
    log = MemoryLogWith(steps=20)
    async with Hub(log=log) as hub:
        await hub.publish(Event("0"))

        async def publish_more() -> None:
            for number in range(1, 15):
                await hub.publish(Event(str(number)))

        async with trio.open_nursery() as nursery, open_stream(app(hub), STREAM) as stream:
            nursery.start_soon(publish_more)
            shown = await published(stream)
        assert [event["data"] for event in shown] == [str(n) for n in range(15)]


# The end.


async def test_a_console_is_told_of_a_drain_does_not_delay_it_and_ends_once(
    autojump_clock: MockClock,
) -> None:
    ends: list[EndReason] = []
    hooks = Hooks()
    hooks.on_unregister(lambda _, reason: ends.append(reason))
    async with Hub(hooks=hooks) as hub, open_stream(app(hub), STREAM) as stream:
        await next_of(stream, "status")
        before = trio.current_time()
        await hub.drain(grace=10)
        assert trio.current_time() == before
        assert (await next_of(stream, "status"))["state"] == "draining"
        with pytest.raises(trio.EndOfChannel):
            await stream.receive_event()
        assert stream.is_complete
    assert ends == [EndReason.HANDLER_RETURNED]


async def test_a_console_whose_client_leaves_is_gone(hub: Hub, autojump_clock: MockClock) -> None:
    async with open_stream(app(hub), STREAM) as stream:
        await next_of(stream, "status")
        (session,) = hub.sessions.values()
    assert await session.wait_ended() == EndReason.CLIENT_LEFT
    assert not hub.sessions


def test_a_console_tells_what_it_is_of() -> None:
    assert repr(Console(Hub(), Access())).startswith("<Console of <Hub new")
