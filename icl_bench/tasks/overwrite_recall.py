"""Overwrite recall: the latest value of each key."""

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
    Many,
    Solver,
    Task,
    block_starts,
    check_loads,
    noise,
)


@TASKS.register("overwrite-recall")
class OverwriteRecall(Task):
    """Recall the latest value of each key, after some were written again.

    Each of `pairs` keys is written once, as the key and its value, in random order; then come `updates` writes to keys
    drawn uniformly, each with a value that differs from the key's current one. Noise stands between writes. After a
    separator every key is asked once, in random order: the target is its latest value, which is not shown there. The
    state needed does not depend on `updates`: what is lost with them is lost for want of erasing. Groups are the number
    of times that a key was overwritten; group 0 is plain recall.

    Full size: `overwrite-recall:length=512,pairs=32,updates=[16|32|96],keys=4096,values=4096`; beyond it,
    `overwrite-recall:length=640,pairs=32,updates=256,keys=4096,values=4096`.

    Source: zoology, `forgetting_mqar.py` (arXiv 2312.04927), where an update may repeat the current value.
    Chance: 1/pairs; naming one of the key's own values, see the floors `first-value` and `any-of-key`.

    Budget: 1000 steps at 5e-3 on `overwrite-recall:updates=4`, with softmax.

    >>> task = OverwriteRecall(length=16, pairs=(2,), updates=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'n4 k12 v59 n5 n3 n4 k45 v10 k45 v2 k45 v33 n7 | k12 k45'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[14, 15]], ['v59', 'v33'])
    """

    load_name = "updates"

    length: int = Field(default=64, ge=8)
    """Positions in a sequence, T; what writes and queries leave is noise."""
    pairs: Many = (8,)
    """Numbers of keys; with `updates` they span the grid of cells."""
    updates: Many = (4, 8, 16)
    """Numbers of later writes."""
    keys: int = Field(default=64, ge=1)
    """Size of the alphabet of keys."""
    values: int = Field(default=64, ge=2)
    """Size of the alphabet of values."""

    @model_validator(mode="after")
    def _check(self) -> "OverwriteRecall":
        check_loads("pairs", self.pairs)
        check_loads("updates", self.updates)
        if max(self.pairs) > self.keys:
            raise ValueError(
                f"keys must leave a distinct one for each pair; got keys={self.keys} for pairs={max(self.pairs)}; "
                f"raise keys to {max(self.pairs)}"
            )
        least = 3 * max(self.pairs) + 2 * max(self.updates) + 1
        if least > self.length:
            raise ValueError(
                f"length must hold {max(self.pairs)} pairs, {max(self.updates)} updates and the queries; "
                f"got {self.length}; raise length to {least} or lower pairs or updates"
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
        return tuple(
            Cell(label=f"pairs={pairs},updates={updates}", length=self.length, load=updates, scored=pairs)
            for pairs in self.pairs
            for updates in self.updates
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, updates, body = cell.scored, cell.load, cell.length - cell.scored - 1
        key_ids = random.distinct(keys, "keys", pairs, self.keys) + RESERVED + NOISE
        first = random.integers(keys, "values", pairs, self.values)
        touched = random.integers(keys, "touched", updates, pairs)
        # a step of 1..values-1 along the circle of values never leads back to the current one
        steps = 1 + random.integers(keys, "steps", updates, self.values - 1)
        hit = touched[..., None] == torch.arange(pairs, device=keys.device)
        moved = (hit * steps[..., None]).cumsum(dim=1).gather(2, touched[..., None])[..., 0]
        later = (first.gather(1, touched) + moved) % self.values
        latest = (first + (hit * steps[..., None]).sum(dim=1)) % self.values + self.first_value
        starts = block_starts(keys, "places", pairs + updates, 2, body)
        inputs = noise(keys, cell.length)
        inputs.scatter_(1, starts, torch.cat([key_ids, key_ids.gather(1, touched)], dim=1))
        inputs.scatter_(1, starts + 1, torch.cat([first, later], dim=1) + self.first_value)
        asked = random.permutation(keys, "queries", pairs)
        inputs[:, body] = SEP
        inputs[:, body + 1 :] = key_ids.gather(1, asked)
        positions = torch.arange(body + 1, cell.length, device=keys.device).expand(keys.shape[0], -1)
        return Batch(inputs, positions, latest.gather(1, asked), hit.sum(dim=1).gather(1, asked))

    def _writes(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Where the queried keys are written: [N, S, body]."""
        body = inputs[:, None, : cell.length - cell.scored - 1]
        return inputs.gather(1, positions)[:, :, None] == body

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        writes = self._writes(inputs, positions, cell)
        places = torch.arange(writes.shape[-1], device=inputs.device)
        return inputs.gather(1, torch.where(writes, places, -1).amax(dim=-1) + 1)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"first-value": self._first_value, "any-of-key": self._any_of_key}

    def _first_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The value that the key was given first: right where it was not overwritten."""
        return inputs.gather(1, self._writes(inputs, positions, cell).int().argmax(dim=-1) + 1)

    def _any_of_key(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """One of the values that the key was given, chosen by the position of the query."""
        writes = self._writes(inputs, positions, cell)
        choice = 1 + positions % writes.sum(dim=-1)
        picked = writes & (writes.cumsum(dim=-1) == choice[..., None])
        return inputs.gather(1, picked.int().argmax(dim=-1) + 1)

    def state_bits(self, cell: Cell) -> float:
        return cell.scored * math.log2(self.values)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.scored, self.values)

    def group_label(self, group: int) -> str:
        return f"overwritten {group} times"

    def spell(self, token: int) -> str:
        for first, letter in ((self.first_value, "v"), (RESERVED + NOISE, "k"), (RESERVED, "n")):
            if token >= first:
                return f"{letter}{token - first}"
        return super().spell(token)
