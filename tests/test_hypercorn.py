"""What is taken for granted of Hypercorn's inside, each by itself.

A new Hypercorn that changes one of these is noticed here, by name, and not by a server
that behaves oddly.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import LifespanFailureError, parse_socket_addr, repr_socket_addr, wrap_app

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_protocols_are_made_with_these_arguments_in_this_order() -> None:
    assert parameters(H11Protocol) == [
        *("app", "config", "context", "task_group", "connection_state"),
        *("ssl", "client", "server", "send"),
    ]
    assert parameters(ProtocolWrapper) == [
        *("app", "config", "context", "task_group", "state"),
        *("ssl", "client", "server", "send", "alpn_protocol"),
    ]


def test_a_task_group_is_asked_for_these() -> None:
    assert parameters(TaskGroup.spawn_app) == ["self", "app", "config", "scope", "send"]
    assert parameters(TaskGroup.spawn) == ["self", "func", "args"]


class Talk:
    """A connection's protocol, and all that it said."""

    def __init__(self, app: Any, protocol: type[H11Protocol], group: TaskGroup) -> None:
        self.events: list[Any] = []
        self.protocol = protocol(
            wrap_app(app, 1000, None),
            Config(),
            WorkerContext(None),
            group,
            ConnectionState({}),
            False,
            ("127.0.0.1", 1),
            ("127.0.0.1", 2),
            self.send,
        )

    async def send(self, event: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.events.append(event)

    async def hear(self, data: bytes) -> None:
        await self.protocol.handle(RawData(data))
        await trio.testing.wait_all_tasks_blocked()

    @property
    def sent(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, RawData))


@asynccontextmanager
async def talking(app: Any, protocol: type[H11Protocol] = H11Protocol) -> AsyncIterator[Talk]:
    async with TaskGroup() as group:
        talk = Talk(app, protocol, group)
        await talk.protocol.initiate()
        yield talk
        group._nursery.cancel_scope.cancel()  # there is no other way


