"""A worker process: it runs one fleet after the other, or several at once, and lives as long as its supervisor."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.connection import Connection

import torch

from icl_bench import outside
from icl_bench.errors import EngineError, IclBenchError
from icl_bench.harness import interruption
from icl_bench.harness.engines import messages
from icl_bench.harness.engines.side_by_side import SWITCH_SECONDS, use_own_stream
from icl_bench.harness.environment import kept_heap
from icl_bench.harness.training.fleet import run_fleet
from icl_bench.harness.training.outside_layers import calls_outside_code
from icl_bench.harness.training.trainer import Machine
from icl_bench.isolation import prepare_for_outside_code
from icl_bench.registry import load_plugins
from icl_bench.runs.events import Progress, Report
from icl_bench.runs.store import Store

WAKE_SECONDS = 0.1
"""Seconds between two looks for a signal while threads carry out fleets."""


def prepare(setup: messages.WorkerSetup) -> None:
    """Apply the environment, folder and threads of a setup to this process, and load the plug-ins.

    For a GPU, load all kernels while the driver makes its context; each takes half a second.
    """
    os.environ.update(setup.environment)
    if setup.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = setup.gpu
    if setup.machine.device.type == "cuda":
        import_module("icl_bench.kernels.context")
        import_module("icl_bench.kernels.preloaded")
    os.chdir(setup.folder)
    torch.set_num_threads(setup.threads)
    prepare_for_outside_code()
    load_plugins()


def execute_order(order: messages.Order, machine: Machine, report: Report) -> messages.Finished | messages.FleetError:
    """Run the fleet of an order and return its results, or the error that is not a result."""
    started = time.perf_counter()
    try:
        with kept_heap(machine.device):
            results = run_fleet(order.specs, Store(order.root), machine, report)
    except (IclBenchError, OSError) as error:
        return messages.FleetError(error)
    except Exception:  # a fault of the harness: its exception may not survive pickling, its traceback as text does
        text = f"a fleet ended in a fault of icl-bench itself; please report it:\n{traceback.format_exc()}"
        return messages.FleetError(EngineError(text))
    used_up = order.specs[0].from_outside or context_is_broken(machine)  # what such code leaves harms no other fleet
    return messages.Finished(results, time.perf_counter() - started, used_up)


def context_is_broken(machine: Machine) -> bool:
    """Return True if the CUDA context of this process is broken: after a fault of a kernel every later call fails."""
    if machine.device.type != "cuda":
        return False
    try:
        torch.cuda.current_stream().synchronize()  # the whole device may not wait while another thread captures
    except RuntimeError:
        return True
    return False


class SupervisorLine:
    """A connection to the supervisor, for one fleet at a time; a thread sends heartbeats on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.sending = threading.Lock()
        self.is_busy = False

    def send(self, message: messages.Message) -> None:
        """Send a message; one thread at a time."""
        with self.sending:
            self.connection.send(message)

    def progressed(self, progress: Progress) -> None:
        """Send the progress of the fleet; ignore a lost connection, on which `beat` ends the worker after a save."""
        with contextlib.suppress(OSError):
            self.send(messages.ProgressReport(progress))

    def serve(self, machine: Machine, several: bool) -> None:
        """Carry out orders until the connection or the process ends."""
        self.send(messages.Ready())
        while True:
            order = self.connection.recv()
            self.is_busy = True
            if several and calls_outside_code(order.specs[0]):
                self.send(messages.FleetError(EngineError(refusal(order))))
            else:
                self.send(execute_order(order, machine, self.progressed))
            self.is_busy = False


def refusal(order: messages.Order) -> str:
    """Return the message for code from outside in a worker with several fleets at once."""
    arch = order.specs[0].arch_label
    return f"--engine local:at_once=2 and more train layers of the package; got {arch}; leave at_once out"


def beat(lines: Sequence[SupervisorLine]) -> None:
    """Send heartbeats until the supervisor is gone, then end this process."""
    try:
        while True:
            time.sleep(messages.HEARTBEAT_SECONDS)
            for line in lines:
                line.send(messages.Heartbeat(outside.CURRENT.seconds))
    except OSError:  # the supervisor is gone
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(messages.SECONDS_TO_SAVE)
        outside.EXIT_PROCESS(128 + signal.SIGTERM)


def worker_main(connections: Sequence[Connection], setup: messages.WorkerSetup) -> None:
    """Run a worker process, with a connection for each fleet at once, until SIGTERM or the end of the connections.

    SIGINT and SIGHUP are left to the supervisor.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    interruption.listen((signal.SIGTERM,))
    try:
        lines = [SupervisorLine(connection) for connection in connections]
        threading.Thread(target=beat, args=(lines,), daemon=True).start()
        prepare(setup)
        if len(lines) == 1:
            lines[0].serve(setup.machine, several=False)
        else:
            serve_all(lines, setup.machine)
    except interruption.Interrupted as interrupted:
        sys.exit(interrupted.status)
    except (EOFError, ConnectionError):
        sys.exit(128 + signal.SIGTERM)  # the supervisor is gone


def serve_all(lines: Sequence[SupervisorLine], machine: Machine) -> None:
    """Serve each line in a thread until SIGTERM, and then until every fleet is saved; raise `Interrupted`."""

    def serve(line: SupervisorLine) -> None:
        use_own_stream(machine)
        try:
            line.serve(machine, several=True)
        except (interruption.Interrupted, EOFError, OSError):
            line.is_busy = False

    sys.setswitchinterval(SWITCH_SECONDS)
    with interruption.deferred():
        for line in lines:
            threading.Thread(target=serve, args=(line,), daemon=True).start()
        while not interruption.is_interrupted() or any(line.is_busy for line in lines):
            time.sleep(WAKE_SECONDS)
