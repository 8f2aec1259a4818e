"""Conformance of a task: the contract of all tasks, as one check for each promise, with what was found.

The tests of the package hold every task to these checks; `icl-bench check-task` holds a task from outside to them.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from icl_bench import random
from icl_bench.corpus.tokens import Split
from icl_bench.errors import SpecError
from icl_bench.harness.conformance import ConformanceCheck, Outcome, Verdict
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.outside import first_line, guarded, place_of
from icl_bench.schema import build, parse_spec
from icl_bench.tasks import TASKS, Batch, Cell, ContinuousTask, Task
from icl_bench.tasks.base import measured_floors

EXAMPLES = 500
"""Examples of a cell by which solvers are compared."""
TRAINED, TESTED = 20_000, 2_000
"""Examples among which no test example may be one of training."""
SIGMAS = 5
"""Standard errors by which a mean may miss its bound."""
LONGEST_SUMMARY = 110
"""Characters of the first line of a docstring, which a listing prints."""


def check_task_contract(text: str) -> list[ConformanceCheck]:
    """Check a task as typed, `name:key=value`; raise IclBenchError for a wrong spec.

    Whatever the task raises is a failure of the check that met it.
    """
    task = make_task(task_component(text))
    return [run_task_check(name, check, task) for name, check in TASK_CHECKS.items()]


def run_task_check(name: str, check: Callable[[Task], Verdict], task: Task) -> ConformanceCheck:
    """Run one check of a task."""
    try:
        with guarded("the task failed"):
            passed, found = check(task)
    except Exception as error:  # a task from outside may raise anything, and that is what the check found
        cause = error.__cause__ or error
        passed, found = False, first_line(cause) + place_of(cause)
    outcomes: Mapping[bool | None, Outcome] = {True: "passed", False: "failed", None: "not applicable"}
    return ConformanceCheck(name, outcomes[passed], found)


def task_cells(task: Task) -> list[Cell]:
    """Return all cells of a task, each label once."""
    return list({cell.label: cell for cell in (*task.train_cells, *task.eval_cells)}.values())


def example_keys(task: Task, split: str, count: int, first: int = 0) -> Tensor:
    """Return the keys of examples of a split, [N], from the one with this number on."""
    stream = random.stream(TASKS.name_of(type(task)), task.data_version, 0, split)
    return random.row_keys(torch.tensor(stream), torch.arange(first, first + count))


def for_all_cells(check: Callable[[Task, Cell], str | None]) -> Callable[[Task], Verdict]:
    """Return a check of a task that fails at the first cell in which `check` finds a fault."""

    def checked(task: Task) -> Verdict:
        cells = task_cells(task)
        for cell in cells:
            fault = check(task, cell)
            if fault is not None:
                return False, f"{cell.label}: {fault}"
        return True, f"in {len(cells)} cells"

    return checked


def check_cells(task: Task) -> Verdict:
    """Check that labels name their cells, and that something is trained."""
    for cells in (task.train_cells, task.eval_cells):
        labels = [cell.label for cell in cells]
        if not labels or len(set(labels)) < len(labels):
            return False, f"labels of cells must differ; got {', '.join(labels) or 'none'}"
    wrong = [cell.label for cell in task_cells(task) if task.cell(cell.label).length != cell.length]
    if wrong or not sum(cell.weight for cell in task.train_cells) > 0:
        return False, f"two lengths by one label: {wrong[0]}" if wrong else "no cell has a weight above 0 in training"
    return True, ", ".join(cell.label for cell in task_cells(task))


def fault_of_batch(task: Task, cell: Cell) -> str | None:
    """Return what is wrong with shapes, types and ranges of a batch; None if nothing is."""
    batch = task.sample(example_keys(task, "test", 32), cell)
    vectors = isinstance(task, ContinuousTask)
    shapes = task.interface.batch_shapes(cell.length, cell.scored)
    for name, tensor, shape in zip(batch._fields, batch, (*shapes, (cell.scored,)), strict=True):
        dtype = torch.float32 if vectors and name in ("inputs", "targets") else torch.int64
        if tensor.shape != (32, *shape) or tensor.dtype != dtype:
            return f"{name} are {[32, *shape]} {dtype}; got {list(tensor.shape)} {tensor.dtype}"
    if vectors and not bool(batch.inputs.isfinite().all() and batch.targets.isfinite().all()):
        return "inputs and targets are finite"
    if not vectors:
        ids = torch.cat([batch.inputs.flatten(), batch.targets.flatten()])
        if int(ids.min()) < 0 or int(ids.max()) >= task.vocabulary:
            return f"token ids lie in 0..{task.vocabulary - 1}; got {int(ids.min())}..{int(ids.max())}"
    entries = batch.inputs.flatten(0, 1) if vectors else batch.inputs.unique()
    if not all(task.spell(entry) for entry in entries.tolist()):
        return "every token has a spelling"
    if int(batch.positions.min()) < 0 or int(batch.positions.max()) >= cell.length:
        return f"scored positions lie in 0..{cell.length - 1}"
    if not bool((batch.positions.sort(dim=-1).values.diff(dim=-1) > 0).all()):
        return "a position is scored once"
    if int(batch.groups.min()) < 0 or not all(task.group_label(group) for group in batch.groups.unique().tolist()):
        return "groups are numbers from 0 with a label each"
    return None


def fault_of_oracle(task: Task, cell: Cell, first: int = 0, count: int = EXAMPLES) -> str | None:
    """Return where the oracle is not right; of tasks that tell it apart from a floor, by five sigma of their errors.

    The examples are `count` from the one with the number `first` on.
    """
    batch = task.sample(example_keys(task, "test", count, first), cell)
    answers = task.oracle(batch.inputs, batch.positions, cell)
    if not isinstance(task, ContinuousTask) or task.criterion == "nearest":
        if bool((task.hits(answers, batch, cell) == 1).all()):
            return None if task.several_correct or torch.equal(answers, batch.targets) else "the oracle names targets"
        missed = int((task.hits(answers, batch, cell) != 1).nonzero()[0, 0])
        return f"the oracle is right everywhere; it is not in example {missed}"
    error = task.grade(answers, batch.targets.double()).errors.mean(dim=1)
    for name, solve in task.floors.items():
        other = task.grade(solve(batch.inputs, batch.positions, cell), batch.targets.double()).errors.mean(dim=1)
        if float((other - error).mean()) <= SIGMAS * float((other - error).std()) / count**0.5:
            return f"the oracle errs less than every floor; {name} errs as little"
    return None


def fault_of_keys(task: Task, cell: Cell) -> str | None:
    """Return how examples depend on anything but their keys; None if they do not."""
    keys = example_keys(task, "test", 8)
    whole = task.sample(keys, cell)
    if not equal_batches(whole, task.sample(keys, cell)):
        return "equal keys give equal examples; a second call gave others"
    if not equal_batches(Batch(*(tensor[2:5] for tensor in whole)), task.sample(keys[2:5], cell)):
        return "an example depends on its own key; it changes with those beside it"
    return "other keys give other examples" if torch.equal(whole.inputs[3], whole.inputs[4]) else None


def equal_batches(one: Batch, other: Batch) -> bool:
    """Return True if two batches are bit-equal."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def fault_of_floors(task: Task, cell: Cell) -> str | None:
    """Return which blind guess beats the best floor, constant or by position alone, by more than five sigma."""
    seen = task.sample(example_keys(task, "train", EXAMPLES), cell)
    batch = task.sample(example_keys(task, "test", EXAMPLES), cell)
    measured = measured_floors(task, cell, batch)
    if not all(0 <= value < 1 for value in measured.values()):
        return f"floors lie in [0, 1); got {measured}"
    best = task.floors[max(measured, key=measured.__getitem__)]
    by_floor = task.hits(best(batch.inputs, batch.positions, cell), batch, cell).mean(dim=1)
    guesses = {
        "constant": constant_guess(task, seen.targets),
        "by position": guess_by_position(task, seen, batch, cell),
    }
    for name, guess in guesses.items():
        surplus = task.hits(guess, batch, cell).mean(dim=1) - by_floor
        # the count of rows bounds the noise of a share from below, where all rows happen to be equal
        error = max(float(surplus.std()) / EXAMPLES**0.5, 0.5 / EXAMPLES)
        if float(surplus.mean()) > SIGMAS * error:
            return f"no blind guess beats the floors; {name} does, by {float(surplus.mean()):.3f}; add a floor"
    return None


