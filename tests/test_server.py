"""`serve`: what one client does touches no other, and the end comes in time."""

from __future__ import annotations

import gc
import logging
import math
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from connections import MANY, PATHS, Baseline, Recorder
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError
from sockets import (
    FAR,
    GRACE,
    Client,
    LogList,
    Running,
    Subscriber,
    connected,
    eventually,
    get,
    make_config,
    post,
    serving,
    subscribed,
)

import trio_sse
from trio_sse import Endpoint, Event, Hub, HubLimits, Session, server

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

ENOUGH = 5.0
"""Seconds beyond what is promised, before a test on a busy machine calls it late."""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hypercorn's settings for TLS."""
    where = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(where / "key"))
    issued.cert_chain_pems[0].write_to_path(str(where / "cert"))
    return {"keyfile": str(where / "key"), "certfile": str(where / "cert")}


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server looks for what waits too long more often than once a second."""
    monkeypatch.setattr(server, "_LOOK_EVERY", 0.01)


async def still_served(hub: Hub, subscriber: Subscriber) -> None:
    """What is published now arrives next."""
    event_id = await hub.publish(Event("still here"))
    event = await subscriber.event()
    assert (event.data, event.id) == ("still here", event_id)


# Malformed requests.

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def h2c(settings: bytes, *headers: str) -> bytes:
    head = get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", *headers)
    return head[:-2] + b"HTTP2-Settings: " + settings + b"\r\n\r\n"


MALFORMED = {
    "h2c upgrade": h2c(b"AAMAAABkAAQAoAAAAAIAAAAA"),
    "h2c upgrade, settings that are no base64": h2c(b"!!!!"),
    "h2c upgrade, settings of an odd length": h2c(b"AAA"),
    "h2c upgrade, settings out of range": h2c(b"AAUAAAAA"),
    "h2c upgrade, no settings": get("/", "Connection: Upgrade", "Upgrade: h2c"),
    "h2c upgrade of a post": post("/", b"x", "Connection: Upgrade", "Upgrade: h2c"),
    "http/2 preface": HTTP2_PREFACE + EMPTY_SETTINGS,
    "http/2 preface, then garbage": HTTP2_PREFACE + b"\xff" * 100,
    "http/2 preface, then a frame too large": HTTP2_PREFACE + b"\xff\xff\xff\0\0\0\0\0\1",
    "half an http/2 preface": HTTP2_PREFACE[:16],
    "http/2.0 in a request line": get(version="2.0"),
    "http/1.2": get(version="1.2"),
    "http/9.9": get(version="9.9"),
    "garbage": bytes(range(256)),
    "nul": b"\0",
    "line breaks": b"\r\n" * 100,
    "tls": bytes.fromhex("16030100a5010000a10303") + b"\xaa" * 100,
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "socks": b"\5\1\0",
    "a proxy's introduction": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + get(),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": get("/", "Host: other"),
    "a host of other bytes": b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    "a path of other bytes": b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path with broken escapes": get("/%ff%zz%"),
    "no path": b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "a method of other bytes": b"G\xe9T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "an absolute path": get("http://other.org/"),
    "an asterisk": get("*", method="OPTIONS"),
    "huge headers": get("/", "X: " + "x" * 100_000),
    "many headers": get("/", *[f"X-{number}: x" for number in range(5000)]),
    "an endless request line": b"GET /" + b"x" * 100_000,
    "a header without a colon": get("/", "nonsense"),
    "a header with a space before the colon": get("/", "Name : x"),
    "a folded header": get("/", "X: a", " b"),
    "a header with a nul": get("/", "X: \0"),
    "a bare carriage return": b"GET / HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
    "two lengths": post("/", b"x", "Content-Length: 2"),
    "a negative length": get("/", "Content-Length: -1", method="POST"),
    "a length of letters": get("/", "Content-Length: x", method="POST"),
    "a length of very many digits": get("/", "Content-Length: " + "9" * 5000, method="POST"),
    "length and chunks": post("/", b"0\r\n\r\n", "Transfer-Encoding: chunked"),
    "an unknown encoding": get("/", "Transfer-Encoding: gzip", method="POST"),
    "an encoding twice": get("/", "Transfer-Encoding: chunked, chunked", method="POST"),
    "an expectation": get("/", "Expect: 100-continue", "Content-Length: 3", method="POST"),
    "an unknown expectation": get("/", "Expect: magic"),
    "a websocket": get(
        "/",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
    "a websocket of no version": get("/", "Connection: Upgrade", "Upgrade: websocket"),
    "a websocket that sends at once": get(
        "/",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: x",
    )
    + b"\x81\xff" * 100,
    "another upgrade": get("/", "Connection: Upgrade", "Upgrade: nonsense/7"),
}


def chunked(method: str, path: str, chunks: bytes) -> bytes:
    return get(path, "Transfer-Encoding: chunked", method=method) + chunks


for _method in ("GET", "POST"):
    for _name, _chunks in {
        "a chunk size of letters": b"xyz\r\nabc\r\n",
        "an endless chunk size": b"f" * 100,
        "a negative chunk size": b"-1\r\na\r\n",
        "a chunk longer than it says": b"1\r\nabc\r\n",
        "chunks in disorder": b"5\r\nhello\r\n" * 3 + b"\xff",
        "a huge extension": b"1;" + b"x" * 50_000 + b"\r\na\r\n",
        "bad trailers": b"0\r\nnonsense\r\n\r\n",
    }.items():
        MALFORMED[f"{_name}, {_method}"] = chunked(_method, "/", _chunks)
MALFORMED["a body in parts that never ends"] = chunked("POST", "/", b"1\r\nx\r\n" * 30)

ENDS: dict[str, Callable[[Client], None]] = {
    "fin": Client.half_close,
    "rst": Client.reset,
    "close": Client.close,
}


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_request_hurts_nobody_else(
    name: str, http2: bool, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(limits=HubLimits(keep_alive=0.02))  # which notices the rest
    app = Endpoint(hub, publish=True)
    async with serving(app, http2=http2) as running, subscribed(running) as other:
        baseline = Baseline()
        for end in ENDS.values():
            caplog.clear()
            running.log.clear()
            async with connected(running) as client:
                await client.send(MALFORMED[name])
                await trio.testing.wait_all_tasks_blocked()
                await still_served(hub, other)
                end(client)
                await trio.testing.wait_all_tasks_blocked()
            await baseline.restored()
            await still_served(hub, other)
            assert len(running.log) <= 1, running.logged()
            levels = [record.levelno for record in caplog.records]
            assert max(levels, default=0) < logging.ERROR
        assert await running.stopped() < GRACE / 2


async def test_http_2_is_not_spoken_unless_asked_for() -> None:
    async with serving(Endpoint(Hub())) as running:
        async with connected(running) as client:
            await client.send(HTTP2_PREFACE + EMPTY_SETTINGS)
            assert (await client.to_end()).startswith(b"HTTP/1.1 505 ")
        async with connected(running) as client:
            await client.send(h2c(b"AAMAAABkAAQAoAAAAAIAAAAA"))  # one may ignore that
            assert (await client.until(b"retry: 2000")).startswith(b"HTTP/1.1 200 ")
        assert running.logged() == []


# Applications that fail.


@pytest.mark.parametrize("when", ["before", "after the head", "in the body", "at the end"])
@pytest.mark.parametrize("group", [False, True])
async def test_an_application_that_fails_fails_alone(when: str, group: bool) -> None:
    hub = Hub()
    endpoint = Endpoint(hub)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] == "/":
            await endpoint(scope, receive, send)
            return
        failure: Exception = RuntimeError("a defect")
        if group:
            failure = ExceptionGroup("from a nursery", [failure])
        if when != "before":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if when in ("in the body", "at the end"):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if when == "at the end":
            await send({"type": "http.response.body"})
        raise failure

    async with serving(app) as running, subscribed(running) as other:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(get("/fails"))
            if when == "at the end":
                await client.until(b"0\r\n\r\n")
            else:
                received = await client.to_end()
                assert (b" 500 " in received) == (when == "before")
                assert not received.endswith(b"0\r\n\r\n")  # nobody takes it for whole
        await baseline.restored()
        await still_served(hub, other)
        [record] = running.log
        assert record.exc_info is not None
        assert "a defect" in repr(record.exc_info[1])


@pytest.mark.parametrize(
    "headers",
    [
        [(b"bad name", b"x")],
        [(b"x", b"a\r\nb: c")],
        [(b"content-length", b"x")],
        "nonsense",
        [None],
    ],
)
async def test_a_response_that_is_no_http_ends_its_connection_alone(headers: Any) -> None:
    hub = Hub()
    endpoint = Endpoint(hub)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] == "/":
            await endpoint(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": headers})

    async with serving(app) as running, subscribed(running) as other:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(get("/fails"))
            assert b" 200 " not in await client.to_end()
        await baseline.restored()
        await still_served(hub, other)
        assert len(running.log) == 1


@pytest.mark.parametrize("message", [{"type": "nonsense"}, {}, {"type": "http.response.body"}])
async def test_messages_that_are_not_asgi_fail_alone(message: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send(message)

    async with serving(app) as running:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(get())
            assert b" 500 " in await client.to_end()
        await baseline.restored()
        assert "Lifespan" in running.logged()[0]  # it was asked for that, too
        assert len(running.log) == 2


async def test_what_follows_a_send_that_was_cancelled_is_not_taken_for_its_rest() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(0.05):
            await send({"type": "http.response.body", "body": b"x" * 10_000_000, "more_body": True})
        await send({"type": "http.response.body", "body": b"y" * 1000})

    async with serving(app) as running, connected(running, receive_buffer=4096) as client:
        baseline = Baseline()
        await client.send(get())
        await eventually(lambda: Baseline().descriptors < baseline.descriptors + 1)
        received = await client.to_end()
        assert b"y" not in received.partition(b"\r\n\r\n")[2]


async def test_a_request_that_has_been_answered_may_go_on_with_its_work() -> None:
    # Frameworks run "background tasks" so.
    done: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        done.append(scope["path"])

    async with serving(app) as running:
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(get("/", "Connection: close"))
            await client.to_end()
        await baseline.restored()
        assert done == ["/"]


async def test_every_request_is_once_in_the_access_log() -> None:
    handler = LogList()
    logger = logging.Logger("of access, in this test")  # noqa: LOG001  # not to be found
    logger.addHandler(handler)
    settings = {"accesslog": logger, "access_log_format": "%(r)s %(s)s"}
    async with serving(Endpoint(Hub(), publish=True), settings=settings) as running:
        async with connected(running) as client:
            await client.send(post("/", b'{"data": "x"}') + get("/?a", method="HEAD"))
            await eventually(lambda: len(handler.records) == 2)
        for leave in (Client.close, Client.reset):
            baseline = Baseline()
            async with subscribed(running, f"/?{leave.__name__}") as subscriber:
                leave(subscriber.client)
                await baseline.restored()
        assert [record.getMessage() for record in handler.records] == [
            "POST / 1.1 201",
            "HEAD / 1.1 200",
            "GET / 1.1 -",  # there is no more to it than that the client left
            "GET / 1.1 -",
        ]


# Waiting.


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET / HT", get("/")[:-1]])
async def test_headers_have_a_bounded_time(sent: bytes, looks_often: None) -> None:
    async with serving(Endpoint(Hub()), settings={"keep_alive_timeout": 0.05}) as running:
        async with connected(running) as client:
            await client.send(sent)
            assert await client.to_end() == b""
        assert running.logged() == []


async def test_headers_that_trickle_have_the_same_time(looks_often: None) -> None:
    async def trickle(client: Client) -> None:
        while True:
            await client.send(b"G")
            await trio.testing.wait_all_tasks_blocked(0.005)

    async with (
        serving(Endpoint(Hub()), settings={"keep_alive_timeout": 0.1}) as running,
        connected(running) as client,
    ):
        with trio.fail_after(FAR), pytest.raises(trio.BrokenResourceError):
            await trickle(client)
        assert running.logged() == []


async def test_a_connection_between_requests_has_the_same_time(looks_often: None) -> None:
    async with (
        serving(Endpoint(Hub(), publish=True), settings={"keep_alive_timeout": 0.1}) as running,
        connected(running) as client,
        subscribed(running) as streaming,
    ):
        await client.send(post("/", b'{"data": "x"}'))
        assert b" 201 " in await client.to_end()
        assert streaming.ended is None
        async with connected(running) as publisher:
            await publisher.send(post("/", b'{"data": "y"}'))
            await publisher.until(b" 201 ")
        assert [(await streaming.event()).data for _ in "xy"] == ["x", "y"]


@PATHS
async def test_a_client_that_takes_nothing_is_cut_as_too_slow(
    path: Callable[[Any], Any], looks_often: None
) -> None:
    recorder = Recorder(outbox=MANY)
    app = path(Endpoint(recorder.hub))
    async with serving(app, send_timeout=0.1) as running, subscribed(running) as other:
        baseline = Baseline()
        async with subscribed(running, receive_buffer=4096) as stalled:
            await recorder.hub.publish(Event("x" * 10_000_000))
            assert len((await other.event()).data or "") == 10_000_000
            await eventually(lambda: recorder.unregistered)
            await eventually(lambda: len(recorder.hub.sessions) == 1)
            await stalled.rest()
            assert stalled.ended == "cut"
        await baseline.restored()
        assert recorder.reasons() == ["too-slow"]
        await still_served(recorder.hub, other)


@PATHS
async def test_a_client_that_takes_slowly_is_not_cut(
    path: Callable[[Any], Any], looks_often: None
) -> None:
    recorder = Recorder(outbox=MANY)
    app = path(Endpoint(recorder.hub))
    async with (
        serving(app, send_timeout=1) as running,
        subscribed(running, receive_buffer=1 << 16) as slow,
    ):
        await recorder.hub.publish(Event("x" * 6_000_000))
        received = slow.client.received
        start = trio.current_time()
        while not received.endswith(b"x\n\n\r\n") and not slow.client.ended:
            await slow.client.receive()
            await trio.sleep(0.015)  # its pace
        assert trio.current_time() - start > 1  # or it was not slow enough to show anything
        assert recorder.unregistered == []


# Too many.


async def test_connections_are_limited_and_the_next_one_is_told() -> None:
    async with serving(Endpoint(Hub()), max_connections=2) as running:
        baseline = Baseline()
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(subscribed(running))
            async with connected(running) as client:
                await client.send(get())
                received = await client.to_end()
                assert received.startswith(b"HTTP/1.1 503 ")
                assert b"retry-after: 5\r\n" in received
        await baseline.restored()
        async with subscribed(running):
            pass


async def test_the_limit_holds_for_many_that_come_at_once() -> None:
    async with serving(Endpoint(Hub()), max_connections=3) as running, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(running)) for _ in range(20)]
        statuses: list[bytes] = []
        for client in clients:
            with suppress(trio.BrokenResourceError):  # refused before it could ask
                await client.send(get("/", "Connection: close", method="HEAD"))
            statuses.append((await client.to_end())[9:12])
        assert statuses.count(b"200") == 3
        assert statuses.count(b"503") == 17


def start_python(source: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", source], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


OUT_OF_DESCRIPTORS = """
import resource, sys, trio
from hypercorn.config import Config
import trio_sse

