"""Several processes on one socket. Real ones: each has a memory log of its own here."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.request import urlopen

import pytest

from trio_sse.cli.serve import ENV_PREFIX, serve, worker_environment

PATIENCE = 30.0

PARENT = """
    import logging, os, socket, sys, trio
    from trio_sse.cli._workers import Supervisor

    logging.basicConfig(level="INFO", format="%(message)s")
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    command = [sys.executable, "-m", "trio_sse", "serve", "--no-auth", "--grace", "5"]
    command += ["--bind", f"fd://{listener.fileno()}"]
    supervisor = Supervisor(
        command, os.environ, [listener], 2, patience=10, started=lambda: print("ready", flush=True)
    )
    sys.exit(0 if trio.run(supervisor.run) else 1)
"""


class Parent:
    """A process that supervises two workers."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(PARENT)],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        assert self.process.stdout.readline() == "ready\n"

    def children(self) -> list[int]:
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for each in threads for pid in (each / "children").read_text().split()]

    def wait_for_log(self, pattern: str, count: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(re.findall(pattern, self.log.read_text())) < count:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def subscribe(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        sock.sendall(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        seen = b""
        while b"retry: 2000\n\n" not in seen:
            seen += sock.recv(4096)
        return sock

    def close(self) -> None:
        for pid in self.children() if self.process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    running = Parent(tmp_path / "log")
    yield running
    running.close()


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds the workers through Linux' /proc"
)


@needs_proc
def test_all_workers_drain_on_one_signal(parent: Parent) -> None:
    streams = [parent.subscribe() for _ in range(20)]
    parent.process.terminate()
    for stream in streams:
        rest = b""
        while chunk := stream.recv(4096):
            rest += chunk
        assert b"retry: " in rest
        assert rest.endswith(b"0\r\n\r\n")
        stream.close()
    assert parent.process.wait(PATIENCE) == 0
    assert "draining 2 workers" in parent.log.read_text()


@needs_proc
def test_a_worker_that_dies_is_started_again(parent: Parent) -> None:
    victim, survivor = parent.children()
    os.kill(victim, signal.SIGKILL)
    parent.wait_for_log(r"worker \d ended by itself with -9; starting it again in 0\.5 s")
    parent.wait_for_log("trio-sse serves", count=3)
    pids = parent.children()
    assert survivor in pids
    assert victim not in pids
    assert len(pids) == 2
    with urlopen(f"http://127.0.0.1:{parent.port}/healthz", timeout=PATIENCE) as response:
        assert response.status == 200
    parent.process.terminate()
    assert parent.process.wait(PATIENCE) == 0


@needs_proc
def test_a_second_signal_kills(parent: Parent) -> None:
    with parent.subscribe() as stalled:
        pids = parent.children()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # a worker that does not react
        parent.process.terminate()
        parent.wait_for_log("draining 2 workers")
        parent.process.terminate()
        assert parent.process.wait(PATIENCE) == 1
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        assert stalled.recv(1) == b""


def test_readiness_is_told_to_the_service_manager(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(PATIENCE)
        process = subprocess.Popen(
            [sys.executable, "-m", "trio_sse", "serve", "--bind", "127.0.0.1:0"],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "NOTIFY_SOCKET": address},
        )
        try:
            assert manager.recv(100) == b"READY=1"
            process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()


def test_a_worker_gets_the_settings_that_the_parent_was_given() -> None:
    given = ["--bind", "127.0.0.1:1", "--bind", "unix:/x", "--keep-alive", "none", "--retry", "7"]
    given += ["--allow-origin", "https://a.example", "--no-console", "--max-age", "60"]
    settings = parse_serve(given, {})
    environment = worker_environment(settings)
    assert parse_serve([], environment) == settings
    assert settings["keep_alive"] is None
    assert settings["bind"] == ("127.0.0.1:1", "unix:/x")


def parse_serve(arguments: list[str], environment: Mapping[str, str]) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("TRIO_SSE_"):
                patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        context = serve.make_context("serve", list(arguments), auto_envvar_prefix=ENV_PREFIX)
        return context.params