def constant_guess(task: Task, targets: Tensor) -> Tensor:
    """Return the best constant answer: the most frequent token, or the mean vector."""
    if isinstance(task, ContinuousTask):
        return targets.double().mean(dim=(0, 1)).expand_as(targets)
    return targets.flatten().mode().values.expand_as(targets)


def guess_by_position(task: Task, seen: Batch, asked: Batch, cell: Cell) -> Tensor:
    """Return the best answer by position alone: the most frequent token, or the mean vector, at each position."""
    if isinstance(task, ContinuousTask):
        sums = torch.zeros(cell.length, task.width_out, dtype=torch.float64)
        sums.index_add_(0, seen.positions.flatten(), seen.targets.double().flatten(0, 1))
        counts = torch.bincount(seen.positions.flatten(), minlength=cell.length).clamp(min=1)
        return (sums / counts[:, None])[asked.positions]
    counts = torch.zeros(cell.length, task.vocabulary)
    ones = torch.ones(seen.targets.numel())
    counts.index_put_((seen.positions.flatten(), seen.targets.flatten()), ones, accumulate=True)
    return counts.argmax(dim=1)[asked.positions]


def fault_of_state(task: Task, cell: Cell) -> str | None:
    """Return a number of bits that no state has."""
    bits = task.state_bits(cell)
    return None if 0 <= bits < float("inf") else f"the bits of a state are a number from 0 up; got {bits}"


