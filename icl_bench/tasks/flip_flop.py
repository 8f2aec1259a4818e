"""Flip-flop: one bit, written, ignored and read."""

from typing import Annotated

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, check_multiple, one_or_many
from icl_bench.tasks.sampling import first_true, latest_true, mode_so_far, octave
from icl_bench.tasks.vocabulary import Alphabet, Vocabulary

WRITE, IGNORE, READ = 5, 6, 7

Fractions = Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], BeforeValidator(one_or_many)]
"""A parameter that lists numbers from 0 up to, but not including, 1."""


@TASKS.register("flip-flop")
class FlipFlop(Task):
    """Name the last written bit at each read instruction, whatever was ignored since.

    The input is a sequence of instructions, write, ignore or read, each followed by a bit. The first instruction is a
    write and the last one a read. Of the others, the fraction `ignore` is to be ignored, and half of the rest are
    writes, half reads; these numbers are exact, the order is random. Every read is scored: the target is the last
    written bit, which then follows (the answer is shown). Bits after an ignore are random. The state is a single bit,
    so the task tests reach and forgetting, not capacity: fewer or more ignored instructions than in training show for
    which distances the model has learned to keep the bit.

    Full size: `flip-flop:length=512,ignore=0.8,extrapolate=[0.98|0.1]`; the length counts instructions and bits.

    Source: Liu et al., "Exposing attention glitches with flip-flop language modeling" (arXiv 2306.00946), where
    instructions are drawn one by one. Chance: 1/2.

    >>> task = FlipFlop(length=16, ignore=(0.5,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'w 0 w 1 i 1 r 1 i 0 w 1 r 1 r 1'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[6, 12, 14]], ['1', '1', '1'])
    """

    axes = (Axis("ignore", lowest=0, extrapolated=True),)
    load_name = "instructions"
    budget = TrainingBudget(steps=500, lr=3e-3, params="ignore=0.8")
    picture = "length=20,ignore=0.4"

    length: int = Field(default=128, ge=4)
    """Positions in a sequence, T, two for each instruction."""
    ignore: Annotated[Fractions, Field(min_length=1)] = (0.8,)
    """Fractions of instructions that are ignored, each a cell that is trained and evaluated."""
    extrapolate: Fractions = ()
    """Fractions that are evaluated but not trained."""

    def check(self) -> None:
        check_multiple("length", self.length, 2)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"bits": Alphabet(2, str)}, special={WRITE: "w", IGNORE: "i", READ: "r"})

    def shape(self, sizes: tuple[float, ...]) -> ExampleShape:
        instructions = self.length // 2
        reads = 1 + round((instructions - 2) * (1 - sizes[0]) / 2)
        return ExampleShape(length=self.length, load=instructions, scored=reads)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        count, more = cell.load, cell.scored - 1
        order = random.permutation(keys, "order", count - 2)
        between = torch.where(order < more, READ, torch.where(order < 2 * more, WRITE, IGNORE))
        first, last = (torch.full_like(keys[:, None], token) for token in (WRITE, READ))
        instructions = torch.cat([first, between, last], dim=1)
        drawn = random.integers(keys, "bits", count, 2) + self.words.first("bits")
        written = latest_true(instructions == WRITE)
        current = drawn.gather(1, written)
        bits = torch.where(instructions == READ, current, drawn)
        reads = first_true(instructions == READ, cell.scored)
        inputs = torch.stack([instructions, bits], dim=-1).flatten(1)
        return Batch(inputs, 2 * reads, current.gather(1, reads), octave(2 * (reads - written.gather(1, reads))))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return inputs.gather(1, latest_true(inputs == WRITE).gather(1, positions) + 1)

    def floor_latest_bit(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the latest bit, whatever its instruction."""
        return inputs.gather(1, positions - 1)

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the bit that was more frequent so far."""
        return mode_so_far(inputs, self.words.first("bits"), 2).gather(1, positions)

    def floor_latest_read(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the bit of the latest read, or before any the bit that was more frequent so far."""
        latest = latest_true(inputs == READ).gather(1, (positions - 1).clamp(min=0))
        shown = inputs.gather(1, latest.clamp(min=0) + 1)
        return torch.where(latest < 0, self.floor_most_frequent(inputs, positions, cell), shown)

    def floor_latest_two(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the bit of the latest instruction; if that is `ignore`, the bit of the one before."""
        ignored = inputs.gather(1, (positions - 2).clamp(min=0)) == IGNORE
        return inputs.gather(1, torch.where(ignored, (positions - 3).clamp(min=1), positions - 1))

    def state_bits(self, cell: Cell) -> float:
        return 1.0
