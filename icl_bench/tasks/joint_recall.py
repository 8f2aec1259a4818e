"""Joint recall: the value of a key in a context, where every key occurs in every context."""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.sampling import permutations
from icl_bench.tasks.vocabulary import BOS, PAD, SEP, Vocabulary


@TASKS.register("joint-recall")
class JointRecall(Diluted):
    """Recall the value that a key has in a given context, where every key has a value in every context.

    After `^` come `contexts` blocks. A block is a context token and then `pairs` keys with their values, in random
    order; the keys are the same in all blocks, the values are independent. After `|` all blocks come again, in a new
    order and with the keys in new orders. Every key of this second half is scored: the target is its value in that
    context. The key alone, or the context alone, leaves several values, as the floors `key` and `context` show.

    By default answers are not shown: padding follows each query. With `show_answers=true`, as published, the value
    follows, and a model can then exclude values that were already given for the same key in other contexts; in the last
    block this leaves one value without any use of the context. Both floors exclude such values.

    Full size: `joint-recall:contexts=[2|4|6|8],pairs=[2|4|6|8]`; beyond it,
    `joint-recall:contexts=[12|16],pairs=[12|16]`.

    Source: Zhan et al., "Overcoming long-context limitations of state-space models via context-dependent sparse
    attention" (arXiv 2507.00449), whose code draws contexts and pairs from 5 to 16 and shows the answers.
    Chance: 1/values; near 1/contexts, for few contexts, by naming the most frequent value of a key.

    >>> task = JointRecall(contexts=(2,), pairs=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '^ c10 k3 v2 k12 v14 c2 k12 v5 k3 v15 | c2 k12 · k3 · c10 k3 · k12 ·'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[13, 15, 18, 20]], ['v5', 'v15', 'v2', 'v14'])
    """

    axes = (Axis("contexts"), Axis("pairs"))
    load_name = "bindings"
    answer_alphabet = "values"
    budget = TrainingBudget(steps=1000, lr=5e-3, params="contexts=2,pairs=2")
    picture = "contexts=2,pairs=2"

    contexts: IntegerList = (2, 4)
    """Numbers of contexts; each is combined with every number of pairs."""
    pairs: IntegerList = (2, 4)
    """Numbers of keys in a context."""
    names: int = Field(default=16, ge=1)
    """Size of the alphabet of contexts."""
    keys: int = Field(default=16, ge=1)
    """Size of the alphabet of keys."""
    values: int = Field(default=16, ge=2)
    """Size of the alphabet of values."""
    show_answers: bool = False
    """Let the value follow each query, as published, instead of padding."""

    def check(self) -> None:
        check_at_most("contexts", max(self.contexts), "names", self.names)
        check_at_most("pairs", max(self.pairs), "keys", self.keys)

    @property
    def words(self) -> Vocabulary:
        names = {"contexts": self.names, "keys": self.keys, "values": self.values}
        return Vocabulary(names | self.noise_alphabet)

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        contexts, pairs = sizes
        bindings = contexts * pairs
        return ExampleShape(length=2 + 2 * contexts * (1 + 2 * pairs), load=bindings, scored=bindings)

    def context_tokens(self, cell: Cell) -> int:
        return cell.length // 2

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        (contexts, pairs), words = cell.sizes, self.words
        names = random.distinct(keys, "contexts", contexts, self.names) + words.first("contexts")
        key_ids = random.distinct(keys, "keys", pairs, self.keys) + words.first("keys")
        key_ids = key_ids[:, None].expand(-1, contexts, -1)
        values = random.integers(keys, "values", contexts * pairs, self.values) + words.first("values")
        values = values.unflatten(1, (contexts, pairs))
        order = random.permutation(keys, "order", contexts)
        asked = values.gather(1, order[..., None].expand_as(values))
        first, later = (permutations(keys, purpose, contexts, pairs) for purpose in ("pairs", "queries"))
        targets = asked.gather(2, later)
        shown = targets if self.show_answers else torch.full_like(targets, PAD)
        told = self._blocks(names, key_ids.gather(2, first), values.gather(2, first))
        queries = self._blocks(names.gather(1, order), key_ids.gather(2, later), shown)
        begin, separator = (torch.full_like(names[:, :1], token) for token in (BOS, SEP))
        inputs = torch.cat([begin, told, separator, queries], dim=1)
        block = torch.arange(contexts, device=keys.device)[:, None].expand(contexts, pairs)
        place = block * (1 + 2 * pairs) + 1 + 2 * torch.arange(pairs, device=keys.device)
        positions = (cell.length // 2 + 1 + place).flatten().expand(keys.shape[0], -1)
        return Batch(inputs, positions, targets.flatten(1), block.flatten().expand_as(positions))

    def _blocks(self, names: Tensor, key_ids: Tensor, values: Tensor) -> Tensor:
        """Write contexts [N, c], and keys and values [N, c, k], one block after the other: [N, c (1 + 2 k)]."""
        pairs = torch.stack([key_ids, values], dim=-1).flatten(2)
        return torch.cat([names[..., None], pairs], dim=-1).flatten(1)

    def _parts(self, inputs: Tensor, cell: Cell, begin: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return context, key and value of each pair in the half that begins at position `begin`: [N, c k] each."""
        contexts, pairs = cell.sizes
        blocks = inputs[:, begin : begin + contexts * (1 + 2 * pairs)].unflatten(1, (contexts, 1 + 2 * pairs))
        names = blocks[:, :, :1].expand(-1, -1, pairs)
        return names.flatten(1), blocks[:, :, 1::2].flatten(1), blocks[:, :, 2::2].flatten(1)

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        names, key_ids, values = self._parts(inputs, cell, 1)
        asked_names, asked_keys, _ = self._parts(inputs, cell, cell.length // 2 + 1)
        match = (asked_names[:, :, None] == names[:, None]) & (asked_keys[:, :, None] == key_ids[:, None])
        return values.gather(1, match.int().argmax(dim=-1))

    def floor_key(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent value of the key, without values shown for the key since."""
        return self._most_frequent(inputs, cell, 1)

    def floor_context(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent value of the context, without values shown for the context since."""
        return self._most_frequent(inputs, cell, 0)

    def _most_frequent(self, inputs: Tensor, cell: Cell, part: int) -> Tensor:
        told, asked = (self._parts(inputs, cell, begin) for begin in (1, cell.length // 2 + 1))
        first = self.words.first("values")
        alphabet = torch.arange(first, self.vocabulary, device=inputs.device)
        count = (asked[part][:, :, None] == told[part][:, None]).double() @ (told[2][..., None] == alphabet).double()
        since = (asked[part][:, :, None] == asked[part][:, None]).double().tril(-1)
        return (count - since @ (asked[2][..., None] == alphabet).double()).argmax(dim=-1) + first

    def group_label(self, group: int) -> str:
        return f"context {group + 1}"
