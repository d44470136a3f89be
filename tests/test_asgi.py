"""The HTTP face, in memory: what each request gets, byte for byte where it matters."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing
from _logs import MemoryLogWith
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sse import (
    Access,
    Decoder,
    Endpoint,
    EndReason,
    Event,
    Hooks,
    Hub,
    HubLimits,
    LogUnavailable,
    MemoryLog,
    OutboxLimits,
    Refused,
    Request,
    Session,
)
from trio_sse.asgi import check_accept
from trio_sse.service import Service
from trio_sse.testing import lifespan, open_stream, request

Message = dict[str, Any]


@pytest.fixture
async def hub(nursery: trio.Nursery) -> AsyncIterator[Hub]:
    async with Hub() as hub:
        yield hub


class Exchange:
    """A request as a server would hand it over, and every message that came back.

    For what `testing.open_stream` cannot do: bodies in pieces, headers as raw bytes.
    """

    def __init__(self, *pieces: bytes, complete: bool = True, **scope: Any) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [],
            **scope,
        }
        self._messages: list[Message] = [
            {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
        ]
        if complete:
            self._messages.append({"type": "http.request"})
        self._left = trio.Event()
        self.sent: list[Message] = []

    def leave(self) -> None:
        self._left.set()

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        if self._messages:
            return self._messages.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None


# Heads.


async def test_an_event_stream_has_these_headers_and_no_others(hub: Hub) -> None:
    async with open_stream(Endpoint(hub), "/") as stream:
        assert stream.status == 200
        assert dict(stream.headers) == {
            "content-type": "text/event-stream",
            "cache-control": "no-store",
            "x-accel-buffering": "no",
        }


@pytest.mark.parametrize(
    ("retry", "first"), [(2000, b"retry: 2000\n\n"), (0, b"retry: 0\n\n"), (None, b"\n")]
)
async def test_the_head_and_first_bytes_come_at_once(
    hub: Hub, retry: int | None, first: bytes
) -> None:
    event_id = await hub.publish(Event("older"))
    await trio.testing.wait_all_tasks_blocked()
    async with open_stream(Endpoint(hub, retry=retry)) as stream:
        await trio.testing.wait_all_tasks_blocked()
        assert stream.body == f"id: {event_id}\n".encode() + first


@pytest.mark.parametrize(("retry", "first"), [(2000, b"retry: 2000\n\n"), (None, b":\n\n")])
async def test_a_session_that_a_handler_feeds_is_given_no_place(
    hub: Hub, retry: int | None, first: bytes
) -> None:
    async def handler(session: Session) -> None:
        await trio.sleep_forever()

    async with open_stream(Endpoint(hub, handler, retry=retry)) as stream:
        await trio.testing.wait_all_tasks_blocked()
        assert stream.body == first
    async with open_stream(Endpoint(hub, resume=False, retry=retry)) as stream:
        await trio.testing.wait_all_tasks_blocked()
        assert stream.body == first


async def test_a_client_that_was_sent_nothing_can_resume(hub: Hub) -> None:
    app = Endpoint(hub)
    async with open_stream(app, "/?topic=a") as stream:
        await trio.testing.wait_all_tasks_blocked()
        decoder = Decoder()
        assert decoder.feed(stream.body) == []
    await hub.publish(Event("missed"), "a")
    headers = {"last-event-id": decoder.last_event_id}
    async with open_stream(app, "/?topic=a", headers=headers) as stream:
        assert (await stream.receive_event()).data == "missed"


async def test_head_has_the_headers_alone_and_makes_no_session(hub: Hub) -> None:
    async with open_stream(Endpoint(hub)) as stream:
        expected = dict(stream.headers)
    response = await request(Endpoint(hub), "HEAD", "/")
    assert (response.status, response.body) == (200, b"")
    assert dict(response.headers) == expected
    assert hub.statistics().registered == 1


@pytest.mark.parametrize(
    ("method", "publish", "allow"),
    [
        ("POST", False, "GET, HEAD, OPTIONS"),
        ("PUT", False, "GET, HEAD, OPTIONS"),
        ("PUT", True, "GET, HEAD, OPTIONS, POST"),
        ("DELETE", True, "GET, HEAD, OPTIONS, POST"),
        ("get", True, "GET, HEAD, OPTIONS, POST"),
        ("NONSENSE", True, "GET, HEAD, OPTIONS, POST"),
    ],
)
async def test_another_method_is_405_and_says_which_are_allowed(
    hub: Hub, method: str, publish: bool, allow: str
) -> None:
    response = await request(Endpoint(hub, publish=publish), method, "/")
    assert response.status == 405
    assert response.headers["allow"] == allow


async def test_options_says_what_is_allowed(hub: Hub) -> None:
    response = await request(Endpoint(hub, publish=True), "OPTIONS", "/")
    assert (response.status, response.body) == (204, b"")
    assert dict(response.headers) == {"allow": "GET, HEAD, OPTIONS, POST"}


async def test_a_problem_is_json_that_no_cache_keeps(hub: Hub) -> None:
    response = await request(Endpoint(hub), "PUT", "/")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-length"] == str(len(response.body))
    assert response.json() == {
        "type": "about:blank",
        "title": "Method Not Allowed",
        "status": 405,
        "detail": "PUT is not for here; try one of GET, HEAD, OPTIONS",
    }


async def test_a_problem_of_a_head_request_has_no_body(hub: Hub) -> None:
    response = await request(Endpoint(hub), "HEAD", "/", headers={"accept": "text/html"})
    assert (response.status, response.body) == (406, b"")
    assert int(response.headers["content-length"]) > 0


async def test_a_refusal_may_have_any_error_status(nursery: trio.Nursery) -> None:
    async def authorize(request: Request) -> None:
        raise Refused(int(request.query["status"][0]), "ü", headers=(("X-Why", "ü"),))

    async with Hub() as hub:
        app = Endpoint(hub, access=Access(authorize=authorize))
        for status in range(400, 600):
            response = await request(app, "GET", f"/?status={status}")
            assert response.status == status
            assert response.json()["detail"] == "ü"
            assert response.headers["x-why"].encode("latin-1").decode() == "ü"


# What clients accept.


@pytest.mark.parametrize(
    ("accept", "ok"),
    [
        ("", True),
        ("  ", True),
        ("text/event-stream", True),
        ("Text/Event-Stream", True),
        ("text/*", True),
        ("*/*", True),
        ("text/html, */*;q=0.1", True),
        ("text/event-stream; charset=utf-8", True),
        ("text/event-stream;q=0.001", True),
        ("application/json, text/event-stream", True),
        ("text/html", False),
        ("text", False),
        ("*", False),
        ("application/json", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream ; Q = 0.000 ", False),
        ("text/event-stream;q=0, */*", False),  # the more specific one decides
        ("*/*, text/event-stream;q=0", False),
        ("text/*;q=0, */*", False),
        ("text/*;q=0, text/event-stream", True),
        ("*/*;q=0", False),
        (",", False),
    ],
)
async def test_a_client_that_wants_no_event_stream_gets_406(
    hub: Hub, accept: str, ok: bool
) -> None:
    response = await request(Endpoint(hub), "HEAD", "/", headers={"accept": accept})
    assert response.status == (200 if ok else 406)


async def test_several_accept_headers_are_one(hub: Hub) -> None:
    headers = [("accept", "text/html"), ("accept", "text/event-stream")]
    assert (await request(Endpoint(hub), "HEAD", "/", headers=headers)).status == 200


@given(st.text(max_size=40))
def test_no_accept_header_is_a_surprise(accept: str) -> None:
    try:
        check_accept(accept, "text/event-stream")
    except Refused as refused:
        status = refused.status
    else:
        status = 200
    assert status in (200, 406)


# Subscribing.


@pytest.mark.parametrize(
    ("url", "topics"),
    [
        ("/", None),
        ("/?other=x", None),
        ("/?topic=a", {"a"}),
        ("/?topic=a&topic=b&topic=a", {"a", "b"}),
        ("/?topic=", {""}),
        ("/?topic=a%20b%C3%BC", {"a bü"}),
    ],
)
async def test_topics_come_from_the_query(hub: Hub, url: str, topics: set[str] | None) -> None:
    async with open_stream(Endpoint(hub), url):
        [session] = hub.sessions.values()
        assert session.topics == topics


async def test_topics_may_come_from_elsewhere(hub: Hub) -> None:
    app = Endpoint(hub, topics=lambda asked: [asked.path])
    async with open_stream(app, "/a%2Fb"):
        [session] = hub.sessions.values()
        assert session.topics == {"/a/b"}


async def test_a_session_knows_its_request(hub: Hub) -> None:
    headers = [("X-A", "1"), ("x-a", "2"), ("Last-Event-ID", "x")]
    async with open_stream(Endpoint(hub), "/p?q=1&q=2", headers=headers):
        [session] = hub.sessions.values()
        asked = session.request
        assert (asked.method, asked.path, asked.query) == ("GET", "/p", {"q": ["1", "2"]})
        assert asked.headers["x-a"] == "1, 2"
        assert asked.client == "127.0.0.1"


@pytest.mark.parametrize(
    ("query", "header", "expected"),
    [
        (b"", None, ""),
        (b"", b"1a.7", "1a.7"),
        (b"", "ü€".encode(), "ü€"),
        (b"", b"\xff", "\ufffd"),
        (b"", b"", ""),
        (b"last-event-id=1a.7", None, "1a.7"),
        (b"last-event-id=%C3%BC%E2%82%AC", None, "ü€"),
        (b"last-event-id=a+b&last-event-id=c", None, "a b"),
        (b"last-event-id", None, ""),
        (b"Last-Event-ID=1", None, ""),
        (b"last-event-id=1", b"2", "2"),
        (b"last-event-id=1", b"", ""),
    ],
)
async def test_the_last_event_id_comes_from_header_or_query(
    hub: Hub, query: bytes, header: bytes | None, expected: str
) -> None:
    headers = [(b"host", b"localhost")] + (
        [(b"last-event-id", header)] if header is not None else []
    )
    async with open_stream(Endpoint(hub), scope={"headers": headers, "query_string": query}):
        [session] = hub.sessions.values()
        assert session.request.last_event_id == expected


@pytest.mark.parametrize("by_header", [True, False])
async def test_what_followed_the_last_event_id_is_replayed(hub: Hub, by_header: bool) -> None:
    ids = [await hub.publish(Event(str(number)), "t") for number in range(5)]
    url = "/?topic=t" + ("" if by_header else f"&last-event-id={ids[1]}")
    headers = {"last-event-id": ids[1]} if by_header else {}
    async with open_stream(Endpoint(hub), url, headers=headers) as stream:
        events = [await stream.receive_event() for _ in range(3)]
        await hub.publish(Event("5"), "t")
        events.append(await stream.receive_event())
    assert [event.data for event in events] == ["2", "3", "4", "5"]
    assert [event.id for event in events[:3]] == ids[2:]


async def test_an_id_that_is_not_ours_is_a_gap_and_not_an_error(hub: Hub) -> None:
    for last_event_id in ("ü.1", "nonsense", "ffffffff.99999999999999999999", "." * 500):
        async with open_stream(Endpoint(hub), headers={"last-event-id": last_event_id}) as stream:
            event = await stream.receive_event()
            assert event.type == "gap"
            assert json.loads(event.data or "")["last_event_id"] == last_event_id


async def test_resume_may_be_left_to_the_handler(hub: Hub) -> None:
    async def handler(session: Session) -> None:
        await session.send(Event(f"after {session.request.last_event_id}", id="8"))

    app = Endpoint(hub, handler, resume=False)
    async with open_stream(app, headers={"last-event-id": "7"}) as stream:
        assert (await stream.receive_event()).data == "after 7"
        await stream.read()
        assert stream.is_complete


@pytest.mark.parametrize("resumes", [True, False])
async def test_what_is_published_before_the_200_is_out_is_not_lost(hub: Hub, resumes: bool) -> None:
    class Slow(Exchange):
        async def send(self, message: Message) -> None:
            if message["type"] == "http.response.start":
                await hub.publish(Event("early"))
                await trio.testing.wait_all_tasks_blocked()
            await super().send(message)
            if b"early" in message.get("body", b""):
                self.leave()

    older = await hub.publish(Event("older"))
    await trio.testing.wait_all_tasks_blocked()
    headers = [(b"last-event-id", older.encode())] if resumes else []
    exchange = Slow(method="GET", headers=headers)
    with trio.fail_after(5):
        await Endpoint(hub)(exchange.scope, exchange.receive, exchange.send)
    body = b"".join(message.get("body", b"") for message in exchange.sent)
    assert body.count(b"data: early\n\n") == 1
    assert b"older" not in body


async def test_a_handler_that_returns_ends_the_response_properly(hub: Hub) -> None:
    async def handler(session: Session) -> None:
        await session.send(Event("one"))
        session.send_nowait(Event("two"))

    async with open_stream(Endpoint(hub, handler, retry=None)) as stream:
        assert await stream.read() == b":\n\ndata: one\n\ndata: two\n\n"
        assert stream.is_complete
    assert hub.statistics().unregistered == {"handler-returned": 1}


async def test_an_end_by_the_application_ends_the_response_properly(hub: Hub) -> None:
    async with open_stream(Endpoint(hub)) as stream:
        await hub.publish(Event("last"))
        await trio.testing.wait_all_tasks_blocked()
        [session] = hub.sessions.values()
        session.end("enough")
        assert (await stream.read()).endswith(b"data: last\n\n")
        assert stream.is_complete
        assert await session.wait_ended() == EndReason.application("enough")


async def test_a_client_that_leaves_ends_its_session(hub: Hub) -> None:
    async with open_stream(Endpoint(hub)) as stream:
        [session] = hub.sessions.values()
        await stream.aclose()
        assert await session.wait_ended() == EndReason.CLIENT_LEFT
    assert hub.sessions == {}


async def test_a_request_that_is_cancelled_is_not_the_clients_doing(hub: Hub) -> None:
    with trio.CancelScope() as scope:
        async with open_stream(Endpoint(hub)):
            [session] = hub.sessions.values()
            scope.cancel()
            await trio.sleep_forever()
    assert await session.wait_ended() == EndReason.CANCELLED


async def test_an_endpoint_has_bounds_of_its_own_for_outboxes(hub: Hub) -> None:
    app = Endpoint(hub, outbox=OutboxLimits(max_events=1, overflow="drop-newest"))
    async with open_stream(app, window=1) as stream:
        for number in range(5):
            await hub.publish(Event(str(number) * 99))
            await trio.testing.wait_all_tasks_blocked()
        [session] = hub.sessions.values()
        assert session.statistics().dropped_events > 0
        while (await stream.receive_event()).type != "gap":
            pass


async def test_the_body_of_a_subscription_is_taken_and_forgotten(hub: Hub) -> None:
    exchange = Exchange(*[b"x" * 100] * 50, method="GET")
    exchange.leave()  # which is said behind the body
    await Endpoint(hub)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.status == 200
    await trio.testing.wait_all_tasks_blocked()
    assert hub.statistics().unregistered == {"client-left": 1}


# Refused before there is a 200.


async def test_a_register_hook_refuses_with_its_own_words() -> None:
    hooks = Hooks()

    @hooks.on_register
    async def register(session: Session) -> None:
        raise Refused(402, "pay first", retry_after=7, headers=(("X-Price", "3"),))

    async with Hub(hooks=hooks) as hub:
        response = await request(Endpoint(hub), "GET", "/")
        assert response.status == 402
        assert response.json()["detail"] == "pay first"
        assert response.headers["retry-after"] == "7"
        assert response.headers["x-price"] == "3"
        statistics = hub.statistics()
        assert (statistics.registered, statistics.unregistered) == (0, {})


async def test_a_register_hook_that_fails_is_a_500_that_tells_no_secrets() -> None:
    hooks = Hooks()

    @hooks.on_register
    def register(session: Session) -> None:
        raise RuntimeError("the password is x")

    async with Hub(hooks=hooks) as hub:
        response = await request(Endpoint(hub), "GET", "/")
        assert response.status == 500
        assert "password" not in response.text


async def test_a_register_hook_that_takes_too_long_is_a_500(
    autojump_clock: trio.testing.MockClock,
) -> None:
    hooks = Hooks(timeout=5)

    @hooks.on_register
    async def register(session: Session) -> None:
        await trio.sleep_forever()

    async with Hub(hooks=hooks) as hub:
        start = trio.current_time()
        assert (await request(Endpoint(hub), "GET", "/")).status == 500
        assert trio.current_time() - start == pytest.approx(5)


async def test_what_authorize_raises_is_for_the_server_to_answer(hub: Hub) -> None:
    async def authorize(asked: Request) -> None:
        raise LookupError("a defect")

    with pytest.raises(LookupError, match="a defect"):
        await request(Endpoint(hub, access=Access(authorize=authorize)), "GET", "/")
    assert hub.sessions == {}


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (HubLimits(max_sessions=1), 503),
        (HubLimits(max_sessions_per_client=1), 429),
    ],
)
async def test_a_full_hub_says_when_to_come_back(limits: HubLimits, status: int) -> None:
    async with Hub(limits=limits) as hub:
        app = Endpoint(hub)
        async with open_stream(app):
            response = await request(app, "GET", "/")
            assert response.status == status
            assert int(response.headers["retry-after"]) > 0
        async with open_stream(app):
            pass


async def test_too_many_topics_are_400() -> None:
    async with Hub(limits=HubLimits(max_topics=2)) as hub:
        assert (await request(Endpoint(hub), "GET", "/?topic=a&topic=b&topic=c")).status == 400


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_draining_hub_is_503_and_says_when_to_come_back(
    method: str, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async def stay(session: Session) -> None:
        await session.draining()
        await trio.sleep(1)

    async with Hub() as hub:
        app = Endpoint(hub, stay, publish=True)
        async with open_stream(app) as stream:
            nursery.start_soon(hub.drain)
            await hub.wait_draining()
            response = await request(app, method, "/", json={"data": "x"})
            assert response.status == 503
            assert int(response.headers["retry-after"]) > 0
            await stream.read()
            assert stream.is_complete


async def test_who_was_here_before_and_is_early_is_told_to_come_again(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """In a browser an EventSource that gets a 503 never comes back."""

    async def stay(session: Session) -> None:
        await session.draining()
        await trio.sleep(1)

    async with Hub() as hub:
        app = Endpoint(hub, stay)
        async with open_stream(app):
            nursery.start_soon(hub.drain)
            await hub.wait_draining()
            early = await request(app, "GET", "/", headers={"Last-Event-ID": "any"})
            assert early.status == 200
            assert early.headers["content-type"] == "text/event-stream"
            assert re.fullmatch(rb": draining\nretry: \d{4,}\n\n", early.body)
            assert len(hub.sessions) == 1
            await hub.wait_closed()


async def test_who_comes_back_too_early_is_told_to_come_again_later(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async def stay(session: Session) -> None:
        await session.draining()
        await trio.sleep(1)

    async with Hub() as hub:
        app = Endpoint(hub, stay)
        async with open_stream(app) as stream:
            nursery.start_soon(hub.drain)
            await hub.wait_draining()
            headers = {"last-event-id": "x.1"}  # an EventSource that gets a 503 gives up
            async with open_stream(app, headers=headers) as early:
                assert early.status == 200
                block = await early.receive_block()
                assert (block.comment, block.data) == ("draining", None)
                assert (block.retry or 0) >= 1000
                await early.read()
                assert early.is_complete
            await stream.read()
        assert hub.statistics().registered == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_a_hub_that_is_not_open_is_503(method: str) -> None:
    hub = Hub()
    app = Endpoint(hub, publish=True)
    body: dict[str, Any] = {"form": {"data": "x"}} if method == "POST" else {}
    for state in ("new", "closed"):
        assert hub.state == state
        response = await request(app, method, "/", **body)
        assert response.status == 503
        assert response.headers["retry-after"] == "5"
        if state == "new":
            async with hub:
                pass


class BrokenLog(MemoryLog):
    """It cannot be read any more once it is told so."""

    broken = False

    async def read(self, after: int, limit: int) -> Any:
        if self.broken:
            raise OSError("the disk is gone")
        return await super().read(after, limit)


async def break_hub(hub: Hub, log: BrokenLog, app: Endpoint) -> None:
    async with hub, open_stream(app) as stream:
        log.broken = True
        await hub.publish(Event("x"))
        await stream.read()


async def test_a_hub_that_failed_is_503() -> None:
    log = BrokenLog()
    hub = Hub(log=log)
    app = Endpoint(hub, publish=True)
    with pytest.raises(OSError, match="the disk is gone"):
        await break_hub(hub, log, app)
    for method in ("GET", "HEAD", "POST"):
        response = await request(app, method, "/", json={"data": "x"})
        assert response.status == 503
    assert "failed" in response.json()["detail"]


# Publishing.


async def test_what_is_published_has_an_id_and_reaches_its_topics(hub: Hub) -> None:
    app = Endpoint(hub, publish=True)
    async with open_stream(app, "/?topic=a") as one, open_stream(app, "/?topic=b") as other:
        response = await request(app, "POST", "/", form=[("topic", "a"), ("data", "hello")])
        assert response.status == 201
        assert response.headers["content-type"] == "application/json"
        event = await one.receive_event()
        assert (event.data, event.id) == ("hello", response.json()["id"])
        response = await request(
            app,
            "POST",
            "/",
            json={"topic": ["b", "a"], "data": {"x": 1}, "type": "t", "retry": 9},
        )
        for stream in (one, other):
            event = await stream.receive_event()
            assert event == Event('{"x":1}', type="t", id=response.json()["id"], retry=9)


async def test_without_a_topic_it_is_the_default_one(hub: Hub) -> None:
    app = Endpoint(hub, publish=True)
    async with open_stream(app, "/?topic=default") as stream:
        await request(app, "POST", "/", json={"data": "hello"})
        assert (await stream.receive_event()).data == "hello"


async def test_a_bad_publication_is_a_problem_and_is_not_published(hub: Hub) -> None:
    app = Endpoint(hub, publish=True)
    response = await request(app, "POST", "/", json={"data": "x", "id": "7"})
    assert response.status == 400
    assert "numbers events itself" in response.json()["detail"]
    response = await request(app, "POST", "/", body=b"x", headers={"content-type": "text/plain"})
    assert response.status == 415
    assert response.headers["accept"] == "application/json, application/x-www-form-urlencoded"
    assert (await request(app, "POST", "/", body=b"x")).status == 415
    assert hub.statistics().published == 0


async def test_a_publication_repeated_with_its_key_is_one_event(hub: Hub) -> None:
    app = Endpoint(hub, publish=True)

    async def publish(key: str, text: str = "x") -> Any:
        headers = {"idempotency-key": key}
        return await request(app, "POST", "/", json={"data": text}, headers=headers)

    first = await publish('"a-key"')
    again = await publish("a-key")
    assert (first.status, again.status) == (201, 201)
    assert first.json() == again.json()
    assert (await publish("other")).json() != first.json()
    misused = await publish("a-key", "y")
    assert misused.status == 422
    assert "belongs to event" in misused.json()["detail"]
    assert hub.log.newest == 2


@pytest.mark.parametrize("key", ['""', "x" * 256, "a\tb"])
async def test_a_key_that_is_none_is_refused(hub: Hub, key: str) -> None:
    headers = {"idempotency-key": key}
    app = Endpoint(hub, publish=True)
    response = await request(app, "POST", "/", json={"data": "x"}, headers=headers)
    assert response.status == 400
    assert "Idempotency-Key:" in response.json()["detail"]
    assert hub.log.newest == 0


@pytest.mark.parametrize(
    ("failure", "status"), [(LogUnavailable("it is away"), 503), (ValueError("not these"), 400)]
)
async def test_what_the_log_does_not_take_is_said_and_sessions_stay(
    failure: Exception, status: int
) -> None:
    log = MemoryLogWith()
    log.append_failure = failure
    log.problem = str(failure)
    async with Hub(log=log) as hub:
        service = Service(Endpoint(hub, publish=True), Access())
        async with open_stream(service, "/events") as stream:
            response = await request(service, "POST", "/events", json={"data": "x"})
            assert response.status == status
            assert str(failure) in response.json()["detail"]
            health = await request(service, "GET", "/healthz")
            assert health.status == 200
            assert health.json() == {"status": "degraded", "sessions": 1, "log": str(failure)}
            metrics = (await request(service, "GET", "/metrics")).body.decode()
            assert "trio_sse_log_available 0.0" in metrics
            log.append_failure = log.problem = None
            response = await request(service, "POST", "/events", json={"data": "y"})
            assert (await stream.receive_event()).data == "y"
            assert (await request(service, "GET", "/healthz")).json()["status"] == "ok"


def json_body(size: int) -> bytes:
    return b'{"data": "%s"}' % (b"x" * (size - len(b'{"data": ""}')))


@pytest.mark.parametrize(("size", "status"), [(100, 201), (101, 413)])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_has_a_bound(hub: Hub, size: int, status: int, declared: bool) -> None:
    headers = [(b"content-type", b"application/json")]
    if declared:
        headers.append((b"content-length", str(size).encode()))
    body = json_body(size)
    exchange = Exchange(body[:50], body[50:], headers=headers)
    await Endpoint(hub, publish=True, max_body=100)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.status == status


async def test_a_body_declared_too_large_is_not_waited_for(hub: Hub) -> None:
    exchange = Exchange(complete=False, headers=[(b"content-length", b"101")])
    await Endpoint(hub, publish=True, max_body=100)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.status == 413


@pytest.mark.parametrize("declared", ["²", "1" * 5000, "-1", "x", ""])
async def test_a_content_length_that_is_no_number_says_nothing(hub: Hub, declared: str) -> None:
    # A server should have refused it; what counts then is what comes.
    body = json_body(50)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", declared.encode("latin-1")),
    ]
    exchange = Exchange(body, headers=headers)
    app = Endpoint(hub, publish=True, max_body=100)
    await app(exchange.scope, exchange.receive, exchange.send)
    assert exchange.status == (413 if declared.startswith("1") else 201)


async def test_a_body_that_never_ends_is_not_kept(hub: Hub) -> None:
    async def receive() -> Message:
        nonlocal given_out
        given_out += 1000
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    given_out = 0
    exchange = Exchange()
    await Endpoint(hub, publish=True, max_body=5000)(exchange.scope, receive, exchange.send)
    assert exchange.status == 413
    assert given_out == 6000


async def test_a_body_that_comes_slowly_is_408(
    hub: Hub, autojump_clock: trio.testing.MockClock
) -> None:
    async def receive() -> Message:
        await trio.sleep(0.4)  # it is the whole that has a time, not each piece
        return {"type": "http.request", "body": b"x", "more_body": True}

    exchange = Exchange(headers=[(b"content-type", b"application/json")])
    start = trio.current_time()
    app = Endpoint(hub, publish=True, body_timeout=3)
    await app(exchange.scope, receive, exchange.send)
    assert exchange.status == 408
    assert trio.current_time() - start == pytest.approx(3)


async def test_a_publisher_that_leaves_is_not_answered(hub: Hub) -> None:
    exchange = Exchange(b'{"data": "x"}', complete=False)
    exchange.leave()
    await Endpoint(hub, publish=True)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.sent == []
    assert hub.statistics().published == 0


@pytest.mark.parametrize(
    "bounds",
    [{"max_body": 0}, {"max_body": -1}, {"body_timeout": 0}, {"body_timeout": float("inf")}],
)
def test_bounds_that_bound_nothing_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bounds"):
        Endpoint(Hub(), **bounds)


# Anything at all.

_header = st.tuples(
    st.sampled_from(
        [b"host", b"origin", b"accept", b"authorization", b"content-type", b"content-length"]
    ),
    st.binary(max_size=20)
    | st.sampled_from(
        [b"text/event-stream", b"Bearer t", b"application/json", b"http://[", b"localhost", b"99"]
    ),
)


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "PUT"]) | st.text(max_size=4),
    headers=st.lists(_header, max_size=5),
    query=st.binary(max_size=20)
    | st.sampled_from([b"access_token=t", b"topic=%ff", b"last-event-id=%00"]),
    body=st.binary(max_size=40) | st.sampled_from([b'{"data":"x"}', b"data=x&topic=y"]),
    path=st.text(max_size=5),
    server=st.sampled_from([None, ("127.0.0.1", 1), ("/run/s", None)]),
    client=st.sampled_from([None, ("::1", 1)]),
    access=st.sampled_from(
        [
            Access(),
            Access(subscribe_token="t", publish_token="t"),
            Access(allowed_hosts=("localhost",), allowed_origins=("http://a",)),
        ]
    ),
)
@settings(deadline=None, max_examples=300)
def test_no_request_is_answered_with_500_or_an_exception(access: Access, **scope: Any) -> None:
    body = scope.pop("body")
    scope["query_string"] = scope.pop("query")

    async def main() -> None:
        async with Hub() as hub:
            exchange = Exchange(body, **scope)
            app = Endpoint(hub, publish=True, access=access, max_body=30)
            async with trio.open_nursery() as nursery:

                async def run() -> None:
                    await app(exchange.scope, exchange.receive, exchange.send)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(run)
                await trio.testing.wait_all_tasks_blocked()
                exchange.leave()
                nursery.cancel_scope.cancel()
            assert exchange.status is not None
            assert 200 <= exchange.status < 500
            for name, value in exchange.sent[0]["headers"]:
                assert name == name.lower()
                assert b"\n" not in value
                assert b"\r" not in value

    trio.run(main)


# Lifespan, and what is not HTTP.


async def test_the_hub_is_open_from_startup_to_shutdown() -> None:
    hub = Hub()
    async with lifespan(Endpoint(hub)) as app:
        assert hub.state == "open"
        assert (await request(app, "HEAD", "/")).status == 200
    assert hub.state == "closed"


async def test_a_hub_that_cannot_be_opened_fails_the_startup(hub: Hub) -> None:
    with pytest.raises(RuntimeError, match=r"startup\.failed: the hub: .*opened once"):
        async with lifespan(Endpoint(hub)):
            pass  # pragma: no cover


async def test_a_hub_that_fails_later_ends_the_lifespan_with_its_failure() -> None:
    log = BrokenLog()
    hub = Hub(log=log)

    async def live_and_fail() -> None:
        async with lifespan(Endpoint(hub)) as app:
            log.broken = True
            await hub.publish(Event("x"))
            await hub.wait_closed()
            assert (await request(app, "GET", "/")).status == 503

    with pytest.raises(OSError, match="the disk"):
        await live_and_fail()
    assert isinstance(hub.failure, BaseException)


async def test_websockets_are_refused_and_other_scopes_are_a_mistake(hub: Hub) -> None:
    exchange = Exchange(type="websocket")
    await Endpoint(hub)(exchange.scope, exchange.receive, exchange.send)
    assert exchange.sent == [{"type": "websocket.close"}]
    with pytest.raises(RuntimeError, match="'telnet'"):
        await Endpoint(hub)({"type": "telnet"}, exchange.receive, exchange.send)


def test_an_endpoint_shows_what_it_is() -> None:
    text = repr(Endpoint(Hub(), publish=True))
    assert "POST" in text
    assert "<Hub new" in text


# Ends that meet.


async def test_the_end_of_a_response_is_sent_whole(hub: Hub) -> None:
    """A server may report the disconnect before the last send has returned."""
    finished: list[Message] = []

    class Slow(Exchange):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if not message.get("more_body", True):
                self.leave()
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
                finished.append(message)

    exchange = Slow(method="GET")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Endpoint(hub), exchange.scope, exchange.receive, exchange.send)
        await trio.testing.wait_all_tasks_blocked()
        hub.end_all("enough")
    assert finished == [{"type": "http.response.body", "body": b"", "more_body": False}]


async def test_counts_add_up(hub: Hub) -> None:
    for _ in range(3):
        async with open_stream(Endpoint(hub)) as stream:
            await stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    statistics = hub.statistics()
    assert (statistics.registered, statistics.sessions) == (3, 0)
    assert statistics.unregistered == {"client-left": 3}