def app_of(*messages: dict[str, Any]) -> Any:
    """An application that answers every request with ``messages``."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


START = {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]}
END = {"type": "http.response.body", "body": b"", "more_body": False}


def piece(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def test_each_request_is_checked_before_it_is_answered() -> None:
    seen: list[bytes] = []

    class Checking(H11Protocol):
        async def _check_protocol(self, event: Any) -> None:
            seen.append(event.target)

    async with talking(app_of(START, END), Checking) as talk:
        for number in range(3):
            await talk.hear(GET.replace(b"/", b"/%d" % number, 1))
        assert seen == [b"/0", b"/1", b"/2"]
        assert talk.sent.count(b"HTTP/1.1 200") == 3
        assert parameters(H11Protocol._check_protocol) == ["self", "event"]


async def test_an_error_may_be_answered_from_that_check() -> None:
    class Refusing(H11Protocol):
        async def _check_protocol(self, event: Any) -> None:
            await self._send_error_response(505)
            raise ConnectionError("refused")

    async with talking(app_of(START, END), Refusing) as talk:
        with pytest.raises(ConnectionError, match="refused"):
            await talk.protocol.handle(RawData(b"PRI * HTTP/2.0\r\n\r\n"))
        assert talk.sent.startswith(b"HTTP/1.1 505 ")


async def test_a_body_of_unknown_length_goes_out_in_chunks_one_for_each_message() -> None:
    # Direct writes put chunks of their own between these.
    async with talking(app_of(START, piece(b"a" * 16), piece(b""), piece(b"b"), END)) as talk:
        await talk.hear(GET)
        head, _, body = talk.sent.partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        assert body == b"10\r\n" + b"a" * 16 + b"\r\n1\r\nb\r\n0\r\n\r\n"


async def test_the_head_goes_out_before_there_is_a_body() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await trio.sleep_forever()

    async with talking(app) as talk:
        await talk.hear(GET)
        assert talk.sent.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nx: y\r\n" in talk.sent


async def test_a_connection_is_busy_from_a_requests_head_to_its_responses_end() -> None:
    async with talking(app_of(START, END)) as talk:
        await talk.hear(GET[:-2])
        assert talk.events == []
        await talk.hear(GET[-2:])
        updates = [event.idle for event in talk.events if isinstance(event, Updated)]
        assert updates == [False, True]
        assert isinstance(talk.events[-1], Updated)  # it is idle after the last byte is out


async def test_it_asks_to_be_closed_after_a_malformed_request() -> None:
    async with talking(app_of(START, END)) as talk:
        await talk.hear(b"nonsense\r\n\r\n")
        assert talk.sent.startswith(b"HTTP/1.1 400 ")
        assert isinstance(talk.events[-1], Closed)


async def test_it_asks_to_be_closed_after_a_response_once_the_server_stops() -> None:
    async with talking(app_of(START, END)) as talk:
        await talk.protocol.context.terminated.set()
        await talk.hear(GET)
        assert talk.sent.endswith(b"0\r\n\r\n")
        assert isinstance(talk.events[-1], Closed)


async def test_a_disconnect_comes_before_the_last_send_returns() -> None:
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def listen() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            order.append("disconnect")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await send(START)
            await send(END)
            await trio.lowlevel.checkpoint()
            order.append("sent")

    class Slow(H11Protocol):
        """It closes, and that takes a while."""

        async def _maybe_recycle(self) -> None:
            await super()._maybe_recycle()
            await trio.testing.wait_all_tasks_blocked()

    async with talking(app, Slow) as talk:
        await talk.hear(GET)
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["disconnect", "sent"]


async def test_a_disconnect_comes_when_the_connection_is_closed() -> None:
    received: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            received.append((await receive())["type"])

    async with talking(app) as talk:
        await talk.hear(GET)
        assert received == ["http.request"]
        await talk.protocol.handle(Closed())
        await trio.testing.wait_all_tasks_blocked()
        assert received == ["http.request", "http.disconnect"]


async def test_what_is_sent_to_a_client_that_left_is_no_error() -> None:
    done: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        for message in (START, piece(b"x"), END):
            await send(message)
        done.append(True)

    async with talking(app) as talk:
        await talk.hear(GET)
        await talk.protocol.handle(Closed())
        await trio.testing.wait_all_tasks_blocked()
        assert done == [True]


async def test_a_second_request_waits_for_the_first_ones_response() -> None:
    begun: list[str] = []
    may_end = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["path"])
        await may_end.wait()
        await send(START)
        await send(END)

    async with talking(app) as talk, trio.open_nursery() as nursery:
        nursery.start_soon(talk.protocol.handle, RawData(GET + GET.replace(b"/", b"/2", 1)))
        await trio.testing.wait_all_tasks_blocked()
        assert begun == ["/"]
        may_end.set()
        await trio.testing.wait_all_tasks_blocked()
        assert begun == ["/", "/2"]


async def test_an_application_gets_the_very_send_that_its_task_was_given() -> None:
    # By which it is known that no middleware is in between.
    given: list[Any] = []
    got: list[Any] = []

    class Group(TaskGroup):
        async def spawn_app(self, app: Any, config: Any, scope: Any, send: Any) -> Any:
            given.append(send)
            return await super().spawn_app(app, config, scope, send)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.append(send)

    async with Group() as group:
        talk = Talk(app, H11Protocol, group)
        await talk.hear(GET)
        assert len(given) == 1
        assert got[0] is given[0]


async def test_a_scope_has_these() -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    async with talking(app) as talk:
        await talk.hear(GET.replace(b"/", b"/a%20b?c=%ff", 1))
    [scope] = scopes
    expected = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": "/a b",
        "query_string": b"c=%ff",
        "headers": [(b"host", b"x")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "extensions": {},
        "state": {},
    }
    assert {name: scope[name] for name in expected} == expected


# Lifespans.


async def run_lifespan(app: Any) -> dict[str, Any]:
    """Start it up and shut it down; its state."""
    state: dict[str, Any] = {}
    config = Config()
    config.errorlog = None
    lifespan = Lifespan(wrap_app(app, 1000, None), config, state)
    async with trio.open_nursery() as nursery:
        await nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        if lifespan.shutdown.is_set():  # before anybody wants one: it has ended
            await trio.testing.wait_all_tasks_blocked()
        else:
            await lifespan.wait_for_shutdown()
        nursery.cancel_scope.cancel()
    return state


async def test_the_state_of_a_lifespan_is_the_servers_own() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        scope["state"]["made"] = True
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    assert await run_lifespan(app) == {"made": True}


async def test_a_startup_that_fails_is_raised() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no disk"})

    with pytest.RaisesGroup(
        pytest.RaisesExc(LifespanFailureError, match="no disk"), flatten_subgroups=True
    ):
        await run_lifespan(app)


async def test_an_application_that_raises_does_without_a_lifespan() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("lifespan?")

    assert await run_lifespan(app) == {}


async def test_an_application_that_returns_closes_its_channel() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    with pytest.RaisesGroup(trio.ClosedResourceError):
        await run_lifespan(app)


# Small pieces.


async def test_a_worker_is_told_when_it_has_had_enough_requests() -> None:
    context = WorkerContext(1)
    await context.mark_request()
    assert not context.terminate.is_set()
    await context.mark_request()
    with trio.fail_after(1):
        await context.terminate.wait()


def test_a_configuration_has_these() -> None:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    assert config.create_ssl_context() is None
    assert (config.alpn_protocols, config.quic_bind) == (["h2", "http/1.1"], [])
    assert (config.keep_alive_timeout, config.ssl_handshake_timeout) == (5, 60)
    assert (config.max_app_queue_size, config.backlog, config.max_requests) == (10, 100, None)
    assert config.wsgi_max_body_size > 0
    sockets = config.create_sockets()
    assert (sockets.secure_sockets, sockets.quic_sockets) == ([], [])
    [sock] = sockets.insecure_sockets
    with sock:
        assert sock.gettimeout() == 0
        url = repr_socket_addr(sock.family, sock.getsockname())
        assert url == f"127.0.0.1:{sock.getsockname()[1]}"
        assert parse_socket_addr(sock.family, ("::1", 1)) == ("::1", 1)
