"""Accuracy of a fleet on held-out examples, cell by cell, counted on the device."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.backbone import Backbone
from icl_bench.harness.data import Feed, slices
from icl_bench.harness.precision import autocast
from icl_bench.harness.spec import Precision
from icl_bench.tasks import Batch
from icl_bench.tasks.base import measured_floors

TOKENS_AT_ONCE = 1 << 18
LOGITS_AT_ONCE = 1 << 27
GROUPS = 64
"""Most groups of scored positions that a task may have."""


class Counts(NamedTuple):
    """What is counted over the examples of a cell; all tensors are float64."""

    right: Tensor
    """Scored positions answered right, [M]."""
    exact: Tensor
    """Examples answered right throughout, [M]."""
    loss: Tensor
    """Sum of cross-entropies, [M]."""
    group_right: Tensor
    """Scored positions answered right by group, [M, GROUPS]."""
    group_all: Tensor
    """Scored positions by group, [M, GROUPS]."""


class CellOutcome(NamedTuple):
    """Scores of each member in one cell."""

    accuracy: list[float]
    exact_match: list[float]
    loss: list[float]
    groups: list[dict[str, tuple[float, int]]]
    """Accuracy and number of scored positions by group."""


@torch.no_grad()
def evaluate(model: Backbone, feed: Feed, examples: int, members: int, precision: Precision) -> CellOutcome:
    """Score `examples` examples of a cell for every member."""
    cell = feed.cell
    per_example = members * max(cell.length, cell.scored * feed.task.vocabulary * TOKENS_AT_ONCE // LOGITS_AT_ONCE)
    totals: Counts | None = None
    for part in slices(examples, per_example, TOKENS_AT_ONCE):
        index = torch.arange(part.start, part.start + part.size, device=feed.streams.device)
        batch = feed.batch(index)
        with autocast(batch.inputs.device, precision):
            logits = model(batch.inputs, batch.positions)
        counted = count(logits.float(), batch)
        totals = counted if totals is None else Counts(*(a + b for a, b in zip(totals, counted, strict=True)))
    assert totals is not None
    return summarise(totals, examples, feed)


def count(logits: Tensor, batch: Batch) -> Counts:
    """Count one piece: logits [M, B, S, W] float32."""
    hits = (logits.argmax(-1) == batch.targets).double()
    losses = functional.cross_entropy(logits.flatten(0, -2), batch.targets.flatten(), reduction="none")
    groups = batch.groups.flatten(1)
    empty = torch.zeros(hits.shape[0], GROUPS, device=hits.device, dtype=torch.float64)
    return Counts(
        right=hits.sum((1, 2)),
        exact=hits.prod(-1).sum(-1),
        loss=losses.view(hits.shape).double().sum((1, 2)),
        group_right=empty.scatter_add(1, groups, hits.flatten(1)),
        group_all=empty.scatter_add(1, groups, torch.ones_like(hits).flatten(1)),
    )


def summarise(totals: Counts, examples: int, feed: Feed) -> CellOutcome:
    """From counts to shares, on the host."""
    scored = examples * feed.cell.scored
    rows = zip(totals.group_right.tolist(), totals.group_all.tolist(), strict=True)
    return CellOutcome(
        accuracy=(totals.right / scored).tolist(),
        exact_match=(totals.exact / examples).tolist(),
        loss=(totals.loss / scored).tolist(),
        groups=[group_scores(right, everything, feed) for right, everything in rows],
    )


def group_scores(right: Sequence[float], everything: Sequence[float], feed: Feed) -> dict[str, tuple[float, int]]:
    """Accuracy and count of each group that occurs, by its label."""
    return {
        feed.task.group_label(group): (right[group] / total, int(total))
        for group, total in enumerate(everything)
        if total > 0
    }


def best_floors(feeds: Mapping[str, Feed], examples: int) -> dict[str, list[tuple[str, float]]]:
    """For each cell and member, the best trivial solver and its accuracy on the examples of the test."""
    floors: dict[str, list[tuple[str, float]]] = {}
    for label, feed in feeds.items():
        batch = feed.batch(torch.arange(examples, device=feed.streams.device))
        floors[label] = []
        for member in range(batch.inputs.shape[0]):
            own = Batch(*(part[member] for part in batch))
            measured = measured_floors(feed.task, feed.cell, own)
            floors[label].append(max(measured.items(), key=lambda item: item[1]))
    return floors
