"""Overwrite recall: the latest value of each key."""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, ContextContents, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most, check_length
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.sampling import block_starts, last_positions, latest_true, noise
from icl_bench.tasks.vocabulary import NOISE, SEP, Vocabulary


@TASKS.register("overwrite-recall")
class OverwriteRecall(Diluted):
    """Recall the latest value of each key after some keys were written again.

    A write is a key followed by its value. First each of `pairs` keys is written once, in random order; then come
    `updates` writes to keys drawn uniformly, each with a value other than the current one of the key. Noise stands
    between writes. After a separator every key is queried once, in random order: the target is its latest value, which
    is not shown. The required state does not depend on `updates`, so accuracy that is lost with more updates is lost
    because old values are not erased. Groups are the number of times that a key was overwritten; group 0 is plain
    recall.

    Full size: `overwrite-recall:length=512,pairs=32,updates=[16|32|96],keys=4096,values=4096`; beyond it,
    `overwrite-recall:length=640,pairs=32,updates=256,keys=4096,values=4096`.

    Source: zoology, `forgetting_mqar.py` (arXiv 2312.04927), where an update may repeat the current value.
    Chance: 1/pairs; the floors `first-value` and `any-of-key` name one of the key's own values.

    >>> task = OverwriteRecall(length=16, pairs=(2,), updates=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'n4 k12 v59 n5 n3 n4 k45 v10 k45 v2 k45 v33 n7 | k12 k45'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[14, 15]], ['v59', 'v33'])
    """

    axes = (Axis("pairs"), Axis("updates"))
    load_name = "updates"
    budget = TrainingBudget(steps=1000, lr=5e-3, params="updates=4")
    picture = "length=24,pairs=3,updates=4"
    by_rule = ("look-up-latest",)

    length: int = Field(default=64, ge=8)
    """Positions in a sequence, T; noise fills those that writes and queries leave."""
    pairs: IntegerList = (8,)
    """Numbers of keys; each is combined with every number of updates."""
    updates: IntegerList = (4, 8, 16)
    """Numbers of writes after the first one of each key."""
    keys: int = Field(default=64, ge=1)
    """Size of the alphabet of keys."""
    values: int = Field(default=64, ge=2)
    """Size of the alphabet of values."""

    def check(self) -> None:
        pairs, updates = max(self.pairs), max(self.updates)
        check_at_most("pairs", pairs, "keys", self.keys)
        contents = f"{pairs} pairs, {updates} updates and the queries"
        check_length(self.length, 3 * pairs + 2 * updates + 1, contents, "pairs or updates")

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"noise": NOISE, "keys": self.keys, "values": self.values})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=self.length, load=sizes[1], scored=sizes[0])

    def context_tokens(self, cell: Cell) -> int:
        return cell.length - cell.scored - 1

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, updates, body = cell.scored, cell.load, cell.length - cell.scored - 1
        key_ids = random.distinct(keys, "keys", pairs, self.keys) + self.words.first("keys")
        first = random.integers(keys, "values", pairs, self.values)
        touched = random.integers(keys, "touched", updates, pairs)
        # a step of 1..values-1 along the circle of values never leads back to the current one
        steps = 1 + random.integers(keys, "steps", updates, self.values - 1)
        hit = touched[..., None] == torch.arange(pairs, device=keys.device)
        moved = (hit * steps[..., None]).cumsum(dim=1).gather(2, touched[..., None])[..., 0]
        later = (first.gather(1, touched) + moved) % self.values
        latest = (first + (hit * steps[..., None]).sum(dim=1)) % self.values + self.words.first("values")
        starts = block_starts(keys, "places", pairs + updates, 2, body)
        inputs = noise(keys, cell.length)
        inputs.scatter_(1, starts, torch.cat([key_ids, key_ids.gather(1, touched)], dim=1))
        inputs.scatter_(1, starts + 1, torch.cat([first, later], dim=1) + self.words.first("values"))
        asked = random.permutation(keys, "queries", pairs)
        inputs[:, body] = SEP
        inputs[:, body + 1 :] = key_ids.gather(1, asked)
        positions = last_positions(keys, cell.scored, cell.length)
        return Batch(inputs, positions, latest.gather(1, asked), hit.sum(dim=1).gather(1, asked))

    def _writes(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Mark the positions at which each queried key is written: [N, S, body]."""
        return inputs.gather(1, positions)[:, :, None] == inputs[:, None, : cell.length - cell.scored - 1]

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        writes = self._writes(inputs, positions, cell)
        places = torch.arange(writes.shape[-1], device=inputs.device)
        return inputs.gather(1, torch.where(writes, places, -1).amax(dim=-1) + 1)

    def floor_first_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the first value of the key, which is right if the key was not overwritten."""
        return inputs.gather(1, self._writes(inputs, positions, cell).int().argmax(dim=-1) + 1)

    def floor_any_of_key(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name one of the values that the key was given, picked by the position of the query."""
        writes = self._writes(inputs, positions, cell)
        choice = 1 + positions % writes.sum(dim=-1)
        picked = writes & (writes.cumsum(dim=-1) == choice[..., None])
        return inputs.gather(1, picked.int().argmax(dim=-1) + 1)

    def floor_latest_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value that was written last, whatever its key."""
        body = inputs[:, : cell.length - cell.scored - 1]
        latest = latest_true(body >= self.words.first("values"))[:, -1:]
        return inputs.gather(1, latest).expand_as(positions)

    def contents(self, cell: Cell) -> ContextContents:
        return ContextContents(cell.scored, self.values)

    def group_label(self, group: int) -> str:
        return f"overwritten {group} times"
