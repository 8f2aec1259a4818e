"""Examples that a fleet sees: addressed by seed and index, made for many steps at once, served one batch a step.

One example can also be drawn and spelled out in words, for people.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_bench import random
from icl_bench.corpus.tokens import Split
from icl_bench.harness.resolve import make_task, task_component
from icl_bench.harness.training.ranks import Ranks
from icl_bench.kernels.fleet.embedding import TokenOccurrences, find_occurrences, occurrence_shapes
from icl_bench.outside import guarding
from icl_bench.runs.spec import Component
from icl_bench.tasks import Batch, Cell, Task
from icl_bench.tasks.base import TASKS

TOKENS_PER_REFILL = 1 << 22
"""Most tokens made at once, over all members; one step's batch is made whole even if it has more."""
MOST_STEPS = 256
"""Most steps whose batches are made at once."""
TOKENS_BESIDE = 1 << 20
"""Tokens of a step, over all members, from which on a GPU makes the next batch beside it."""


class ExampleStream:
    """Examples of one cell and split for the members of a fleet; members of one data seed share their examples."""

    def __init__(self, task: Task, cell: Cell, split: Split, data_seeds: Sequence[int], device: torch.device) -> None:
        self.task, self.cell, self.split = task, cell, split
        self.members, self.device = len(data_seeds), device
        unique = list(dict.fromkeys(data_seeds))
        name = TASKS.name_of(type(task))
        ids = [random.stream(name, task.data_version, cell.label, seed, split) for seed in unique]
        self.stream_ids = torch.tensor(ids, device=device)
        rows = [unique.index(seed) for seed in data_seeds]
        self.rows = None if rows == list(range(len(rows))) else torch.tensor(rows, device=device)

    def batch(self, index: Tensor) -> Batch:
        """Make the examples of these indices [B] for every member: tensors [M, B, ...]."""
        keys = random.row_keys(self.stream_ids[:, None], index)  # [unique seeds, B]
        flat = self.task.sample_split(keys.flatten(), self.cell, self.split)
        parts = [part.view(*keys.shape, *part.shape[1:]) for part in flat]
        return Batch(*(part if self.rows is None else part[self.rows] for part in parts))

    def first(self, examples: int) -> Batch:
        """Make the first `examples` examples."""
        return self.batch(torch.arange(examples, device=self.device))

    def pieces(self, examples: int, size: int) -> Iterator[Batch]:
        """Make the first `examples` examples in pieces of at most `size` examples of each member."""
        for start in range(0, examples, max(1, size)):
            yield self.batch(torch.arange(start, min(start + max(1, size), examples), device=self.device))

    def digests(self, examples: int) -> list[str]:
        """Return the SHA-256 of the first examples of each member: inputs, positions and targets."""
        batch = self.first(examples)
        parts = [part.cpu().contiguous() for part in (batch.inputs, batch.positions, batch.targets)]
        return [
            hashlib.sha256(b"".join(part[member].numpy().tobytes() for part in parts)).hexdigest()
            for member in range(self.members)
        ]


def cell_order(cells: Sequence[Cell], steps: int) -> list[int]:
    """Return the index of the cell of each step; cells alternate as evenly as their weights and whole steps allow."""
    total = sum(cell.weight for cell in cells)
    given = [0] * len(cells)
    order = []
    for step in range(1, steps + 1):
        due = [cell.weight / total * step - count for cell, count in zip(cells, given, strict=True)]
        chosen = due.index(max(due))
        given[chosen] += 1
        order.append(chosen)
    return order


def training_set_size(cells: Sequence[Cell], cell: Cell, examples: int | None) -> int | None:
    """Return the examples of a cell in a fixed training set of `examples`; None if every example is fresh."""
    if examples is None:
        return None
    return max(1, round(examples * cell.weight / sum(other.weight for other in cells)))


class TrainBatch(NamedTuple):
    """The batch of one training step; inputs and targets have the type of the task's interface."""

    inputs: Tensor
    """Token ids, [M, B, T], or vectors, [M, B, T, I]."""
    positions: Tensor
    """Scored positions, [M, B, S] int64."""
    targets: Tensor
    """Token ids, [M, B, S], or vectors, [M, B, S, O]."""
    occurrences: TokenOccurrences | None
    """Occurrences of each token id in the inputs, if the queue sorts them."""
    leading: bool
    """True where the positions are 0 to S - 1."""


