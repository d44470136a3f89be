"""The load for the MCP benchmark: connections that speak just enough HTTP, in one process.

``python mcp_load.py '{"what": "calls", …}'`` prints figures as JSON: see `WHAT`. Requests are
made beforehand and answers only looked through, so that the server is what limits; how busy
this process was is among the figures.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, final

SESSIONS: Final = "2025-11-25"
STATELESS: Final = "2026-07-28"
_ENOUGH: Final = 60.0
"""Seconds after which something that should happen is taken not to happen."""
_PAGE: Final = os.sysconf("SC_PAGESIZE")
_META: Final = {
    "io.modelcontextprotocol/protocolVersion": STATELESS,
    "io.modelcontextprotocol/clientInfo": {"name": "load", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
_CHANGED: Final = b"notifications/tools/list_changed"
_ACKNOWLEDGED: Final = b"notifications/subscriptions/acknowledged"


class Amiss(Exception):
    """The server did not do what it should; the text says what."""


# Requests.


def request(
    port: int, method: str, headers: Iterable[tuple[str, str]], body: object = None
) -> bytes:
    data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    lines = [f"{method} /mcp HTTP/1.1", f"host: 127.0.0.1:{port}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + data


def message(method: str, params: dict[str, Any], *, id: int | None = 1) -> dict[str, Any]:
    found: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
    return found if id is None else {**found, "id": id}


class Speaker:
    """Makes a client's requests, in either way of the protocol."""

    def __init__(self, port: int, revision: str) -> None:
        self.port = port
        self.stateless = revision == STATELESS
        self.session_id = ""

    def post(self, method: str, params: dict[str, Any], *, id: int | None = 1) -> bytes:
        headers = [("accept", "application/json, text/event-stream")]
        if self.stateless:
            params = {**params, "_meta": _META}
            headers += [("mcp-protocol-version", STATELESS), ("mcp-method", method)]
            if "name" in params:
                headers.append(("mcp-name", str(params["name"])))
        elif self.session_id:
            headers += self._of_session()
        return request(self.port, "POST", headers, message(method, params, id=id))

    def get(self) -> bytes:
        return request(self.port, "GET", [("accept", "text/event-stream"), *self._of_session()])

    def call(self, tool: str, text: str = "") -> bytes:
        return self.post("tools/call", {"name": tool, "arguments": {"text": text}})

    def listen(self) -> bytes:
        return self.post("subscriptions/listen", {"notifications": {"toolsListChanged": True}})

    def hello(self) -> bytes:
        about = {"name": "load", "version": "1"}
        params = {"protocolVersion": SESSIONS, "capabilities": {}, "clientInfo": about}
        return self.post("initialize", params)

    def _of_session(self) -> list[tuple[str, str]]:
        return [("mcp-session-id", self.session_id), ("mcp-protocol-version", SESSIONS)]


# Connections.


@final
class Connection:
    """One, on which a request follows an answer.

    Attributes:
        then: is called with the answer, when it is whole.
        seen: is called with what comes of an answer that does not end, as it comes.
    """

    def __init__(self, loop: Loop, port: int) -> None:
        self._loop = loop
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setblocking(False)
        self._got = b""
        self.then: Callable[[bytes], None] | None = None
        self.seen: Callable[[bytes], None] | None = None
        loop.selector.register(self._sock, selectors.EVENT_READ, self)

    def ask(self, data: bytes, then: Callable[[bytes], None]) -> None:
        self.then = then
        self._sock.sendall(data)  # it is small, and nothing else is on its way

    def watch(self, data: bytes, seen: Callable[[bytes], None]) -> None:
        self.seen = seen
        self._sock.sendall(data)

    def readable(self) -> None:
        data = self._sock.recv(1 << 16)
        if not data:
            raise Amiss(f"the server closed a connection after {self._got[-300:]!r}")
        if self.seen is not None:
            self.seen(data)
            return
        self._got += data
        if _is_whole(self._got):
            answer, self._got = self._got, b""
            assert self.then is not None
            self.then(answer)

    def close(self) -> None:
        self._loop.selector.unregister(self._sock)
        self._sock.close()


