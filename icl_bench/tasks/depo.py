"""Depo: name the k-th successor of a node on a cycle whose edges are listed in random order."""

import math

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_at_most
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.sampling import first_match
from icl_bench.tasks.vocabulary import SEP, Alphabet, Vocabulary


@TASKS.register("depo")
class Depo(Diluted):
    """Name the node that lies a given number of steps further on a cycle whose edges come in random order.

    The context lists the edges `u v` of one directed cycle through `nodes` different names, in random order. After `|`
    come the queries, `hop node` each with a hop from +1 to +`hops`; the target at the node is its successor so many
    steps further, which is not shown. Before a query nothing can be worked out; after it, as many look-ups that depend
    on each other are left. The bits that a state must hold are the same for every hop, so that the accuracy by hop, the
    groups, shows the depth of the computation and not the size of the state. Judge by the hops from +2 on: +1 is plain
    recall. A model that makes a single look-up knows the successor, and that it is the answer at no other hop; this is
    the floor `one-look-up`. The reference `two-look-ups` goes one step further. These tasks are learnt at random steps:
    compare the number of seeds that solve a hop. They are learnt far sooner with few names and four layers: all of 15
    runs of softmax solved `depo:nodes=6,queries=6,vocab=16` in 2,000 updates. Five of five
    seeds of two layers did within the budget.

    With `name_tokens=2` a name is two tokens, neither of which tells it apart, and the target is the first token of the
    answer: its second token would follow from the first, which only one name has in most contexts.

    Full size: `depo:nodes=[12|16|32],hops=8,queries=8` and `depo:nodes=[12|16|32],hops=8,queries=8,name_tokens=2`.

    Source: Allen-Zhu, "Physics of Language Models: Part 4.1" (arXiv 2512.17351), without queries whose hop goes round
    the whole cycle. Chance: 1/(nodes - 1).

    >>> task = Depo(nodes=(4,), hops=3, queries=2)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'a11 a15 a55 a51 a15 a55 a51 a11 | +1 a55 +3 a15'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[10, 12]], ['a51', 'a11'])
    """

    axes = (Axis("nodes", lowest=3, extrapolated=True),)
    load_name = "nodes"
    budget = TrainingBudget(steps=9000, lr=5e-3, params="nodes=6,vocab=16")
    picture = "nodes=5,queries=2"

    nodes: IntegerList = (6, 12)
    """Numbers of nodes of the cycle, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = ()
    """Numbers of nodes that are evaluated but not trained."""
    hops: int = Field(default=2, ge=1)
    """Largest number of steps of a query, below the number of nodes."""
    queries: int = Field(default=4, ge=1)
    """Number of queries, each from another node."""
    vocab: int = Field(default=64, ge=3)
    """Number of names; with two tokens to a name, of first and of second tokens each."""
    name_tokens: int = Field(default=1, ge=1, le=2)
    """Tokens of a name."""
    shown: bool = False
    """Show each answer after its query."""

    def check(self) -> None:
        for nodes in (*self.nodes, *self.extrapolate):
            check_at_most("hops", self.hops, "nodes - 1", nodes - 1)
            check_at_most("queries", self.queries, "nodes", nodes)
            check_at_most("nodes", nodes, "vocab^name_tokens", self.vocab**self.name_tokens)

    @property
    def words(self) -> Vocabulary:
        hops = Alphabet(self.hops, lambda number: f"+{number + 1}")
        return Vocabulary({"hops": hops} | dict.fromkeys("ab"[: self.name_tokens], self.vocab) | self.noise_alphabet)

    @property
    def _query_tokens(self) -> int:
        return 1 + self.name_tokens * (1 + self.shown)

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        length = 2 * self.name_tokens * sizes[0] + 1 + self.queries * self._query_tokens
        return ExampleShape(length=length, load=sizes[0], scored=self.queries)

    def context_tokens(self, cell: Cell) -> int:
        return 2 * self.name_tokens * cell.load

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        nodes = cell.load
        # the names come in random order, which is the order of the cycle
        cycle = random.distinct(keys, "names", nodes, self.vocab**self.name_tokens)
        listed = random.permutation(keys, "edges", nodes)
        edges = torch.stack([cycle.gather(1, listed), cycle.gather(1, (listed + 1) % nodes)], dim=-1)
        places = random.distinct(keys, "queries", self.queries, nodes)
        hops = random.integers(keys, "hops", self.queries, self.hops)
        asked, answers = cycle.gather(1, places), cycle.gather(1, (places + hops + 1) % nodes)
        queries = [(hops + self.words.first("hops"))[..., None], self._tokens(asked)]
        targets = self._tokens(answers)
        queries += [targets] * self.shown
        edge = torch.full_like(places[:, :1], SEP)
        inputs = torch.cat([self._tokens(edges).flatten(1), edge, torch.cat(queries, dim=-1).flatten(1)], dim=1)
        last = torch.arange(1, self.queries + 1, device=keys.device) * self._query_tokens - 1
        positions = cell.length - self.queries * self._query_tokens + last - self.name_tokens * self.shown
        return Batch(inputs, positions.expand(keys.shape[0], -1), targets[..., 0], hops)

    def _tokens(self, names: Tensor) -> Tensor:
        """Return the tokens of names given by number: [...] -> [..., tokens of a name]."""
        parts = [names] if self.name_tokens == 1 else [names // self.vocab, names % self.vocab]
        return torch.stack([part + self.words.first(pool) for part, pool in zip(parts, "ab", strict=False)], dim=-1)

    def _numbers(self, tokens: Tensor) -> Tensor:
        """Return the numbers of names given by their tokens: [..., tokens of a name] -> [...]."""
        parts = [tokens[..., i] - self.words.first(pool) for i, pool in enumerate("ab"[: self.name_tokens])]
        return parts[0] if self.name_tokens == 1 else parts[0] * self.vocab + parts[1]

    def _read(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the names that edges leave and reach, [N, nodes] each, and nodes and hops of queries, [N, queries]."""
        context = 2 * self.name_tokens * cell.load
        edges = self._numbers(inputs[:, :context].unflatten(1, (cell.load, 2, self.name_tokens)))
        queries = inputs[:, context + 1 :].unflatten(1, (self.queries, self._query_tokens))
        asked = self._numbers(queries[..., 1 : 1 + self.name_tokens])
        return edges[..., 0], edges[..., 1], asked, queries[..., 0] - self.words.first("hops") + 1

    def _walk(self, inputs: Tensor, cell: Cell, steps: int) -> tuple[Tensor, Tensor]:
        """Go on from each queried node by its hop, at most by `steps`; also tell which queries that answers."""
        sources, ends, names, hops = self._read(inputs, cell)
        for step in range(1, steps + 1):
            names = torch.where(hops >= step, ends.gather(1, first_match(names, sources)), names)
        return names, hops <= steps

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._tokens(self._walk(inputs, cell, self.hops)[0])[..., 0]

    def floor_one_look_up(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the successor at +1; at other hops, another node than this and the queried one."""
        return self._after(inputs, cell, 1)

    def floor_other_node(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name another node than the queried one."""
        return self._after(inputs, cell, 0)

    def reference_two_look_ups(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the right node at +1 and +2; at other hops, another node than these and the queried one."""
        return self._after(inputs, cell, 2)

    def _after(self, inputs: Tensor, cell: Cell, steps: int) -> Tensor:
        """Answer the hops up to `steps`, and the others by a node that so many look-ups do not exclude."""
        sources, ends, names, _ = self._read(inputs, cell)
        reached, answered = self._walk(inputs, cell, steps)
        excluded = torch.zeros_like(sources[:, None] == names[:, :, None])
        for _ in range(steps + 1):
            excluded |= sources[:, None] == names[:, :, None]
            names = ends.gather(1, first_match(names, sources))
        guess = sources.gather(1, (~excluded).int().argmax(dim=-1))
        return self._tokens(torch.where(answered, reached, guess))[..., 0]

    def state_bits(self, cell: Cell) -> float:
        which = math.log2(math.comb(self.vocab**self.name_tokens, cell.load))
        return which + math.lgamma(cell.load) / math.log(2)

    def group_label(self, group: int) -> str:
        return f"hop {group + 1}"
