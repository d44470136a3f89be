"""How a client's connection may end, and that nothing is left of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from connections import MANY, PATHS, Baseline, Recorder
from sockets import (
    FAR,
    GRACE,
    Client,
    connected,
    eventually,
    get,
    open_descriptors,
    post,
    serving,
    subscribed,
)

from trio_sse import (
    Access,
    Endpoint,
    Event,
    Hub,
    HubLimits,
    Refused,
    Request,
    Session,
    server,
)
from trio_sse._app_tasks import Inbox
from trio_sse._connection import Connection
from trio_sse.asgi import TOO_SLOW


def by_fin(client: Client) -> None:
    client.close()


def by_rst(client: Client) -> None:
    client.reset()


def by_half(client: Client) -> None:
    client.half_close()


EXTRA = {"alone": b"", "request follows": get("/other"), "garbage follows": b"\0\xff\r\n\r\n"}
WAYS = pytest.mark.parametrize("leave", [by_fin, by_rst, by_half])


@WAYS
@PATHS
@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
async def test_a_client_leaves_while_nothing_happens(
    leave: Callable[[Client], None], path: Callable[[Any], Any], extra: bytes
) -> None:
    recorder = Recorder(limits=HubLimits(keep_alive=0.02))
    async with serving(path(Endpoint(recorder.hub))) as running:
        baseline = Baseline()
        async with subscribed(running) as subscriber:
            await subscriber.client.send(extra)
            leave(subscriber.client)
            if leave is by_half and not extra:
                # It could still read; but that is how many a client leaves.
                await baseline.restored(but_descriptors=1)
                assert recorder.reasons() == ["client-left"]
        await baseline.restored()
        assert recorder.reasons() == ["client-left"]
        assert await running.stopped() < GRACE / 2
        assert running.logged() == []


@WAYS
@PATHS
@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA)
async def test_a_client_leaves_during_a_send(
    leave: Callable[[Client], None], path: Callable[[Any], Any], extra: bytes
) -> None:
    recorder = Recorder(outbox=MANY)
    async with serving(path(Endpoint(recorder.hub))) as running:
        baseline = Baseline()
        async with subscribed(running, receive_buffer=4096) as subscriber:
            await subscriber.client.send(extra)
            await recorder.hub.publish(Event("x" * 10_000_000))
            await trio.testing.wait_all_tasks_blocked()
            assert not recorder.reasons()
            leave(subscriber.client)
            if leave is by_half and not extra:
                await baseline.restored(but_descriptors=1)
        await baseline.restored()
        assert recorder.reasons() == ["client-left"]
        assert running.logged() == []


@WAYS
async def test_a_client_leaves_while_it_registers(leave: Callable[[Client], None]) -> None:
    recorder = Recorder()
    begun, may_go_on = trio.Event(), trio.Event()

    @recorder.hooks.on_register
    async def register(session: Session) -> None:
        begun.set()
        await may_go_on.wait()

    async with serving(Endpoint(recorder.hub)) as running:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(get())
            await begun.wait()
            leave(client)
            await trio.testing.wait_all_tasks_blocked()
            may_go_on.set()
            await baseline.restored(but_descriptors=leave is by_half)
        await baseline.restored()
        assert recorder.reasons() == ["client-left"]
        assert running.logged() == []


@WAYS
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HT",
        get()[:-2],
        post("/", b"data=x" * 9)[:-20],
        get("/", "Transfer-Encoding: chunked", method="POST") + b"5\r\nab",
    ],
    ids=["nothing", "half a line", "half a head", "half a body", "half a chunk"],
)
async def test_a_client_leaves_before_its_request_is_complete(
    leave: Callable[[Client], None], sent: bytes
) -> None:
    recorder = Recorder()
    async with serving(Endpoint(recorder.hub, publish=True)) as running:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(sent)
            await trio.testing.wait_all_tasks_blocked()
            leave(client)
            await baseline.restored(but_descriptors=leave is by_half)
        await baseline.restored()
        assert recorder.registered == []
        assert running.logged() == []


@PATHS
async def test_clients_leave_at_every_moment(path: Callable[[Any], Any]) -> None:
    """Many at once, each after another number of steps, while events flow."""
    recorder = Recorder()
    async with serving(path(Endpoint(recorder.hub))) as running:
        baseline = Baseline()
        async with trio.open_nursery() as nursery:

            async def come_and_go(steps: int) -> None:
                async with connected(running) as client:
                    await client.send(get())
                    for _ in range(steps // 3):
                        await trio.lowlevel.checkpoint()
                    (by_fin, by_rst, by_half)[steps % 3](client)

            for steps in range(90):
                nursery.start_soon(come_and_go, steps)
            for number in range(40):
                await recorder.hub.publish(Event(str(number)))
                await trio.lowlevel.checkpoint()
        await baseline.restored()
        assert recorder.reasons() == ["client-left"] * len(recorder.registered)
        assert running.logged() == []


async def test_a_refused_request_whose_body_nobody_reads() -> None:
    # Many small chunks in one packet, more than are kept for an application; and one
    # that takes a few steps before it says no.
    async def authorize(request: Request) -> None:
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        raise Refused(403, "no")

    app = Endpoint(Hub(), publish=True, access=Access(authorize=authorize))
    async with serving(app) as running:
        baseline = Baseline()
        async with connected(running) as client:
            chunked = get("/", "Transfer-Encoding: chunked", method="POST")
            await client.send(chunked + b"1\r\nx\r\n" * 50)
            assert b" 403 " in await client.to_end()
        await baseline.restored()
        assert running.logged() == []


async def test_an_application_that_never_receives() -> None:
    # The queue for its messages is full when it notices that the client has left.
    done: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(2000):
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})
        done.append(scope["path"])

    async with serving(app) as running:
        baseline = Baseline()
        async with connected(running, receive_buffer=4096) as client:
            chunked = get("/", "Transfer-Encoding: chunked", method="POST")
            await client.send(chunked + b"1\r\nx\r\n" * 50)
            await client.until(b"200")
            client.reset()
        await baseline.restored()
        assert done == ["/"]


async def test_requests_that_follow_one_another_on_a_connection() -> None:
    async with serving(Endpoint(Hub(), publish=True)) as running:
        async with connected(running) as client:
            body = b'{"data": "x"}'
            await client.send(post("/", body) * 3)
            await client.send(get(method="HEAD") * 2 + get())
            received = await client.until(b"text/event-stream\r\ncache")
            assert received.count(b" 201 ") == 3
            await client.until(b"retry: 2000\n\n")
        assert running.logged() == []


async def test_an_http_1_0_client_reads_until_the_end() -> None:
    recorder = Recorder()
    async with serving(Endpoint(recorder.hub)) as running, connected(running) as client:
        await client.send(get(version="1.0"))
        await client.until(b"\r\n\r\n")
        await eventually(lambda: recorder.registered)
        await recorder.hub.publish(Event("hello"))
        await client.until(b"data: hello\n\n")
        assert b"chunked" not in client.received.lower()
        recorder.hub.end_all("the end")
        assert (await client.to_end()).endswith(b"data: hello\n\n")


async def test_a_connection_is_closed_after_a_refusal_that_left_a_body() -> None:
    async with serving(Endpoint(Hub())) as running, connected(running) as client:
        await client.send(post("/", b"x" * 100)[:-50])
        assert b" 405 " in await client.to_end()


async def test_subscribers_of_one_server_do_not_notice_each_other() -> None:
    recorder = Recorder()
    async with (
        serving(Endpoint(recorder.hub)) as running,
        subscribed(running) as staying,
        subscribed(running) as leaving,
    ):
        leaving.client.reset()
        await recorder.hub.publish(Event("hello"))
        assert (await staying.event()).data == "hello"


async def test_a_client_that_asks_again_behind_its_stream_is_told_that_it_is_over() -> None:
    async with serving(Endpoint(Hub())) as running, connected(running) as client:
        await client.send(get() + get())
        await client.until(b"retry: 2000")
        assert await running.stopped() < GRACE / 2
        assert b"0\r\n\r\nHTTP/1.1 503" in await client.to_end()


async def test_what_follows_a_last_request_is_not_waited_for() -> None:
    recorder = Recorder()
    settings = {"keep_alive_max_requests": 0}  # the server closes after the first
    async with serving(Endpoint(recorder.hub), settings=settings) as running:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(get() + get())
            await client.until(b"retry: 2000")
            recorder.hub.end_all("enough")
            assert (await client.to_end()).endswith(b"0\r\n\r\n")
        await baseline.restored()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post("/", b"x" * 10_000_000), b"413"),
        (post("/", b"x" * 10_000_000, "Origin: http://other.org"), b"403"),
        (get("/", "Transfer-Encoding: chunked", method="POST") + b"z\r\n" * 3_000_000, b"400"),
        (b"GET /" + b"x" * 10_000_000, b"431"),
    ],
    ids=["too large", "refused", "malformed", "an endless line"],
)
async def test_a_client_that_sends_first_and_then_reads_has_its_answer(
    request_: bytes, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_sse.server._LINGER", 10 * FAR)  # it need not take that long
    async with serving(Endpoint(Hub(), publish=True)) as running:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(request_)
            assert (await client.to_end())[9:12] == status
        await baseline.restored()
        assert running.logged() == []


async def test_work_after_an_answer_does_not_keep_the_connection_open() -> None:
    may_end = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
        await may_end.wait()

    async with serving(app) as running:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(post("/", b"x" * 100)[:-50])
            assert (await client.to_end()).endswith(b"0\r\n\r\n")
        await eventually(lambda: open_descriptors() <= baseline.descriptors)
        may_end.set()
        await baseline.restored()


async def test_a_client_that_never_stops_sending_is_not_read_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trio_sse.server._LINGER", 0.05)

    async def flood(client: Client) -> None:
        while True:
            await client.send(b"x" * 100_000)

    async with serving(Endpoint(Hub(), publish=True)) as running:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(get("/", "Content-Length: 999999999999", method="POST"))
            with trio.fail_after(FAR), pytest.raises(trio.BrokenResourceError):
                await flood(client)
            assert b" 413 " in await client.to_end()
        await baseline.restored()


@pytest.mark.parametrize("header", ["X: y", "Connection: close"])
async def test_an_application_may_cancel_its_last_send_when_the_client_has_gone(
    header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Quart-Trio does; and the client is said to have gone before that send returns.
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x"})
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(server, "_LOOK_EVERY", 0.01)
    async with serving(app, settings={"keep_alive_timeout": 0.05}) as running:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(get("/", header))
            assert (await client.to_end()).endswith(b"1\r\nx\r\n0\r\n\r\n")
        await baseline.restored()


# What an application receives.

BODY = {"type": "http.request", "body": b"x", "more_body": True}
GONE = {"type": "http.disconnect"}


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(2)


async def test_messages_wait_for_room_and_a_disconnect_does_not(
    inbox: Inbox, nursery: trio.Nursery
) -> None:
    for _ in range(2):
        await inbox.put(BODY)
    waiting = trio.Event()

    async def put_third() -> None:
        await inbox.put(BODY)
        waiting.set()

    nursery.start_soon(put_third)
    await trio.testing.wait_all_tasks_blocked()
    assert not waiting.is_set()
    assert await inbox.receive() == BODY
    await waiting.wait()
    await inbox.put(GONE)
    assert [await inbox.receive() for _ in range(4)] == [BODY, BODY, GONE, GONE]


@pytest.mark.parametrize("what", ["close", "when_gone"])
async def test_who_puts_is_let_go_when_nobody_reads_any_more(inbox: Inbox, what: str) -> None:
    told: list[bool] = []
    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(inbox.put, BODY)
        await trio.testing.wait_all_tasks_blocked()
        if what == "close":
            inbox.close()
        else:
            inbox.when_gone(told.append)
    for _ in range(9):
        await inbox.put(BODY)
    assert told == []
    await inbox.put({**GONE, TOO_SLOW: True})
    await inbox.put(GONE)
    assert told == ([] if what == "close" else [True])


async def test_who_asks_when_the_client_has_gone_is_told_at_once(inbox: Inbox) -> None:
    await inbox.put(BODY)
    await inbox.put(GONE)
    told: list[bool] = []
    inbox.when_gone(told.append)
    assert told == [False]


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [([(b"content-length", b"5")], 1), ([], 3)],
    ids=["of known length", "in chunks"],
)
async def test_a_response_of_known_length_is_one_write(
    headers: list[tuple[bytes, bytes]], pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    send_piece = Connection._send_piece

    async def recorded(self: Connection, data: bytes) -> None:
        sent.append(data)
        await send_piece(self, data)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})

    monkeypatch.setattr(Connection, "_send_piece", recorded)
    async with serving(app) as running, connected(running) as client:
        await client.send(get("/", "Connection: close"))
        answer = await client.to_end()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"hello" in answer
    assert b"".join(sent) == answer
    assert len(sent) == pieces