async def main():
    config = Config()
    config.bind = ["127.0.0.1:0"]
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        async def serve(task_status):
            await trio_sse.serve(
                trio_sse.Endpoint(trio_sse.Hub()), config, shutdown_trigger=stop.wait,
                grace=1, task_status=task_status)
        [url] = await nursery.start(serve)
        print(url, flush=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        await trio.to_thread.run_sync(sys.stdin.read)
        stop.set()

trio.run(main)
"""


async def test_it_survives_running_out_of_descriptors() -> None:
    with start_python(OUT_OF_DESCRIPTORS) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        url = (await trio.to_thread.run_sync(process.stdout.readline)).strip()
        host, _, port = url.removeprefix("http://").rpartition(":")
        running = Running((host, int(port)), [url], [])
        async with AsyncExitStack() as stack:
            clients: list[Client] = []
            for _ in range(60):  # more than it may have
                clients.append(await stack.enter_async_context(connected(running)))
                await clients[-1].send(get())
            said = ""
            while "Cannot accept" not in said:
                said = await trio.to_thread.run_sync(process.stderr.readline)
                assert said, "it ended"
            assert "Too many open files" in said
            for client in clients[:20]:
                await client.until(b"retry: 2000")
                client.close()
            await clients[39].until(b"retry: 2000")  # it had only to wait
        async with subscribed(running):
            pass
        process.stdin.close()
        assert await trio.to_thread.run_sync(process.wait) == 0
        errors = process.stderr.read()
        assert "Cannot accept" not in errors  # to have said it once is enough
        assert "Traceback" not in errors


# Where it listens.


async def test_a_unix_socket(tmp_path: Path) -> None:
    recorder = Recorder()
    path = tmp_path / "sse.sock"
    async with (
        serving(Endpoint(recorder.hub), settings={"bind": [f"unix:{path}"]}) as running,
        subscribed(running) as subscriber,
    ):
        assert running.address == str(path)
        [session] = recorder.registered
        assert session.request.client is None
        await still_served(recorder.hub, subscriber)


async def test_a_socket_that_is_handed_over() -> None:
    # As systemd does: bound, listening, and a number.
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
        number = os.dup(sock.fileno())
    hub = Hub()
    async with serving(Endpoint(hub), settings={"bind": [f"fd://{number}"]}) as running:
        assert running.address == address
        async with subscribed(running) as subscriber:
            await still_served(hub, subscriber)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


async def test_several_addresses_and_ipv6() -> None:
    hub = Hub()
    binds = ["127.0.0.1:0", "[::1]:0"]
    async with serving(Endpoint(hub), settings={"bind": binds}) as running:
        assert [url.rpartition(":")[0] for url in running.urls] == [
            "http://127.0.0.1",
            "http://[::1]",
        ]
        running.address = ("::1", int(running.urls[1].rpartition(":")[2]))
        async with subscribed(running) as subscriber:
            await still_served(hub, subscriber)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_address_in_use_is_an_error_and_nothing_stays_open() -> None:
    # Hypercorn leaves it to the collector to close those that it has made already, which
    # is what the warning says.
    baseline = Baseline()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        taken = f"127.0.0.1:{sock.getsockname()[1]}"
        for binds in ([taken], ["127.0.0.1:0", taken]):
            config, _ = make_config(bind=binds)
            with pytest.raises(OSError, match="in use"):
                await trio_sse.serve(Endpoint(Hub()), config)
            gc.collect()
            await baseline.restored(but_descriptors=1)


@pytest.mark.parametrize(
    "options",
    [
        {"grace": 0},
        {"grace": -1},
        {"grace": math.inf},
        {"send_timeout": 0},
        {"send_timeout": math.nan},
    ],
)
async def test_bounds_that_bound_nothing_are_refused(options: dict[str, float]) -> None:
    [name] = options
    with pytest.raises(ValueError, match=rf"serve\({name}="):
        await trio_sse.serve(Endpoint(Hub()), make_config()[0], **options)


async def test_quic_is_refused() -> None:
    config, _ = make_config(quic_bind=["127.0.0.1:0"])
    with pytest.raises(ValueError, match="quic_bind"):
        await trio_sse.serve(Endpoint(Hub()), config)


# TLS.


async def test_tls(certificate: dict[str, str], client_tls: ssl.SSLContext) -> None:
    recorder = Recorder()
    client_tls.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(Endpoint(recorder.hub), settings=certificate) as running:
        assert running.urls[0].startswith("https://")
        baseline = Baseline()
        async with subscribed(running, ssl_context=client_tls) as subscriber:
            stream: Any = subscriber.client.stream
            assert stream.selected_alpn_protocol() == "http/1.1"
            await still_served(recorder.hub, subscriber)
            recorder.hub.end_all("enough")
            await subscriber.rest()
            assert subscriber.ended == "complete"
        await baseline.restored()
        for leave in (Client.close, Client.reset):
            async with subscribed(running, ssl_context=client_tls) as subscriber:
                leave(subscriber.client)
            await baseline.restored()
        assert recorder.reasons() == ["application", "client-left", "client-left"]
        assert running.logged() == []


TLS_NONSENSE = {
    "nothing": b"",
    "plain http": get(),
    "garbage": bytes(range(256)) * 10,
    "half a greeting": bytes.fromhex("16030100a5010000a10303") + b"\xaa" * 10,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("sent", TLS_NONSENSE.values(), ids=TLS_NONSENSE)
async def test_a_handshake_that_fails_hurts_nobody_else(
    sent: bytes,
    end: Callable[[Client], None],
    certificate: dict[str, str],
    client_tls: ssl.SSLContext,
) -> None:
    hub = Hub()
    async with (
        serving(Endpoint(hub), settings=certificate) as running,
        subscribed(running, ssl_context=client_tls) as other,
    ):
        baseline = Baseline()
        async with connected(running) as client:
            await client.send(sent)
            await trio.testing.wait_all_tasks_blocked()
            await still_served(hub, other)
            end(client)
            await baseline.restored(but_descriptors=end is Client.half_close)
        await baseline.restored()
        assert running.logged() == []


@pytest.mark.parametrize("setting", ["keep_alive_timeout", "ssl_handshake_timeout"])
async def test_a_handshake_has_a_bounded_time(
    setting: str, certificate: dict[str, str], looks_often: None
) -> None:
    async with serving(Endpoint(Hub()), settings={**certificate, setting: 0.05}) as running:
        async with connected(running) as client:
            assert await client.to_end() == b""
        assert running.logged() == []


GET_BY_HTTP2 = [
    (":method", "GET"),
    (":path", "/"),
    (":scheme", "https"),
    (":authority", "localhost"),
]


@asynccontextmanager
async def spoken_http2(
    running: Running, client_tls: ssl.SSLContext, **options: Any
) -> AsyncIterator[tuple[Client, Any]]:
    h2_connection = pytest.importorskip("h2.connection")  # it comes with Hypercorn
    client_tls.set_alpn_protocols(["h2"])
    async with connected(running, ssl_context=client_tls, **options) as client:
        stream: Any = client.stream
        assert stream.selected_alpn_protocol() == "h2"
        http = h2_connection.H2Connection()
        http.initiate_connection()
        await client.send(http.data_to_send())
        yield client, http


async def test_http_2_for_those_who_ask_for_it(
    certificate: dict[str, str], client_tls: ssl.SSLContext
) -> None:
    from h2.events import DataReceived, ResponseReceived, StreamEnded  # noqa: PLC0415  # as above

    recorder = Recorder()
    async with serving(Endpoint(recorder.hub), settings=certificate, http2=True) as running:
        async with spoken_http2(running, client_tls) as (client, http):
            http.send_headers(1, GET_BY_HTTP2, end_stream=True)
            await client.send(http.data_to_send())
            body, headers, ended = b"", {}, False
            while not ended:
                for event in http.receive_data(await client.receive()):
                    if isinstance(event, ResponseReceived):
                        headers = dict(event.headers)
                    elif isinstance(event, DataReceived):
                        body += event.data
                    ended = ended or isinstance(event, StreamEnded)
                if b"retry" in body and b"hello" not in body:
                    await recorder.hub.publish(Event("hello"))
                elif b"hello" in body:
                    recorder.hub.end_all("enough")
        assert headers[b":status"] == b"200"
        assert b"connection" not in headers
        assert b"data: hello\n\n" in body
        assert running.logged() == []


@pytest.mark.parametrize("stalls", [False, True])
async def test_an_http_2_client_does_not_hold_up_the_end(
    stalls: bool, certificate: dict[str, str], client_tls: ssl.SSLContext
) -> None:
    recorder = Recorder(outbox=MANY)
    async with (
        serving(Endpoint(recorder.hub), grace=0.3, settings=certificate, http2=True) as running,
        spoken_http2(running, client_tls, receive_buffer=4096 if stalls else None) as (
            client,
            http,
        ),
    ):
        http.send_headers(1, GET_BY_HTTP2, end_stream=True)
        await client.send(http.data_to_send())
        await eventually(lambda: recorder.registered)
        await recorder.hub.publish(Event("x" * (5_000_000 if stalls else 5)))
        await trio.testing.wait_all_tasks_blocked()
        assert await running.stopped() < 0.3 + ENOUGH
        assert recorder.reasons() == ["drained"]


# The end.


@asynccontextmanager
async def stalled(
    recorder: Recorder, running: Running, **options: Any
) -> AsyncIterator[Subscriber]:
    """A client that takes nothing any more, in the middle of an event."""
    async with subscribed(running, receive_buffer=4096, **options) as subscriber:
        await recorder.hub.publish(Event("x" * 10_000_000))
        await trio.testing.wait_all_tasks_blocked()
        yield subscriber


@PATHS
@pytest.mark.parametrize("tls", [False, True])
async def test_a_stalled_client_does_not_hold_up_the_end(
    path: Callable[[Any], Any],
    tls: bool,
    certificate: dict[str, str],
    client_tls: ssl.SSLContext,
    figure: Callable[[str], None],
) -> None:
    recorder = Recorder(outbox=MANY)
    options = {"ssl_context": client_tls} if tls else {}
    async with (
        serving(
            path(Endpoint(recorder.hub)), grace=0.3, settings=certificate if tls else {}
        ) as running,
        stalled(recorder, running, **options),
    ):
        took = await running.stopped()
    figure(f"grace 0.3 s, took {took:.2f} s")
    assert 0.3 <= took < 0.3 + ENOUGH
    assert recorder.reasons() == ["drained"]
    assert running.logged() == []


async def keep_coming(running: Running, answers: list[str]) -> None:
    """Ask, one connection after another, until nobody answers."""
    with suppress(OSError, trio.BrokenResourceError):
        while True:
            async with connected(running) as client:
                await client.send(get())
                answers.append((await client.to_end())[:12].decode())


async def test_all_kinds_of_clients_do_not_hold_up_the_end(figure: Callable[[str], None]) -> None:
    recorder = Recorder(outbox=MANY)
    in_flight = trio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/slow":
            in_flight.set()
            await trio.sleep_forever()
        await endpoint(scope, receive, send)

    endpoint = Endpoint(recorder.hub, publish=True, body_timeout=60)
    async with serving(application, grace=1.5) as running, AsyncExitStack() as stack:

        async def client(sent: bytes, **options: Any) -> Client:
            made = await stack.enter_async_context(connected(running, **options))
            await made.send(sent)
            return made

        reading = await stack.enter_async_context(subscribed(running))
        await client(get(), receive_buffer=4096)
        (await client(get())).half_close()
        await client(get() + get("/other"))
        await client(get() + b"garbage")
        await client(b"")
        await client(b"GET / HT")
        await client(post("/", b"data=x" * 10)[:-10])
        await client(get("/slow"))
        await in_flight.wait()
        await recorder.hub.publish(Event("x" * 10_000_000))
        await trio.testing.wait_all_tasks_blocked()
        late: list[str] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_coming, running, late)
            nursery.start_soon(reading.rest)
            took = await running.stopped()
    figure(f"grace 1.5 s, took {took:.2f} s; {len(late)} came during it")
    assert took < 1.5 + ENOUGH
    assert len(recorder.unregistered) == len(recorder.registered) >= 4
    assert reading.ended == "complete"
    assert reading.blocks[-1].comment == "draining"
    assert "HTTP/1.1 503" in late
    assert running.logged() == []


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@PATHS
async def test_each_of_many_gets_a_farewell_of_its_own(
    path: Callable[[Any], Any], many_descriptors: None, figure: Callable[[str], None]
) -> None:
    count = 500
    recorder = Recorder()
    app = path(Endpoint(recorder.hub))
    async with serving(app) as running, AsyncExitStack() as stack:
        subscribers = [await stack.enter_async_context(subscribed(running)) for _ in range(count)]
        last = await recorder.hub.publish(Event("last"))
        async with trio.open_nursery() as nursery:
            for subscriber in subscribers:
                nursery.start_soon(subscriber.rest)
            took = await running.stopped()
        figure(f"{count} drained in {took:.2f} s")
        assert took < GRACE
        retries = set()
        for subscriber in subscribers:
            assert subscriber.ended == "complete"
            *_, event, farewell = subscriber.blocks
            assert event.id == last
            assert farewell.comment == "draining"
            assert farewell.retry is not None
            assert farewell.retry >= 1000
            retries.add(farewell.retry)
        assert len(retries) > count / 2
    assert recorder.reasons() == ["drained"] * count


async def test_a_request_in_flight_may_end_within_the_grace() -> None:
    begun, may_end = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        begun.set()
        await may_end.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async with serving(app) as running, connected(running) as client:
        await client.send(get())
        await begun.wait()
        running.stop()
        await trio.testing.wait_all_tasks_blocked()
        assert not running.ended.is_set()
        may_end.set()
        assert b"done" in await client.to_end()
        await running.stopped()


async def test_idle_connections_are_not_waited_for() -> None:
    async with (
        serving(
            Endpoint(Hub(), publish=True), settings={"keep_alive_timeout": 10 * FAR}
        ) as running,
        connected(running) as idle,
        connected(running) as used,
    ):
        await used.send(post("/", b'{"data": "x"}'))
        await used.until(b'"}\n')
        assert await running.stopped() < GRACE / 2
        assert await idle.to_end() == b""


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shielded", [False, True])
async def test_when_cancelled_it_cuts_all_at_once(half: bool, shielded: bool) -> None:
    baseline = Baseline()
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            with trio.CancelScope(shield=shielded):
                await send({"type": "http.response.body", "body": b"x" * 10_000_000})
            ended.append("whole")

    async with serving(app, stop_on_exit=False) as running:
        client = connected(running, receive_buffer=4096)
        async with client as stalled_client:
            await stalled_client.send(get())
            await stalled_client.until(b"200")
            if half:
                stalled_client.half_close()
            await trio.testing.wait_all_tasks_blocked(0.01)
            running.cancel()
            with trio.fail_after(FAR):
                await running.ended.wait()
    await baseline.restored()
    assert ended == ["whole"] * shielded


async def test_a_hub_that_fails_stops_the_server() -> None:
    class BrokenLog(trio_sse.MemoryLog):
        broken = False

        async def read(self, after: int, limit: int) -> Any:
            if self.broken:
                raise OSError("the disk is gone")
            return await super().read(after, limit)

    log = BrokenLog()
    recorder = Recorder(log=log)
    async with serving(Endpoint(recorder.hub)) as running, subscribed(running) as subscriber:
        log.broken = True
        await recorder.hub.publish(Event("x"))
        with trio.fail_after(FAR):
            await running.ended.wait()
        await subscriber.rest()
    assert recorder.reasons() == ["cancelled"]
    assert any("the disk is gone" in repr(record.exc_info) for record in running.log)


async def test_a_hub_that_was_never_opened_does_not_hold_up_the_end() -> None:
    hub = Hub()
    endpoint = Endpoint(hub)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":  # mounted, and its lifespan forgotten
            await endpoint(scope, receive, send)

    async with serving(app) as running:
        async with connected(running) as client:
            await client.send(get())
            assert b" 503 " in await client.until(b"}\n")
        assert await running.stopped() < GRACE / 2


async def test_two_hubs_are_drained_side_by_side() -> None:
    recorders = [Recorder(), Recorder()]
    endpoints = [Endpoint(recorder.hub) for recorder in recorders]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await endpoints[int(scope["path"][1:])](scope, receive, send)
        else:
            await receive()
            async with recorders[0].hub, recorders[1].hub:
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})

    async with (
        serving(app) as running,
        subscribed(running, "/0") as first,
        subscribed(running, "/1") as second,
    ):
        running.stop()
        for subscriber in (first, second):
            assert (await subscriber.rest())[-1].comment == "draining"
            assert subscriber.ended == "complete"
        await running.stopped()
    assert [recorder.reasons() for recorder in recorders] == [["drained"], ["drained"]]


async def test_a_startup_that_fails_is_raised_and_nothing_is_served() -> None:
    class Status(trio.TaskStatus[list[str]]):
        def started(self, value: Any = None) -> None:
            raise AssertionError("it has not")

    hub = Hub()
    baseline = Baseline()
    config, _ = make_config()
    async with hub:  # so that it cannot be opened again
        failure = pytest.RaisesExc(LifespanFailureError, match="startup.*opened once")
        with pytest.RaisesGroup(failure, flatten_subgroups=True):
            await trio_sse.serve(
                Endpoint(hub),
                config,
                shutdown_trigger=trio.sleep_forever,
                task_status=Status(),
            )
    await baseline.restored()


@pytest.mark.parametrize("when", ["at once", "after startup", "by an exception"])
async def test_an_application_may_do_without_a_lifespan(when: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
        elif when == "after startup":
            await receive()
            await send({"type": "lifespan.startup.complete"})
        elif when == "by an exception":
            raise KeyError(scope["type"])

    async with serving(app) as running:
        async with connected(running) as client:
            await client.send(get("/", "Connection: close"))
            assert b" 204 " in await client.to_end()
        assert await running.stopped() < GRACE / 2
        assert len(running.log) == (when == "by an exception")


async def test_max_requests_is_a_shutdown() -> None:
    async with serving(Endpoint(Hub()), settings={"max_requests": 2}) as running:
        for _ in range(3):
            async with connected(running) as client:
                await client.send(get(method="HEAD"))
                await client.until(b"\r\n\r\n")
        with trio.fail_after(FAR):
            await running.ended.wait()


async def test_wsgi_applications_are_served_too() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    async with serving(app, mode="wsgi") as running, connected(running) as client:
        await client.send(get("/hello"))
        await client.until(b"/hello")


# Signals.

SIGNALLED = """
import sys, trio
from hypercorn.config import Config
import trio_sse

async def handler(session):
    if session.request.path == "/stay":
        with trio.CancelScope(shield=True):
            await session.draining()
            print("told", flush=True)
        await trio.sleep_forever()
    await trio.sleep_forever()

async def main():
    hooks = trio_sse.Hooks()
    hooks.on_unregister(lambda session, reason: print("unregistered", reason, flush=True))
    config = Config()
    config.bind = ["127.0.0.1:0"]
    hub = trio_sse.Hub(hooks=hooks)
    async with trio.open_nursery() as nursery:
        async def serve(task_status):
            await trio_sse.serve(
                trio_sse.Endpoint(hub, handler), config, grace=60, task_status=task_status)
        [url] = await nursery.start(serve)
        print(url, flush=True)
    print("ended", flush=True)

trio.run(main)
"""


class Process:
    """A server of its own, which tells what happens line by line."""

    def __init__(self) -> None:
        self.popen = start_python(SIGNALLED)

    async def line(self) -> str:
        assert self.popen.stdout is not None
        with trio.fail_after(FAR):
            line = await trio.to_thread.run_sync(self.popen.stdout.readline, abandon_on_cancel=True)
        return line.strip()

    async def end(self) -> tuple[int, str]:
        assert self.popen.stderr is not None
        with trio.fail_after(FAR):
            code = await trio.to_thread.run_sync(self.popen.wait, abandon_on_cancel=True)
        return code, self.popen.stderr.read()


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    with process.popen:
        yield process
        if process.popen.poll() is None:
            process.popen.kill()


async def running_in(process: Process) -> Running:
    url = await process.line()
    return Running(("127.0.0.1", int(url.rpartition(":")[2])), [url], [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_drains(process: Process, number: signal.Signals) -> None:
    running = await running_in(process)
    async with subscribed(running) as subscriber:
        process.popen.send_signal(number)
        assert (await subscriber.rest())[-1].comment == "draining"
        assert subscriber.ended == "complete"
    assert await process.line() == "unregistered drained"
    assert await process.line() == "ended"
    code, errors = await process.end()
    assert code == 0
    assert "Traceback" not in errors


async def test_a_second_signal_ends_at_once(process: Process) -> None:
    running = await running_in(process)
    async with subscribed(running, "/stay") as subscriber:
        process.popen.send_signal(signal.SIGTERM)
        assert await process.line() == "told"  # it now has half of 60 s
        process.popen.send_signal(signal.SIGINT)
        assert await process.line() == "unregistered cancelled"
        assert await process.line() == "ended"
        await subscriber.rest()
    code, errors = await process.end()
    assert code == 0
    assert "Traceback" not in errors


async def test_outside_the_main_thread_it_runs_until_cancelled() -> None:
    def in_thread() -> None:
        async def main() -> None:
            config = Config()
            config.bind = ["127.0.0.1:0"]
            config.errorlog = None
            async with trio.open_nursery() as nursery:
                await nursery.start(
                    lambda *, task_status: trio_sse.serve(
                        Endpoint(Hub()), config, task_status=task_status
                    )
                )
                nursery.cancel_scope.cancel()

        trio.run(main)

    thread = threading.Thread(target=in_thread)
    thread.start()
    await trio.to_thread.run_sync(thread.join, FAR)
    assert not thread.is_alive()


async def test_sessions_do_not_outlive_their_age_or_idleness() -> None:
    limits = HubLimits(max_age=0.05, keep_alive=0.01)
    recorder = Recorder(limits=limits)
    async with serving(Endpoint(recorder.hub)) as running, subscribed(running) as subscriber:
        await subscriber.rest()
        assert subscriber.ended == "complete"
        session: Session = recorder.registered[0]
        assert session.end_reason is not None
        assert session.end_reason.kind == "deadline"
