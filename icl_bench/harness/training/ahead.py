"""The kernels of a fleet, compiled in processes before its first step, where they were never compiled before."""

import logging
import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from icl_bench.errors import IclBenchError, KernelsUnlistedError
from icl_bench.harness.compiled import known_fleets
from icl_bench.harness.environment import git_revision, versions
from icl_bench.harness.training.attempt import failure_kind
from icl_bench.harness.training.evaluate import evaluate, evaluation_pieces
from icl_bench.harness.training.outside_layers import calls_outside_code
from icl_bench.harness.training.probes import Probe
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.isolation import is_isolating, isolated, start_method, usable_cores
from icl_bench.kernels.ahead import Compilers, KernelSource, can_list, unlaunched
from icl_bench.kernels.backends import is_installed, prepare_in_turn
from icl_bench.outside import first_line
from icl_bench.runs.spec import RunSpec
from icl_bench.schema import content_hash

LOG = logging.getLogger("icl_bench")
LEAST_CORES = 4
"""Cores from which kernels are compiled in processes."""
ONE_BY_ONE = "kernels are compiled one by one"
"""Consequence where they cannot be listed, in messages."""
COMPILING = threading.Lock()
"""Held while the kernels of a fleet are compiled; another fleet has many of the same."""


def compile_kernels(specs: Sequence[RunSpec], machine: Machine) -> bool:
    """Compile the kernels of a fleet's first steps and evaluations, unless such a fleet was trained on this machine.

    Return whether all are there. Only commands compile them so, since processes import the main program; workers, which
    may start none, do not.
    """
    alone = not is_isolating() or multiprocessing.current_process().daemon or machine.ranks is not None
    if alone or machine.device.type != "cuda" or calls_outside_code(specs[0]) or usable_cores() < LEAST_CORES:
        return False
    if known_fleet(specs, machine).exists():
        return True
    if not is_installed() or not can_list():
        return False
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with COMPILING, closing(Compilers(usable_cores(), start_method())) as compilers, ThreadPoolExecutor(2) as threads:
        loading = threads.submit(load_kernels)
        listing = threads.submit(list_kernels, specs, machine, theirs)
        errors = compilers.compile(received(ours))
    loading.result()
    try:
        listing.result()
    except IclBenchError as error:
        LOG.warning("%s", error)
        return False
    if errors:
        LOG.warning("%d kernels not compiled ahead, the first: %s", len(errors), errors[0])
    return not errors


def list_kernels(specs: Sequence[RunSpec], machine: Machine, connection: Connection) -> None:
    """Let a process send the kernels of a fleet; close the connection at its end, whatever that is."""
    with connection:
        isolated(ONE_BY_ONE, send_kernels, list(specs), machine, connection)


def received(connection: Connection) -> Iterator[KernelSource]:
    """Yield what arrives on a connection, until its other end is closed."""
    with connection, suppress(EOFError, OSError):  # the latter within a message
        while True:
            yield connection.recv()


def load_kernels() -> None:
    """Load what the fleet of this process needs to find the compiled kernels."""
    prepare_in_turn()
    import_module("icl_bench.kernels.preloaded")


def remember_kernels(specs: Sequence[RunSpec], machine: Machine) -> None:
    """Note that the kernels of a fleet that was trained lie in Triton's cache."""
    if machine.device.type != "cuda":
        return
    known = known_fleet(specs, machine)
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()
    except OSError as error:  # the runs are committed, and the next ones list their kernels again
        LOG.warning("kernels of this fleet cannot be noted: %s", error)


def known_fleet(specs: Sequence[RunSpec], machine: Machine) -> Path:
    """Return the file that stands for the kind of a fleet: all that its kernels depend on."""
    train = specs[0].train.model_copy(update={"steps": 1, "lr": 1.0, "weight_decay": 0.0})
    model = specs[0].model.model_copy(update={"gain": 1.0})
    shape = specs[0].model_copy(update={"train": train, "model": model, "seed": 0, "data_seed": 0})
    place = {"device": torch.cuda.get_device_name(machine.device), "impl": machine.impl, "parts": machine.accumulate}
    code = {"versions": dict(versions()), "revision": git_revision()}
    kind = {
        "shape": shape.model_dump(mode="json"),
        "members": len(specs),
        **place,
        "recompute": machine.recompute,
        "keep": machine.keep,
        **code,
    }
    return known_fleets() / content_hash(kind, "icl-bench/kernels/v1")


def send_kernels(specs: Sequence[RunSpec], machine: Machine, connection: Connection) -> None:
    """Send the kernels of a fleet: of steps on each cell, evaluations, a first batch, and probes if kept.

    Raise KernelsUnlistedError where memory is used up.
    """
    try:
        with connection, unlaunched(connection.send):
            meet_kernels(specs, machine)
    except (RuntimeError, MemoryError) as error:
        if failure_kind(error) != "memory":
            raise
        why = f"listing them needs memory; {first_line(error)}; leave some free"
        raise KernelsUnlistedError(f"{ONE_BY_ONE}: {why}") from None


def meet_kernels(specs: Sequence[RunSpec], machine: Machine) -> None:
    """Do once what launches the kernels of a fleet."""
    trainer = Trainer(specs, machine._replace(graphs=False))
    for index in range(len(trainer.cells)):
        trainer.run_refill(index)
        trainer.run_update(index)
    trainer.validate(trainer.working_model)
    for cell in trainer.task.eval_cells:
        stream = trainer.make_stream(cell.label, "test")
        piece = next(evaluation_pieces(stream, trainer.spec.evaluation.examples))
        evaluate(trainer.working_model, stream, [piece])
    trainer.make_stream(trainer.cells[0].label, "train").first(trainer.spec.train.batch)  # whose digest is recorded
    if "probes" in machine.keep:
        Probe(trainer)  # which measures once
