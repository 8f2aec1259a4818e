"""Two-pass recall: associative recall with the context read more than once."""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most, check_length, check_multiple
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.sampling import first_match, noise, octave
from icl_bench.tasks.vocabulary import NOISE, Vocabulary


@TASKS.register("two-pass-recall")
class TwoPassRecall(Diluted):
    """Recall the value that was paired with each queried key, when the context is given several times.

    The context, `pairs` keys each followed by its value, is written `passes` times in the same order. Then every key is
    queried once, at uniform slots among noise. The queries are scored: the target is the value. One pass is associative
    recall. A second pass gains nothing for attention, but a fixed state may use it to know which keys occur before it
    writes.

    Full size: `two-pass-recall:length=768,pairs=[8|16|32|64|128],keys=4096,values=4096`, with `passes=1` to compare.

    Source: Arora et al., "Just read twice" (arXiv 2407.05483). Chance: 1/pairs.

    >>> task = TwoPassRecall(length=16, pairs=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'k12 v59 k45 v10 k12 v59 k45 v10 n10 n12 k45 n11 k12 n3 n12 n6'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[12, 10]], ['v59', 'v10'])
    """

    axes = (Axis("pairs"),)
    load_name = "pairs"
    answer_alphabet = "values"
    budget = TrainingBudget(steps=500, lr=5e-3, params="pairs=4")
    picture = "length=20,pairs=3"
    by_rule = ("look-up-latest", "look-up-first", "look-up-frequent")

    length: int = Field(default=64, ge=4)
    """Positions in a sequence, T; even."""
    pairs: IntegerList = (4, 8)
    """Numbers of pairs, each a cell that is trained and evaluated."""
    passes: int = Field(default=2, ge=1)
    """Number of times that the context is written."""
    keys: int = Field(default=64, ge=1)
    """Size of the alphabet of keys."""
    values: int = Field(default=64, ge=2)
    """Size of the alphabet of values; two keys may have the same value."""

    def check(self) -> None:
        most = max(self.pairs)
        check_multiple("length", self.length, 2)
        contents = f"{self.passes} times {most} pairs, and queries of two tokens each"
        check_length(self.length, (2 * self.passes + 2) * most, contents, "pairs or passes")
        check_at_most("pairs", most, "keys", self.keys)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"noise": NOISE, "keys": self.keys, "values": self.values})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=self.length, load=sizes[0], scored=sizes[0])

    def context_tokens(self, cell: Cell) -> int:
        return 2 * cell.load * self.passes

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, body = cell.load, 2 * cell.load * self.passes
        key_ids = random.distinct(keys, "keys", pairs, self.keys) + self.words.first("keys")
        values = random.integers(keys, "values", pairs, self.values) + self.words.first("values")
        positions = body + 2 * random.distinct(keys, "slots", pairs, (cell.length - body) // 2)
        inputs = noise(keys, cell.length)
        inputs[:, :body] = torch.stack([key_ids, values], dim=-1).flatten(1).repeat(1, self.passes)
        inputs.scatter_(1, positions, key_ids)
        latest = body - 2 * pairs + 2 * torch.arange(pairs, device=keys.device)
        return Batch(inputs, positions, values, octave(positions - latest))

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        context = inputs[:, : 2 * cell.load]
        return context[:, 1::2].gather(1, first_match(inputs.gather(1, positions), context[:, 0::2]))

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent value of the context."""
        return inputs[:, 1 : 2 * cell.load : 2].mode(dim=1).values[:, None].expand_as(positions)

    def floor_latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the last value of the context."""
        return inputs[:, 2 * cell.load - 1, None].expand_as(positions)

    def floor_first(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the first value of the context."""
        return inputs[:, 1:2].expand_as(positions)

    def floor_query_order(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the r-th value for the r-th query."""
        return inputs[:, 1 : 2 * cell.load : 2].gather(1, positions.argsort(dim=-1).argsort(dim=-1))
