"""Processes that use one SQLite file, and are killed at it: run as a program.

What is to be done comes as one line of JSON, what came of it goes out as another. The
processes are forked from this one, which runs nothing itself: so each costs little.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from trio_sse import Event
from trio_sse.log import _sqlite_file, _sqlite_store
from trio_sse.log.sqlite import SqliteLog

Work = Callable[[Callable[[Any], None]], Awaitable[None]]


class Child:
    """A process that does ``work``, which is given a function to report by."""

    def __init__(self, work: Work) -> None:
        receive, send = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(receive)
            try:
                trio.run(work, lambda said: os.write(send, json.dumps(said).encode() + b"\n"))
            except BaseException:  # noqa: ASYNC103  # the process ends here
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        os.close(send)
        self.said = os.fdopen(receive, "rb")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def rest(self) -> tuple[list[Any], int]:
        """All that it still reports, and how it ended."""
        with self.said:
            lines = [json.loads(line) for line in self.said if line.endswith(b"\n")]
        return lines, os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def publishing(path: str, name: str, count: int, **options: Any) -> Work:
    """Three publishers; each event is reported when it was acknowledged. Some are repeated."""

    async def work(report: Callable[[Any], None]) -> None:
        async with SqliteLog(path, **options) as log:

            async def publish(publisher: str) -> None:
                for n in range(count):
                    text = f"{name} {publisher} {n}"
                    for _ in range(1 + n % 2):
                        report([await log.append(Event(text), ("t",), key=text), text])

            async with trio.open_nursery() as nursery:
                for publisher in "abc":
                    nursery.start_soon(publish, publisher)

    return work


def looking(path: str, **options: Any) -> Work:
    """Report where the log begins and all that it holds, and that it can be written."""

    async def work(report: Callable[[Any], None]) -> None:
        async with SqliteLog(path, **options) as log:
            held: list[tuple[str, str]] = []
            position = log.trimmed
            report(position)
            while records := await log.read(position, 100):
                position = records[-1].position
                held += [(r.id, r.data.decode().split("data: ")[1].strip()) for r in records]
            report(held)
            assert position == log.newest
            last = await log.append(Event("looked"), ("t",))
            assert last == log.place(log.newest) == log.place(position + 1)

    return work


def check(path: str, acknowledged: list[tuple[str, str]], **options: Any) -> int:
    """Everything acknowledged is there, once, in its place; how many events there are."""
    [trimmed, held], code = Child(looking(path, **options)).rest()
    assert code == 0
    positions = [int(id.rpartition(".")[2]) for id, _ in held]
    assert positions == list(range(trimmed + 1, trimmed + 1 + len(held)))
    texts = [text for _, text in held if text != "looked"]
    assert len(set(texts)) == len(texts)
    by_id = dict(held)
    for id, text in acknowledged:
        assert by_id.get(id, text) == text
        if int(id.rpartition(".")[2]) > trimmed:
            assert id in by_id, (id, text)
    for text in texts:  # each publisher's in its order
        who, number = text.rsplit(" ", 1)
        later = texts[texts.index(text) + 1 :]
        assert all(int(t.rsplit(" ", 1)[1]) > int(number) for t in later if t.startswith(who))
    return len(held)


def kill_at_each_statement(max_events: int, wal_bytes: int) -> dict[str, int]:
    """Kill the process before each statement that it gives to SQLite, the first one first."""
    connect = _sqlite_file.connect
    _sqlite_store.WAL_BYTES = wal_bytes
    kill_at, seen = 0, 0

    def step(_statement: str) -> None:
        nonlocal seen
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(path: str, mode: str) -> sqlite3.Connection:
        connection = connect(path, mode)
        connection.set_trace_callback(step)
        return connection

    kills = acknowledged = 0
    while True:
        kill_at += 1
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "events.db")
            _sqlite_file.connect = traced
            said, code = Child(publishing(path, "x", 4, max_events=max_events)).rest()
            _sqlite_file.connect = connect
            assert code in (0, -signal.SIGKILL)
            check(path, said, max_events=max_events)
        if code == 0:
            return {"kills": kills, "acknowledged": acknowledged}
        kills += 1
        acknowledged += len(said)


def kill_at_random(seed: int, rounds: int, sync: str) -> dict[str, int]:
    """Kill a process that publishes without end, again and again, on one file."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "events.db")
        acknowledged: list[tuple[str, str]] = []
        held = 0
        for n in range(rounds):
            child = Child(publishing(path, str(n), 10**6, sync=sync))
            acknowledged.append(json.loads(child.said.readline()))
            deadline = time.monotonic() + rng.random() * 0.05
            while time.monotonic() < deadline:
                acknowledged.append(json.loads(child.said.readline()))
            child.kill()
            acknowledged += child.rest()[0]
            held = check(path, acknowledged, sync=sync)
        return {"kills": rounds, "acknowledged": len(set(map(tuple, acknowledged))), "held": held}


def together(processes: int, count: int) -> dict[str, int]:
    """Several publish at once, and each reads what all of them do."""
    total = processes * count

    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "events.db")

        def using(name: str) -> Work:
            async def work(report: Callable[[Any], None]) -> None:
                async with SqliteLog(path) as log:

                    async def publish() -> None:
                        for n in range(count):
                            await log.append(Event(f"{name} {n}"), ("t",))

                    position = 0
                    found: list[str] = []
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(publish)
                        while len(found) < total:
                            await log.wait(position)
                            for record in await log.read(position, 100):
                                assert record.position == position + 1
                                position = record.position
                                found.append(record.data.decode())
                    report(found)

            return work

        children = [Child(using(str(n))) for n in range(processes)]
        ends = [child.rest() for child in children]
        assert [code for _, code in ends] == [0] * processes
        orders = [said[0] for said, _ in ends]
        assert all(order == orders[0] for order in orders)
        assert len(set(orders[0])) == total
        return {"processes": processes, "events": total}


if __name__ == "__main__":
    name, arguments = json.loads(sys.argv[1])
    print(json.dumps(globals()[name](**arguments)))  # noqa: T201  # that is what it is for
