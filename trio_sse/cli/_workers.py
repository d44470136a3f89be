"""Several processes on one listening socket, started again when they die, drained together.

The parent binds, and serves nothing. Each worker is the same command with the sockets it
inherits (``--bind fd://N``), so that a worker is no other program than a server alone.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, final

import trio

from ._systemd import NOTIFY_SOCKET, READY, STOPPING, notify

logger = logging.getLogger("trio_sse.workers")

FIRST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 30.0
HEALTHY_AFTER: Final = 10.0
"""Seconds: a worker that lived this long is started again at once when it dies."""


@final
class Supervisor:
    """Keeps ``count`` processes of ``command`` running until told to stop.

    Args:
        command: what to run.
        environment: what it runs in.
        sockets: what the processes inherit.
        count: how many.
        patience: seconds that they have to end after SIGTERM; then they are killed.
        started: is called, once, when all have said that they are ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        sockets: Sequence[socket.socket],
        count: int,
        *,
        patience: float,
        started: Callable[[], object] = lambda: None,
    ) -> None:
        self._command = list(command)
        self._environment = environment
        self._sockets = sockets
        self._count = count
        self._patience = patience
        self._started = started
        self._must_stop = trio.Event()
        # Processes that run, and what bounds the wait for each once it must end.
        self._running: dict[trio.Process, trio.CancelScope] = {}
        self._failed = False

    async def run(self) -> bool:
        """Supervise until SIGINT or SIGTERM; whether all workers then ended in good order.

        A second signal kills them. If cancelled, they are killed too.
        """
        with tempfile.TemporaryDirectory(prefix="trio-sse-") as folder:
            address = Path(folder, "notify")
            with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
                await inbox.bind(str(address))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._wait_until_ready, inbox)
                    nursery.start_soon(self._wait_for_signals, nursery.cancel_scope)
                    async with trio.open_nursery() as workers:
                        for number in range(self._count):
                            workers.start_soon(self._keep, number, str(address))
                    nursery.cancel_scope.cancel(reason="all workers have ended")
        return not self._failed

    async def _wait_until_ready(self, inbox: trio.socket.SocketType) -> None:
        ready = 0
        while ready < self._count:
            ready += READY.encode() in await inbox.recv(1024)
        self._started()
        notify(READY)
        while True:  # later ones are of workers that were started again
            await inbox.recv(1024)

    async def _wait_for_signals(self, everything: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                if self._must_stop.is_set():
                    self._failed = True
                    everything.cancel(reason="a second signal")
                    return
                self._stop()

    def _stop(self) -> None:
        self._must_stop.set()
        notify(STOPPING)
        logger.info("draining %d workers", len(self._running))
        for process, bound in self._running.items():
            self._ask_to_end(process, bound)

    def _ask_to_end(self, process: trio.Process, bound: trio.CancelScope) -> None:
        process.terminate()
        bound.deadline = trio.current_time() + self._patience

    async def _keep(self, number: int, address: str) -> None:
        """Run worker ``number``, again and again."""
        wait = 0.0
        while not self._must_stop.is_set():
            began = trio.current_time()
            code = await self._run_once(address)
            if self._must_stop.is_set():
                # One that was not up yet dies of the signal: it had no sessions.
                self._failed = self._failed or code not in (0, -signal.SIGTERM)
                return
            lived = trio.current_time() - began
            wait = 0.0 if lived >= HEALTHY_AFTER else min(LONGEST_WAIT, max(FIRST_WAIT, 2 * wait))
            logger.error(
                "worker %d ended by itself with %s; starting it again in %g s", number, code, wait
            )
            with trio.move_on_after(wait):
                await self._must_stop.wait()

    async def _run_once(self, address: str) -> int:
        process = await trio.lowlevel.open_process(
            self._command,
            pass_fds=[sock.fileno() for sock in self._sockets],
            stdin=subprocess.DEVNULL,
            # A terminal's Ctrl-C is for the parent, which passes it on once.
            start_new_session=True,
            env={**self._environment, NOTIFY_SOCKET: address},
        )
        try:
            with trio.CancelScope() as bound:
                self._running[process] = bound
                if self._must_stop.is_set():  # it came while the process was being made
                    self._ask_to_end(process, bound)
                return await process.wait()
            logger.error("worker process %d did not end in time; killed", process.pid)
            return -signal.SIGKILL
        finally:
            del self._running[process]
            if process.poll() is None:
                process.kill()
                with trio.CancelScope(shield=True):  # bounded: nothing outlives SIGKILL
                    await process.wait()
