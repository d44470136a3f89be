"""Clients of every kind: those that resume and check, and those that misbehave."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, final

import trio
from chaos_ledger import TOPICS, Follower, Ledger

from trio_sse import Decoder

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: no FIN but RST
_PATIENCE: Final = 30.0
"""Seconds in which whatever a client waits for has to come."""

End = Literal["farewell", "turned away", "cut", "left", "refused", "away"]


@final
@dataclass(slots=True)
class World:
    """What the clients of one run share.

    Attributes:
        port: where the server is, whenever it is there.
        calm: no more mischief: who resumes stays, the others leave.
        all_published: and who has everything leaves, too.
    """

    port: int
    ledger: Ledger
    calm: trio.Event
    all_published: trio.Event

    def count(self, what: str) -> None:
        self.ledger.counts[what] += 1


# Sockets.


async def connected(world: World, *, receive_buffer: int = 0) -> trio.socket.SocketType:
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", world.port))
    except BaseException:
        sock.close()
        raise
    return sock


def reset(sock: trio.socket.SocketType) -> None:
    """Close so that the peer gets an RST."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


async def send_all(sock: trio.socket.SocketType, data: bytes) -> None:
    while data:
        data = data[await sock.send(data) :]


def get(target: str = "/events", *headers: str) -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: 127.0.0.1", "Accept: text/event-stream", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def read_head(sock: trio.socket.SocketType) -> tuple[int, bytes]:
    """The status, and what came of the body.

    Raises:
        ConnectionError: there is no whole response head.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await sock.recv(65536)
        if not piece:
            raise ConnectionError("closed before the response's head")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), rest


@final
class Chunks:
    """Takes the chunked coding off (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        self._data = b""
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        data = self._data + data
        parts: list[bytes] = []
        at = 0
        while not self.ended:
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                break
            size = int(data[at:line_end], 16)
            if len(data) < line_end + 2 + size + 2:
                break
            parts.append(data[line_end + 2 : line_end + 2 + size])
            at = line_end + 2 + size + 2
            self.ended = size == 0
        self._data = data[at:]
        return b"".join(parts)


# Those that resume.


async def resume_for_ever(world: World, rng: random.Random, follower: Follower) -> None:
    """Come, go, come back to where it was; in the end stay until it has everything."""
    while not (world.all_published.is_set() and follower.is_complete):
        end: End = "away"
        with suppress(OSError):
            end = await _follow(world, rng, follower)
        world.count(f"streams that ended: {end}")
        if end == "farewell":
            follower.heard_farewell()
        await trio.sleep(rng.uniform(0.05, 0.5))


async def _follow(world: World, rng: random.Random, follower: Follower) -> End:
    sock = await connected(world)
    try:
        target = "/events" if follower.topic is None else f"/events?topic={follower.topic}"
        headers = [f"Last-Event-ID: {follower.last_id}"] if follower.last_id else []
        await send_all(sock, get(target, *headers))
        status, rest = await read_head(sock)
        if status != 200:
            return "refused"  # it drains
        world.count("resumed" if follower.last_id else "subscribed")
        follower.is_listening = True
        try:
            return await _read(world, rng, follower, sock, rest)
        finally:
            follower.is_listening = False
    finally:
        if rng.random() < 0.5:
            reset(sock)
        sock.close()


async def _read(
    world: World,
    rng: random.Random,
    follower: Follower,
    sock: trio.socket.SocketType,
    rest: bytes,
) -> End:
    """Read until it has had enough, or the server ends the stream."""
    chunks, decoder = Chunks(), Decoder(every_block=True)
    greeted = farewell = False
    stay = rng.expovariate(1 / 10)
    left = trio.current_time() + stay
    data = rest
    while True:
        for event in decoder.feed(chunks.feed(data)):
            follower.take(event)
            farewell = event.comment == "draining"
            greeted = greeted or not farewell
        if chunks.ended and farewell:
            # Without a greeting it came too early for the next life of the server.
            return "farewell" if greeted else "turned away"
        if chunks.ended:
            return "cut"
        if world.all_published.is_set() and follower.is_complete:
            return "left"
        if world.calm.is_set():
            left = trio.current_time() + 0.2  # look again
        data = b""
        with trio.move_on_at(left) as waiting:
            try:
                data = await sock.recv(65536)
            except ConnectionError:
                return "cut"
        if waiting.cancelled_caught:
            if not world.calm.is_set():
                return "left"
        elif not data:
            return "cut"


# Those that misbehave. Each is called again and again; what they see is of no interest,
# unless it is that the server lets them wait for ever.

Mischief = Callable[[World, random.Random], Awaitable[None]]


async def come_and_go(world: World, rng: random.Random) -> None:
    sock = await connected(world)
    with sock:
        await send_all(sock, get(f"/events?topic={rng.choice(TOPICS)}"))
        with trio.move_on_after(rng.expovariate(1 / 4)):
            while await sock.recv(65536):
                pass


async def stall(world: World, rng: random.Random) -> None:
    """Subscribe and read nothing; then leave, or read what there is."""
    sock = await connected(world, receive_buffer=4096)
    with sock:
        await send_all(sock, get())
        await trio.sleep(rng.uniform(1, 12))
        if rng.random() < 0.5:
            reset(sock)
            return
        with trio.move_on_after(5):
            while await sock.recv(4096):
                pass


async def reset_somewhere(world: World, rng: random.Random) -> None:
    """RST at any point of the request or of the response."""
    sock = await connected(world)
    try:
        request = get("/events", f"Last-Event-ID: {rng.random()}")
        await send_all(sock, request[: rng.randrange(len(request) + 1)])
        if rng.random() < 0.5:
            await trio.sleep(rng.uniform(0, 0.2))
    finally:
        reset(sock)


async def half_close(world: World, rng: random.Random) -> None:
    """Say that nothing more comes: the server takes that as leaving, and closes."""
    sock = await connected(world)
    with sock:
        request = get()
        await send_all(sock, request[: rng.choice([len(request), len(request) // 2])])
        await trio.sleep(rng.uniform(0, 1))
        sock.shutdown(socket.SHUT_WR)
        await _must_end(world, sock, "a half-closed connection")


async def trickle(world: World, rng: random.Random) -> None:
    """Half a request, and then nothing."""
    sock = await connected(world)
    with sock:
        await send_all(sock, get()[: rng.randrange(60)])
        await _must_end(world, sock, "half a request")


async def _must_end(world: World, sock: trio.socket.SocketType, what: str) -> None:
    with trio.move_on_after(_PATIENCE) as waiting:
        while await sock.recv(65536):
            pass
    if waiting.cancelled_caught and not world.calm.is_set():
        world.ledger.fail(f"{what} was still open after {_PATIENCE:g} s")


_JSON: Final = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_UPGRADE: Final = b"GET /events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: "
_GARBAGE: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # a TLS greeting
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    _UPGRADE + b"h2c\r\nHTTP2-Settings: !!!\r\n\r\n",
    _UPGRADE + b"websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n",
    (b"GET /events HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"),
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /events HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET  /events HTTP/1.1\r\n\r\n",
    b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\nabc",
    b"POST /events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    _JSON + b'Content-Length: 9\r\n\r\n{"data":\xff',
    _JSON + b"Content-Length: 9999999999\r\n\r\n{",
    b"\r\n" * 500,
    bytes(range(256)) * 8,
)


async def send_garbage(world: World, rng: random.Random) -> None:
    sock = await connected(world)
    with sock:
        piece = rng.choice(_GARBAGE)
        await send_all(sock, piece if rng.random() < 0.7 else piece[: rng.randrange(len(piece))])
        with trio.move_on_after(rng.uniform(0.1, 3)):
            while await sock.recv(65536):
                pass
        if rng.random() < 0.3:
            reset(sock)


async def pipeline(world: World, rng: random.Random) -> None:
    """More bytes after the request: the server does not read them, and may not see the FIN."""
    sock = await connected(world)
    with sock:
        await send_all(sock, get() + get() * rng.randrange(1, 20))
        with trio.move_on_after(rng.uniform(0.1, 2)):
            while await sock.recv(65536):
                pass


async def ask_otherwise(world: World, rng: random.Random) -> None:
    """Everything else that may be asked of the server, on a connection that is kept."""
    sock = await connected(world)
    with sock:
        for _ in range(rng.randrange(1, 5)):
            method, target = rng.choice(
                [
                    ("HEAD", "/events"),
                    ("OPTIONS", "/events"),
                    ("DELETE", "/events"),
                    ("GET", "/healthz"),
                    ("GET", "/metrics"),
                    ("GET", "/"),
                    ("GET", "/nowhere"),
                ]
            )
            await send_all(sock, f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            with trio.move_on_after(5):
                await read_head(sock)


async def claim_any_id(world: World, rng: random.Random) -> None:
    """An event ID that the server never gave: it must be told of a gap."""
    claimed = rng.choice(["x", "0", ".", "a.b.c", "ffffffff.1", f"{rng.random()}", "1." + "9" * 40])
    sock = await connected(world)
    with sock:
        await send_all(sock, get("/events", f"Last-Event-ID: {claimed}"))
        status, data = await read_head(sock)
        if status != 200:
            return
        with trio.move_on_after(_PATIENCE):
            while b"event: gap" not in data:
                piece = await sock.recv(65536)
                if not piece:
                    return  # the server ended
                data += piece
            world.count("made-up ids answered with a gap")
            return
        world.ledger.fail(f"Last-Event-ID: {claimed} was not answered with a gap")


MISCHIEF: Final[tuple[tuple[int, Mischief], ...]] = (
    (30, come_and_go),
    (15, stall),
    (10, reset_somewhere),
    (10, half_close),
    (5, trickle),
    (15, send_garbage),
    (5, pipeline),
    (5, ask_otherwise),
    (5, claim_any_id),
)


async def misbehave_for_ever(world: World, rng: random.Random) -> None:
    """One kind of mischief after the other, until all is calm."""
    weights = [weight for weight, _ in MISCHIEF]
    kinds = [kind for _, kind in MISCHIEF]
    while not world.calm.is_set():
        [kind] = rng.choices(kinds, weights)
        world.count(f"mischief: {kind.__name__}")
        with suppress(OSError, ValueError):  # the server is away, or answers no HTTP to no HTTP
            await kind(world, rng)
        await trio.sleep(rng.uniform(0, 0.5))


# Those that publish.


@final
class Publisher:
    """Publishes one event after the other, and tells the ledger what was accepted."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._n = 0
        self._k = dict.fromkeys(TOPICS, 0)
        self._sock: trio.socket.SocketType | None = None
        self._turn = trio.Lock()

    async def publish_for_ever(self, rate: float) -> None:
        """About ``rate`` events a second, some at once, until all is calm."""
        while not self._world.calm.is_set():
            burst = self._rng.choice([1, 1, 1, 1, 1, 20])
            for _ in range(burst):
                await self.publish(self._rng.choice(TOPICS))
            await trio.sleep(self._rng.expovariate(rate / burst))

    async def publish(self, topic: str) -> None:
        """Publish one event, again and again until it is accepted: its key makes it one."""
        async with self._turn:
            await self._publish(topic)

    async def _publish(self, topic: str) -> None:
        self._n += 1
        self._k[topic] += 1
        size = self._rng.choice([10, 100, 100, 100, 1000, 8000])
        data = json.dumps({"n": self._n, "k": self._k[topic], "pad": "x" * size})
        body = json.dumps({"topic": topic, "data": data}).encode()
        while True:
            try:
                status, answer = await self._post(body, key=f"event-{self._n}")
            except (OSError, ValueError):
                self._world.count("publishing failed, and was repeated: the server is away")
                self.close()
                await trio.sleep(0.1)
                continue
            if status == 201:
                event_id = json.loads(answer)["id"]
                self._world.ledger.accepted(event_id, topic, self._k[topic])
                return
            if status != 503:
                self._world.ledger.fail(f"publishing was answered {status}: {answer!r}")
                return
            self._world.count("publishing refused, and was repeated: the server drains")
            await trio.sleep(0.1)

    async def _post(self, body: bytes, *, key: str) -> tuple[int, bytes]:
        if self._sock is None:
            self._sock = await connected(self._world)
        head = (
            "POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f'Idempotency-Key: "{key}"\r\nContent-Length: {len(body)}\r\n\r\n'
        )
        with trio.fail_after(_PATIENCE):
            await send_all(self._sock, head.encode() + body)
            data = b""
            while b"\r\n\r\n" not in data:
                data += await self._more()
            head_bytes, _, data = data.partition(b"\r\n\r\n")
            length = _content_length(head_bytes)
            while len(data) < length:
                data += await self._more()
        if b"connection: close" in head_bytes.lower():
            self.close()
        return int(head_bytes.split(b" ", 2)[1]), data

    async def _more(self) -> bytes:
        assert self._sock is not None
        data = await self._sock.recv(65536)
        if not data:
            raise ConnectionError("closed in a response")
        return data

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise ValueError(f"a response without a length: {head!r}")
