"""Joint recall: the value of a key in a context, where every key occurs in every context."""

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    BOS,
    PAD,
    RESERVED,
    SEP,
    TASKS,
    Answers,
    Batch,
    Cell,
    Many,
    Solver,
    Task,
    check_loads,
    permutations,
)


@TASKS.register("joint-recall")
class JointRecall(Task):
    """Recall the value that a key had in a given context, where every key has a value in every context.

    After `^` come `contexts` blocks, each a context token and then `pairs` keys with their values, in random order; the
    keys are the same in all blocks, the values independent. After `|` all blocks come again, in a new order, with the
    keys in new orders. Scored is every key there: the target is its value in that context. Keys or contexts alone leave
    several values, the floors `key` and `context`.

    By default the answer is not shown: padding stands after each query. With `show_answers=true`, as published, it is,
    and then values that were already given for a key in other contexts can be excluded: in the last block the answer
    follows without any use of the context. Both floors make use of that.

    Full size: `joint-recall:contexts=[2|4|6|8],pairs=[2|4|6|8]`; beyond it,
    `joint-recall:contexts=[12|16],pairs=[12|16]`.

    Source: Zhan et al., "Overcoming long-context limitations of state-space models via context-dependent sparse
    attention" (arXiv 2507.00449), whose code draws contexts and pairs from 5 to 16 and shows the answers.
    Chance: 1/values; naming the most frequent value of a key, near 1/contexts where those are few.

    Budget: 1000 steps at 5e-3 on `joint-recall:contexts=2,pairs=2`, with softmax.

    >>> task = JointRecall(contexts=(2,), pairs=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '^ c10 k3 v2 k12 v14 c2 k12 v5 k3 v15 | c2 k12 · k3 · c10 k3 · k12 ·'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[13, 15, 18, 20]], ['v5', 'v15', 'v2', 'v14'])
    """

    load_name = "bindings"

    contexts: Many = (2, 4)
    """Numbers of contexts; with `pairs` they span the grid of cells."""
    pairs: Many = (2, 4)
    """Numbers of keys in a context."""
    names: int = Field(default=16, ge=1)
    """Size of the alphabet of contexts."""
    keys: int = Field(default=16, ge=1)
    """Size of the alphabet of keys."""
    values: int = Field(default=16, ge=2)
    """Size of the alphabet of values."""
    show_answers: bool = False
    """Whether the value follows each query, as published; else padding does."""

    @model_validator(mode="after")
    def _check(self) -> "JointRecall":
        check_loads("contexts", self.contexts)
        check_loads("pairs", self.pairs)
        if max(self.contexts) > self.names:
            raise ValueError(
                f"names must leave a token for each context; got names={self.names} for contexts={max(self.contexts)}; "
                f"raise names to {max(self.contexts)}"
            )
        if max(self.pairs) > self.keys:
            raise ValueError(
                f"keys must leave a token for each pair; got keys={self.keys} for pairs={max(self.pairs)}; "
                f"raise keys to {max(self.pairs)}"
            )
        return self

    @property
    def first_key(self) -> int:
        """Lowest key id."""
        return RESERVED + self.names

    @property
    def first_value(self) -> int:
        """Lowest value id."""
        return self.first_key + self.keys

    @property
    def vocabulary(self) -> int:
        return self.first_value + self.values

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(
                label=label,
                length=2 + 2 * contexts * (1 + 2 * pairs),
                load=contexts * pairs,
                scored=contexts * pairs,
            )
            for label, (contexts, pairs) in self._grid.items()
        )

    @property
    def _grid(self) -> Mapping[str, tuple[int, int]]:
        """Contexts and pairs of each cell, by its label."""
        return {
            f"contexts={contexts},pairs={pairs}": (contexts, pairs)
            for contexts in self.contexts
            for pairs in self.pairs
        }

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        contexts, pairs = self._grid[cell.label]
        names = random.distinct(keys, "contexts", contexts, self.names) + RESERVED
        key_ids = random.distinct(keys, "keys", pairs, self.keys)[:, None].expand(-1, contexts, -1) + self.first_key
        values = random.integers(keys, "values", contexts * pairs, self.values) + self.first_value
        values = values.unflatten(1, (contexts, pairs))
        order = random.permutation(keys, "order", contexts)
        asked = values.gather(1, order[..., None].expand_as(values))
        first, later = (permutations(keys, purpose, contexts, pairs) for purpose in ("pairs", "queries"))
        targets = asked.gather(2, later)
        shown = targets if self.show_answers else torch.full_like(targets, PAD)
        told = self._blocks(names, key_ids.gather(2, first), values.gather(2, first))
        queries = self._blocks(names.gather(1, order), key_ids.gather(2, later), shown)
        edge = torch.full_like(names[:, :1], BOS), torch.full_like(names[:, :1], SEP)
        inputs = torch.cat([edge[0], told, edge[1], queries], dim=1)
        block = torch.arange(contexts, device=keys.device)[:, None].expand(contexts, pairs)
        place = block * (1 + 2 * pairs) + 1 + 2 * torch.arange(pairs, device=keys.device)
        positions = (cell.length // 2 + 1 + place).flatten().expand(keys.shape[0], -1)
        return Batch(inputs, positions, targets.flatten(1), block.flatten().expand_as(positions))

    def _blocks(self, names: Tensor, key_ids: Tensor, values: Tensor) -> Tensor:
        """Contexts [N, c], keys and values [N, c, k], written one block after the other: [N, c (1 + 2 k)]."""
        pairs = torch.stack([key_ids, values], dim=-1).flatten(2)
        return torch.cat([names[..., None], pairs], dim=-1).flatten(1)

    def _parts(self, inputs: Tensor, cell: Cell, begin: int) -> tuple[Tensor, Tensor, Tensor]:
        """Context, key and value of each pair in the half that begins there: [N, c k] each."""
        contexts, pairs = self._grid[cell.label]
        blocks = inputs[:, begin : begin + contexts * (1 + 2 * pairs)].unflatten(1, (contexts, 1 + 2 * pairs))
        names = blocks[:, :, :1].expand(-1, -1, pairs)
        return names.flatten(1), blocks[:, :, 1::2].flatten(1), blocks[:, :, 2::2].flatten(1)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        names, key_ids, values = self._parts(inputs, cell, 1)
        asked_names, asked_keys, _ = self._parts(inputs, cell, cell.length // 2 + 1)
        match = (asked_names[:, :, None] == names[:, None]) & (asked_keys[:, :, None] == key_ids[:, None])
        return values.gather(1, match.int().argmax(dim=-1))

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"key": self._key, "context": self._context}

    def _key(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent value of the key, less what was shown for it since."""
        return self._most_frequent(inputs, cell, 1)

    def _context(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent value of the context, less what was shown for it since."""
        return self._most_frequent(inputs, cell, 0)

    def _most_frequent(self, inputs: Tensor, cell: Cell, part: int) -> Tensor:
        told, asked = (self._parts(inputs, cell, begin) for begin in (1, cell.length // 2 + 1))
        alphabet = torch.arange(self.first_value, self.vocabulary, device=inputs.device)
        count = (asked[part][:, :, None] == told[part][:, None]).double() @ (told[2][..., None] == alphabet).double()
        since = (asked[part][:, :, None] == asked[part][:, None]).double().tril(-1)
        return (count - since @ (asked[2][..., None] == alphabet).double()).argmax(dim=-1) + self.first_value

    def state_bits(self, cell: Cell) -> float:
        return cell.load * math.log2(self.values)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.load, self.values)

    def group_label(self, group: int) -> str:
        return f"context {group + 1}"

    def spell(self, token: int) -> str:
        for first, letter in ((self.first_value, "v"), (self.first_key, "k"), (RESERVED, "c")):
            if token >= first:
                return f"{letter}{token - first}"
        return super().spell(token)
