"""A real Redis for tests: started on a free port, killed, started again."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _parts import PARTS, require

_names = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def new_name() -> str:
    """A name for a log that no other test uses."""
    return f"test-{os.getpid()}-{next(_names)}"


class RedisServer:
    """A process, its port and its directory. `stop` and `start` keep the data.

    Args:
        options: further ones, as ``"appendfsync always"``.
    """

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        [(names, how_to_get)] = PARTS["redis"].items()
        self._program = require(names, how_to_get)
        self.port = free_port() if port is None else port
        self.directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers."""
        assert self._process is None
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            'save ""',
            "enable-debug-command yes",
            "repl-diskless-sync-delay 0",
            *self._options,
            *options,
        ]
        config = self.directory / "redis.conf"
        config.write_text("\n".join(lines) + "\n")
        self._process = subprocess.Popen(
            [self._program, str(config), *self._mode()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(500):
            try:
                if self.ask("PING") == "PONG":
                    return
            except OSError:
                assert self._process.poll() is None, "redis-server has ended"
            time.sleep(0.01)
        raise AssertionError("redis-server does not answer")

    def _mode(self) -> list[str]:
        return []

    def ask(self, *command: str) -> str:
        """The first line of the answer to a command, without its mark; errors included."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(
                b"*%d\r\n" % len(command)
                + b"".join(b"$%d\r\n%s\r\n" % (len(c.encode()), c.encode()) for c in command)
            )
            with connection.makefile("rb") as answer:
                line = answer.readline().decode().rstrip("\r\n")
                if line.startswith("$") and line != "$-1":
                    return answer.read(int(line[1:])).decode()
                if not line:
                    raise ConnectionResetError
                return line[1:]

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It keeps its connections and answers nothing, until `go_on`."""
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)


class SentinelServer(RedisServer):
    """A Sentinel that watches one primary, named ``mymaster``."""

    def _mode(self) -> list[str]:
        return ["--sentinel"]


@contextmanager
def running(*options: str) -> Iterator[RedisServer]:
    """A server with a directory of its own, until the end."""
    directory = Path(tempfile.mkdtemp(prefix="redis-"))
    server = RedisServer(directory, *options)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


@functools.cache
def shared_server() -> RedisServer:
    """One for all tests that only want a Redis, until the end of the process."""
    server = running()
    atexit.register(server.__exit__, None, None, None)
    return server.__enter__()
