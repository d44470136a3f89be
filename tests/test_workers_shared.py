"""``trio-sse serve --workers N`` on a log that they share: real processes, real sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trustme
from _redis import shared_server
from sockets import eventually
from test_cli import COMMAND, PATIENCE

from trio_sse import Event, ReadyState, Reconnect, StateChange, Transport, connect
from trio_sse._fetch import request

WORKERS = 3
EAGER = Reconnect(initial=0.05, floor=0.02, ceiling=0.3, longest_wait=0.3, statuses={503})

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(
        not Path("/proc/self/task").exists(), reason="finds the workers through Linux' /proc"
    ),
]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The options of a log that several processes can use."""
    if request.param == "sqlite":
        return ["--log", f"sqlite:{tmp_path / 'events.db'}"]
    return ["--log", shared_server().url, "--log-name", tmp_path.name]


class Service:
    """A supervisor with its workers, and what speaks to them."""

    def __init__(
        self, process: subprocess.Popen[str], url: str, transport: Transport, err: Path
    ) -> None:
        self.process = process
        self.url = url
        self.transport = transport
        self.err = err

    def urls(self) -> list[str]:
        """What each worker says when it listens."""
        return re.findall(r"trio-sse serves (\S+)", self.err.read_text())

    def workers(self) -> list[int]:
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for each in threads for pid in (each / "children").read_text().split()]

    def clients(self, pid: int) -> int:
        """How many connections of clients it has."""
        port = f":{int(self.url.rpartition(':')[2]):04X}"
        lines = map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        established = {
            f"socket:[{it[9]}]" for it in lines if it[1].endswith(port) and it[3] == "01"
        }
        found = 0
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found += os.readlink(fd) in established
        return found

    async def publish(self, data: str) -> str:
        """Over a connection of its own, so to any worker; its id."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": f'"{data}"'}
        body = json.dumps({"data": data}).encode()
        while True:
            answer = await request(
                "POST", f"{self.url}/events", headers=headers, body=body, transport=self.transport
            )
            if answer.status == 201:
                event_id: str = json.loads(answer.body)["id"]
                return event_id
            assert answer.status == 503, answer


@contextmanager
def serving(tmp_path: Path, *args: str, transport: Transport) -> Iterator[Service]:
    err = tmp_path / "err"
    with err.open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--bind", "127.0.0.1:0", "--workers", str(WORKERS), *args],
            stderr=stderr,
            text=True,
        )
    service = Service(process, "", transport, err)
    try:
        yield service
    finally:
        for pid in service.workers() if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


class Listeners:
    """Clients of one service, and what each got."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.got: list[list[Event]] = []
        self.open: set[int] = set()
        self.connections = 0
        self.changed = trio.lowlevel.ParkingLot()

    async def listen(self, number: int) -> None:
        def note(change: StateChange) -> None:
            if change.state is ReadyState.OPEN:
                self.open.add(number)
                self.connections += 1
            else:
                self.open.discard(number)
            self.changed.unpark_all()

        async with connect(
            f"{self.service.url}/events",
            reconnect=EAGER,
            transport=self.service.transport,
            on_state_change=note,
        ) as source:
            async for event in source:
                self.got[number].append(event)
                self.changed.unpark_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not condition():
                await self.changed.park()

    async def all_have(self, count: int) -> None:
        await self.until(lambda: all(len(got) >= count for got in self.got))

    def in_one_order(self) -> list[str | None]:
        """The data that all of them got, in the order in which all of them did."""
        first = [(event.id, event.data) for event in self.got[0]]
        for got in self.got:
            assert [(event.id, event.data) for event in got] == first
        return [data for _, data in first]


