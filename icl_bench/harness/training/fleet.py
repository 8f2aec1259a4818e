"""One fleet from its specifications to its committed results."""

import json
import logging
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch

from icl_bench.architectures import Architecture
from icl_bench.architectures.plain import Plain
from icl_bench.errors import IclBenchError
from icl_bench.harness.environment import make_manifest
from icl_bench.harness.interruption import check, deferred, noted
from icl_bench.harness.resolve import make_arch, make_task
from icl_bench.harness.training.data import Feed, first_digests
from icl_bench.harness.training.divergence import PATIENCE, PLUS, TIMES
from icl_bench.harness.training.memory import fit, release
from icl_bench.harness.training.setbacks import SetbackError, kind_of
from icl_bench.harness.training.train import FleetScores, train_fleet
from icl_bench.harness.training.trainer import Trainer
from icl_bench.runs.events import FleetReporter, Progress
from icl_bench.runs.record import CellScore, GroupScore, RunResult, StateReport, Status, WorkReport
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store import Store
from icl_bench.runs.store.attempt import RunWriter, commit_fleet
from icl_bench.runs.store.checkpoint import Checkpoints
from icl_bench.tasks import ContinuousTask, Task

DIVERGED = (
    "diverged at step {}: loss or gradient not finite, "
    f"or loss above {TIMES:g} x its first + {PLUS:g} for {PATIENCE} steps"
)
POLL = 0.2
"""Seconds between looks at a process."""
ACTIVATION_BYTES = {"float32": 4, "bfloat16": 2}

LOG = logging.getLogger("icl_bench")


