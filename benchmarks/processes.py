"""Processes that are pinned to cores, bounded in time, and gone in the end."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
BUILD: Final = HERE / ".build"
"""What is built or fetched for the benchmarks; not kept in the repository."""


class Failed(Exception):
    """A step did not work; the text says what and why."""


def cores() -> tuple[list[int], list[int]]:
    """For the server one core; for the load the others, or the same if there is only one."""
    every = sorted(os.sched_getaffinity(0))
    return every[:1], every[1:] or every[:1]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(
    argv: Sequence[str],
    *,
    core: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Generator[tuple[subprocess.Popen[bytes], Path], None, None]:
    """Run ``argv`` on ``core``; the process, and the file with what it prints.

    Afterwards it and what it started are told to end, and killed if they do not.
    """

    def prepare() -> None:
        if core:
            os.sched_setaffinity(0, core)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        log = Path(directory) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
                preexec_fn=prepare,  # noqa: PLW1509  # there are no threads here
            )
        try:
            yield process, log
        finally:
            end(process)


def end(process: subprocess.Popen[bytes], seconds: float = 8.0) -> None:
    """Have the process and its group end."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait_for_port(process: subprocess.Popen[bytes], log: Path, port: int) -> None:
    """Wait until something listens there.

    Raises:
        Failed: the process ended, or took more than twenty seconds.
    """
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise Failed(f"the server did not start: {tail(log)}")


def tail(log: Path, size: int = 600) -> str:
    return log.read_text(errors="replace")[-size:].strip()


def output(argv: Sequence[str], *, core: Sequence[int] = (), seconds: float = 60) -> bytes:
    """What ``argv`` prints to standard output.

    Raises:
        Failed: it did not end well, or not in time.
    """

    def prepare() -> None:
        if core:
            os.sched_setaffinity(0, core)

    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=prepare,  # noqa: PLW1509  # there are no threads here
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Failed(f"{argv[0]} took more than {seconds:g} s") from None
    finally:
        end(process, 1.0)
    if process.returncode:
        raise Failed(f"{argv[0]} failed: {err.decode(errors='replace')[-600:].strip()}")
    return out


def json_output(argv: Sequence[str], *, core: Sequence[int], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output(argv, core=core, seconds=seconds))
    return found


def machine() -> dict[str, Any]:
    """What the figures are from."""
    server, load = cores()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "server_cores": server,
        "load_cores": load,
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_average": os.getloadavg()[0],
        "revision": _revision(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _revision() -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except OSError:
        return ""
    return done.stdout.strip()
