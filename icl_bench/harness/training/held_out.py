"""The worth of test examples without training: floors, solvers that keep the whole context, repeats of training."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from icl_bench import random
from icl_bench.errors import SpecError, UnknownNameError
from icl_bench.harness.resolve import make_task
from icl_bench.harness.training.batches import ExampleStream
from icl_bench.runs.outline import Outline
from icl_bench.runs.spec import Component
from icl_bench.runs.store.floors import CellFloors, GroupFloors, examples_key
from icl_bench.tasks import Batch, Cell, Task
from icl_bench.tasks.base import Solver, measured_floors

TRAINED_TOKENS = 1 << 20
"""Tokens of training examples that are compared at once with the test examples."""


def cell_floors(task: Task, cell: Cell, batch: Batch) -> CellFloors:
    """Measure the solvers of a task on the test examples of a cell; the floor is the best trivial solver on them.

    The best of several solvers on the test examples themselves is never below the best constant answer, and errs in
    favour of the floor. A group has a floor of its own, which may be of another solver than that of the cell.
    """
    trivial, contents = measured_floors(task, cell, batch), task.contents(cell)
    best = max(trivial, key=trivial.__getitem__)
    by_group = {name: solved_by_group(task, cell, batch, solve) for name, solve in task.references.items()}
    floors = [solved_by_group(task, cell, batch, solve) for solve in task.floors.values()]
    return CellFloors(
        floor=trivial[best],
        floor_solver=best,
        references=measured_floors(task, cell, batch, task.references),
        answers=contents.answers if contents else None,
        alphabet=contents.alphabet if contents else None,
        groups={
            group: GroupFloors(
                floor=max(found[group] for found in floors),
                references={name: found[group] for name, found in by_group.items()},
            )
            for group in floors[0]
        },
    )


def solved_by_group(task: Task, cell: Cell, batch: Batch, solve: Solver) -> dict[str, float]:
    """Return the accuracy of a solver on the scored positions of each group that occurs, relative to the oracle."""
    hits = task.hits(solve(batch.inputs, batch.positions, cell), batch, cell).double()
    groups = batch.groups.unique()
    of_group = batch.groups.flatten() == groups[:, None]
    own, best = (of_group.double() @ part.flatten() for part in (hits, task.oracle_grade(batch, cell).hits))
    shares = (own / best).nan_to_num(0.0).clamp(0, 1)
    return {task.group_label(group): share for group, share in zip(groups.tolist(), shares.tolist(), strict=True)}


def floors_by_member(test: ExampleStream, examples: int) -> list[CellFloors]:
    """Measure the floors of each member; members of one data seed share their examples, which are measured once."""
    batch = test.first(examples)
    rows = list(range(test.members)) if test.rows is None else test.rows.tolist()
    found = {
        row: cell_floors(test.task, test.cell, Batch(*(part[rows.index(row)] for part in batch))) for row in set(rows)
    }
    return [found[row] for row in rows]


def repeated_shares(test: ExampleStream, examples: int, train: ExampleStream, trained: int) -> list[float]:
    """Return for each member the share of test examples whose canonical form is among its training examples.

    The first `examples` test examples are compared with the first `trained` training examples of the same cell.
    """
    asked = row_codes(test.first(examples), test)
    seen = torch.zeros_like(asked, dtype=torch.bool)
    for batch in train.pieces(trained, max(1, TRAINED_TOKENS // (train.cell.length * train.members))):
        for found, wanted, codes in zip(seen, asked, row_codes(batch, train), strict=True):
            found |= torch.isin(wanted, codes)
    shares: list[float] = seen.double().mean(dim=1).tolist()
    return shares


def row_codes(batch: Batch, stream: ExampleStream) -> Tensor:
    """Return a 64-bit code of the canonical form of each example, [M, B]: a random linear function modulo 2^64."""
    forms = stream.task.canonical(batch.inputs.flatten(0, 1), stream.cell)
    key = torch.zeros(1, dtype=torch.int64, device=forms.device)
    return (forms * random.random_bits(key, "codes", forms.shape[1])).sum(dim=1).view(batch.inputs.shape[:2])


def remeasure(outlines: Iterable[Outline]) -> tuple[dict[str, Mapping[str, CellFloors]], list[str]]:
    """Measure the floors of finished runs anew, once for all runs with the same test examples.

    Return the floors by `examples_key` and cell, and a message for each task that cannot make its examples any more.
    """
    found: dict[str, Mapping[str, CellFloors]] = {}
    problems: dict[str, None] = {}
    for outline in outlines:
        spec, labels = outline.setting.spec, [cell.label for cell in outline.evaluation.cells]
        key = examples_key(spec, outline.seeds[1])
        if not labels or key in found:
            continue
        try:
            task = make_task(Component(**spec["task"], label=outline.setting.task))
            found[key] = {
                label: floors_by_member(stream, spec["evaluation"]["examples"])[0]
                for label in labels
                for stream in [ExampleStream(task, task.cell(label), "test", [outline.seeds[1]], torch.device("cpu"))]
            }
        except (SpecError, UnknownNameError) as error:
            problems[f"{outline.setting.task}: {error}"] = None
    return found, list(problems)
