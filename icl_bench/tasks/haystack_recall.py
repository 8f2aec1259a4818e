"""Haystack recall: a few pairs anywhere in noise, then their keys."""

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    NOISE,
    RESERVED,
    SEP,
    TASKS,
    Answers,
    Batch,
    Cell,
    Extra,
    Many,
    Solver,
    Task,
    block_starts,
    check_loads,
    choose,
    first_true,
    noise,
    octave,
    octave_label,
)


@TASKS.register("haystack-recall")
class HaystackRecall(Task):
    """Recall values of a few pairs that lie anywhere in noise.

    `pairs` keys, each followed by its value, stand at uniform places among noise tokens; after a separator come the
    keys of `queries` pairs in random order, all by default, the others being there to distract. Scored are these keys:
    the target is the value, which is not shown. The load is small and the distance is what varies: a window forgets
    what it cannot reach, an additive memory collects the noise. Accuracy is tagged by the octave of the distance.

    Full size: `haystack-recall:length=512,pairs=8,extrapolate=[1024|2048|4096|8192|16384]`.

    Source: MAD (Poli et al., arXiv 2403.17844), noisy in-context recall, with each key once and queries at the end.
    Chance: 1/pairs.

    Budget: 500 steps at 5e-3 on `haystack-recall:pairs=2`, with softmax.

    >>> task = HaystackRecall(length=16, pairs=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'n4 k12 v59 n5 n3 n4 n3 k45 v10 n12 n1 n11 n7 | k12 k45'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[14, 15]], ['v59', 'v10'])
    """

    load_name = "pairs"

    length: Many = (64,)
    """Positions in a sequence, T; with `pairs` they span the grid of cells."""
    pairs: Many = (2, 4, 8)
    """Loads."""
    extrapolate: Extra = ()
    """Lengths evaluated besides, not trained."""
    queries: int | None = Field(default=None, ge=1)
    """Pairs that are asked; all by default."""
    keys: int = Field(default=64, ge=1)
    """Size of the alphabet of keys."""
    values: int = Field(default=64, ge=2)
    """Size of the alphabet of values; two keys may have the same."""

    @model_validator(mode="after")
    def _check(self) -> "HaystackRecall":
        check_loads("length", (*self.length, *self.extrapolate))
        check_loads("pairs", self.pairs)
        if self.queries is not None and self.queries > min(self.pairs):
            raise ValueError(
                f"queries must be at most pairs; got queries={self.queries} for pairs={min(self.pairs)}; lower queries"
            )
        if max(self.pairs) > self.keys:
            raise ValueError(
                f"keys must leave a distinct one for each pair; got keys={self.keys} for pairs={max(self.pairs)}; "
                f"raise keys to {max(self.pairs)}"
            )
        for cell in self.eval_cells:
            if 2 * cell.load + 1 + cell.scored > cell.length:
                raise ValueError(
                    f"length must hold {cell.load} pairs and {cell.scored} queries; got {cell.length}; "
                    f"raise length to {2 * cell.load + 1 + cell.scored} or lower pairs"
                )
        return self

    @property
    def first_value(self) -> int:
        """Lowest value id; keys come before."""
        return RESERVED + NOISE + self.keys

    @property
    def vocabulary(self) -> int:
        return self.first_value + self.values

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        lengths = (*self.length, *self.extrapolate)
        return tuple(self._cell(length, pairs) for length in lengths for pairs in self.pairs)

    def _cell(self, length: int, pairs: int) -> Cell:
        share = 1.0 if length in self.length else 0.0
        label = f"length={length},pairs={pairs}"
        return Cell(label=label, length=length, load=pairs, scored=self.queries or pairs, share=share)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, body = cell.load, cell.length - cell.scored - 1
        key_ids = random.distinct(keys, "keys", pairs, self.keys) + RESERVED + NOISE
        values = random.integers(keys, "values", pairs, self.values) + self.first_value
        starts = block_starts(keys, "places", pairs, 2, body)
        asked = random.permutation(keys, "queries", pairs)[:, : cell.scored]
        inputs = noise(keys, cell.length)
        inputs.scatter_(1, starts, key_ids).scatter_(1, starts + 1, values)
        inputs[:, body] = SEP
        inputs[:, body + 1 :] = key_ids.gather(1, asked)
        positions = torch.arange(body + 1, cell.length, device=keys.device).expand(keys.shape[0], -1)
        return Batch(inputs, positions, values.gather(1, asked), octave(positions - starts.gather(1, asked)))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        match = inputs.gather(1, positions)[:, :, None] == inputs[:, None]
        return inputs.gather(1, match.int().argmax(dim=-1) + 1)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"any-value": self._any_value, "latest-value": self._latest_value}

    def _any_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """A value of the context, chosen by the position of the query."""
        return inputs.gather(1, choose(first_true(inputs >= self.first_value, cell.load), positions))

    def _latest_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The value nearest to the queries."""
        places = first_true(inputs >= self.first_value, cell.load)
        return inputs.gather(1, places[:, -1:]).expand_as(positions)

    def state_bits(self, cell: Cell) -> float:
        return cell.load * math.log2(self.values)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.load, self.values)

    def group_label(self, group: int) -> str:
        return octave_label(group)

    def spell(self, token: int) -> str:
        for first, letter in ((self.first_value, "v"), (RESERVED + NOISE, "k"), (RESERVED, "n")):
            if token >= first:
                return f"{letter}{token - first}"
        return super().spell(token)
