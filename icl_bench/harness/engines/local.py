"""Run fleets in worker processes of this machine, one a core or several a GPU, under a supervisor.

Each worker has a connection of its own, so that a worker killed in the middle of a message breaks nothing that others
share. Processes are forked from a server that was started afresh and has imported torch but never used it: a worker
that replaces a lost one starts at once, and CUDA, which does not survive a fork, is first used inside the worker.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from icl_bench.harness.engines.base import ENGINES, Engine, EngineConfig
from icl_bench.harness.engines.messages import Limits, Message, Order, Worker, WorkerLost, WorkerPool, WorkerSetup
from icl_bench.isolation import ending, environment_variable, start_method

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine

STUCK_SECONDS = 10
"""Seconds after which a read or a write in the middle of a message fails, because the worker is stopped."""


@ENGINES.register("local")
class Local(EngineConfig):
    """Run fleets in worker processes of this machine."""

    workers: int | None = Field(default=None, ge=1)
    """Number of worker processes; by default one for each core, or one for each GPU."""
    timeout: float | None = Field(default=None, ge=0.1)
    """Seconds after which a fleet is ended and recorded as `timeout`; by default none."""

    def start(self, machine: "Machine") -> Engine:
        """Return the running engine; it starts its workers with the first fleets."""
        from icl_bench.harness.engines.supervisor import Supervisor
        from icl_bench.harness.environment import usable_cores, visible_gpus

        on_gpu = machine.device.type == "cuda"
        size = self.workers or (len(visible_gpus()) if on_gpu else usable_cores())
        threads = max(1, usable_cores() // size) if on_gpu else 1
        return Supervisor(ProcessPool(machine, threads), size, machine, Limits(fleet=self.timeout))


class ProcessPool(WorkerPool):
    """Start worker processes on this machine and spread them evenly over its GPUs."""

    def __init__(self, machine: "Machine", threads: int) -> None:
        from icl_bench.harness.environment import visible_gpus

        self.machine, self.threads = machine, threads
        self.gpus = visible_gpus() if machine.device.type == "cuda" else []
        self.started: list[ProcessWorker] = []

    def start(self) -> "ProcessWorker":
        """Start a process."""
        setup = WorkerSetup(self.machine, self.threads, Path.cwd(), dict(os.environ), self.least_used_gpu())
        worker = ProcessWorker(setup)
        self.started = [other for other in self.started if not other.connection.closed] + [worker]
        return worker

    def least_used_gpu(self) -> str | None:
        """Return the GPU with the fewest workers; None on a machine without GPUs."""
        used = [worker.gpu for worker in self.started if not worker.connection.closed]
        return min(self.gpus, key=used.count, default=None)

    def listen(self, workers: Sequence[Worker], seconds: float) -> Iterator[tuple[Worker, Message]]:
        """Yield messages of these workers; the end of a connection means that its worker is lost."""
        by_connection = {worker.connection: worker for worker in self.started if worker in workers}
        for ready in wait(list(by_connection), seconds):
            assert isinstance(ready, Connection)
            worker = by_connection[ready]
            yield from ((worker, message) for message in worker.messages())


class ProcessWorker:
    """A worker process and the supervisor's end of its connection."""

    def __init__(self, setup: WorkerSetup) -> None:
        from icl_bench.harness.engines.worker import worker_main

        self.gpu = setup.gpu
        ours, other = socket.socketpair()
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", STUCK_SECONDS, 0))
        self.connection = Connection(ours.detach())
        with Connection(other.detach()) as theirs:
            self.process = start_method().Process(target=worker_main, args=(theirs, setup), daemon=True)
            with environment_variable("OMP_NUM_THREADS", "1"):  # so that libraries start no threads on import
                self.process.start()

    def messages(self) -> Iterator[Message]:
        """Yield all messages that have arrived."""
        try:
            while not self.connection.closed and self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            yield WorkerLost(ending(self.process))

    def assign(self, order: Order) -> None:
        """Send a fleet; an error here is seen later, by `messages` or by the missing heartbeats."""
        with contextlib.suppress(OSError):
            self.connection.send(order)

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self.process.join()
        self.connection.close()  # last, so that the worker does not see its end, and end in its own way