def steps_per_refill(tokens: int, needed: int) -> int:
    """Return the number of steps of `tokens` tokens each whose batches are made at once, at most `needed`."""
    return max(1, min(MOST_STEPS, needed, TOKENS_PER_REFILL // tokens))


def by_step(part: Tensor, steps: int) -> Tensor:
    """Move the steps to the front: [M, steps B, ...] -> [steps, M, B, ...]."""
    parts: Tensor = part.unflatten(1, (steps, -1)).transpose(0, 1)
    return parts


class BatchQueue:
    """Training batches of one cell, in order.

    Batches are made for many steps at once, because each of the hundred small kernels that make examples costs a
    launch. Where a step is long, they run `beside` it instead, as they leave most of a GPU idle: the owner then calls
    `refill` after each `take`. Making and taking work on device tensors alone, so that both can be captured in CUDA
    graphs.

    Args:
        stream: Examples by index.
        batch: Examples of a step and member, B.
        size: Size of a fixed training set, which is cycled through; None if every example is fresh.
        steps: Steps whose batches are made at once.
        sort: Also sort the tokens of each batch, for the gradient of the embedding.
        ranks: Processes that divide each batch; the queue has the rows of this one.
    """

    def __init__(
        self,
        stream: ExampleStream,
        batch: int,
        size: int | None,
        steps: int,
        sort: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        tokens = stream.members * batch * stream.cell.length
        self.beside = stream.device.type == "cuda" and tokens >= TOKENS_BESIDE
        steps = 1 if self.beside else steps
        self.stream, self.whole_batch, self.size, self.steps, self.ranks = stream, batch, size, steps, ranks
        self.batch = batch = ranks.part(batch) if ranks else batch
        cell, device, members = stream.cell, stream.device, stream.members
        interface = stream.task.interface
        shapes = interface.batch_shapes(cell.length, cell.scored)
        self.shapes = [torch.Size((members, batch, *shape)) for shape in shapes]
        self.sort, self.vocabulary = sort, stream.task.vocabulary
        if sort:
            self.shapes += occurrence_shapes(members, batch * cell.length, self.vocabulary)
        self.sizes = [shape.numel() for shape in self.shapes]
        self.next_index = torch.zeros((), device=device, dtype=torch.int64)  # of the first example not yet made
        self.next_row = torch.zeros(1, device=device, dtype=torch.int64)  # of the buffer, for the next step
        self.buffer = torch.zeros(steps, sum(self.sizes), device=device, dtype=interface.dtype)
        self.steps_counted, self.started = 0, False

    def count_step(self) -> bool:
        """Count a step, and return whether it needs a `refill` first."""
        self.steps_counted += 1
        first, self.started = not self.started, True
        return first if self.beside else (self.steps_counted - 1) % self.steps == 0

    def skip_to(self, step: int) -> None:
        """Continue after `step` steps of this cell; the queue must be at its start."""
        self.steps_counted = step
        self.next_index += step // self.steps * self.steps * self.whole_batch
        if step % self.steps:
            self.refill()
            self.next_row += step % self.steps

    def refill(self) -> None:
        """Make the batches of the next steps."""
        count = self.steps * self.whole_batch
        index = self.next_index + torch.arange(count, device=self.next_index.device)
        index = self.ranks.own(index) if self.ranks else index
        self.next_index += count
        made = self.stream.batch(index if self.size is None else index % self.size)
        parts = self.buffer.split(self.sizes, dim=1)
        for kept, part in zip(parts, made[:3], strict=False):
            # Written to its place in one pass over each part.
            kept.unflatten(1, (-1, *part.shape[2:])).unflatten(1, (-1, self.batch)).copy_(by_step(part, self.steps))
        if self.sort:
            tokens = by_step(made.inputs, self.steps).reshape(-1, self.batch * made.inputs.shape[2])
            for kept, part in zip(parts[3:], find_occurrences(tokens, self.vocabulary), strict=True):
                kept.copy_(part.view(self.steps, -1))
        self.next_row.zero_()

    def take(self) -> TrainBatch:
        """Return the batch of the next step."""
        parts = self.buffer.index_select(0, self.next_row)[0].split(self.sizes)
        self.next_row += 1
        inputs, positions, targets, *occurrences = (
            part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)
        )
        sorted_tokens = TokenOccurrences(*occurrences) if occurrences else None
        return TrainBatch(inputs, positions.long(), targets, sorted_tokens, self.stream.task.scores_leading)


class Example(NamedTuple):
    """One example of a task, with each token spelled out."""

    task: str
    cell: str
    tokens: list[str]
    targets: dict[int, str]
    """Target at each scored position, by position."""
    groups: dict[int, str]
    """Group of each scored position, by position."""
    state_bits: float

    def document(self) -> dict[str, Any]:
        """Return the example as plain data for `--json`."""
        scored = [{"position": t, "target": self.targets[t], "group": self.groups[t]} for t in sorted(self.targets)]
        plain = {"task": self.task, "cell": self.cell, "state_bits": self.state_bits}
        return {**plain, "tokens": self.tokens, "scored": scored}


def draw_example(text: str, cell_label: str | None, seed: int) -> Example:
    """Draw the first test example of a cell, by default the first; raise IclBenchError if task or cell is unknown."""
    component = task_component(text)
    with guarding(TASKS.version(component.name, component.version), component.name):
        return spelled_example(component, cell_label, seed)


def spelled_example(component: Component, cell_label: str | None, seed: int) -> Example:
    """Draw the example of a component and spell it out."""
    task = make_task(component)
    cell = task.eval_cells[0] if cell_label is None else task.cell(cell_label)
    batch = ExampleStream(task, cell, "test", [seed], torch.device("cpu")).batch(torch.arange(1))
    positions = batch.positions[0, 0].tolist()
    return Example(
        task=component.label,
        cell=cell.label,
        tokens=[task.spell(token) for token in batch.inputs[0, 0].tolist()],
        targets=dict(zip(positions, (task.spell(t) for t in batch.targets[0, 0].tolist()), strict=True)),
        groups=dict(zip(positions, (task.group_label(g) for g in batch.groups[0, 0].tolist()), strict=True)),
        state_bits=task.state_bits(cell),
    )