@asynccontextmanager
async def listening_everywhere(service: Service) -> AsyncIterator[Listeners]:
    """At least two clients of each worker; each has had an event."""
    listeners = Listeners(service)
    await eventually(lambda: len(service.urls()) == WORKERS)
    service.url = service.urls()[0].replace("127.0.0.1", "localhost")
    workers = {*service.workers()}
    assert len(workers) == WORKERS
    async with trio.open_nursery() as nursery:
        # Who has enough of them is stopped meanwhile, so that the others have their turn.
        try:
            while short := {pid for pid in workers if service.clients(pid) < 2}:
                for pid in workers - short:
                    os.kill(pid, signal.SIGSTOP)
                listeners.got.append([])
                nursery.start_soon(listeners.listen, len(listeners.got) - 1)
                await listeners.until(lambda: len(listeners.open) == len(listeners.got))
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        await service.publish("first")
        await listeners.all_have(1)
        yield listeners
        nursery.cancel_scope.cancel(reason="the test is over")


DIRECT = Transport(trust_env=False)


async def test_all_see_all_in_one_order(
    tmp_path: Path, log: list[str], figure: Callable[[str], None]
) -> None:
    """Whichever worker they are with, and whichever it was published to; also when one dies."""
    expected = ["first"]
    with serving(tmp_path, *log, transport=DIRECT) as service:
        async with listening_everywhere(service) as listeners:

            async def publish(who: str) -> None:
                for number in range(10):
                    await service.publish(f"{who} {number}")

            async with trio.open_nursery() as publishers:
                for who in "abc":
                    publishers.start_soon(publish, who)
            await listeners.all_have(31)
            order = listeners.in_one_order()
            assert sorted(map(str, order)) == sorted(
                ["first", *(f"{who} {number}" for who in "abc" for number in range(10))]
            )
            victim, *others = service.workers()
            os.kill(victim, signal.SIGKILL)
            await listeners.until(lambda: len(listeners.open) < len(listeners.got))
            expected = [*map(str, order), *(f"after {number}" for number in range(10))]
            for data in expected[31:]:
                await service.publish(data)
            await listeners.all_have(len(expected))
            assert listeners.in_one_order() == expected
            await eventually(lambda: len(service.workers()) == WORKERS)
            assert victim not in service.workers()
            assert {*others} < {*service.workers()}
            clients, events = len(listeners.got), sum(map(len, listeners.got))
        service.process.terminate()
        assert await trio.to_thread.run_sync(service.process.wait, PATIENCE) == 0
        # One that was just being started may not be counted yet.
        assert re.search(r"draining [23] workers", service.err.read_text())
    figure(f"{clients} clients of {WORKERS} workers, {events} events, none lost, none twice")


async def test_a_signal_drains_all_of_them(tmp_path: Path, log: list[str]) -> None:
    """Each client is told goodbye, and goes on where it was when the service is there again."""
    with serving(tmp_path, *log, transport=DIRECT) as service:
        async with listening_everywhere(service) as listeners:
            service.process.terminate()
            await listeners.until(lambda: not listeners.open)
            assert await trio.to_thread.run_sync(service.process.wait, PATIENCE) == 0
            port = service.url.rpartition(":")[2]
            args = ["--bind", f"127.0.0.1:{port}", *log]
            again = tmp_path / "again"
            again.mkdir()
            with serving(again, *args, transport=DIRECT) as service_again:
                await listeners.until(lambda: len(listeners.open) == len(listeners.got))
                service_again.url = service.url
                await service_again.publish("second")
                await listeners.all_have(2)
                assert listeners.in_one_order() == ["first", "second"]  # and no gap


async def test_with_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "both.pem")
    )
    context = ssl.create_default_context()
    authority.configure_trust(context)
    both = str(tmp_path / "both.pem")
    args = ["--certfile", both, "--keyfile", both, "--log", f"sqlite:{tmp_path / 'events.db'}"]
    transport = Transport(trust_env=False, ssl_context=context)
    with serving(tmp_path, *args, transport=transport) as service:
        async with listening_everywhere(service) as listeners:
            assert service.url.startswith("https://")
            for number in range(5):
                await service.publish(str(number))
            await listeners.all_have(6)
            assert listeners.in_one_order() == ["first", "0", "1", "2", "3", "4"]
