"""Associative recall: pairs of key and value, then the keys again."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.kernels.fleet.random_bits import stable_order
from icl_bench.schema import format_value, later
from icl_bench.tasks.base import TASKS, Batch, ContextContents, TrainingBudget
from icl_bench.tasks.cells import (
    Axis,
    Cell,
    ExampleShape,
    IntegerList,
    OptionalIntegers,
    check_length,
    check_multiple,
)
from icl_bench.tasks.dilution import Diluted, undiluted_cell
from icl_bench.tasks.sampling import first_match, noise, octave
from icl_bench.tasks.vocabulary import NOISE, PAD, QUERY, RESERVED, Vocabulary

Variant = Literal["default", "zoology"]
Filler = Literal["noise", "pad", "random"]

PUBLISHED_TRAIN = ((64, 4, 100), (128, 8, 20), (256, 16, 20), (256, 32, 20), (256, 64, 20))
"""Length, pairs, and thousands of examples in an epoch."""
PUBLISHED_TEST = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
"""Length and pairs."""
ZOOLOGY_SLOT_POWER = 0.01
SLOT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}


@TASKS.register("assoc-recall")
class AssocRecall(Diluted):
    """Recall the value that was paired with each queried key.

    The context is `pairs` different keys, each followed by its value. After the context every key appears once more,
    in random order, among filler tokens; these positions are the queries. The queries are scored: the target is the
    value of the key, which is not shown again. Queries stand at even distances behind the context, and the distance
    from a key to its query varies, so copying from a fixed distance does not help. A model that ignores the pairing can
    at best name the most frequent value of the context, which is right more than once in `pairs`, as values may repeat.

    `variant=zoology` is the generator of Arora et al., "Zoology" (arXiv 2312.04927) and "Based" (arXiv 2402.18668), as
    in their code: keys are the tokens 1..vocab/2-1; values are drawn from vocab/2..vocab-1 without replacement; query
    slot i has the weight i^-0.99, so keys seen early are also queried early; fillers come from the whole vocabulary
    (`filler=random`) or are padding (`filler=pad`). Without `length` and `pairs`, this variant takes the published mix
    of five cells to train on and seven to test. The default variant removes the leaks of that generator: slots are
    uniform, fillers have an alphabet of their own, and values may repeat.

    With `readout=deferred` the answer is due at a mark `?` that stands `gap` tokens after the query, so that the value
    must be fetched by the token before, a second step. With `dilute=m` every token of the pairs is followed by m noise
    tokens: the bits stay, the distances grow, and a window loses what lies beyond its reach. With `lengthen=true` the
    loads in `extrapolate`, which are not trained, have sequences that grow with their pairs.

    Source: Zoology, section 3 and `multiquery_ar.py`; deferred, FactWorld, recall_copy_v1. Chance: 1/pairs.

    >>> task = AssocRecall(length=12, pairs=(2,), vocab=64)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> [task.spell(token) for token in batch.inputs[0].tolist()]
    ['k12', 'v14', 'k3', 'v2', 'n3', 'n4', 'k3', 'n12', 'k12', 'n12', 'n1', 'n11']
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[8, 6]], ['v14', 'v2'])
    """

    axes = (Axis("pairs", extrapolated=True),)
    load_name = "pairs"
    answer_alphabet = "values"
    budget = TrainingBudget(steps=500, lr=5e-3, params="pairs=4")
    picture = "length=20,pairs=4,vocab=64"
    by_rule = ("look-up-latest", "look-up-first", "look-up-frequent")

    variant: Variant = "default"
    """Generator: `default`, or `zoology` for the published one."""
    length: int | None = Field(default=None, ge=4)
    """Positions in a sequence, T; 64 in the default variant, the published mix of lengths in `zoology`."""
    pairs: IntegerList | None = None
    """Numbers of pairs, each a cell that is trained and evaluated; 4, 8 and 16, or the published mix in `zoology`."""
    extrapolate: OptionalIntegers = later(())
    """Numbers of pairs that are evaluated but not trained."""
    lengthen: bool = later(False)
    """Lengthen the sequences of larger loads in `extrapolate`, so that each pair has as many tokens as in training."""
    vocab: int = Field(default=160, ge=8)
    """Number of token ids; 8192 in `zoology`. Keys and values share equally what special and noise tokens leave."""
    filler: Filler = "noise"
    """Tokens between queries: an alphabet of their own, the padding token, or any token of the vocabulary."""
    slot_power: float = Field(default=1.0, gt=0)
    """Weight of slot i among the query slots is i^(slot_power - 1): 1 is uniform; `zoology` has 0.01."""
    repeat_values: bool = True
    """Allow two keys to have the same value; false in `zoology`."""
    readout: Literal["immediate", "deferred"] = later("immediate")
    """Position of the answer: at the query, or `deferred` to a mark `?` after it."""
    gap: int = later(1, ge=1, le=4)
    """Tokens from a query to its mark, where the answer is deferred."""

    @model_validator(mode="before")
    @classmethod
    def _fill_variant(cls, data: object) -> object:
        """Write out the defaults of the variant, so that equal tasks have equal parameters."""
        if not isinstance(data, dict):
            return data
        if data.get("variant") == "zoology":
            published = {"vocab": 8192, "filler": "random", "slot_power": ZOOLOGY_SLOT_POWER, "repeat_values": False}
            if data.get("length") is not None or data.get("pairs") is not None:
                published |= {"length": 64, "pairs": (4,)}
        else:
            published = {"length": 64, "pairs": (4, 8, 16)}
        return published | {key: value for key, value in data.items() if value is not None}

    def check(self) -> None:
        if self.variant == "zoology" and (self.dilute or self.readout == "deferred"):
            raise ValueError(
                "dilute and readout belong to the default variant, whose fillers are no keys; got variant=zoology; "
                "leave them or the variant out"
            )
        if self.extrapolate and self.pairs is None:
            raise ValueError(
                f"extrapolate adds loads to those in pairs; got extrapolate={format_value(self.extrapolate)} without "
                "pairs; give pairs, or leave extrapolate out"
            )
        if self.lengthen and not self.extrapolate:
            raise ValueError("lengthen is for loads that are not trained; got none; give extrapolate, or leave it out")
        if self.readout == "immediate" and self.gap > 1:
            raise ValueError(f"gap belongs to readout=deferred; got gap={self.gap}; add readout=deferred")
        for cell in (*self.train_cells, *self.eval_cells):
            check_multiple("length", cell.length, 2)
            dense, needed = undiluted_cell(self, cell), (2 + self._slot) * cell.load
            contents = f"{cell.load} pairs and queries of {SLOT_WORDS[self._slot]} tokens each"
            check_length(dense.length, needed, contents, "pairs")
            if cell.load > self.keys:
                least = 2 * cell.load + (2 if self.variant == "zoology" else RESERVED + NOISE)
                raise ValueError(
                    f"vocab must leave a key and a value for each pair; got vocab={self.vocab}, which leaves "
                    f"{self.keys} keys for {cell.load} pairs; raise vocab to {least} or lower pairs"
                )

    @property
    def keys(self) -> int:
        """Number of key ids."""
        return max(0, self.vocab // 2 - 1 if self.variant == "zoology" else (self.vocab - RESERVED - NOISE) // 2)

    @property
    def values(self) -> int:
        """Number of value ids."""
        return self.vocab - self.vocab // 2 if self.variant == "zoology" else self.keys

    @property
    def words(self) -> Vocabulary:
        if self.variant == "zoology":
            return Vocabulary({"keys": self.keys, "values": self.values}, start=1)
        # where `vocab` is odd, one token id is left over, which no value takes
        rest = self.vocab - RESERVED - NOISE - self.keys
        return Vocabulary({"noise": NOISE, "keys": self.keys, "values": rest})

    @property
    def train_cells(self) -> tuple[Cell, ...]:
        return super().train_cells if self.pairs is not None else tuple(published_cell(*one) for one in PUBLISHED_TRAIN)

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return super().eval_cells if self.pairs is not None else tuple(published_cell(*one) for one in PUBLISHED_TEST)

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        load, trained = sizes[0], max(self.pairs or (1,))
        longer = self.lengthen and load > trained
        length = self.length or 0
        # the next even number of tokens, as a key and its value are two
        return ExampleShape(2 * -(-length * load // (2 * trained)) if longer else length, load, scored=load)

    def context_tokens(self, cell: Cell) -> int:
        return 2 * cell.load

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        pairs = cell.load
        key_ids = random.distinct(keys, "keys", pairs, self.keys) + self.words.first("keys")
        draw = random.integers if self.repeat_values else random.distinct
        value_ids = draw(keys, "values", pairs, self.values) + self.words.first("values")
        queries = 2 * pairs + self._slot * self._slots(keys, pairs, (cell.length - 2 * pairs) // self._slot)
        inputs = self._fillers(keys, cell.length)
        inputs[:, : 2 * pairs] = torch.stack([key_ids, value_ids], dim=-1).flatten(1)
        inputs.scatter_(1, queries, key_ids)
        positions = queries + self._delay
        if self._delay:
            inputs.scatter_(1, positions, QUERY)
        return Batch(inputs, positions, value_ids, octave(positions - 2 * torch.arange(pairs, device=keys.device)))

    @property
    def _delay(self) -> int:
        """Tokens from a query to the position that is scored."""
        return self.gap if self.readout == "deferred" else 0

    @property
    def _slot(self) -> int:
        """Tokens of a query and of what follows it."""
        return max(2, self._delay + 1)

    def _slots(self, keys: Tensor, count: int, size: int) -> Tensor:
        """Draw the slot of each query, in the order of the context, without replacement: [N, count]."""
        if self.slot_power == 1.0:
            return random.distinct(keys, "slots", count, size)
        # weighted slots are drawn by an exponential race
        weights = torch.arange(1, size + 1, device=keys.device, dtype=torch.float64).pow(self.slot_power - 1)
        times = -random.uniform(keys, "slots", size).log() / weights
        return stable_order(times)[..., :count]

    def _fillers(self, keys: Tensor, length: int) -> Tensor:
        if self.filler == "pad":
            return torch.full((*keys.shape, length), PAD, dtype=torch.int64, device=keys.device)
        if self.filler == "random":
            return random.integers(keys, "fillers", length, self.vocab)
        return noise(keys, length)

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        context_keys, context_values = self._context(inputs, cell)
        return context_values.gather(1, first_match(inputs.gather(1, positions - self._delay), context_keys))

    def _context(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        context = inputs[:, : 2 * cell.load]
        return context[:, 0::2], context[:, 1::2]

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent value of the context."""
        return self._context(inputs, cell)[1].mode(dim=1).values[:, None].expand_as(positions)

    def floor_latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the last value of the context, the answer of the nearest query."""
        return self._context(inputs, cell)[1][:, -1:].expand_as(positions)

    def floor_second_latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value before the last one of the context."""
        return self._context(inputs, cell)[1][:, -2:][:, :1].expand_as(positions)

    def floor_query_order(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the r-th value for the r-th query, which uses any link between the orders of keys and queries."""
        return self._context(inputs, cell)[1].gather(1, positions.argsort(dim=-1).argsort(dim=-1))

    def contents(self, cell: Cell) -> ContextContents | None:
        return super().contents(cell) if self.repeat_values else None

    def state_bits(self, cell: Cell) -> float:
        if self.repeat_values:
            return super().state_bits(cell)
        return sum(math.log2(self.values - i) for i in range(cell.load))

    def controls_undiluted(self, batch: Batch, cell: Cell) -> Mapping[str, Batch]:
        """Pass each value on to the next key, change the fillers, or replace the keys of the context by one token."""
        blank = PAD if self.variant == "zoology" else RESERVED
        keys, values = slice(0, 2 * cell.load, 2), slice(1, 2 * cell.load, 2)
        rebound, refilled, keyless = (batch.inputs.clone() for _ in range(3))
        rebound[:, values] = rebound[:, values].roll(1, dims=1)
        keyless[:, keys] = blank
        changed = {
            "rebound": batch._replace(inputs=rebound, targets=self.oracle_undiluted(rebound, batch.positions, cell)),
            "no keys": batch._replace(inputs=keyless),
        }
        if self.filler == "noise":
            noisy = (refilled >= RESERVED) & (refilled < self.words.first("keys"))
            other = (refilled - RESERVED + 1) % NOISE + RESERVED
            changed["refilled"] = batch._replace(inputs=torch.where(noisy, other, refilled))
        return changed


def published_cell(length: int, pairs: int, weight: float = 1.0) -> Cell:
    """Return a cell of the published mix, labelled by length and pairs."""
    label = f"length={length},pairs={pairs}"
    return Cell(label=label, length=length, load=pairs, scored=pairs, sizes=(pairs,), weight=weight)
