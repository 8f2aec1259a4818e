"""Haystack recall: a few pairs anywhere in noise, then their keys."""

from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_at_most, check_length
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.sampling import (
    block_starts,
    first_match,
    first_true,
    last_positions,
    noise,
    octave,
)
from icl_bench.tasks.vocabulary import NOISE, SEP, Vocabulary


@TASKS.register("haystack-recall")
class HaystackRecall(Diluted):
    """Recall the values of a few pairs that stand anywhere in noise.

    `pairs` keys, each followed by its value, stand at uniform places among noise tokens. After a separator come the
    keys of `queries` pairs in random order; by default all pairs are queried, otherwise the rest are distractors. The
    queried keys are scored: the target is the value, which is not shown. The load is small; the distance varies, and
    accuracy is also reported by the octave of the distance. A window forgets what it cannot reach; an additive memory
    accumulates the noise.

    Full size: `haystack-recall:length=512,pairs=8,extrapolate=[1024|2048|4096|8192|16384]`.

    Source: MAD (Poli et al., arXiv 2403.17844), noisy in-context recall, with every key once and the queries at the
    end. Chance: 1/pairs.

    >>> import torch
    >>> task = HaystackRecall(length=16, pairs=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'n4 k12 v59 n5 n3 n4 n3 k45 v10 n12 n1 n11 n7 | k12 k45'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[14, 15]], ['v59', 'v10'])
    """

    axes = (Axis("length", extrapolated=True), Axis("pairs"))
    load_name = "pairs"
    answer_alphabet = "values"
    budget = TrainingBudget(steps=500, lr=5e-3, params="pairs=2")
    picture = "length=22,pairs=3"
    by_rule = ("look-up-latest", "look-up-first", "look-up-frequent")

    length: IntegerList = (64,)
    """Positions in a sequence, T; every length is combined with every number of pairs."""
    pairs: IntegerList = (2, 4, 8)
    """Numbers of pairs."""
    extrapolate: OptionalIntegers = ()
    """Lengths that are evaluated but not trained."""
    queries: int | None = Field(default=None, ge=1)
    """Number of pairs that are queried; all by default."""
    keys: int = Field(default=64, ge=1)
    """Size of the alphabet of keys."""
    values: int = Field(default=64, ge=2)
    """Size of the alphabet of values; two keys may have the same value."""

    def check(self) -> None:
        check_at_most("queries", self.queries or 0, "pairs", min(self.pairs))
        check_at_most("pairs", max(self.pairs), "keys", self.keys)
        for cell in self.eval_cells:
            needed = 2 * cell.load + 1 + cell.scored
            check_length(cell.length, needed, f"{cell.load} pairs and {cell.scored} queries", "pairs")

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"noise": NOISE, "keys": self.keys, "values": self.values})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=sizes[0], load=sizes[1], scored=self.queries or sizes[1])

    def context_tokens(self, cell: Cell) -> int:
        return cell.length - cell.scored - 1

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        pairs, body = cell.load, cell.length - cell.scored - 1
        key_ids = random.distinct(keys, "keys", pairs, self.keys) + self.words.first("keys")
        values = random.integers(keys, "values", pairs, self.values) + self.words.first("values")
        starts = block_starts(keys, "places", pairs, 2, body)
        asked = random.permutation(keys, "queries", pairs)[:, : cell.scored]
        inputs = noise(keys, cell.length)
        inputs.scatter_(1, starts, key_ids).scatter_(1, starts + 1, values)
        inputs[:, body] = SEP
        inputs[:, body + 1 :] = key_ids.gather(1, asked)
        positions = last_positions(keys, cell.scored, cell.length)
        return Batch(inputs, positions, values.gather(1, asked), octave(positions - starts.gather(1, asked)))

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return inputs.gather(1, first_match(inputs.gather(1, positions), inputs) + 1)

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent value of the context."""
        values = inputs.gather(1, self._value_places(inputs, cell))
        return values.mode(dim=1).values[:, None].expand_as(positions)

    def floor_latest_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value that stands closest to the queries."""
        return inputs.gather(1, self._value_places(inputs, cell)[:, -1:]).expand_as(positions)

    def floor_second_latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value before the one that stands closest to the queries."""
        return inputs.gather(1, self._value_places(inputs, cell)[:, -2:][:, :1]).expand_as(positions)

    def floor_first_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the first value of the context."""
        return inputs.gather(1, self._value_places(inputs, cell)[:, :1]).expand_as(positions)

    def _value_places(self, inputs: Tensor, cell: Cell) -> Tensor:
        """Return the positions of the values of the context: [N, pairs]."""
        return first_true(inputs >= self.words.first("values"), cell.load)
