"""Which examples a fleet sees: row keys from names, seeds and indices, and the order of cells in training."""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from icl_bench import random
from icl_bench.tasks import Batch, Cell, Task
from icl_bench.tasks.base import TASKS

Split = Literal["train", "val", "test"]


class Feed:
    """Examples of one cell and split for the members of a fleet; members of one data seed share their examples."""

    def __init__(self, task: Task, cell: Cell, split: Split, data_seeds: Sequence[int], device: torch.device) -> None:
        self.task, self.cell = task, cell
        unique = list(dict.fromkeys(data_seeds))
        name = TASKS.name_of(type(task))
        streams = [random.stream(name, task.data_version, cell.label, seed, split) for seed in unique]
        self.streams = torch.tensor(streams, device=device)
        rows = [unique.index(seed) for seed in data_seeds]
        self.rows = None if rows == list(range(len(rows))) else torch.tensor(rows, device=device)

    def batch(self, index: Tensor) -> Batch:
        """The examples of these indices [B], for every member: tensors [M, B, ...]."""
        keys = random.row_keys(self.streams[:, None], index)
        flat = self.task.sample(keys.flatten(), self.cell)
        parts = [part.view(*keys.shape, *part.shape[1:]) for part in flat]
        return Batch(*(part if self.rows is None else part[self.rows] for part in parts))


def first_digests(feed: Feed, examples: int) -> list[str]:
    """SHA-256 of the first examples of each member: inputs, positions and targets."""
    batch = feed.batch(torch.arange(examples, device=feed.streams.device))
    parts = [part.cpu().contiguous() for part in (batch.inputs, batch.positions, batch.targets)]
    members = range(batch.inputs.shape[0])
    return [
        hashlib.sha256(b"".join(part[member].numpy().tobytes() for part in parts)).hexdigest() for member in members
    ]


class Slice(NamedTuple):
    """A run of consecutive examples for an evaluation."""

    start: int
    size: int


def slices(examples: int, tokens: int, limit: int) -> list[Slice]:
    """Cut `examples` of `tokens` tokens each, over all members, into pieces of at most `limit` tokens."""
    size = max(1, limit // tokens)
    return [Slice(start, min(size, examples - start)) for start in range(0, examples, size)]


def cell_order(cells: Sequence[Cell], steps: int) -> list[int]:
    """The cell of each step: each cell gets its share of the steps, spread as evenly as whole steps allow."""
    total = sum(cell.share for cell in cells)
    given = [0] * len(cells)
    order = []
    for step in range(1, steps + 1):
        due = [cell.share / total * step - count for cell, count in zip(cells, given, strict=True)]
        chosen = due.index(max(due))
        given[chosen] += 1
        order.append(chosen)
    return order


def training_set_size(cells: Sequence[Cell], cell: Cell, examples: int | None) -> int | None:
    """Examples of this cell in a fixed training set of `examples`; None where every example is fresh."""
    if examples is None:
        return None
    return max(1, round(examples * cell.share / sum(other.share for other in cells)))
