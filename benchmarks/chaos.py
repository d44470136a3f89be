"""Soak: a server under clients that come, stall, reset and resume, while it is restarted.

    python benchmarks/chaos.py --seconds 600 --clients 2000 --seed 7

A third of the clients resume with ``Last-Event-ID`` and check that they get every event of
each of the server's lives once and in order, and are told of what they cannot get. The
others do what clients ought not to do. SIGTERM falls at random moments; each time the
server has to end in time, with every session unregistered. In the end all clients leave,
and the server's tasks, descriptors and memory have to be back to where they were.

The choices come from the seed, which is printed; the timing is the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, final

import trio
from chaos_clients import (
    Publisher,
    World,
    connected,
    misbehave_for_ever,
    read_head,
    resume_for_ever,
    send_all,
)
from chaos_ledger import TOPICS, Follower, Ledger

_SERVER: Final = Path(__file__).resolve().parent / "apps" / "chaos_server.py"
_LAST: Final = "census at the end: "
_SLACK: Final = 1.0
"""Seconds beyond its grace in which the server has to end."""
_BLOCKS_PER_SESSION: Final = 0.2
_RSS_KEPT: Final = 16 << 10
_RSS_KEPT_PER_CLIENT: Final = 48
"""KiB that allocators may keep: of all that there was at one time, but not of more."""
_SHOWN: Final = 40
"""Lines, of many that may be alike."""
_EXAMPLES: Final = 5
_BLOCKS_PER_EVENT: Final = 12
"""Of memory, that an event in the log takes, generously."""
_BLOCKS_KEPT: Final = 1_500
"""Of memory, that caches may have grown by."""
_PATIENCE: Final = 30.0
"""Seconds in which what has to come has to come."""


@final
class Server:
    """The server's lives, one after the other, and what each left behind."""

    def __init__(self, world: World, grace: float, directory: Path) -> None:
        self._world = world
        self._grace = grace
        self._log = directory / "server.log"
        self._process: trio.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it answers."""
        argv = [sys.executable, str(_SERVER), "serve", "--bind", f"127.0.0.1:{self._world.port}"]
        argv += ["--grace", str(self._grace), "--send-timeout", "3", "--keep-alive", "2"]
        argv += ["--queue-events", "256", "--log-level", "warning"]
        cores = sorted(os.sched_getaffinity(0))
        with self._log.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.sched_setaffinity(self._process.pid, cores[:1])
        with trio.fail_after(_PATIENCE):
            while True:
                with suppress(OSError):
                    await self.census()
                    return
                if self._process.poll() is not None:
                    raise RuntimeError(f"the server did not start: {self._tail()}")
                await trio.sleep(0.05)

    async def census(self) -> dict[str, Any]:
        """What there is in the server now.

        Raises:
            OSError: it does not answer.
        """
        with await connected(self._world) as sock, trio.move_on_after(10):
            await send_all(sock, b"GET /census HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            status, body = await read_head(sock)
            while piece := await sock.recv(65536):
                body += piece
            if status == 200:
                found: dict[str, Any] = json.loads(body)
                return found
        raise ConnectionError("no census")

    async def stop(self) -> float:
        """Send SIGTERM, and check how it ends; the seconds it took."""
        assert self._process is not None
        fail = self._world.ledger.fail
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        with trio.move_on_after(self._grace + _PATIENCE):
            await self._process.wait()
        took = time.monotonic() - began
        if self._process.returncode is None:
            fail(f"the server did not end {took:.0f} s after SIGTERM")
            self.kill()
        elif self._process.returncode != 0:
            fail(f"exit code {self._process.returncode}: {self._tail()}")
        if took > self._grace + _SLACK:
            fail(f"it took {took:.2f} s to end, with a grace of {self._grace:g} s")
        self._check_last_census()
        return took

    def _check_last_census(self) -> None:
        lines = [
            line.removeprefix(_LAST)
            for line in self._log.read_text(errors="replace").splitlines()
            if line.startswith(_LAST)
        ]
        if not lines:
            self._world.ledger.fail(f"the server said nothing at its end: {self._tail()}")
            return
        last = json.loads(lines[-1])
        counts = self._world.ledger.counts
        counts["sessions registered"] += last["registered"]
        for reason, count in last["unregistered"].items():
            counts[f"sessions unregistered: {reason}"] += count
        if last["registered"] != sum(last["unregistered"].values()) or last["sessions"]:
            self._world.ledger.fail(f"sessions that were not unregistered once: {last}")

    def kill(self) -> None:
        """End what is left of it."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def complaints(self) -> list[str]:
        """What it logged, other than what it says at its end."""
        expected = (_LAST, "draining: ", "drained: ", "trio-sse serves ")
        lines = self._log.read_text(errors="replace").splitlines()
        return [line for line in lines if line.strip() and not line.startswith(expected)]

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-1500:]