def _is_whole(got: bytes) -> bool:
    head, end, body = got.partition(b"\r\n\r\n")
    if not end:
        return False
    low = head.lower()
    at = low.find(b"content-length:")
    if at >= 0:
        return len(body) >= int(low[at + 15 :].split(b"\r\n", 1)[0])
    return b"chunked" not in low or body.endswith(b"0\r\n\r\n")


@final
class Loop:
    def __init__(self) -> None:
        self.selector = selectors.EpollSelector()

    def until(self, done: Callable[[], bool], seconds: float = _ENOUGH) -> None:
        give_up_at = time.monotonic() + seconds
        while not done():
            for key, _ in self.selector.select(1.0):
                key.data.readable()
            if time.monotonic() > give_up_at:
                raise Amiss(f"not done within {seconds:g} s")

    def ask(self, connection: Connection, data: bytes) -> bytes:
        """One request, and its answer."""
        answers: list[bytes] = []
        connection.ask(data, answers.append)
        self.until(lambda: bool(answers))
        return answers[0]


def check(answer: bytes, *, status: bytes = b" 200 ", has: bytes = b"") -> bytes:
    if status not in answer[:16] or has not in answer:
        raise Amiss(f"not {status!r} with {has!r}, but {answer[:500]!r}")
    return answer


def open_session(loop: Loop, connection: Connection, speaker: Speaker) -> None:
    answer = check(loop.ask(connection, speaker.hello()), has=b'"protocolVersion"')
    low = answer.lower()
    at = low.index(b"mcp-session-id:") + 15
    speaker.session_id = answer[at:].split(b"\r\n", 1)[0].strip().decode()
    initialised = speaker.post("notifications/initialized", {}, id=None)
    check(loop.ask(connection, initialised), status=b" 202 ")


# The server, seen from outside.


def cpu_seconds(pid: int) -> float:
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in threads) / 1e9


def resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


