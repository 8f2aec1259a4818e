"""Accuracy of a fleet on held-out examples, cell by cell, counted on the device."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.architectures.backbone import Scores
from icl_bench.harness.training.data import Feed, slices
from icl_bench.harness.training.generate import FreeRunning
from icl_bench.harness.training.precision import WorkingModel
from icl_bench.runs.spec import EvalSpec
from icl_bench.tasks import Batch, Cell, Task
from icl_bench.tasks.base import measured_floors

TOKENS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 20}
"""Tokens of a piece by device, over all members: a cache's worth, and fewer than a fleet trains on at once."""
CONTROL_EXAMPLES = 256
"""Changed examples of a cell, at most."""
GROUPS = 64
"""Most groups of scored positions that a task may have."""


class Counts(NamedTuple):
    """What is counted over the examples of a cell; all tensors are float64."""

    right: Tensor
    """Hits: scored positions answered right, [M]."""
    reach: Tensor
    """Hits of the oracle, [M]."""
    exact: Tensor
    """Examples answered right throughout, [M]."""
    loss: Tensor
    """Sum of cross-entropies, of a continuous task of squared errors, [M]."""
    oracle_error: Tensor
    """Sum of the oracle's squared errors, [M]."""
    group_right: Tensor
    """Hits by group, [M, GROUPS]."""
    group_reach: Tensor
    """Hits of the oracle by group, [M, GROUPS]."""
    group_all: Tensor
    """Scored positions by group, [M, GROUPS]."""


class CellOutcome(NamedTuple):
    """Scores of each member in one cell."""

    accuracy: list[float]
    exact_match: list[float]
    loss: list[float]
    """Mean cross-entropy; of a continuous task the relative squared error."""
    oracle_error: list[float]
    """Relative squared error of the oracle; 0 for tokens."""
    groups: list[dict[str, tuple[float, int]]]
    """Accuracy and number of scored positions by group."""
    free: FreeRunning | None = None
    """Scores where the model reads its own answers; none for tasks that show none."""
    controls: Mapping[str, list[float]] = {}
    """Accuracy on changed examples, by control."""


def batches(feed: Feed, examples: int, members: int) -> Iterator[Batch]:
    """The first `examples` examples of a feed in pieces that fit the device."""
    device = feed.streams.device
    for part in slices(examples, members * feed.cell.length, TOKENS_AT_ONCE[device.type]):
        yield feed.batch(torch.arange(part.start, part.start + part.size, device=device))


@torch.no_grad()
def evaluate(model: WorkingModel, feed: Feed, pieces: Iterable[Batch]) -> CellOutcome:
    """Score the examples of a cell for every member; waits for the device once, at the end."""
    totals: Counts | None = None
    examples = 0
    for batch in pieces:
        counted = count(scores_of(model, batch, feed), batch, feed)
        totals = counted if totals is None else Counts(*(a + b for a, b in zip(totals, counted, strict=True)))
        examples += batch.inputs.shape[1]
    assert totals is not None
    return summarise(totals, examples, feed)


def scores_of(model: WorkingModel, batch: Batch, feed: Feed) -> Scores:
    """Losses and hits of one piece; where other answers than the target may be right, the task says which were."""
    scores = model.scores(batch.inputs, batch.positions, batch.targets)
    if not feed.task.many_right:
        return scores
    answers = model.answers(batch.inputs, batch.positions).flatten(0, 1)
    right = feed.task.right(answers, Batch(*(part.flatten(0, 1) for part in batch)), feed.cell)
    return scores._replace(hits=right.view_as(scores.hits))


def count(scores: Scores, batch: Batch, feed: Feed) -> Counts:
    """Count one piece, [M, B, ...]."""
    best = feed.task.best(Batch(*(part.flatten(0, 1) for part in batch)), feed.cell)
    hits, reach = scores.hits.double(), best.hits.view(scores.hits.shape)
    groups = batch.groups.flatten(1)
    empty = torch.zeros(hits.shape[0], GROUPS, device=hits.device, dtype=torch.float64)
    return Counts(
        right=hits.sum((1, 2)),
        reach=reach.sum((1, 2)),
        exact=(reach.sum(-1) - hits.sum(-1) <= feed.task.slack * reach.sum(-1).abs()).double().sum(-1),
        loss=scores.losses.double().sum((1, 2)),
        oracle_error=best.errors.view(hits.shape).sum((1, 2)),
        group_right=empty.scatter_add(1, groups, hits.flatten(1)),
        group_reach=empty.scatter_add(1, groups, reach.flatten(1)),
        group_all=empty.scatter_add(1, groups, torch.ones_like(hits).flatten(1)),
    )


def summarise(totals: Counts, examples: int, feed: Feed) -> CellOutcome:
    """From counts to shares, on the host."""
    scored = examples * feed.cell.scored
    shares = share_of(totals.group_right, totals.group_reach)
    rows = zip(shares.tolist(), totals.group_all.tolist(), strict=True)
    return CellOutcome(
        accuracy=share_of(totals.right, totals.reach).tolist(),
        exact_match=(totals.exact / examples).tolist(),
        loss=(totals.loss / scored).tolist(),
        oracle_error=(totals.oracle_error / scored).tolist(),
        groups=[group_scores(share, everything, feed) for share, everything in rows],
    )


def share_of(right: Tensor, reach: Tensor) -> Tensor:
    """Hits as a share of those of the oracle, within [0, 1]: answers that are vectors may do worse than answering 0."""
    return (right / reach).clamp(0, 1)


def group_scores(shares: Sequence[float], everything: Sequence[float], feed: Feed) -> dict[str, tuple[float, int]]:
    """Accuracy and count of each group that occurs, by its label."""
    return {
        feed.task.group_label(group): (shares[group], int(total)) for group, total in enumerate(everything) if total > 0
    }


def evaluate_controls(model: WorkingModel, feed: Feed, examples: int) -> dict[str, list[float]]:
    """Accuracy of every member on changed examples of a cell, as many as fit at once, at most 256, by control."""
    members = len(feed.streams) if feed.rows is None else len(feed.rows)
    batch = next(batches(feed, min(examples, CONTROL_EXAMPLES), members))
    flat = Batch(*(part.flatten(0, 1) for part in batch))
    return {
        name: evaluate(model, feed, [Batch(*map(Tensor.view_as, changed, batch))]).accuracy
        for name, changed in feed.task.controls(flat, feed.cell).items()
    }


def best_floors(validation: Feed, test: Feed, spec: EvalSpec) -> list[tuple[str, float]]:
    """For each member, the trivial solver that is best on validation, and its accuracy on the test of the same cell."""
    seen = validation.batch(torch.arange(spec.validation, device=validation.streams.device))
    asked = test.batch(torch.arange(spec.examples, device=test.streams.device))
    members = range(asked.inputs.shape[0])
    rows = list(members) if test.rows is None else test.rows.tolist()
    floors = {row: chosen_floor(test.task, test.cell, seen, asked, rows.index(row)) for row in set(rows)}
    return [floors[row] for row in rows]


def chosen_floor(task: Task, cell: Cell, seen: Batch, asked: Batch, member: int) -> tuple[str, float]:
    """The solver that is best on the examples seen, and its accuracy on those asked, of one member."""
    measured = measured_floors(task, cell, Batch(*(part[member] for part in seen)))
    solver = max(measured, key=lambda name: measured[name])
    return solver, measured_floors(task, cell, Batch(*(part[member] for part in asked)))[solver]
