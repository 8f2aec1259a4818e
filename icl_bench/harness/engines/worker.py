"""A worker: a process that carries out one fleet after the other, and lives as long as its supervisor."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from icl_bench.errors import EngineError, IclBenchError
from icl_bench.harness import interruption
from icl_bench.harness.engines.messages import Beat, Finished, Message, Order, Raised, Ready, Told
from icl_bench.harness.training.fleet import Machine, run_fleet
from icl_bench.registry import load_plugins
from icl_bench.runs.events import FleetReporter, Progress
from icl_bench.runs.store import Store

BEAT_EVERY = 1.0
"""Seconds between signs of life."""
GRACE = 30.0
"""Seconds in which a worker that was asked to end finishes its step and saves."""


class Setup(NamedTuple):
    """What a worker takes over from the process that hires it."""

    machine: Machine
    threads: int
    """Threads of torch on the CPU."""
    folder: Path
    """Current folder, where a layer of one's own may lie."""
    environment: Mapping[str, str]
    """Environment variables."""
    gpu: str | None = None
    """The one GPU that it may see, as CUDA_VISIBLE_DEVICES names it; none for all."""


def prepare(setup: Setup) -> None:
    """Take over folder, environment, threads and plug-ins."""
    os.environ.update(setup.environment)
    if setup.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = setup.gpu
    os.chdir(setup.folder)
    torch.set_num_threads(setup.threads)
    load_plugins()


def carry_out(order: Order, machine: Machine, reporter: FleetReporter) -> Finished | Raised:
    """Run a fleet; what it raises beyond its results is passed on."""
    started = time.perf_counter()
    try:
        results = run_fleet(order.specs, Store(order.root), machine, reporter)
    except (IclBenchError, OSError) as error:
        return Raised(error)
    except Exception:  # a fault of the harness: its exception may not survive the way to the supervisor, its text does
        return Raised(EngineError(f"a fleet ended in a fault of icl-bench itself; please report it:\n{last_words()}"))
    return Finished(results, time.perf_counter() - started, spoiled(machine))


def last_words() -> str:
    """The traceback of the exception in hand."""
    return traceback.format_exc()


def spoiled(machine: Machine) -> bool:
    """Whether the context of the GPU is broken: after a fault of a kernel every later call fails."""
    if machine.device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


class Line:
    """The connection to the supervisor, on which a thread says now and then that the worker is there."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.speaking = threading.Lock()

    def send(self, message: Message) -> None:
        """Say something; one thread at a time."""
        with self.speaking:
            self.connection.send(message)

    def progressed(self, progress: Progress) -> None:
        """Say how far the fleet is; where nobody hears it, `beat` ends the worker, and the fleet saves its state."""
        with contextlib.suppress(OSError):
            self.send(Told(progress))

    def beat(self) -> None:
        """Say for ever that the worker is there; where nobody hears it, end the worker."""
        try:
            while True:
                time.sleep(BEAT_EVERY)
                self.send(Beat())
        except OSError:  # the supervisor is gone
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE)
            os._exit(128 + signal.SIGTERM)


def serve(connection: Connection, setup: Setup) -> None:
    """The life of a worker process: SIGTERM or the end of the connection ends it, SIGINT is left to the supervisor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interruption.listen((signal.SIGTERM,))
    try:
        work(connection, setup)
    except interruption.Interrupted as asked:
        sys.exit(asked.status)
    except (EOFError, ConnectionError):
        sys.exit(128 + signal.SIGTERM)  # the supervisor is gone


def work(connection: Connection, setup: Setup) -> None:
    """Carry out orders until none comes."""
    line = Line(connection)
    threading.Thread(target=line.beat, daemon=True).start()
    prepare(setup)
    line.send(Ready())
    while True:
        line.send(carry_out(connection.recv(), setup.machine, line))
