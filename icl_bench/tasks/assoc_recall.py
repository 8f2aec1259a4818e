"""Associative recall: pairs of key and value, then the keys again."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    NOISE,
    PAD,
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

Variant = Literal["default", "zoology"]
Filler = Literal["noise", "pad", "random"]

PUBLISHED_TRAIN = ((64, 4, 100), (128, 8, 20), (256, 16, 20), (256, 32, 20), (256, 64, 20))
"""Length, pairs, thousands of examples an epoch."""
PUBLISHED_TEST = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
ZOOLOGY_SLOT_POWER = 0.01


@TASKS.register("assoc-recall")
class AssocRecall(Task):
    """Recall the value that was paired with each queried key.

    The context is `pairs` keys, each followed by its value; then every key comes once more, in random order, among
    filler tokens. Scored are the positions of these queries: the target is the value, which is never shown again.
    Queries sit on even offsets after the context, so that the distance from a key to its query varies: copying from a
    fixed distance solves nothing. Without the pairing, the best a model can do is to name a value of the context, right
    once in `pairs`.

    `variant=zoology` is the generator of Arora et al., "Zoology" (arXiv 2312.04927) and "Based" (arXiv 2402.18668), as
    their code has it: keys 1..W/2-1, values W/2..W-1 without replacement, query slots drawn with weights i^-0.99, so
    that keys seen early are queried early, fillers over the whole vocabulary (`filler=random`) or blank (`filler=pad`).
    Without `length` and `pairs` it is their mix: five cells to train on, seven to test. The default variant mends what
    leaks there: slots are uniform, fillers come from an alphabet of their own, values may repeat.

    Source: Zoology, section 3 and `multiquery_ar.py`. Chance: 1/pairs.

    Budget: 500 steps at 5e-3 on `assoc-recall:pairs=4`, with softmax.

    >>> task = AssocRecall(length=12, pairs=(2,), vocab=64)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> [task.spell(token) for token in batch.inputs[0].tolist()]
    ['k12', 'v14', 'k3', 'v2', 'n3', 'n4', 'k3', 'n12', 'k12', 'n12', 'n1', 'n11']
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[8, 6]], ['v14', 'v2'])
    """

    load_name = "pairs"

    variant: Variant = "default"
    """`default`, or `zoology` for the published generator."""
    length: int | None = Field(default=None, ge=4)
    """Positions in a sequence, T; 64 in the default variant, the published mix of lengths in `zoology`."""
    pairs: Many | None = None
    """Loads, each a cell trained and evaluated; 4, 8 and 16 by default, the published mix in `zoology`."""
    vocab: int = Field(default=160, ge=8)
    """Token ids in all; 8192 in `zoology`. Keys and values get half each of what special and noise tokens leave."""
    filler: Filler = "noise"
    """What stands between queries: an alphabet of its own, the padding token, or any token at all."""
    slot_power: float = Field(default=1.0, gt=0)
    """Slot i of the query region is drawn with weight i^(slot_power - 1); 1 is uniform, `zoology` has 0.01."""
    repeat_values: bool = True
    """Whether two keys may have the same value; false in `zoology`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_variant(cls, data: object) -> object:
        """Write out what the variant leaves open, so that equal tasks have equal parameters."""
        if not isinstance(data, dict):
            return data
        given = dict(data)
        if given.get("variant") == "zoology":
            published = {"vocab": 8192, "filler": "random", "slot_power": ZOOLOGY_SLOT_POWER, "repeat_values": False}
            if given.get("length") is not None or given.get("pairs") is not None:
                published |= {"length": 64, "pairs": (4,)}
        else:
            published = {"length": 64, "pairs": (4, 8, 16)}
        return published | {key: value for key, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _check(self) -> "AssocRecall":
        check_loads("pairs", self.pairs or ())
        for cell in (*self.train_cells, *self.eval_cells):
            if cell.length % 2:
                raise ValueError(f"length must be even; got {cell.length}; try {cell.length + 1}")
            if 4 * cell.load > cell.length:
                raise ValueError(
                    f"pairs must be at most length / 4 = {cell.length // 4}, two tokens a pair and two a query; "
                    f"got {cell.load}; raise length to {4 * cell.load} or lower pairs"
                )
            if cell.load > self.keys:
                raise ValueError(
                    f"vocab must leave a distinct key for each pair; got vocab={self.vocab}, which leaves "
                    f"{self.keys} keys for {cell.load} pairs; "
                    f"raise vocab to {self._smallest_vocab(cell.load)} or lower pairs"
                )
            if not self.repeat_values and cell.load > self.values:
                raise ValueError(
                    f"vocab must leave a distinct value for each pair; got vocab={self.vocab}, which leaves "
                    f"{self.values} values for {cell.load} pairs; raise vocab or set repeat_values=true"
                )
        return self

    def _smallest_vocab(self, keys: int) -> int:
        return 2 * keys + 2 if self.variant == "zoology" else RESERVED + NOISE + 2 * keys

    @property
    def first_key(self) -> int:
        """Lowest key id."""
        return 1 if self.variant == "zoology" else RESERVED + NOISE

    @property
    def keys(self) -> int:
        """Number of key ids."""
        return max(0, self.vocab // 2 - 1 if self.variant == "zoology" else (self.vocab - RESERVED - NOISE) // 2)

    @property
    def values(self) -> int:
        """Number of value ids."""
        return self.vocab - self.vocab // 2 if self.variant == "zoology" else self.keys

    @property
    def first_value(self) -> int:
        """Lowest value id."""
        return self.first_key + self.keys

    @property
    def vocabulary(self) -> int:
        return self.vocab

    @property
    def train_cells(self) -> tuple[Cell, ...]:
        if self.pairs is None:
            return tuple(self._cell(length, pairs, share) for length, pairs, share in PUBLISHED_TRAIN)
        return self._own_cells()

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        if self.pairs is None:
            return tuple(self._cell(length, pairs) for length, pairs in PUBLISHED_TEST)
        return self._own_cells()

    def _own_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(self.length or 0, pairs) for pairs in self.pairs or ())

    def _cell(self, length: int, pairs: int, share: float = 1.0) -> Cell:
        label = f"pairs={pairs}" if self.pairs is not None else f"length={length},pairs={pairs}"
        return Cell(label=label, length=length, load=pairs, scored=pairs, share=share)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        pairs = cell.load
        key_ids = random.distinct(keys, "keys", pairs, self.keys) + self.first_key
        if self.repeat_values:
            value_ids = random.integers(keys, "values", pairs, self.values) + self.first_value
        else:
            value_ids = random.distinct(keys, "values", pairs, self.values) + self.first_value
        positions = 2 * pairs + 2 * self._slots(keys, pairs, cell.length // 2 - pairs)
        inputs = self._fillers(keys, cell.length)
        inputs[:, : 2 * pairs] = torch.stack([key_ids, value_ids], dim=-1).flatten(1)
        inputs.scatter_(1, positions, key_ids)
        gaps = positions - 2 * torch.arange(pairs, device=keys.device)
        return Batch(inputs, positions, value_ids, octave(gaps))

    def _slots(self, keys: Tensor, count: int, size: int) -> Tensor:
        """Slots of the queries in the order of the context: [N, count], without replacement, by an exponential race."""
        if self.slot_power == 1.0:
            return random.distinct(keys, "slots", count, size)
        weights = torch.arange(1, size + 1, device=keys.device, dtype=torch.float64).pow(self.slot_power - 1)
        times = -random.uniform(keys, "slots", size).log() / weights
        return random.order(times)[..., :count]

    def _fillers(self, keys: Tensor, length: int) -> Tensor:
        if self.filler == "pad":
            return torch.full((*keys.shape, length), PAD, dtype=torch.int64, device=keys.device)
        if self.filler == "random":
            return random.integers(keys, "fillers", length, self.vocab)
        return noise(keys, length)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        context_keys, context_values = self._context(inputs, cell)
        queries = inputs.gather(1, positions)
        match = queries[:, :, None] == context_keys[:, None, :]
        return context_values.gather(1, match.int().argmax(dim=-1))

    def _context(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        context = inputs[:, : 2 * cell.load]
        return context[:, 0::2], context[:, 1::2]

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"any-value": self._any_value, "query-order": self._query_order}

    def _any_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """A value of the context, chosen by the position of the query: right once in `pairs`."""
        _, values = self._context(inputs, cell)
        return choose(values, positions)

    def _query_order(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The value of rank r for the query of rank r: uses any link between order of keys and of queries."""
        _, values = self._context(inputs, cell)
        return values.gather(1, positions.argsort(dim=-1).argsort(dim=-1))

    def state_bits(self, cell: Cell) -> float:
        return cell.load * math.log2(self.values)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.load, self.values)

    def controls(self, batch: Batch, cell: Cell) -> Mapping[str, Batch]:
        """Values handed on to the next key, other fillers, and keys of the context replaced by a token that is none."""
        blank = PAD if self.variant == "zoology" else RESERVED
        keys, values = slice(0, 2 * cell.load, 2), slice(1, 2 * cell.load, 2)
        rebound, refilled, keyless = (batch.inputs.clone() for _ in range(3))
        rebound[:, values] = rebound[:, values].roll(1, dims=1)
        keyless[:, keys] = blank
        changed = {
            "rebound": batch._replace(inputs=rebound, targets=self.oracle(rebound, batch.positions, cell)),
            "no keys": batch._replace(inputs=keyless),
        }
        if self.filler == "noise":
            noisy = (refilled >= RESERVED) & (refilled < self.first_key)
            other = (refilled - RESERVED + 1) % NOISE + RESERVED
            changed["refilled"] = batch._replace(inputs=torch.where(noisy, other, refilled))
        return changed

    def group_label(self, group: int) -> str:
        return octave_label(group)

    def spell(self, token: int) -> str:
        if token >= self.first_value:
            return f"v{token - self.first_value}"
        if token >= self.first_key:
            return f"k{token - self.first_key}"
        return f"n{token - RESERVED}" if token >= RESERVED else super().spell(token)
