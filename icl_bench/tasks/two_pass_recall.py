"""Two-pass recall: associative recall with the context read more than once."""

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


@TASKS.register("two-pass-recall")
class TwoPassRecall(Task):
    """Recall the value that was paired with each queried key, the context being given several times.

    The context, `pairs` keys each followed by its value, is written `passes` times in the same order; then every key is
    asked once, at uniform slots among noise. Scored are the queries: the target is the value. One pass is associative
    recall; a second one costs attention nothing and gains it nothing, while a fixed state may use it to see which keys
    there are before it writes.

    Full size: `two-pass-recall:length=768,pairs=[8|16|32|64|128],keys=4096,values=4096`, with `passes=1` to compare.

    Source: Arora et al., "Just read twice" (arXiv 2407.05483). Chance: 1/pairs.

    Budget: 500 steps at 5e-3 on `two-pass-recall:pairs=4`, with softmax.

    >>> task = TwoPassRecall(length=16, pairs=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'k12 v59 k45 v10 k12 v59 k45 v10 n10 n12 k45 n11 k12 n3 n12 n6'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[12, 10]], ['v59', 'v10'])
    """

    load_name = "pairs"

    length: int = Field(default=64, ge=4)
    """Positions in a sequence, T; even."""
    pairs: Many = (4, 8)
    """Loads, each a cell trained and evaluated."""
    passes: int = Field(default=2, ge=1)
    """How often the context is written."""
    keys: int = Field(default=64, ge=1)
    """Size of the alphabet of keys."""
    values: int = Field(default=64, ge=2)
    """Size of the alphabet of values; two keys may have the same."""

    @model_validator(mode="after")
    def _check(self) -> "TwoPassRecall":
        check_loads("pairs", self.pairs)
        most, share = max(self.pairs), 2 * self.passes + 2
        if self.length % 2:
            raise ValueError(f"length must be even; got {self.length}; try {self.length + 1}")
        if share * most > self.length:
            raise ValueError(
                f"pairs must be at most length / {share} = {self.length // share}, two tokens a pass and two a query; "
                f"got {most}; raise length to {share * most} or lower pairs or passes"
            )
        if most > self.keys:
            raise ValueError(
                f"keys must leave a distinct one for each pair; got keys={self.keys} for pairs={most}; "
                f"raise keys to {most}"
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
        return tuple(Cell(label=f"pairs={pairs}", length=self.length, load=pairs, scored=pairs) for pairs in self.pairs)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, body = cell.load, 2 * cell.load * self.passes
        key_ids = random.distinct(keys, "keys", pairs, self.keys) + RESERVED + NOISE
        values = random.integers(keys, "values", pairs, self.values) + self.first_value
        positions = body + 2 * random.distinct(keys, "slots", pairs, (cell.length - body) // 2)
        inputs = noise(keys, cell.length)
        inputs[:, :body] = torch.stack([key_ids, values], dim=-1).flatten(1).repeat(1, self.passes)
        inputs.scatter_(1, positions, key_ids)
        latest = body - 2 * pairs + 2 * torch.arange(pairs, device=keys.device)
        return Batch(inputs, positions, values, octave(positions - latest))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        context = inputs[:, : 2 * cell.load]
        match = inputs.gather(1, positions)[:, :, None] == context[:, None, 0::2]
        return context[:, 1::2].gather(1, match.int().argmax(dim=-1))

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"any-value": self._any_value, "query-order": self._query_order}

    def _any_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """A value of the context, chosen by the position of the query."""
        return choose(inputs[:, 1 : 2 * cell.load : 2], positions // 2)

    def _query_order(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The value of rank r for the query of rank r."""
        return inputs[:, 1 : 2 * cell.load : 2].gather(1, positions.argsort(dim=-1).argsort(dim=-1))

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
