"""Flip-flop: one bit, written, ignored and read."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    RESERVED,
    TASKS,
    Batch,
    Cell,
    Solver,
    Task,
    first_true,
    latest_true,
    mode_so_far,
    octave,
    octave_label,
    one_or_many,
)

WRITE, IGNORE, READ = 5, 6, 7


Shares = Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], BeforeValidator(one_or_many)]
"""A parameter that lists parts of a whole."""


@TASKS.register("flip-flop")
class FlipFlop(Task):
    """Name the bit written last at each read instruction, whatever was ignored since.

    The input is a sequence of instructions, write, ignore or read, each followed by a bit. The first instruction is a
    write, the last a read; of the others a part `ignore` is to be ignored and the rest half writes, half reads, exactly
    that many, in random order. Scored is every read: the target is the bit written last, which then follows (the answer
    is shown). Bits after ignore are random. It is one bit of state, so the task tests reach and forgetting, not
    capacity: few instructions to ignore, or many, than trained on show which distances were learned.

    Full size: `flip-flop:length=512,ignore=0.8,extrapolate=[0.98|0.1]`, the length being instructions and bits.

    Source: Liu et al., "Exposing attention glitches with flip-flop language modeling" (arXiv 2306.00946), where
    instructions are drawn one by one. Chance: 1/2.

    Budget: 500 steps at 3e-3 on `flip-flop:ignore=0.8`, with softmax.

    >>> task = FlipFlop(length=16, ignore=(0.5,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'w 0 w 1 i 1 r 1 i 0 w 1 r 1 r 1'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[6, 12, 14]], ['1', '1', '1'])
    """

    load_name = "instructions"

    length: int = Field(default=128, ge=4)
    """Positions in a sequence, T, two an instruction."""
    ignore: Annotated[Shares, Field(min_length=1)] = (0.8,)
    """Parts of the instructions that are ignored, each a cell trained and evaluated."""
    extrapolate: Shares = ()
    """Parts evaluated besides, not trained."""

    @model_validator(mode="after")
    def _check(self) -> "FlipFlop":
        shares = (*self.ignore, *self.extrapolate)
        if self.length % 2:
            raise ValueError(f"length must be even; got {self.length}; try {self.length + 1}")
        if len(set(shares)) != len(shares):
            raise ValueError(f"ignore must differ from each other; got {list(shares)}; drop the repeated one")
        return self

    @property
    def vocabulary(self) -> int:
        return RESERVED + 2

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(share) for share in (*self.ignore, *self.extrapolate))

    def _cell(self, share: float) -> Cell:
        instructions = self.length // 2
        return Cell(
            label=f"ignore={share:g}",
            length=self.length,
            load=instructions,
            scored=1 + round((instructions - 2) * (1 - share) / 2),
            share=1.0 if share in self.ignore else 0.0,
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        count, more = cell.load, cell.scored - 1
        order = random.permutation(keys, "order", count - 2)
        between = torch.where(order < more, READ, torch.where(order < 2 * more, WRITE, IGNORE))
        first, last = (torch.full_like(keys[:, None], token) for token in (WRITE, READ))
        instructions = torch.cat([first, between, last], dim=1)
        drawn = random.integers(keys, "bits", count, 2) + RESERVED
        written = latest_true(instructions == WRITE)
        current = drawn.gather(1, written)
        bits = torch.where(instructions == READ, current, drawn)
        reads = first_true(instructions == READ, cell.scored)
        gaps = 2 * (reads - written.gather(1, reads))
        inputs = torch.stack([instructions, bits], dim=-1).flatten(1)
        return Batch(inputs, 2 * reads, current.gather(1, reads), octave(gaps))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return inputs.gather(1, latest_true(inputs == WRITE).gather(1, positions) + 1)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"latest-bit": self._latest_bit, "most-frequent": self._most_frequent}

    def _latest_bit(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The bit just before, whatever its instruction."""
        return inputs.gather(1, positions - 1)

    def _most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The bit that was more frequent so far."""
        return mode_so_far(inputs, RESERVED, 2).gather(1, positions)

    def state_bits(self, cell: Cell) -> float:
        return 1.0

    def group_label(self, group: int) -> str:
        return octave_label(group)

    def spell(self, token: int) -> str:
        if token >= RESERVED:
            return str(token - RESERVED)
        return {WRITE: "w", IGNORE: "i", READ: "r"}.get(token) or super().spell(token)
