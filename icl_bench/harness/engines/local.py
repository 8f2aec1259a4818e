"""Worker processes of this machine, one a core or several a GPU, under a supervisor.

Each worker has a connection of its own, so that one that is killed in the middle of a word breaks nothing that others
share. Processes are forked from a server that was started afresh and has loaded torch but used none of it: a worker
that replaces a lost one is there at once, and CUDA, which cannot be forked, is first touched in the worker.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

import torch

from icl_bench.harness.engines.messages import Gone, Message, Order
from icl_bench.harness.engines.queue import FleetQueue
from icl_bench.harness.engines.supervisor import DEFAULT_LIMITS, Limits, Supervisor, Worker
from icl_bench.harness.engines.worker import Setup, serve
from icl_bench.harness.training.fleet import Machine
from icl_bench.runs.events import Reporter
from icl_bench.runs.record import RunResult
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store

PRELOADED = ("icl_bench.harness.engines.worker", "typer")
"""Loaded once, in the server: all that a worker needs, and what the console script imports."""
STUCK = 10
"""Seconds after which a read or a write in the middle of a message fails: its worker has stopped."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def gpus() -> list[str]:
    """GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        [name for name in visible.split(",") if name] if visible else [str(i) for i in range(torch.cuda.device_count())]
    )


class LocalEngine:
    """Long-lived workers of this machine.

    Args:
        machine: Where and how fleets run.
        workers: Number of workers; by default one a core, or one a GPU.
        limits: Time limits.
    """

    def __init__(self, machine: Machine, workers: int | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        on_gpu = machine.device.type == "cuda"
        size = workers or (len(gpus()) if on_gpu else cores())
        threads = max(1, cores() // size) if on_gpu else 1
        self.supervisor = Supervisor(LocalCrew(machine, threads), size, machine, limits)

    def submit(self, fleets: Sequence[Sequence[RunSpec]], store: Store, reporter: Reporter) -> Iterator[RunResult]:
        """Run the fleets on the workers."""
        yield from self.supervisor.carry_out(FleetQueue(fleets), store, reporter)

    def close(self) -> None:
        """End the workers."""
        self.supervisor.close()


class LocalCrew:
    """Hires processes of this machine, and deals the GPUs out to them."""

    def __init__(self, machine: Machine, threads: int) -> None:
        self.machine, self.threads = machine, threads
        self.gpus = gpus() if machine.device.type == "cuda" else []
        self.hired: list[LocalWorker] = []

    def hire(self) -> "LocalWorker":
        """Start a process."""
        setup = Setup(self.machine, self.threads, Path.cwd(), dict(os.environ), self.least_used_gpu())
        worker = LocalWorker(setup)
        self.hired = [other for other in self.hired if not other.connection.closed] + [worker]
        return worker

    def least_used_gpu(self) -> str | None:
        """The GPU with the fewest workers."""
        used = [worker.gpu for worker in self.hired if not worker.connection.closed]
        return min(self.gpus, key=used.count, default=None)

    def listen(self, workers: Sequence[Worker], seconds: float) -> Iterator[tuple[Worker, Message]]:
        """What the workers say; the end of a connection is the end of its worker."""
        local = {worker.connection: worker for worker in self.hired if worker in workers}
        for ready in wait(list(local), seconds):
            assert isinstance(ready, Connection)
            worker = local[ready]
            yield from ((worker, message) for message in worker.messages())


class LocalWorker:
    """A worker process, and this side of its connection."""

    def __init__(self, setup: Setup) -> None:
        self.gpu = setup.gpu
        self.connection, theirs = connected()
        with theirs:
            self.process = start_method().Process(target=serve, args=(theirs, setup), daemon=True)
            with one_thread():
                self.process.start()

    def messages(self) -> Iterator[Message]:
        """All that it has said and nobody has heard."""
        try:
            while not self.connection.closed and self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            yield Gone(self.ending())

    def ending(self) -> str:
        """How the process ended; one that only closed its connection, or stopped in a word, is ended."""
        self.process.join(1.0)
        status = self.process.exitcode
        if status is None:
            return "it stopped talking"
        return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"

    def give(self, order: Order) -> None:
        """Send it a fleet."""
        with contextlib.suppress(
            OSError
        ):  # it is gone, which is heard from `messages`, or stopped, which silence tells
            self.connection.send(order)

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """Send SIGKILL, and wait until it is gone."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def connected() -> tuple[Connection, Connection]:
    """Both ends of a connection; the first never waits for long in the middle of a message."""
    ours, theirs = socket.socketpair()
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", STUCK, 0))
    return Connection(ours.detach()), Connection(theirs.detach())


def start_method() -> ForkServerContext | SpawnContext:
    """How processes are made: forked from a clean server where that is safe, else afresh."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """While inside, a process that is started gets libraries that make no threads of their own when they are loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