def check_repeats(task: Task) -> Verdict:
    """Check that no test example occurs in training, in the cell of the smallest load; of the largest if it repeats."""
    pick = max if task.repeats else min
    cell = pick(task_cells(task), key=lambda cell: (cell.load, cell.length))
    sizes: Mapping[Split, int] = {"train": TRAINED, "test": TESTED}
    trained, tested = (
        {row.tobytes() for row in task.sample_split(example_keys(task, split, count), cell, split).inputs.numpy()}
        for split, count in sizes.items()
    )
    shared = len(trained & tested)
    if shared:
        return False, f"{cell.label}: {shared} of {TESTED} test examples are among {TRAINED}; set `repeats`"
    return True, f"{cell.label}: none of {TESTED} among {TRAINED}"


def check_description(task: Task) -> Verdict:
    """Check the docstring, which pages and listings print, and the declared budget and picture."""
    name, text = TASKS.name_of(type(task)), str(type(task).__doc__)
    summary = TASKS.summary(name)
    if len(summary) >= LONGEST_SUMMARY or not summary.endswith("."):
        return False, f"the first line of the docstring is a sentence of less than {LONGEST_SUMMARY} characters"
    for word in ("Source:", "Chance:"):
        if word not in text:
            return False, f"the docstring says {word}"
    for params in (type(task).budget.params, type(task).picture):
        spec = parse_spec(f"{name}:{params}" if params else name)
        try:
            build(type(task), spec.params, name)
        except SpecError as error:
            return False, f"budget and picture have parameters of the task: {error}"
    return True, summary


CELL_FAULTS: Mapping[str, Callable[[Task, Cell], str | None]] = {
    "shapes and ranges": fault_of_batch,
    "oracle": fault_of_oracle,
    "examples by keys": fault_of_keys,
    "floors": fault_of_floors,
    "bits of the state": fault_of_state,
}
"""Faults of one cell by name."""
TASK_CHECKS: Mapping[str, Callable[[Task], Verdict]] = {
    "cells": check_cells,
    **{name: for_all_cells(fault) for name, fault in CELL_FAULTS.items()},
    "no test in training": check_repeats,
    "description": check_description,
}
"""Checks by name, in order."""
