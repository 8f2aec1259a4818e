"""Compositional recall: values that two keys name together."""

import math

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most, check_length, check_multiple
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.sampling import most_frequent, noise, octave
from icl_bench.tasks.vocabulary import NOISE, Vocabulary


@TASKS.register("compositional-recall")
class CompositionalRecall(Diluted):
    """Recall the value of a combination of two keys, each of which also occurs in other combinations.

    The context is a grid of √pairs first keys and √pairs second keys. Each of the `pairs` combinations has a value and
    is written as a triplet `first second value`; the triplets are in random order. Then every combination is queried
    once, in random order, in slots of three tokens that noise fills up. The second key of a query is scored: the
    target is the value of the combination, which is not shown. Either key alone leaves √pairs values to choose from,
    as the floors `first-key` and `second-key` show. A memory that adds up similarities gives such half matches the
    weight (1/2)^p under the kernel (q·k)^p, so the task is a probe of the power p.

    Full size: `compositional-recall:length=1296,pairs=[16|36|64|144],keys=512,values=512`; beyond it,
    `compositional-recall:length=5184,pairs=[256|576],keys=512,values=512`.

    Source: zoology, `compositional_ar.py` (arXiv 2312.04927), but with uniform query slots. Chance: 1/√pairs.

    >>> task = CompositionalRecall(length=24, pairs=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'a0 b40 v59 a12 b56 v10 a0 b56 v23 a12 b40 v63 a12 b40 n12 a12 b56 n7 a0 b40 n5 a0 b56 n6'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[19, 16, 22, 13]], ['v59', 'v10', 'v23', 'v63'])
    """

    axes = (Axis("pairs", lowest=4),)
    load_name = "pairs"
    answer_alphabet = "values"
    budget = TrainingBudget(steps=500, lr=5e-3, params="pairs=4")
    picture = "length=24,pairs=4"

    length: int = Field(default=66, ge=24)
    """Positions in a sequence, T; a multiple of three."""
    pairs: IntegerList = (4, 9)
    """Numbers of combinations, squares, each a cell that is trained and evaluated."""
    keys: int = Field(default=64, ge=2)
    """Size of the alphabet of first keys, and of that of second keys."""
    values: int = Field(default=64, ge=2)
    """Size of the alphabet of values; two combinations may have the same value."""

    def check(self) -> None:
        check_multiple("length", self.length, 3)
        for pairs in self.pairs:
            side = math.isqrt(pairs)
            if side * side != pairs:
                raise ValueError(f"pairs must be square numbers; got {pairs}; try {side**2} or {(side + 1) ** 2}")
            check_length(self.length, 6 * pairs, f"{pairs} pairs and queries of three tokens each", "pairs")
            check_at_most("√pairs", side, "keys", self.keys)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"noise": NOISE, "a": self.keys, "b": self.keys, "values": self.values})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=self.length, load=sizes[0], scored=sizes[0])

    def context_tokens(self, cell: Cell) -> int:
        return 3 * cell.load

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, side, words = cell.load, math.isqrt(cell.load), self.words
        place = random.permutation(keys, "order", pairs)
        firsts = random.distinct(keys, "firsts", side, self.keys).gather(1, place // side) + words.first("a")
        seconds = random.distinct(keys, "seconds", side, self.keys).gather(1, place % side) + words.first("b")
        values = random.integers(keys, "values", pairs, self.values) + words.first("values")
        slots = random.distinct(keys, "slots", pairs, cell.length // 3 - pairs)
        positions = 3 * (pairs + slots) + 1
        inputs = noise(keys, cell.length)
        inputs[:, : 3 * pairs] = torch.stack([firsts, seconds, values], dim=-1).flatten(1)
        inputs.scatter_(1, positions - 1, firsts).scatter_(1, positions, seconds)
        return Batch(inputs, positions, values, octave(positions - 1 - 3 * torch.arange(pairs, device=keys.device)))

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        match = self._matches(inputs, positions, cell, 0) & self._matches(inputs, positions, cell, 1)
        return self._values(inputs, cell).gather(1, match.int().argmax(dim=-1))

    def _matches(self, inputs: Tensor, positions: Tensor, cell: Cell, part: int) -> Tensor:
        """Mark the triplets that have the first key (part 0) or second key (part 1) of each query: [N, S, pairs]."""
        queried = inputs.gather(1, positions - 1 + part)
        return queried[:, :, None] == inputs[:, None, part : 3 * cell.load : 3]

    def _values(self, inputs: Tensor, cell: Cell) -> Tensor:
        return inputs[:, 2 : 3 * cell.load : 3]

    def floor_first_key(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent value in the context that goes with the first key of the query."""
        return most_frequent(self._values(inputs, cell), self._matches(inputs, positions, cell, 0))

    def floor_second_key(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent value in the context that goes with the second key of the query."""
        return most_frequent(self._values(inputs, cell), self._matches(inputs, positions, cell, 1))

    def floor_latest_of_second_key(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the latest value in the context that goes with the second key of the query."""
        match = self._matches(inputs, positions, cell, 1)
        latest = torch.where(match, torch.arange(cell.load, device=inputs.device), -1).amax(dim=-1)
        return self._values(inputs, cell).gather(1, latest)

    def floor_latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the last value of the context."""
        return self._values(inputs, cell)[:, -1:].expand_as(positions)
