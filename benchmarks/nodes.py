"""Several servers on one log, under clients that hop between them, while all are killed.

    python benchmarks/nodes.py --log redis --seconds 120 --clients 300 --seed 7
    python benchmarks/nodes.py --log sqlite --seconds 120

With ``redis``: three servers on one Redis, behind one address that sends each connection of
a client to another server. One after the other is killed, or drained, and started again;
so is Redis, which is killed (it syncs what it answers). With ``sqlite``: one service of
three workers on one file. A worker is killed, the service is restarted, the whole of it is
killed. With ``memory`` only connections are cut: a server takes that log with it.

Publishers repeat with an idempotency key what they are not told of, and now and then what
they are. Every client has to get every event of its topics, once, in the one order of each
topic. The choices come from the seed, which is printed; the timing is the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Literal, final, get_args

import trio
from nodes_ledger import TOPICS, Ledger, Listener
from nodes_parts import DIRECT, PATIENCE, Program, Proxy, free_port, health, node, redis

from trio_sse import ClientError, ReadyState, Reconnect, StateChange, connect
from trio_sse._fetch import request

_EAGER: Final = Reconnect(
    initial=0.05, floor=0.02, ceiling=0.5, longest_wait=0.3, statuses={502, 503, 504}
)
_NODES: Final = 3
_RESTART_LOG_SECONDS: Final = 0.7

Engine = Literal["redis", "sqlite", "memory"]


@final
class Run:
    """One run: the servers, who listens, who publishes, and what befalls them."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self._options = options
        self._directory = directory
        self._rng = random.Random(options.seed)
        self._ledger = Ledger(one_order=options.shards == 1)
        self._listeners = [self._make_listener(number) for number in range(options.clients)]
        self._open: set[Listener] = set()
        self._redis: Program | None = None
        self._nodes: list[Program] = []
        self._ports: list[int] = []
        self._proxy = Proxy([])
        self._enough = trio.Event()
        self._publishers_left = options.publishers

    def _make_listener(self, number: int) -> Listener:
        topics = [] if number % 3 == 0 else self._rng.sample(TOPICS, self._rng.randint(1, 3))
        return Listener(f"client {number}", topics, self._ledger)

    async def run(self) -> bool:
        """The whole run; whether nothing was amiss."""
        try:
            await self._start()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._proxy.run)
                for number, listener in enumerate(self._listeners):
                    nursery.start_soon(self._listen, number, listener)
                await self._wait(
                    "not all are connected", lambda: len(self._open) == len(self._listeners)
                )
                await self._prime()
                async with trio.open_nursery() as publishers:
                    for number in range(self._options.publishers):
                        publishers.start_soon(self._publish_for_ever, number)
                    await self._chaos()
                    self._enough.set()
                await self._wait(
                    "not all have everything", lambda: all(x.is_complete for x in self._listeners)
                )
                nursery.cancel_scope.cancel(reason="the run is over")
            await self._stop()
        finally:
            for program in (*self._nodes, *filter(None, [self._redis])):
                program.end()
        for listener in self._listeners:
            listener.check_end()
        self._ledger.check_orders()
        self._report()
        return not self._ledger.failed

    # The servers.

    async def _start(self) -> None:
        if self._options.log == "redis":
            port = free_port()
            self._redis = redis(self._directory, port)
            await self._redis.start()
            options = ["--log", f"redis://127.0.0.1:{port}/0"]
            if self._options.shards > 1:
                options += ["--log-shards", str(self._options.shards)]
            self._ports = [free_port() for _ in range(_NODES)]
        else:
            options = []
            if self._options.log == "sqlite":
                options += ["--log", f"sqlite:{self._directory / 'events.db'}"]
                options += ["--workers", str(_NODES)]
            self._ports = [free_port()]
        self._nodes = [
            node(f"node {number}", port, self._directory, *options)
            for number, port in enumerate(self._ports)
        ]
        async with trio.open_nursery() as nursery:
            for each in self._nodes:
                nursery.start_soon(each.start)
        self._proxy = Proxy(self._ports)

    async def _stop(self) -> None:
        for each in self._nodes:
            await self._drain(each)

    async def _drain(self, program: Program) -> None:
        code = await program.stop()
        if code != 0:
            self._ledger.fail(f"{program.name} ended with {code} after SIGTERM: {program.tail()}")

    # Clients.

    async def _listen(self, number: int, listener: Listener) -> None:
        def note(change: StateChange) -> None:
            if change.state is ReadyState.OPEN:
                self._open.add(listener)
                self._count("connections of clients")
            else:
                self._open.discard(listener)

        query = "".join(f"&topic={topic}" for topic in sorted(listener.topics))
        url = f"{self._proxy.url}/events?client={number}{query}"
        async with connect(url, reconnect=_EAGER, transport=DIRECT, on_state_change=note) as source:
            async for event in source:
                listener.take(event)

    async def _prime(self) -> None:
        """Give every client an event: from then on each has a place to come back to."""
        for number, topic in enumerate(TOPICS):
            await self._publish(f"prime-{number}", [topic])
        await self._wait("not all have an event", lambda: all(x.has_any for x in self._listeners))

    async def _publish_for_ever(self, number: int) -> None:
        rng = random.Random(f"{self._options.seed} publisher {number}")
        pause = self._options.publishers / self._options.rate
        count = 0
        while not self._enough.is_set():
            # Several topics have one order only where there is one stream.
            most = 2 if self._ledger.one_order else 1
            topics = rng.sample(TOPICS, rng.randint(1, most))
            key = f"p{number}-{count}"
            count += 1
            chance = rng.random()
            if chance < 0.05:  # at once, most likely by way of two servers
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._publish, key, topics)
                    nursery.start_soon(self._publish, key, topics)
            else:
                await self._publish(key, topics)
                if chance < 0.1:
                    await self._publish(key, topics)
            with trio.move_on_after(rng.expovariate(1 / pause)):
                await self._enough.wait()

    async def _publish(self, key: str, topics: Sequence[str]) -> None:
        """Publish until the answer is that it is."""
        body = json.dumps({"topic": [*topics], "data": {"key": key, "topics": [*topics]}}).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": f'"{key}"'}
        with trio.move_on_after(PATIENCE):
            while True:
                try:
                    url = f"{self._proxy.url}/events"
                    answer = await request(
                        "POST", url, headers=headers, body=body, transport=DIRECT
                    )
                except ClientError as exc:
                    self._count(f"publications without an answer: {type(exc).__name__}")
                else:
                    if answer.status == 201:
                        self._ledger.acknowledged(key, topics, json.loads(answer.body)["id"])
                        return
                    self._count(f"publications answered {answer.status}")
                    if answer.status != 503:
                        self._ledger.fail(f"{key} was answered {answer.status}: {answer.body!r}")
                await trio.sleep(0.1)
        self._ledger.fail(f"{key} could not be published within {PATIENCE:g} s")

    # What befalls them.

    async def _chaos(self) -> None:
        """Everything at least once, in an order of the seed's, until the time is over."""
        end = trio.current_time() + self._options.seconds
        actions = [*self._actions().items()]
        while True:
            self._rng.shuffle(actions)
            for what, action in actions:
                await trio.sleep(self._rng.uniform(0.2, 1.0))
                await action()
                self._count(what)
            if trio.current_time() > end:
                return

    def _actions(self) -> dict[str, Callable[[], Awaitable[None]]]:
        own: dict[str, Callable[[], Awaitable[None]]] = {}
        if self._options.log == "redis":
            own["servers killed"] = self._kill_a_server
            own["servers drained"] = self._drain_a_server
            own["times that Redis was killed"] = self._kill_redis
        elif self._options.log == "sqlite":
            own["workers killed"] = self._kill_a_worker
            own["services drained, with all workers"] = self._drain_a_server
            own["services killed, with all workers"] = self._kill_a_server
        return {**own, "times that connections were cut": self._cut_connections}

    async def _kill_a_server(self) -> None:
        program = self._rng.choice(self._nodes)
        await program.kill()
        await trio.sleep(self._rng.uniform(0, 0.5))
        await program.start()

    async def _drain_a_server(self) -> None:
        program = self._rng.choice(self._nodes)
        await self._drain(program)
        await trio.sleep(self._rng.uniform(0, 0.5))
        await program.start()

    async def _kill_redis(self) -> None:
        assert self._redis is not None
        await self._wait_until_all_are_open()
        before = self._ledger.counts["connections of clients"]
        await self._redis.kill()
        await trio.sleep(_RESTART_LOG_SECONDS)
        for port in self._ports:
            said = await health(port)
            if said.get("status") != "degraded":
                self._ledger.fail(f"/healthz while Redis is away: {said}")
        await self._redis.start()
        for port in self._ports:
            with trio.move_on_after(PATIENCE) as bound:
                while (await health(port)).get("status") != "ok":
                    await trio.sleep(0.05)
            if bound.cancelled_caught:
                self._ledger.fail(f"/healthz, with Redis back: {await health(port)}")
        if (after := self._ledger.counts["connections of clients"]) != before:
            self._ledger.fail(f"{after - before} sessions did not outlive Redis' absence")

    async def _kill_a_worker(self) -> None:
        [service] = self._nodes
        workers = service.children()
        if len(workers) != _NODES:
            self._ledger.fail(f"there are {len(workers)} workers")
        victim = self._rng.choice(workers)
        os.kill(victim, signal.SIGKILL)
        await self._wait("the worker is still there", lambda: victim not in service.children())
        await self._wait("no worker took its place", lambda: len(service.children()) == _NODES)

    async def _cut_connections(self) -> None:
        for _ in range(self._rng.randint(1, 3)):
            cut = self._proxy.cut(lambda: self._rng.random() < 0.4)
            self._ledger.counts["connections cut"] += cut
            await trio.sleep(self._rng.uniform(0, 0.2))

    # To wait, and to tell.

    async def _wait_until_all_are_open(self) -> None:
        await self._wait("not all came back", lambda: len(self._open) == len(self._listeners))

    async def _wait(self, failure: str, done: Callable[[], bool]) -> None:
        with trio.move_on_after(PATIENCE):
            while not done():
                await trio.sleep(0.02)
            return
        self._ledger.fail(f"{failure} within {PATIENCE:g} s")

    def _count(self, what: str) -> None:
        self._ledger.counts[what] += 1

    def _report(self) -> None:
        ledger = self._ledger
        ledger.counts["hops to another server"] = self._proxy.hops
        for name in ("events lost", "events received twice", "events out of order"):
            ledger.counts.setdefault(name, 0)
        for name in sorted(ledger.counts):
            print(f"{ledger.counts[name]:>10,} {name}", flush=True)
        for program in self._nodes:
            for line in program.log.read_text(errors="replace").splitlines()[-10:]:
                if "Traceback" in line or "ERROR" in line:
                    print(f"  {program.name} said: {line}", flush=True)
        for failure in ledger.failures:
            print(f"FAILED: {failure}", flush=True)
        print(f"seed {self._options.seed}: {ledger.failed} failures", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--log", choices=get_args(Engine), default="redis")
    parser.add_argument("--seconds", type=float, default=60, help="of chaos, at least")
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--publishers", type=int, default=6)
    parser.add_argument("--rate", type=float, default=20, help="events a second")
    parser.add_argument("--shards", type=int, default=1, help="streams, with Redis")
    parser.add_argument("--seed", type=int, default=None, help="by default a new one")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    print(f"{options.log}: seed {options.seed}, {options.clients} clients", flush=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # processes are ended then, too
    with tempfile.TemporaryDirectory(prefix="nodes-") as directory:
        found = trio.run(Run(options, Path(directory)).run)
    sys.exit(0 if found else 1)


if __name__ == "__main__":
    main()