def pack(specs: Iterable[RunSpec], size: int) -> list[list[RunSpec]]:
    """Group runs that can train together into fleets of at most `size` members, in their order."""
    groups: dict[str, list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(spec.fleet_key(), []).append(spec)
    return [members[i : i + size] for members in groups.values() for i in range(0, len(members), size)]


class Machine(NamedTuple):
    """Where and how a fleet runs; nothing here decides its numbers beyond rounding."""

    device: torch.device
    impl: str = "auto"
    """Kernel implementation."""
    graphs: bool = True
    """Whether steps on a CUDA device are captured in graphs."""


def run_fleet(specs: Sequence[RunSpec], store: Store, machine: Machine, reporter: FleetReporter) -> list[RunResult]:
    """Train, test and commit every member.

    A fleet that the device has no memory for is cut up, at the start by a measured step, later into halves. A fault of
    a kernel sends each member into a process of its own. What fails in a member alone is its result.
    """
    with deferred():
        try:
            fitting = fit(specs, machine.device, machine.impl)
        except Exception as error:
            # A setback shows again in the run itself, where it is dealt with; what a layer raises is its result there.
            LOG.warning("memory not measured: %s", error)
            fitting = [specs]
        return [result for part in fitting for result in run_part(part, store, machine, reporter)]


def run_part(specs: Sequence[RunSpec], store: Store, machine: Machine, reporter: FleetReporter) -> list[RunResult]:
    """Carry a fleet to its commit, whole, else in halves, else each member alone."""
    try:
        return finish_fleet(specs, store, machine, reporter, last=False)
    except SetbackError as setback:
        kind = setback.kind
        LOG.warning("a fleet of %d goes on in smaller ones: %s", len(specs), setback)
    if kind == "fault":
        return [run_alone(spec, store, machine) for spec in specs]
    release(machine.device)
    half = len(specs) // 2
    return [result for part in (specs[:half], specs[half:]) for result in run_part(part, store, machine, reporter)]


def run_alone(spec: RunSpec, store: Store, machine: Machine) -> RunResult:
    """Run in a fresh process, which commits the result; where it ends without, that is the result."""
    order: bytes | None = order_of(spec, store, machine)
    started, command = time.perf_counter(), [sys.executable, "-m", "icl_bench.harness.training.alone"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        said = b""
        while process.returncode is None:
            try:
                _, said = process.communicate(order, timeout=POLL)
            except subprocess.TimeoutExpired:
                order = None  # sent already
                if noted():
                    process.terminate()
    check()
    if store.has(spec.id):
        return store.load(spec.id).result
    last = (said.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    detail = f"its process ended with status {process.returncode}: {last}"
    writer = store.begin(spec, make_manifest(machine.device, machine.impl, 1))
    return commit_fleet([writer], [failed(spec, "crashed", detail, started)])[0]


def order_of(spec: RunSpec, store: Store, machine: Machine) -> bytes:
    """What a fresh process is told, as JSON."""
    where = {"store": str(store.root.resolve()), "device": str(machine.device)}
    how = {"impl": machine.impl, "graphs": machine.graphs}
    return json.dumps({"spec": spec.labelled(), **where, **how}).encode()


def finish_fleet(
    specs: Sequence[RunSpec], store: Store, machine: Machine, reporter: FleetReporter, last: bool
) -> list[RunResult]:
    """Carry a fleet to its commit; where that fails, its attempts are dropped and its checkpoints stay.

    Raises:
        SetbackError: where its members may do better by halves or alone, unless this is the last try; checkpoints are
            dropped too.
    """
    manifest = make_manifest(machine.device, machine.impl, len(specs))
    writers = [store.begin(spec, manifest) for spec in specs]
    checkpoints = Checkpoints(store.root, specs, torch.__version__, machine.device.type)
    started = time.perf_counter()
    committed = False
    try:
        results = fleet_results(specs, machine, reporter, writers, started, checkpoints, last)
        committed = True
        results = commit_fleet(writers, results)
        checkpoints.remove()
        return results
    except SetbackError:
        checkpoints.remove()
        raise
    finally:
        if not committed:
            for writer in writers:
                writer.abandon()


def fleet_results(
    specs: Sequence[RunSpec],
    machine: Machine,
    reporter: FleetReporter,
    writers: Sequence[RunWriter],
    started: float,
    checkpoints: Checkpoints,
    last: bool,
) -> list[RunResult]:
    """Results of a fleet: scores, or for each member what went wrong; raises SetbackError as `finish_fleet` does."""
    faults: list[Exception] = []
    try:
        trainer = Trainer(specs, machine.device, machine.impl, machine.graphs)
        report = noting(faults, reporter.progressed)
        scores = train_fleet(trainer, report, lambda member, point: writers[member].log(point), checkpoints=checkpoints)
    except IclBenchError:
        raise
    except Exception as error:  # whatever a layer of one's own raises is the result of its runs
        if error in faults:
            raise
        kind = kind_of(error)
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        if (kind == "fault" and not last) or (kind == "memory" and len(specs) > 1):
            raise SetbackError(kind, detail) from None
        status: Status = "oom" if kind == "memory" else "error"
        detail = detail if kind == "memory" else traceback.format_exc()
        return [failed(spec, status, detail, started) for spec in specs]
    params = trainer.model.parameters_per_member()
    first = Feed(trainer.task, trainer.cells[0], "train", [spec.data_seed for spec in specs], machine.device)
    digests = first_digests(first, trainer.spec.train.batch)
    return [
        scored(spec, member, scores, trainer.task, params).model_copy(update={"first_batch": digests[member]})
        for member, spec in enumerate(specs)
    ]


def noting(faults: list[Exception], report: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """A report that notes what it raises: whoever cannot be told is no fault of a run."""

    def reported(progress: Progress) -> None:
        try:
            report(progress)
        except Exception as error:
            faults.append(error)
            raise

    return reported


def scored(spec: RunSpec, member: int, scores: FleetScores, task: Task, params: int) -> RunResult:
    """The result of a member that was trained to the end, or diverged on the way."""
    died_at = scores.died_at[member]
    return base_result(spec).model_copy(
        update={
            "status": "diverged" if died_at else "ok",
            "detail": DIVERGED.format(died_at) if died_at else None,
            "params": params,
            "steps": died_at or spec.train.steps,
            "seconds": round(scores.seconds, 3),
            "examples_per_second": round(scores.examples_per_second, 1),
            "solved_at": scores.solved_at[member],
            "cells": () if died_at else cell_scores(scores, member, task),
        }
    )


def cell_scores(scores: FleetScores, member: int, task: Task) -> tuple[CellScore, ...]:
    """Test scores of a member by cell."""
    rows, continuous = [], isinstance(task, ContinuousTask)
    for label, outcome in scores.cells.items():
        cell = task.cell(label)
        solver, floor = scores.floors[label][member]
        groups = {name: GroupScore(accuracy=hit, count=n) for name, (hit, n) in outcome.groups[member].items()}
        answers = task.answers(cell)
        rows.append(
            CellScore(
                label=label,
                load=cell.load,
                length=cell.length,
                accuracy=outcome.accuracy[member],
                exact_match=outcome.exact_match[member],
                loss=outcome.loss[member],
                error=outcome.loss[member] if continuous else None,
                oracle_error=outcome.oracle_error[member] if continuous else None,
                floor=floor,
                floor_solver=solver,
                state_bits=task.state_bits(cell),
                scored=cell.scored,
                answers=answers.number if answers else None,
                alphabet=answers.alphabet if answers else None,
                free_running=outcome.free.accuracy[member] if outcome.free else None,
                free_running_exact=outcome.free.exact_match[member] if outcome.free else None,
                controls={name: shares[member] for name, shares in outcome.controls.items()},
                groups=groups,
            )
        )
    return tuple(rows)


def failed(spec: RunSpec, status: Status, detail: str, started: float) -> RunResult:
    """The result of a run that ended in an exception."""
    seconds = round(time.perf_counter() - started, 3)
    return base_result(spec).model_copy(update={"status": status, "detail": detail, "seconds": seconds})


def base_result(spec: RunSpec) -> RunResult:
    """What is known of a run before it starts."""
    task = make_task(spec.task)
    length = max(cell.length for cell in task.eval_cells)
    layers = [make_arch(component) for component in spec.layer_components]
    flops = [layer.flops(spec.model.d_model, length) for layer in layers]
    return RunResult(
        id=spec.id,
        digest=spec.digest,
        task=spec.task.label,
        arch=spec.arch_label,
        load_name=task.load_name,
        seed=spec.seed,
        lr=spec.train.lr,
        status="ok",
        params=0,
        state=state_report(layers, spec, length),
        work=WorkReport(weights=sum(f.weights for f in flops), state=sum(f.state for f in flops)),
        steps=0,
        seconds=0.0,
        examples_per_second=0.0,
        cells=(),
        files={},
    )


def state_report(layers: Sequence[Architecture], spec: RunSpec, length: int) -> StateReport | None:
    """Recurrent state of all layers after `length` tokens; None where a layer of one's own does not count it."""
    if any(isinstance(layer, Plain) and not layer.counts_state(spec.model.d_model) for layer in layers):
        return None
    sizes = [layer.state_size(spec.model.d_model, length) for layer in layers]
    return StateReport(
        elements=sum(size.elements for size in sizes),
        bytes=sum(size.bytes(ACTIVATION_BYTES[spec.precision]) for size in sizes),
        length=length,
    )
