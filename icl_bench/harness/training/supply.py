"""Training batches, made for many steps at once: small kernels by the hundred cost a launch each, not a step each."""

from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.harness.training.data import Feed
from icl_bench.kernels.fleet.places import Places, find_places
from icl_bench.tasks import ContinuousTask

TOKENS_AT_ONCE = 1 << 22
"""Tokens made at once, over all members, at least one step's."""
MOST_STEPS = 256


class TrainBatch(NamedTuple):
    """What a training step reads, int64; inputs and targets of a continuous task float32."""

    inputs: Tensor
    """[M, B, T], of a continuous task [M, B, T, I]."""
    positions: Tensor
    """[M, B, S]."""
    targets: Tensor
    """[M, B, S], of a continuous task [M, B, S, O]."""
    places: Places | None
    """Where each word occurs in the inputs, where the supply sorts."""


def steps_at_once(tokens: int, needed: int) -> int:
    """How many steps of so many tokens each are made together; never more than are needed."""
    return max(1, min(MOST_STEPS, needed, TOKENS_AT_ONCE // tokens))


def by_step(part: Tensor, steps: int) -> Tensor:
    """[M, steps B, ...] -> [steps, M, B, ...]."""
    parts: Tensor = part.unflatten(1, (steps, -1)).transpose(0, 1)
    return parts


class Supply:
    """The batches of one cell in order; device tensors throughout, so that both halves can be captured in graphs.

    Args:
        feed: Examples by index.
        batch: Examples of a step, B.
        members: Size of the fleet, M.
        size: Size of a fixed training set, which is cycled; None where every example is fresh.
        steps: Steps made at once.
        sort: Whether the tokens of each batch are sorted by word too, for the gradient of the embedding.
    """

    def __init__(self, feed: Feed, batch: int, members: int, size: int | None, steps: int, sort: bool = False) -> None:
        self.feed, self.batch, self.size, self.steps = feed, batch, size, steps
        cell, device = feed.cell, feed.streams.device
        shapes: list[tuple[int, ...]] = [(cell.length,), (cell.scored,), (cell.scored,)]
        kind = torch.int64
        if isinstance(feed.task, ContinuousTask):
            shapes = [(cell.length, feed.task.width_in), (cell.scored,), (cell.scored, feed.task.width_out)]
            kind = torch.float32  # holds every position exactly, up to 2^24
        self.shapes = [torch.Size((members, batch, *shape)) for shape in shapes]
        self.sort, self.words = sort, feed.task.vocabulary
        if sort:
            self.shapes += [torch.Size((members, batch * cell.length)), torch.Size((members, self.words + 1))]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.drawn = torch.zeros((), device=device, dtype=torch.int64)
        self.slot = torch.zeros(1, device=device, dtype=torch.int64)
        self.stock = torch.zeros(steps, sum(self.sizes), device=device, dtype=kind)
        self.taken = 0

    def due(self) -> bool:
        """Count a step; whether it needs a `refill` first."""
        self.taken += 1
        return (self.taken - 1) % self.steps == 0

    def skip(self, taken: int) -> None:
        """Go to where so many steps have been taken, from the start."""
        self.taken = taken
        self.drawn += taken // self.steps * self.steps * self.batch
        if taken % self.steps:
            self.refill()
            self.slot += taken % self.steps

    def refill(self) -> None:
        """Make the batches of the next steps."""
        count = self.steps * self.batch
        index = self.drawn + torch.arange(count, device=self.drawn.device)
        self.drawn += count
        made = self.feed.batch(index if self.size is None else index % self.size)
        parts = self.stock.split(self.sizes, dim=1)
        for kept, part in zip(parts, made[:3], strict=False):
            # Written where it stays: one pass over each.
            kept.unflatten(1, (-1, *part.shape[2:])).unflatten(1, (-1, self.batch)).copy_(by_step(part, self.steps))
        if self.sort:
            tokens = by_step(made.inputs, self.steps).reshape(-1, self.batch * made.inputs.shape[2])
            for kept, part in zip(parts[3:], find_places(tokens, self.words), strict=True):
                kept.copy_(part.view(self.steps, -1))
        self.slot.zero_()

    def take(self) -> TrainBatch:
        """The batch of this step."""
        parts = self.stock.index_select(0, self.slot)[0].split(self.sizes)
        self.slot += 1
        inputs, positions, targets, *places = (part.view(shape) for part, shape in zip(parts, self.shapes, strict=True))
        return TrainBatch(inputs, positions.long(), targets, Places(*places) if places else None)
