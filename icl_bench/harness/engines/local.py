"""Run fleets in worker processes of this machine, one a core or several a GPU, under a supervisor.

Each worker has a connection of its own, so that a worker killed in the middle of a message breaks nothing that others
share. Processes are forked from a server that was started afresh and has imported torch but never used it: a worker
that replaces a lost one starts at once, and CUDA, which does not survive a fork, is first used inside the worker.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from icl_bench.harness.early_workers import end_others, take_worker
from icl_bench.harness.engines.base import ENGINES, Agenda, Engine, EngineConfig
from icl_bench.harness.engines.messages import Limits, Message, Order, Worker, WorkerLost, WorkerPool, WorkerSetup
from icl_bench.isolation import ending, environment_variable, start_method, usable_cores
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.store import Store

if TYPE_CHECKING:
    from icl_bench.harness.training.trainer import Machine

FLEETS_OF_WORKER = 6
"""Fleets that a worker with a GPU has at once: some train, and one is built or tested meanwhile."""
STUCK_SECONDS = 10
"""Seconds after which a read or a write in the middle of a message fails, because the worker is stopped."""


@ENGINES.register("local")
class Local(EngineConfig):
    """Run fleets in worker processes of this machine."""

    workers: int | None = Field(default=None, ge=1)
    """Number of worker processes; by default one for each core, or one for each GPU."""
    timeout: float | None = Field(default=None, ge=0.1)
    """Seconds after which a fleet is ended and recorded as `timeout`; by default none."""
    at_once: int | None = Field(default=None, ge=1, le=16)
    """Fleets that each worker trains at once, for GPUs: by default 6 where each GPU has one worker, else 1. Layers
    from outside the package take 1."""

    def start(self, machine: "Machine") -> Engine:
        """Return the running engine; it starts its workers with the first fleets."""
        if self.at_once is None and self.workers is None and machine.device.type == "cuda":
            return SharedGpus(partial(self.start_workers, machine))
        return self.start_workers(machine, self.at_once or 1)

    def start_workers(self, machine: "Machine", at_once: int) -> Engine:
        """Return a running engine whose workers train `at_once` fleets at once."""
        from icl_bench.harness.engines.supervisor import Supervisor
        from icl_bench.harness.environment import visible_gpus

        on_gpu = machine.device.type == "cuda"
        size = self.workers or (len(visible_gpus()) if on_gpu else usable_cores())
        threads = max(1, usable_cores() // (size * at_once)) if on_gpu else 1  # each fleet has a team of its own
        pool = ProcessPool(machine, threads, size, at_once)
        return Supervisor(pool, size * at_once, machine, Limits(fleet=self.timeout))


class SharedGpus(Engine):
    """Workers that train several fleets at once, or one at a time from the first layer from outside the package on.

    Args:
        start: Returns a running engine for a number of fleets at once.
    """

    def __init__(self, start: Callable[[int], Engine]) -> None:
        self.start, self.at_once = start, 0
        self.running: Engine | None = None

    def submit(self, agenda: Agenda, store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets and yield their results."""
        from icl_bench.harness.training.outside_layers import calls_outside_code

        outside = any(calls_outside_code(fleet[0]) for fleet in agenda.fleets())
        at_once = 1 if outside else FLEETS_OF_WORKER
        if self.running is None or at_once < self.at_once:
            self.close()
            self.running, self.at_once = self.start(at_once), at_once
        return self.running.submit(agenda, store, reporter)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self.running is not None:
            self.running.close()
            self.running = None


class ProcessPool(WorkerPool):
    """Start worker processes on this machine and spread them evenly over its GPUs.

    Args:
        machine: The device and kernels of the workers.
        threads: Threads of torch on the CPU in each process.
        most: Most processes.
        at_once: Fleets that each process carries at once; each is a worker of its own for the supervisor.
    """

    def __init__(self, machine: "Machine", threads: int, most: int, at_once: int = 1) -> None:
        from icl_bench.harness.environment import visible_gpus

        self.machine, self.threads, self.most, self.at_once = machine, threads, most, at_once
        self.gpus = visible_gpus() if machine.device.type == "cuda" else []
        end_others(self.gpus[:most])
        self.started: list[ProcessWorker] = []
        self.spare: list[ProcessWorker] = []  # of running processes

    def start(self) -> "ProcessWorker":
        """Start a process, or take a spare worker of one that runs."""
        self.started = [other for other in self.started if not other.connection.closed]
        self.spare = [other for other in self.spare if other.process.is_alive()]
        used = [worker.process for worker in self.started]
        if not self.spare or len(set(used)) < self.most:
            setup = WorkerSetup(self.machine, self.threads, Path.cwd(), dict(os.environ), self.least_used_gpu())
            self.spare += WorkerProcess(setup, self.at_once).workers
        worker = min(self.spare, key=lambda one: used.count(one.process))
        self.spare.remove(worker)
        self.started.append(worker)
        return worker

    def place_of(self, worker: Worker) -> object:
        """Return the process of a worker."""
        return worker.host if isinstance(worker, ProcessWorker) else worker

    def kill_all(self, workers: Sequence[Worker]) -> None:
        """Send SIGKILL to all processes, then wait: each takes a tenth of a second to give its GPU back."""
        for worker in self.started:
            if worker in workers:
                worker.process.kill()
        super().kill_all(workers)

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


class WorkerProcess:
    """A process with some workers, each of which has a connection of its own."""

    def __init__(self, setup: WorkerSetup, count: int) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        for ours, _ in pairs:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", STUCK_SECONDS, 0))
        self.gpu, self.is_asked = setup.gpu, False
        with contextlib.ExitStack() as opened:
            theirs = [opened.enter_context(Connection(other.detach())) for _, other in pairs]
            self.process = take_worker(theirs, setup) or fork_worker(theirs, setup)
        self.workers = [ProcessWorker(self, Connection(ours.detach())) for ours, _ in pairs]

    def ask_to_end(self) -> None:
        """Send SIGTERM, once: a second one would end the process before it has saved."""
        if not self.is_asked:
            self.is_asked = True
            self.process.terminate()


def fork_worker(connections: Sequence[Connection], setup: WorkerSetup) -> BaseProcess:
    """Start a worker with these connections, forked from the server."""
    from icl_bench.harness.engines.worker import worker_main

    process = start_method().Process(target=worker_main, args=(connections, setup), daemon=True)
    with environment_variable("OMP_NUM_THREADS", "1"):  # so that libraries start no threads on import
        process.start()
    return process


class ProcessWorker:
    """A worker: the supervisor's end of a connection to a process. Workers of one process end together."""

    def __init__(self, host: WorkerProcess, connection: Connection) -> None:
        self.host, self.connection = host, connection
        self.gpu, self.process = host.gpu, host.process

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
        """Ask the process to end."""
        self.host.ask_to_end()

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self.process.join()
        self.connection.close()  # last, so that the worker does not see its end, and end in its own way
