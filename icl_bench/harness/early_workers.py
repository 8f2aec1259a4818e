"""Worker processes begun before a command imports torch: each imports it while the context of its GPU is made.

A process forked from the server (isolation.py) starts when that has imported everything, and its context takes half a
second more. These have both at the same time; whatever replaces one of them is forked.
"""

import os
import signal
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from multiprocessing import Pipe, get_context, reduction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from icl_bench.isolation import environment_variable

if TYPE_CHECKING:
    from icl_bench.harness.engines.messages import WorkerSetup

GPU_FOLDERS = Path("/proc/driver/nvidia/gpus")
"""Folder with a folder for each GPU, where the driver is loaded."""
OF_THE_SUPERVISOR = (signal.SIGINT, signal.SIGHUP)
"""Signals that workers leave to it."""


class EarlyProcess(NamedTuple):
    """A process that waits for the setup of a worker."""

    process: BaseProcess
    line: Connection

    def end(self) -> None:
        """Send SIGKILL, wait until the process is gone, and close its connection."""
        self.process.kill()
        self.process.join()
        self.line.close()


BEGUN: dict[str, EarlyProcess] = {}
"""Processes that wait, by the names of their GPUs."""


def begin_workers() -> None:
    """Begin a process for each GPU that this one may use; none of them prints a word at a SIGINT."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = map(str, range(len(list(GPU_FOLDERS.glob("*"))))) if named is None else named.split(",")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_SUPERVISOR)
    try:
        for gpu in filter(None, gpus):
            ours, theirs = Pipe()
            process = get_context("spawn").Process(target=wait_for_setup, args=(gpu, theirs), daemon=True)
            with theirs, environment_variable("OMP_NUM_THREADS", "1"):  # so that libraries start no threads on import
                process.start()
            BEGUN[gpu] = EarlyProcess(process, ours)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for_setup(gpu: str, line: Connection) -> None:
    """Import what a worker needs while the context of its GPU is made; then be the worker that `take_worker` wants."""
    for number in OF_THE_SUPERVISOR:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_SUPERVISOR)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    for name in ("icl_bench.kernels.context", "icl_bench.harness.preloaded", "icl_bench.kernels.preloaded"):
        import_module(name)
    try:
        with line:
            setup, count = line.recv()
            connections = [Connection(reduction.recv_handle(line)) for _ in range(count)]
    except (EOFError, OSError):
        sys.exit(128 + signal.SIGTERM)  # the supervisor is gone
    import_module("icl_bench.harness.engines.worker").worker_main(connections, setup)


def take_worker(connections: Sequence[Connection], setup: "WorkerSetup") -> BaseProcess | None:
    """Return the process that was begun for the GPU of a setup, made a worker with these connections; None without one.

    Whatever ends it from here on is seen on its connections.
    """
    early = BEGUN.pop(setup.gpu or "", None)
    if early is None:
        return None
    try:
        early.line.send((setup, len(connections)))
        for connection in connections:
            reduction.send_handle(early.line, connection.fileno(), early.process.pid)
    except OSError:  # it has ended
        early.end()
        return None
    early.line.close()
    return early.process


def end_others(gpus: Collection[str]) -> None:
    """End the processes that wait, but those of these GPUs."""
    for gpu in BEGUN.keys() - set(gpus):
        BEGUN.pop(gpu).end()