@final
class Watch:
    """What a while costs: of time, of the server, and of this process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._server = cpu_seconds(pid)
        self._self = _own_cpu()
        self._began = time.monotonic()

    def figures(self, number: int) -> dict[str, float]:
        """For so many things that were done meanwhile."""
        took = time.monotonic() - self._began
        return {
            "per_s": number / took,
            "cpu_us": 1e6 * (cpu_seconds(self._pid) - self._server) / number,
            "load_busy": (_own_cpu() - self._self) / took,
        }


def _own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# What can be asked for.


@final
class Caller:
    """One call after the other on a connection, as long as `Calls` says."""

    def __init__(self, calls: Calls, connection: Connection, data: bytes, text: bytes) -> None:
        self._calls = calls
        self._connection = connection
        self._data = data
        self._text = text
        self._began = 0.0

    def start(self) -> None:
        self._began = time.monotonic()
        self._connection.ask(self._data, self._answered)

    def _answered(self, answer: bytes) -> None:
        check(answer, has=self._text)
        now = time.monotonic()
        self._calls.took.append(now - self._began)
        if now < self._calls.stop_at:
            self.start()
        else:
            self._calls.running -= 1


@final
class Calls:
    def __init__(self) -> None:
        self.took: list[float] = []
        self.stop_at = 0.0
        self.running = 0

    def make(self, loop: Loop, callers: list[Caller], seconds: float) -> None:
        self.took.clear()
        self.stop_at = time.monotonic() + seconds
        self.running = len(callers)
        for caller in callers:
            caller.start()
        loop.until(lambda: not self.running)


def calls(port: int, pid: int, revision: str, connections: int, seconds: float) -> dict[str, float]:
    """Calls one after the other on each connection, in a session each."""
    loop, every = Loop(), Calls()
    callers: list[Caller] = []
    for number in range(connections):
        connection, speaker = Connection(loop, port), Speaker(port, revision)
        if not speaker.stateless:
            open_session(loop, connection, speaker)
        text = f"text-{number}-of-this-call"
        callers.append(Caller(every, connection, speaker.call("echo", text), text.encode()))
    every.make(loop, callers, seconds / 4)
    watch = Watch(pid)
    every.make(loop, callers, seconds)
    took = sorted(every.took)
    return {
        **watch.figures(len(took)),
        "p50_ms": 1e3 * statistics.median(took),
        "p99_ms": 1e3 * took[int(0.99 * len(took))],
    }


def opened(port: int, pid: int, sessions: int) -> dict[str, float]:
    """Sessions opened one after the other, each on a connection of its own."""
    loop = Loop()
    took: list[float] = []
    watch = Watch(pid)
    for number in range(2 * sessions):
        if number == sessions:  # what came before has warmed it up
            took.clear()
            watch = Watch(pid)
        began = time.monotonic()
        connection = Connection(loop, port)
        open_session(loop, connection, Speaker(port, SESSIONS))
        took.append(time.monotonic() - began)
        connection.close()
    return {**watch.figures(sessions), "p50_ms": 1e3 * statistics.median(took)}


def memory(port: int, pid: int, sessions: int, *, streams: bool) -> dict[str, float]:
    """What a session costs in which a call was made, and which has its stream, or not."""
    loop = Loop()
    kept: list[Connection] = []

    def add(number: int) -> None:
        for _ in range(number):
            connection, speaker = Connection(loop, port), Speaker(port, SESSIONS)
            open_session(loop, connection, speaker)
            check(loop.ask(connection, speaker.call("echo", "x")), has=b'"x"')
            if streams:
                heads: list[bytes] = []
                connection.watch(speaker.get(), heads.append)
                loop.until(lambda heads=heads: bool(heads))  # type: ignore[misc]  # mypy infers no type for a lambda's default
                check(heads[0])
                kept.append(connection)
            else:
                connection.close()

    add(sessions // 4)
    before = resident(pid)
    add(sessions)
    return {"kib": (resident(pid) - before) / sessions / 1024}


@final
class Listener:
    """A stream on which notifications come, and how many have come."""

    def __init__(self, loop: Loop, port: int, revision: str) -> None:
        self.got = 0
        self._tail = b""
        connection, speaker = Connection(loop, port), Speaker(port, revision)
        if speaker.stateless:
            connection.watch(speaker.listen(), self._seen)
            loop.until(lambda: _ACKNOWLEDGED in self._tail)
        else:
            open_session(loop, connection, speaker)
            check(loop.ask(connection, speaker.call("join")))
            connection.watch(speaker.get(), self._seen)
            loop.until(lambda: bool(self._tail))

    def _seen(self, data: bytes) -> None:
        self._tail += data
        parts = self._tail.split(_CHANGED)
        self.got += len(parts) - 1
        self._tail = parts[-1][-400:] or b" "  # what comes next may have the rest of a name


def notified(port: int, pid: int, revision: str, sessions: int, rounds: int) -> dict[str, float]:
    """A notification to all sessions, and the next when all have it."""
    loop = Loop()
    listeners = [Listener(loop, port, revision) for _ in range(sessions)]
    asker, speaker = Connection(loop, port), Speaker(port, revision)
    if not speaker.stateless:
        open_session(loop, asker, speaker)
    tell = speaker.call("publish" if speaker.stateless else "notify")

    def tell_all(wanted: int) -> float:
        began = time.monotonic()
        check(loop.ask(asker, tell))
        for listener in listeners:  # in whatever order they are told
            loop.until(lambda one=listener: one.got >= wanted)  # type: ignore[misc]  # mypy infers no type for a lambda's default
        return time.monotonic() - began

    tell_all(1)  # what comes first has more to do
    watch = Watch(pid)
    took = [tell_all(2 + number) for number in range(rounds)]
    if any(listener.got != rounds + 1 for listener in listeners):
        raise Amiss("some have got more notifications than there were")
    return {**watch.figures(sessions * rounds), "all_ms": 1e3 * statistics.median(took)}


WHAT: Final[dict[str, Callable[..., dict[str, float]]]] = {
    "calls": calls,
    "opened": opened,
    "memory": memory,
    "notified": notified,
}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    try:
        print(json.dumps(WHAT[asked.pop("what")](**asked)))
    except (Amiss, OSError) as failure:
        sys.exit(f"{failure}")
