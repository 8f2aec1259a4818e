"""Records of runs: from what a fleet measured, or from the error that ended it, to one result for each member."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from icl_bench.architectures.base import Flops
from icl_bench.errors import OutsideCodeError
from icl_bench.harness.accounting import Footprint, quadratic_work
from icl_bench.harness.resolve import make_arch, make_task
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.harness.training.evaluate import CellCounts, FreeRunning
from icl_bench.harness.training.optimiser import LOSS_LIMIT
from icl_bench.outside import guarded
from icl_bench.runs.record import CellScore, RunResult, StateReport, Status, TokenWork, WorkReport
from icl_bench.runs.spec import RunSpec
from icl_bench.runs.store.floors import CellFloors
from icl_bench.tasks import DistributionTask, Task

ACTIVATION_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
EXAMPLE_DIGITS = 6
"""Decimals of the loss of an example in a record."""


class MemberScores(NamedTuple):
    """Measurements of a member that was trained to the end, or diverged on the way."""

    cells: tuple[CellScore, ...]
    """Test scores by cell; none if the member was dropped from its fleet."""
    diverged_at: int
    """Step at which the member was found to have diverged; 0 if it never was."""
    solved_at: int | None
    """First validated step with an accuracy of at least `SOLVED`."""
    exploded: bool
    """True if the loss of a member that diverged was too large, False if a loss or gradient was not finite."""
    stopped_at: int = 0
    """Step at which the member was accurate enough to stop; 0 if it was trained to the end or diverged."""


class FleetScores(NamedTuple):
    """Measurements of a trained fleet."""

    members: list[MemberScores]
    """Measurements of each member."""
    params: int
    """Parameters of one model."""
    seconds: float
    """Wall time of training and evaluation, over all parts of a run that was interrupted."""
    examples_per_second: float
    """Training examples per second, summed over members."""
    kept: list[dict[str, bytes]]
    """Files that each member keeps beside its record, by name."""
    executed: float | None
    """Operations that kernels execute in training for a token, where they are counted."""


def cell_scores(
    stream: ExampleStream,
    counts: CellCounts,
    floors: list[CellFloors],
    repeated: list[float] | None,
    free: FreeRunning | None,
    controls: dict[str, list[float]],
    members: Sequence[int],
) -> list[CellScore | None]:
    """Return the test scores of these members on one cell, whose test examples `stream` makes.

    The scores of a member whose loss is not finite are None. `floors` has the solvers that learn nothing by member,
    `repeated` the shares of examples that were trained on, `controls` the accuracies by control.
    """
    task, cell = stream.task, stream.cell
    squared_error = task.interface.squared_error
    accuracy, exact_match, loss = counts.accuracy, counts.exact_match, counts.loss
    oracle_error, groups = counts.oracle_error, counts.groups(task)
    exact = isinstance(task, DistributionTask)
    divergence, possible_mass = counts.divergence, counts.possible_mass
    by_example: list[list[float]] = counts.example_losses.tolist()
    return [
        CellScore(
            label=cell.label,
            load=cell.load,
            length=cell.length,
            accuracy=accuracy[member],
            exact_match=exact_match[member],
            loss=loss[member],
            error=loss[member] if squared_error else None,
            oracle_error=oracle_error[member] if squared_error else None,
            divergence=max(0.0, divergence[member]) if exact else None,
            possible_mass=possible_mass[member] if exact else None,
            **floors[member].scores(groups[member]),
            repeated=repeated[member] if repeated else None,
            state_bits=task.state_bits(cell),
            scored=cell.scored,
            free_running=free.accuracy[member] if free else None,
            free_running_exact=free.exact_match[member] if free else None,
            controls={name: accuracies[member] for name, accuracies in controls.items()},
            example_losses=tuple(round(value, EXAMPLE_DIGITS) for value in by_example[member]) or None,
        )
        if math.isfinite(loss[member])
        else None
        for member in members
    ]


def member_result(spec: RunSpec, scores: FleetScores, member: int, first_batch: str) -> RunResult:
    """Return the result of a member of a trained fleet; `first_batch` is the SHA-256 of its first training batch."""
    measured = scores.members[member]
    outcome: dict[str, Any] = {"status": "ok", "steps": measured.stopped_at or spec.train.steps}
    outcome["cells"] = measured.cells
    if measured.diverged_at:
        factor, margin, patience = LOSS_LIMIT
        exploded = f"loss above {factor:g} x its first + {margin:g} for {patience} steps"
        reason = exploded if measured.exploded else "loss or gradient not finite"
        detail = f"diverged at step {measured.diverged_at}: {reason}"
        outcome = {"status": "diverged", "detail": detail, "steps": measured.diverged_at, "cells": ()}
    fields = spec_fields(spec)
    work: WorkReport = fields.pop("work")
    if work.training is not None:
        training = work.training.model_copy(update={"executed": scores.executed})
        work = work.model_copy(update={"training": training})
    return RunResult(
        **fields,
        **outcome,
        work=work,
        params=scores.params,
        seconds=round(scores.seconds, 3),
        examples_per_second=round(scores.examples_per_second, 1),
        solved_at=measured.solved_at,
        first_batch=first_batch,
    )


def failed_result(spec: RunSpec, status: Status, detail: str, seconds: float) -> RunResult:
    """Return the result of a run that an error ended after `seconds`."""
    timing: dict[str, Any] = {"seconds": round(seconds, 3), "examples_per_second": 0.0}
    return RunResult(**spec_fields(spec), **timing, status=status, detail=detail, params=0, steps=0, cells=())


def spec_fields(spec: RunSpec) -> dict[str, Any]:
    """Return the fields of a result that follow from the specification; `files` are added as they are committed."""
    task = make_task(spec.task)
    length = max(cell.length for cell in task.eval_cells)
    return {
        "id": spec.id,
        "digest": spec.digest,
        "task": spec.task.label,
        "arch": spec.arch_label,
        "load_name": task.load_name,
        "seed": spec.seed,
        "lr": spec.train.lr,
        **size_fields(spec, length, task),
        "declarations": tuple(make_arch(component).declaration() for component in spec.arch),
        "files": {},
    }


def size_fields(spec: RunSpec, length: int, task: Task) -> dict[str, Any]:
    """Return state and work of the layers after `length` tokens; unknown where a layer from outside fails to tell."""
    layers, model = [make_arch(component) for component in spec.layer_components], spec.model
    size = Footprint(layers, model.d_model, length, model.canon, model.mlp_width)
    try:
        with guarded("the size of a layer is unknown") if spec.from_outside else nullcontext():
            state, flops = size.state, size.flops
    except OutsideCodeError:
        state, flops = None, Flops(0.0, None)
    activation = ACTIVATION_BYTES[spec.precision]
    return {
        "state": state and StateReport(elements=state.elements, bytes=state.bytes(activation), length=length),
        "work": WorkReport(weights=flops.weights, state=flops.state, training=token_work(spec, task)),
    }


def token_work(spec: RunSpec, task: Task) -> TokenWork | None:
    """Return the work of a whole model for a token of the longest training row, for tasks that are graded by bits."""
    if not task.interface.graded_by_bits or spec.from_outside:
        return None
    layers, model = [make_arch(component) for component in spec.layer_components], spec.model
    length = max(cell.length for cell in task.train_cells)
    flops = Footprint(layers, model.d_model, length, model.canon, model.mlp_width).flops
    around = 6.0 * model.layers * model.d_model * model.mlp_width + 2.0 * model.d_model * task.vocabulary
    quadratic = quadratic_work(layers, model.d_model, length)
    return TokenWork(length=length, weights=flops.weights + around, recurrent=flops.state, quadratic=quadratic)
