"""Variable tracking: chains of assignments, interleaved."""

import math
from collections.abc import Mapping
from typing import Literal

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
    choose,
    first_true,
    latest_true,
    noise,
)

EQUALS, SEMICOLON = 5, 6
STATEMENT = 4
"""Tokens of a statement: `x = y ;`."""


@TASKS.register("variable-tracking")
class VariableTracking(Task):
    """Name the literal that a variable got through a chain of assignments.

    Each of `chains` chains begins with `x = literal ;` and goes on with `hops` statements `y = x ;`, `z = y ;`, every
    variable new. The statements of all chains are interleaved at random, in order within a chain, with noise tokens
    between statements. After a separator come queries, variables in random order; the target at each is the literal at
    the root of its chain, which is not shown. Which chain a variable belongs to is only said link by link: the literal
    assigned latest before the variable's own statement, the floor `latest-literal`, is right for close statements only.

    By default every variable is asked, tagged by its distance from the root in hops. Hop 0 is plain recall: it starts
    the learning, and it lifts the floor of the mean, so read the groups. `ask=last` asks the last variable of each
    chain alone, all queries `hops` from their root, and is slower to learn.

    Full size: `variable-tracking:length=256,chains=[2|4|8],hops=[1|2|4],variables=64,values=64`; beyond it,
    `variable-tracking:length=512,chains=32,hops=2,variables=128,values=64` and
    `variable-tracking:length=512,chains=8,hops=8,variables=128,values=64`.

    Source: RULER (Hsieh et al., arXiv 2404.06654), task VT, with queries for one root in place of a list of names.
    Chance: 1/chains; nearer to 1/2 for few chains and hops by the floor `latest-literal`.

    Budget: 1500 steps at 5e-3 on `variable-tracking:chains=2,hops=1`, with softmax.

    >>> task = VariableTracking(length=22, chains=(2,), hops=(1,), ask="last")
    >>> batch = task.sample(random.row_keys(torch.tensor(2), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'n10 x3 = v8 ; n10 x14 = v2 ; x7 = x3 ; x6 = x14 ; n4 | x7 x6'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[20, 21]], ['v8', 'v2'])
    """

    load_name = "chains"

    length: int = Field(default=64, ge=8)
    """Positions in a sequence, T; what statements and queries leave is noise."""
    chains: Many = (2, 4)
    """Numbers of chains; with `hops` they span the grid of cells."""
    hops: Many = (1, 2)
    """Numbers of statements in a chain after its first."""
    variables: int = Field(default=16, ge=2)
    """Number of variable names."""
    values: int = Field(default=16, ge=2)
    """Number of literals; two chains may have the same."""
    ask: Literal["all", "last"] = "all"
    """Whether all variables are asked, or the last one of each chain."""

    @model_validator(mode="after")
    def _check(self) -> "VariableTracking":
        check_loads("chains", self.chains)
        check_loads("hops", self.hops)
        for cell in self.eval_cells:
            chains, statements = cell.load, self._statements(cell)
            least = STATEMENT * statements + 1 + cell.scored
            if least > self.length:
                raise ValueError(
                    f"length must hold {statements} statements of {STATEMENT} tokens and {cell.scored} queries at "
                    f"{cell.label}, {least}; got {self.length}; raise length or lower chains or hops"
                )
            if statements > self.variables:
                raise ValueError(
                    f"variables must name each of {statements} statements at {cell.label}; got {self.variables}; "
                    f"raise variables to {statements} or lower chains, now {chains}"
                )
        return self

    @property
    def first_variable(self) -> int:
        """Lowest variable id."""
        return RESERVED + NOISE

    @property
    def first_value(self) -> int:
        """Lowest literal id."""
        return self.first_variable + self.variables

    @property
    def vocabulary(self) -> int:
        return self.first_value + self.values

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(label=label, length=self.length, load=chains, scored=chains * (1 if self.ask == "last" else hops + 1))
            for label, (chains, hops) in self._grid.items()
        )

    @property
    def _grid(self) -> Mapping[str, tuple[int, int]]:
        """Chains and hops of each cell, by its label."""
        return {f"chains={chains},hops={hops}": (chains, hops) for chains in self.chains for hops in self.hops}

    def _hops(self, cell: Cell) -> int:
        return self._grid[cell.label][1]

    def _statements(self, cell: Cell) -> int:
        return cell.load * (self._hops(cell) + 1)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        rows, chains, hops = keys.shape[0], cell.load, self._hops(cell)
        statements, body = self._statements(cell), cell.length - cell.scored - 1
        names = random.distinct(keys, "names", statements, self.variables) + self.first_variable
        names = names.view(rows, chains, hops + 1)
        literals = random.integers(keys, "literals", chains, self.values) + self.first_value
        sources = torch.cat([literals[..., None], names[..., :-1]], dim=-1)
        inputs = noise(keys, cell.length)
        starts = self._starts(keys, cell, body)
        inputs.scatter_(1, starts, names.flatten(1)).scatter_(1, starts + 1, EQUALS)
        inputs.scatter_(1, starts + 2, sources.flatten(1)).scatter_(1, starts + 3, SEMICOLON)
        asked = torch.arange(hops if self.ask == "last" else 0, hops + 1, device=keys.device)
        order = random.permutation(keys, "queries", cell.scored)
        inputs[:, body] = SEP
        inputs[:, body + 1 :] = names[..., asked].flatten(1).gather(1, order)
        targets = literals[..., None].expand(rows, chains, len(asked)).flatten(1).gather(1, order)
        positions = torch.arange(body + 1, cell.length, device=keys.device).expand(rows, -1)
        return Batch(inputs, positions, targets, asked.repeat(chains).expand(rows, -1).gather(1, order))

    def _starts(self, keys: Tensor, cell: Cell, body: int) -> Tensor:
        """Where each statement begins, chain by chain: [N, chains * (hops + 1)]."""
        statements = self._statements(cell)
        starts = block_starts(keys, "places", statements, STATEMENT, body)
        turns = random.permutation(keys, "turns", statements).view(*keys.shape, cell.load, -1).sort(dim=-1).values
        return starts.gather(1, turns.flatten(1))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        tokens = inputs.gather(1, positions)
        for _ in range(self._hops(cell) + 1):
            source = inputs.gather(1, self._definition(inputs, tokens) + 2)
            tokens = torch.where(tokens >= self.first_value, tokens, source)
        return tokens

    def _definition(self, inputs: Tensor, names: Tensor) -> Tensor:
        """Where the statement begins that assigns to each name: [N, S]."""
        assigned = torch.where(inputs[:, 1:] == EQUALS, inputs[:, :-1], -1)
        return (names[:, :, None] == assigned[:, None, :]).int().argmax(dim=-1)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"any-literal": self._any_literal, "latest-literal": self._latest_literal}

    def _any_literal(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """A literal of the context, chosen by the position of the query."""
        places = first_true(inputs >= self.first_value, cell.load)
        return inputs.gather(1, choose(places, positions))

    def _latest_literal(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The literal that had been assigned latest when the queried variable was."""
        latest = latest_true(inputs >= self.first_value)
        definition = self._definition(inputs, inputs.gather(1, positions))
        return inputs.gather(1, latest.gather(1, definition + 2).clamp(min=0))

    def state_bits(self, cell: Cell) -> float:
        return self._statements(cell) * math.log2(self.values)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.load, self.values)

    def group_label(self, group: int) -> str:
        return f"hop {group}"

    def spell(self, token: int) -> str:
        if token >= self.first_value:
            return f"v{token - self.first_value}"
        if token >= self.first_variable:
            return f"x{token - self.first_variable}"
        if token >= RESERVED:
            return f"n{token - RESERVED}"
        return {EQUALS: "=", SEMICOLON: ";"}.get(token) or super().spell(token)
