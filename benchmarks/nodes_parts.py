"""Servers that are killed and started again, the Redis behind them, the address before them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, final

import trio

from trio_sse._fetch import request
from trio_sse.client import Transport

DIRECT: Final = Transport(trust_env=False, connect_timeout=10)
PATIENCE: Final = 30.0
"""Seconds in which whatever is waited for has to come."""
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: no FIN but RST
_SEARCH: Final = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/bin"]
)

Fsync = Literal["always", "everysec", "no"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@final
class Program:
    """A process, in its lives one after the other.

    Args:
        argv: what to run.
        log: where what it prints is added.
        is_up: whether it does what it is there for.
    """

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, is_up: Callable[[], Awaitable[bool]]
    ) -> None:
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._is_up = is_up
        self._process: trio.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, and wait until it is up."""
        with self.log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with trio.fail_after(PATIENCE):
            while not await self._is_up():
                if self._process.poll() is not None:
                    raise RuntimeError(f"{self.name} did not start: {self.tail()}")
                await trio.sleep(0.05)

    async def kill(self) -> None:
        """SIGKILL, for all its processes."""
        for pid in [*self.children(), self.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process is not None
        await self._process.wait()

    async def stop(self) -> int | None:
        """SIGTERM; the exit code, or ``None`` if it did not end."""
        assert self._process is not None
        self._process.terminate()
        with trio.move_on_after(PATIENCE):
            return await self._process.wait()
        return None

    def children(self) -> list[int]:
        """The processes that it started; by Linux' /proc."""
        assert self._process is not None
        found = Path(f"/proc/{self.pid}/task").glob("*/children")
        with suppress(OSError):
            return [int(pid) for each in found for pid in each.read_text().split()]
        return []

    def end(self) -> None:
        """See to it that nothing of it is left."""
        if self._process is not None and self._process.poll() is None:
            for pid in [*self.children(), self.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]


def redis(directory: Path, port: int, fsync: Fsync = "always") -> Program:
    """A Redis on this machine.

    Args:
        fsync: when what it was told is on disk: before it answers, within a second, never.

    Raises:
        FileNotFoundError: there is none on this machine.
    """
    program = shutil.which("redis-server", path=_SEARCH) or shutil.which(
        "valkey-server", path=_SEARCH
    )
    if program is None:
        raise FileNotFoundError("redis-server is not installed: apt-get install redis-server")
    argv = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    argv += ["--save", ""]
    if fsync != "no":
        argv += ["--appendonly", "yes", "--appendfsync", fsync]

    async def answers() -> bool:
        with suppress(OSError):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"PING\r\n")
                return await stream.receive_some(100) == b"+PONG\r\n"
        return False

    return Program("redis", argv, directory / "redis.log", answers)


def node(name: str, port: int, directory: Path, *options: str) -> Program:
    """A ``trio-sse serve``."""
    argv = [sys.executable, "-m", "trio_sse", "serve", "--bind", f"127.0.0.1:{port}"]
    argv += ["--log-level", "warning", "--grace", "5", *options]

    async def answers() -> bool:
        return (await health(port)).get("status") in ("ok", "degraded")

    return Program(name, argv, directory / f"{name}.log", answers)


async def health(port: int) -> dict[str, Any]:
    """What /healthz says; nothing if there is nobody."""
    with suppress(Exception):
        url = f"http://127.0.0.1:{port}/healthz"
        found: dict[str, Any] = json.loads((await request("GET", url, transport=DIRECT)).body)
        return found
    return {}


@final
class Proxy:
    """One address for several servers: each connection of a client goes to another one.

    Clients say who they are by ``client=NUMBER`` in the address. Who does not goes where
    the next one is due.

    Attributes:
        url: where it listens; known once it runs.
        open: connections now.
        hops: connections of clients that came to another server than the one before.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.url = ""
        self.hops = 0
        self.connections = 0
        self._ports = list(ports)
        self._turn = 0
        self._last: dict[bytes, int] = {}
        self._open: dict[trio.SocketStream, int] = {}

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve, for ever."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
        self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        await trio.serve_listeners(self._carry, [listener], task_status=_Silent(task_status))

    async def _carry(self, client: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with client:
                head = await client.receive_some(65536)
                found = re.search(rb"client=\d+", head.partition(b"\r\n")[0])
                server = await self._connect(found[0] if found else b"", client)
                if server is None:
                    return
                async with server:
                    await server.send_all(head)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_pump, client, server, nursery.cancel_scope)
                        nursery.start_soon(_pump, server, client, nursery.cancel_scope)
        self._open.pop(client, None)

    async def _connect(self, who: bytes, client: trio.SocketStream) -> trio.SocketStream | None:
        last = self._last.get(who)
        self._turn += 1
        first = self._turn if last is None else last + 1
        for number in range(first, first + len(self._ports)):
            number %= len(self._ports)  # noqa: PLW2901  # round and round
            with suppress(OSError):
                server = await trio.open_tcp_stream("127.0.0.1", self._ports[number])
                self.connections += 1
                self.hops += bool(who and last is not None and last != number)
                if who:
                    self._last[who] = number
                self._open[client] = number
                return server
        return None

    def cut(self, chosen: Callable[[], bool]) -> int:
        """Reset the connections for which ``chosen()``; how many they were."""
        cut = [client for client in self._open if chosen()]
        for client in cut:
            del self._open[client]
            with suppress(OSError):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.socket.close()
        return len(cut)

    def spread(self) -> Counter[int]:
        """Open connections by server."""
        return Counter(self._open.values())


@final
class _Silent:
    """A task status that says no more than that it has started."""

    def __init__(self, inner: trio.TaskStatus[None]) -> None:
        self._inner = inner

    def started(self, value: object = None) -> None:
        self._inner.started()


async def _pump(
    source: trio.SocketStream, target: trio.SocketStream, both: trio.CancelScope
) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some(65536):
            await target.send_all(data)
    # Neither half is of use without the other here.
    both.cancel(reason="one side has ended")