@final
class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        self._rng = random.Random(options.seed)
        self._ledger = Ledger()
        self._world = World(_free_port(), self._ledger, trio.Event(), trio.Event())
        self._server = Server(self._world, options.grace, directory)
        self._followers: list[Follower] = []
        self._publisher = Publisher(self._world, self._rng_for("publisher"))

    async def run(self) -> bool:
        """The whole run; whether nothing was amiss."""
        try:
            before = await self._reference()
            await self._server.start()
            async with self._clients():
                await self._restart_at_random()
                await self._calm_down()
            after = await self._wait_for_baseline(before)
            self._say(f"stopped in {await self._server.stop():.2f} s")
        finally:
            self._server.kill()
        for follower in self._followers:
            follower.check_ends()
        self._report(before, after)
        return not self._ledger.failures

    async def _reference(self) -> dict[str, Any]:
        """The census of a server that has not had any client but who asks for it."""
        await self._server.start()
        for _ in range(3):
            found = await self._server.census()
        await self._server.stop()
        return found

    @asynccontextmanager
    async def _clients(self) -> AsyncGenerator[None, None]:
        async with trio.open_nursery() as nursery:
            for number in range(self._options.clients):
                rng = self._rng_for(str(number))
                if number % 3 == 0:
                    topic = rng.choice([None, *TOPICS])
                    follower = Follower(f"client {number}", topic, self._ledger)
                    self._followers.append(follower)
                    nursery.start_soon(resume_for_ever, self._world, rng, follower)
                else:
                    nursery.start_soon(misbehave_for_ever, self._world, rng)
            nursery.start_soon(self._publisher.publish_for_ever, self._options.rate)
            yield
            nursery.cancel_scope.cancel()

    async def _restart_at_random(self) -> None:
        """SIGTERM and a new server, again and again, until the time is over."""
        end = trio.current_time() + self._options.seconds
        most = max(2.5, min(60.0, self._options.seconds / 4))
        while True:
            life = self._rng.uniform(min(2.0, most / 2), most)
            if trio.current_time() + life > end:
                await trio.sleep_until(end)
                return
            await trio.sleep(life)
            self._count_census(await self._server.census())
            took = await self._server.stop()
            self._ledger.counts["restarts"] += 1
            self._say(f"restart after {life:.1f} s, which ended in {took:.2f} s")
            await trio.sleep(self._rng.uniform(0, 0.5))
            await self._server.start()

    async def _calm_down(self) -> None:
        """Have those that resume get everything, and all leave."""
        self._say("calming down")
        self._world.calm.set()
        await self._wait(
            "not all who resume came back",
            lambda: all(f.is_listening for f in self._followers),
        )
        for topic in TOPICS:
            await self._publisher.publish(topic)
        self._publisher.close()
        self._world.all_published.set()
        await self._wait(
            "not all have everything", lambda: all(f.is_complete for f in self._followers)
        )

    async def _wait(self, failure: str, done: Callable[[], bool]) -> None:
        with trio.move_on_after(_PATIENCE):
            while not done():  # noqa: ASYNC110  # there is no one event for it
                await trio.sleep(0.05)
            return
        missing = [f for f in self._followers if not (f.is_listening or f.is_complete)]
        missing = missing or [f for f in self._followers if not f.is_complete]
        self._ledger.fail(f"{failure} within {_PATIENCE:g} s: {len(missing)}, as {missing[:3]}")

    async def _wait_for_baseline(self, before: dict[str, Any]) -> dict[str, Any]:
        """Wait until nothing of the clients is left in the server."""
        deadline = trio.current_time() + _PATIENCE
        while True:
            after = await self._server.census()
            same = all(after[name] == before[name] for name in ("tasks", "descriptors"))
            if (same and not after["sessions"]) or trio.current_time() > deadline:
                break
            await trio.sleep(0.25)
        self._count_census(after)
        for name in ("tasks", "descriptors"):
            if after[name] != before[name]:
                self._ledger.fail(f"{name}: {after[name]}, which were {before[name]}")
        kept = after["blocks"] - before["blocks"] - _BLOCKS_PER_EVENT * after["published"]
        if kept > _BLOCKS_KEPT + _BLOCKS_PER_SESSION * after["registered"]:
            self._ledger.fail(
                f"{kept:.0f} blocks of memory are left of {after['registered']} sessions"
            )
        may_grow = _RSS_KEPT + _RSS_KEPT_PER_CLIENT * self._options.clients
        if after["rss_kib"] > before["rss_kib"] + may_grow:
            self._ledger.fail(f"{after['rss_kib']} KiB of memory, which was {before['rss_kib']}")
        return after

    def _count_census(self, census: dict[str, Any]) -> None:
        for name in ("delivered", "replayed"):
            self._ledger.counts[f"events {name} by the server"] += census[name]

    def _report(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        for name in sorted(self._ledger.counts):
            self._say(f"{self._ledger.counts[name]:>10,} {name}")
        for name in ("tasks", "descriptors", "blocks", "rss_kib"):
            now, then = after[name], before[name]
            if isinstance(now, dict):
                now, then = sum(now.values()), sum(then.values())
            self._say(f"{name}: {then:,} before, {now:,} after")
        complaints = self._server.complaints()
        self._say(f"{len(complaints)} lines in the server's log")
        for line in complaints[:_SHOWN]:
            self._say(f"  {line}")
        alike = Counter(re.sub(r"[0-9a-f]{8}|\d+", "N", text) for text in self._ledger.failures)
        for kind, times in alike.most_common(_SHOWN):
            self._say(f"FAILED {times} times: {kind}")
        for failure in self._ledger.failures[:_EXAMPLES]:
            self._say(f"as {failure}")
        self._say(f"seed {self._options.seed}: {len(self._ledger.failures)} failures")

    def _rng_for(self, who: str) -> random.Random:
        return random.Random(f"{self._options.seed} {who}")

    def _say(self, text: str) -> None:
        print(text, flush=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="of chaos")
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="by default a new one")
    parser.add_argument("--rate", type=float, default=5, help="events a second")
    parser.add_argument("--grace", type=float, default=3, help="seconds for each drain")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {options.seed}, {options.clients} clients, {options.seconds:g} s", flush=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server is ended then, too
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:

        async def run() -> bool:
            return await Soak(options, Path(directory)).run()

        sys.exit(0 if trio.run(run) else 1)


if __name__ == "__main__":
    main()
