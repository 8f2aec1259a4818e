"""Compositional recall: values that two keys name together."""

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    NOISE,
    RESERVED,
    TASKS,
    Answers,
    Batch,
    Cell,
    Many,
    Solver,
    Task,
    check_loads,
    choose,
    noise,
    octave,
    octave_label,
)


@TASKS.register("compositional-recall")
class CompositionalRecall(Task):
    """Recall the value that was given to a pair of keys, each of which occurs in other pairs too.

    The context is a grid: √pairs first keys and √pairs second keys, and a value for each of the `pairs` combinations,
    written as triplets `first second value` in random order. Then every combination is asked once, in random order, in
    slots of three tokens filled up with noise. Scored is the second key of a query: the target is the value, which is
    not shown. Either key alone leaves √pairs values to choose from, the floors `first-key` and `second-key`. A memory
    that adds up similarities gives these half matches weight (1/2)^p under the kernel (q·k)^p, which makes the task a
    probe of the power.

    Full size: `compositional-recall:length=1296,pairs=[16|36|64|144],keys=512,values=512`; beyond it,
    `compositional-recall:length=5184,pairs=[256|576],keys=512,values=512`.

    Source: zoology, `compositional_ar.py` (arXiv 2312.04927), with query slots uniform. Chance: 1/√pairs.

    Budget: 500 steps at 5e-3 on `compositional-recall:pairs=4`, with softmax.

    >>> task = CompositionalRecall(length=24, pairs=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'a0 b40 v59 a12 b56 v10 a0 b56 v23 a12 b40 v63 a12 b40 n12 a12 b56 n7 a0 b40 n5 a0 b56 n6'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[19, 16, 22, 13]], ['v59', 'v10', 'v23', 'v63'])
    """

    load_name = "pairs"

    length: int = Field(default=66, ge=24)
    """Positions in a sequence, T, a multiple of three."""
    pairs: Many = (4, 9)
    """Loads, square numbers, each a cell trained and evaluated."""
    keys: int = Field(default=64, ge=2)
    """Size of the alphabet of first keys, and of that of second keys."""
    values: int = Field(default=64, ge=2)
    """Size of the alphabet of values; two combinations may have the same."""

    @model_validator(mode="after")
    def _check(self) -> "CompositionalRecall":
        check_loads("pairs", self.pairs, lowest=4)
        if self.length % 3:
            raise ValueError(f"length must be a multiple of 3; got {self.length}; try {self.length + -self.length % 3}")
        for pairs in self.pairs:
            side = math.isqrt(pairs)
            if side * side != pairs:
                raise ValueError(f"pairs must be square numbers; got {pairs}; try {side**2} or {(side + 1) ** 2}")
            if 6 * pairs > self.length:
                raise ValueError(
                    f"pairs must be at most length / 6 = {self.length // 6}, three tokens each in context and query; "
                    f"got {pairs}; raise length to {6 * pairs} or lower pairs"
                )
            if side > self.keys:
                raise ValueError(
                    f"keys must leave √pairs distinct ones; got keys={self.keys} for pairs={pairs}; "
                    f"raise keys to {side}"
                )
        return self

    @property
    def first_value(self) -> int:
        """Lowest value id; below come the second keys, below those the first keys."""
        return RESERVED + NOISE + 2 * self.keys

    @property
    def vocabulary(self) -> int:
        return self.first_value + self.values

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(Cell(label=f"pairs={pairs}", length=self.length, load=pairs, scored=pairs) for pairs in self.pairs)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, side = cell.load, math.isqrt(cell.load)
        place = random.permutation(keys, "order", pairs)
        firsts = random.distinct(keys, "firsts", side, self.keys).gather(1, place // side) + RESERVED + NOISE
        seconds = random.distinct(keys, "seconds", side, self.keys).gather(1, place % side)
        seconds = seconds + RESERVED + NOISE + self.keys
        values = random.integers(keys, "values", pairs, self.values) + self.first_value
        slots = random.distinct(keys, "slots", pairs, cell.length // 3 - pairs)
        positions = 3 * (pairs + slots) + 1
        inputs = noise(keys, cell.length)
        inputs[:, : 3 * pairs] = torch.stack([firsts, seconds, values], dim=-1).flatten(1)
        inputs.scatter_(1, positions - 1, firsts).scatter_(1, positions, seconds)
        gaps = positions - 3 * torch.arange(pairs, device=keys.device) - 1
        return Batch(inputs, positions, values, octave(gaps))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        match = self._matches(inputs, positions, cell, 0) & self._matches(inputs, positions, cell, 1)
        return self._values(inputs, cell).gather(1, match.int().argmax(dim=-1))

    def _matches(self, inputs: Tensor, positions: Tensor, cell: Cell, part: int) -> Tensor:
        """Which triplets have the queried first (part 0) or second key (part 1): [N, S, pairs]."""
        queried = inputs.gather(1, positions - 1 + part)
        return queried[:, :, None] == inputs[:, None, part : 3 * cell.load : 3]

    def _values(self, inputs: Tensor, cell: Cell) -> Tensor:
        return inputs[:, 2 : 3 * cell.load : 3]

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"any-value": self._any_value, "first-key": self._first_key, "second-key": self._second_key}

    def _any_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """A value of the context, chosen by the position of the query."""
        return choose(self._values(inputs, cell), positions)

    def _first_key(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The first value given to the queried first key."""
        match = self._matches(inputs, positions, cell, 0)
        return self._values(inputs, cell).gather(1, match.int().argmax(dim=-1))

    def _second_key(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The first value given to the queried second key."""
        match = self._matches(inputs, positions, cell, 1)
        return self._values(inputs, cell).gather(1, match.int().argmax(dim=-1))

    def state_bits(self, cell: Cell) -> float:
        return cell.load * math.log2(self.values)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.load, self.values)

    def group_label(self, group: int) -> str:
        return octave_label(group)

    def spell(self, token: int) -> str:
        if token >= self.first_value:
            return f"v{token - self.first_value}"
        key = token - RESERVED - NOISE
        if key >= 0:
            return f"a{key}" if key < self.keys else f"b{key - self.keys}"
        return f"n{token - RESERVED}" if token >= RESERVED else super().spell(token)
