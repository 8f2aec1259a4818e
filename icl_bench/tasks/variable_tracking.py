"""Variable tracking: chains of assignments, interleaved."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most, check_length
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.sampling import (
    block_starts,
    first_match,
    first_true,
    last_positions,
    latest_true,
    noise,
    pick_by_position,
)
from icl_bench.tasks.vocabulary import NOISE, SEP, Vocabulary, numbered

EQUALS, SEMICOLON = 5, 6
STATEMENT = 4
"""Tokens of a statement: `x = y ;`."""


@TASKS.register("variable-tracking")
class VariableTracking(Diluted):
    """Name the literal that a variable received through a chain of assignments.

    Each of `chains` chains begins with `x = literal ;` and continues with `hops` statements `y = x ;`, `z = y ;`, each
    with a new variable. The statements of all chains are interleaved at random, in order within a chain, with noise
    tokens between statements. After a separator come the queries, variables in random order; the target at each is the
    literal at the root of its chain, which is not shown. Only the chain of statements tells which literal belongs to a
    variable: the literal assigned latest before the statement of the variable, the floor `latest-literal`, is right
    only if no other chain comes between.

    By default every variable is queried, and groups are the distance from the root in hops. Hop 0 is plain recall: it
    starts the learning, but it raises the floor of the mean, so judge by the groups. `ask=last` queries only the last
    variable of each chain, always `hops` from its root, and is slower to learn.

    Full size: `variable-tracking:length=256,chains=[2|4|8],hops=[1|2|4],variables=64,values=64`; beyond it,
    `variable-tracking:length=512,chains=32,hops=2,variables=128,values=64` and
    `variable-tracking:length=512,chains=8,hops=8,variables=128,values=64`.

    Source: RULER (Hsieh et al., arXiv 2404.06654), task VT, with queries for a root in place of a list of names.
    Chance: 1/chains; nearer to 1/2 for few chains and hops by the floor `latest-literal`.

    >>> task = VariableTracking(length=22, chains=(2,), hops=(1,), ask="last")
    >>> batch = task.sample(random.row_keys(torch.tensor(2), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'n10 x3 = v8 ; n10 x14 = v2 ; x7 = x3 ; x6 = x14 ; n4 | x7 x6'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[20, 21]], ['v8', 'v2'])
    """

    axes = (Axis("chains"), Axis("hops"))
    load_name = "chains"
    answer_alphabet = "values"
    budget = TrainingBudget(steps=1500, lr=5e-3, params="chains=2,hops=1")
    picture = "length=29,chains=2,hops=1"

    length: int = Field(default=64, ge=8)
    """Positions in a sequence, T; noise fills those that statements and queries leave."""
    chains: IntegerList = (2, 4)
    """Numbers of chains; each is combined with every number of hops."""
    hops: IntegerList = (1, 2)
    """Numbers of statements in a chain after the first one."""
    variables: int = Field(default=16, ge=2)
    """Number of variable names."""
    values: int = Field(default=16, ge=2)
    """Number of literals; two chains may have the same literal."""
    ask: Literal["all", "last"] = "all"
    """Queried variables: `all`, or the `last` one of each chain."""

    def check(self) -> None:
        for cell in self.eval_cells:
            statements = self._statements(cell)
            contents = f"{statements} statements of {STATEMENT} tokens and {cell.scored} queries at {cell.label}"
            check_length(self.length, STATEMENT * statements + 1 + cell.scored, contents, "chains or hops")
            check_at_most("chains * (hops + 1)", statements, "variables", self.variables)

    @property
    def words(self) -> Vocabulary:
        names, marks = numbered("x", self.variables), {EQUALS: "=", SEMICOLON: ";"}
        return Vocabulary({"noise": NOISE, "variables": names, "values": self.values}, special=marks)

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        chains, hops = sizes
        queries = chains if self.ask == "last" else chains * (hops + 1)
        return ExampleShape(length=self.length, load=chains, scored=queries)

    def _statements(self, cell: Cell) -> int:
        return int(cell.load * (cell.sizes[1] + 1))

    def context_tokens(self, cell: Cell) -> int:
        return cell.length - cell.scored - 1

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        rows, (chains, hops) = keys.shape[0], cell.sizes
        statements, body = self._statements(cell), cell.length - cell.scored - 1
        names = random.distinct(keys, "names", statements, self.variables) + self.words.first("variables")
        names = names.view(rows, chains, hops + 1)
        literals = random.integers(keys, "literals", chains, self.values) + self.words.first("values")
        sources = torch.cat([literals[..., None], names[..., :-1]], dim=-1)
        inputs = noise(keys, cell.length)
        # the statements of a chain take their turns in order
        turns = random.permutation(keys, "turns", statements).view(rows, chains, -1).sort(dim=-1).values
        starts = block_starts(keys, "places", statements, STATEMENT, body).gather(1, turns.flatten(1))
        inputs.scatter_(1, starts, names.flatten(1)).scatter_(1, starts + 1, EQUALS)
        inputs.scatter_(1, starts + 2, sources.flatten(1)).scatter_(1, starts + 3, SEMICOLON)
        asked = torch.arange(hops if self.ask == "last" else 0, hops + 1, device=keys.device)
        order = random.permutation(keys, "queries", cell.scored)
        inputs[:, body] = SEP
        inputs[:, body + 1 :] = names[..., asked].flatten(1).gather(1, order)
        targets = literals[..., None].expand(rows, chains, len(asked)).flatten(1).gather(1, order)
        positions = last_positions(keys, cell.scored, cell.length)
        return Batch(inputs, positions, targets, asked.repeat(chains).expand(rows, -1).gather(1, order))

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        tokens = inputs.gather(1, positions)
        for _ in range(cell.sizes[1] + 1):
            source = inputs.gather(1, self._definition(inputs, tokens) + 2)
            tokens = torch.where(tokens >= self.words.first("values"), tokens, source)
        return tokens

    def _definition(self, inputs: Tensor, names: Tensor) -> Tensor:
        """Return the start of the statement that assigns to each name: [N, S]."""
        return first_match(names, torch.where(inputs[:, 1:] == EQUALS, inputs[:, :-1], -1))

    def floor_any_literal(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name a literal of the context, picked by the position of the query."""
        places = first_true(inputs >= self.words.first("values"), cell.load)
        return inputs.gather(1, pick_by_position(places, positions))

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent literal of the context."""
        places = first_true(inputs >= self.words.first("values"), cell.load)
        return inputs.gather(1, places).mode(dim=1).values[:, None].expand_as(positions)

    def floor_latest_literal(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the literal assigned latest before the statement of the queried variable."""
        latest = latest_true(inputs >= self.words.first("values"))
        definition = self._definition(inputs, inputs.gather(1, positions))
        return inputs.gather(1, latest.gather(1, definition + 2).clamp(min=0))

    def state_bits(self, cell: Cell) -> float:
        return self._statements(cell) * math.log2(self.values)

    def group_label(self, group: int) -> str:
        return f"hop {group}"
