"""Live delivery while many sessions replay: how late it is, and what each of them takes.

As a program this is those who replay, so many connections in a process of their own:

    python benchmarks/logs_replay.py PORT LAST_EVENT_ID SESSIONS EVENTS

Without a last event ID, and with 0 events, they only come: to tell the one from the other.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import trio
from processes import cores, free_port, running, wait_for_port

_PUBLISHERS: Final = 20
_PIECE: Final = 1 << 18
_PADDING: Final = "x" * 108
_STAMP: Final = re.compile(rb"data: (\d+) x*\n")
_DATA: Final = b"\ndata: "
_SETTLE: Final = 0.5
"""Seconds between the phases, which count for none of them."""


class Sizes(NamedTuple):
    """Who does what.

    Attributes:
        sessions: that replay.
        events: that each of them replays.
        live: sessions that hear what is new.
        rate: new events a second.
        seconds: of measuring without anybody who replays.
    """

    sessions: int
    events: int
    live: int
    rate: float
    seconds: float


async def replay_beside_live(
    flags: Sequence[str], sizes: Sizes, *, restart: bool
) -> dict[str, Any]:
    """The figures for a ``trio-sse serve`` with ``flags``.

    Args:
        restart: whether the server is another one when all is stored: it has nothing of
            it at hand then.
    """
    own, load = cores()
    port = free_port()
    argv = [sys.executable, "-m", "trio_sse", "serve", "--bind", f"127.0.0.1:{port}"]
    argv += ["--log-level", "warning", *flags]
    os.sched_setaffinity(0, load)
    meter = Meter(port, sizes)
    with ExitStack() as servers:
        server, log = servers.enter_context(running(argv, core=own))
        wait_for_port(server, log, port)
        first = await meter.store()
        if restart:
            servers.close()
            server, log = servers.enter_context(running(argv, core=own))
            wait_for_port(server, log, port)
        async with trio.open_nursery() as nursery:
            await nursery.start(meter.listen_all)
            nursery.start_soon(meter.publish)
            await trio.sleep(_SETTLE)
            without = await meter.collect_for(sizes.seconds)
            meter.clear()
            await _come_in_a_process(port, "", sizes.sessions, 0)
            arriving = meter.figures()
            await trio.sleep(_SETTLE)
            before = _resident(server.pid)
            nursery.start_soon(meter.watch_memory, server.pid)
            meter.clear()
            began = time.perf_counter()
            replayed = await _come_in_a_process(port, first, sizes.sessions, sizes.events)
            took = time.perf_counter() - began
            beside = meter.figures()
            await trio.sleep(_SETTLE)
            nursery.cancel_scope.cancel(reason="all is measured")
    return {
        "live_without": without,
        "live_arriving": arriving,
        "live_beside": beside,
        "beside": {
            "seconds": took,
            "per_s": replayed["events"] / replayed["seconds"],
            "kib_per_session": (meter.most_memory - before) / sizes.sessions / 1024,
        },
    }


async def _come_in_a_process(
    port: int, last_event_id: str, sessions: int, events: int
) -> dict[str, float]:
    argv = [sys.executable, __file__, str(port), last_event_id, str(sessions), str(events)]
    # Below what measures: the two may have to share a core.
    done = await trio.run_process(["nice", *argv], capture_stdout=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


@final
class Meter:
    """Publishes, listens, and notes how long each event took to each who listens."""

    def __init__(self, port: int, sizes: Sizes) -> None:
        self._port = port
        self._sizes = sizes
        self._latencies: list[float] = []
        self.most_memory = 0

    async def store(self) -> str:
        """Publish what is to be replayed; the place before it."""
        left = self._sizes.events
        async with await self._connect() as stream:
            first = await _post(stream, "past", _PADDING)

        async def publish_some() -> None:
            nonlocal left
            async with await self._connect() as stream:
                while left:
                    left -= 1
                    await _post(stream, "past", _PADDING)

        async with trio.open_nursery() as nursery:
            for _ in range(_PUBLISHERS):
                nursery.start_soon(publish_some)
        return first

    async def publish(self) -> None:
        """Publish live events, evenly, for ever.

        Each says when it was due: one that waited for the one before was late, too.
        """
        async with await self._connect() as stream:
            due = time.monotonic_ns()
            while True:
                await trio.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
                await _post(stream, "live", f"{due} {_PADDING}")
                due += int(1e9 / self._sizes.rate)

    async def listen_all(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(self._sizes.live):
                await nursery.start(self._listen)
            task_status.started()

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with await self._connect() as stream:
            await stream.send_all(_get("live"))
            rest = await stream.receive_some(_PIECE)
            assert rest.startswith(b"HTTP/1.1 200"), rest
            task_status.started()
            while data := await stream.receive_some(_PIECE):
                now = time.monotonic_ns()
                rest += data
                for stamp in _STAMP.findall(rest):
                    self._latencies.append((now - int(stamp)) / 1e6)
                rest = rest[rest.rfind(b"\n") + 1 :]

    async def watch_memory(self, pid: int) -> None:
        """Note the most that the process has, from now on."""
        while True:
            self.most_memory = max(self.most_memory, _resident(pid))
            await trio.sleep(0.05)

    def clear(self) -> None:
        self._latencies.clear()

    def figures(self) -> dict[str, float]:
        found = sorted(self._latencies)
        return {
            "p50_ms": found[len(found) // 2],
            "p99_ms": found[len(found) * 99 // 100],
            "most_ms": found[-1],
        }

    async def collect_for(self, seconds: float) -> dict[str, float]:
        self.clear()
        await trio.sleep(seconds)
        return self.figures()

    async def _connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self._port)


async def _post(stream: trio.SocketStream, topic: str, data: str) -> str:
    """Publish over a connection that stays; the event's id."""
    body = json.dumps({"topic": topic, "data": data}).encode()
    await stream.send_all(
        b"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    answer = b""
    while b"}" not in answer:  # its last character, but for a line break
        data = await stream.receive_some(4096)
        answer += data
        assert data, answer
    assert answer.startswith(b"HTTP/1.1 201"), answer
    event_id: str = json.loads(answer.partition(b"\r\n\r\n")[2])["id"]
    return event_id


def _get(topic: str, last_event_id: str = "") -> bytes:
    resume = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
    return f"GET /events?topic={topic} HTTP/1.1\r\nHost: 127.0.0.1\r\n{resume}\r\n".encode()


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    raise AssertionError("there is no VmRSS")


def main(port: int, last_event_id: str, sessions: int, events: int) -> None:
    """Replay in so many sessions at once; print how long all took together.

    With no ``events`` they only come, all at once, and stay until the last is there.
    """
    began = time.perf_counter()
    selector = selectors.DefaultSelector()
    # For each connection: events so far, and the end of what came, which may be half a mark.
    had: dict[socket.socket, tuple[int, bytes]] = {}
    for _ in range(sessions):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.sendall(_get("past", last_event_id))
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)
        had[sock] = 0, b""
    left = sessions
    while left:
        for key, _ in selector.select(60):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            data = sock.recv(_PIECE)
            assert data, "the server ended a stream"
            count, rest = had[sock]
            data = rest + data
            count += data.count(_DATA)
            if events:
                left -= had[sock][0] < events <= count
                assert count <= events, count
            elif b"HTTP/1.1 200" in data:
                left -= 1
            had[sock] = count, data[-len(_DATA) + 1 :]
    seconds = time.perf_counter() - began
    print(json.dumps({"events": sessions * events, "seconds": seconds}))


if __name__ == "__main__":
    _port, _id, _sessions, _events = sys.argv[1:]
    main(int(_port), _id, int(_sessions), int(_events))
