"""k-hop: follow the chain of earlier occurrences a given number of times."""

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    RESERVED,
    TASKS,
    Batch,
    Cell,
    Extra,
    Many,
    Solver,
    Task,
    check_loads,
    latest_same,
    mode_so_far,
    octave,
    octave_label,
)

MISSING = 5
"""The answer where the chain ends early."""
MISSING_GROUP = 31
"""Group of these positions; no octave of a sequence reaches it."""


@TASKS.register("k-hop")
class KHop(Task):
    """Follow the induction step k times: from a symbol, to what came after its latest earlier occurrence.

    The first token says how many hops; then comes a random sequence in which no symbol follows itself. One hop leads
    from position j to 1 + (latest earlier position of the symbol at j). Scored is every position of the sequence: the
    target is the symbol `hops` hops away, or `~` where some symbol has no earlier occurrence. Each hop needs the result
    of the one before. Neighbours give a part of the answers away: one hop leads to the previous symbol, and two lead
    back to the current one, in half of the cases, which the floors `other-symbol` and `current-symbol` measure. Cells
    are hop counts, since chains that end early (`~`, a group of its own) grow with them: judge a cell by its other
    groups, or against its own floor. Zero hops is a control that needs no memory: the floor is 1 there.

    Full size: `k-hop:symbols=100,hops=[0|1|2|3|4|5|6|7|8],extrapolate=[9|10|11|12|13|14|15|16]`.

    Source: Sanford, Hsu and Telgarsky, "Transformers, parallel computation, and logarithmic depth" (arXiv 2402.09268).
    Chance: near 1/2 at the default alphabet of 4; measured by the floors of each cell.

    Budget: 300 steps at 5e-3 on `k-hop:hops=1`, with softmax.

    >>> task = KHop(symbols=12, hops=(1,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'hops=1 b a c b a c b c d c b a'
    >>> " ".join(task.spell(token) for token in batch.targets[0].tolist())
    '~ ~ ~ a c b a b ~ d c c'
    """

    load_name = "hops"

    symbols: int = Field(default=63, ge=2)
    """Length of the sequence after the hop count."""
    hops: Many = (1, 2, 4)
    """Hop counts, each a cell trained and evaluated."""
    extrapolate: Extra = ()
    """Hop counts evaluated besides, not trained."""
    alphabet: int = Field(default=4, ge=3)
    """Number of symbols."""

    @model_validator(mode="after")
    def _check(self) -> "KHop":
        check_loads("hops", (*self.hops, *self.extrapolate), lowest=0)
        highest = max(*self.hops, *self.extrapolate, 0)
        if highest >= self.symbols:
            raise ValueError(
                f"hops must be below the number of symbols, {self.symbols}; got {highest}; raise symbols or lower hops"
            )
        return self

    @property
    def first_count(self) -> int:
        """The token of zero hops."""
        return RESERVED + self.alphabet

    @property
    def vocabulary(self) -> int:
        return self.first_count + max(*self.hops, *self.extrapolate, 0) + 1

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(hops) for hops in (*self.hops, *self.extrapolate))

    def _cell(self, hops: int) -> Cell:
        share = 1.0 if hops in self.hops else 0.0
        return Cell(label=f"hops={hops}", length=self.symbols + 1, load=hops, scored=self.symbols, share=share)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        first = random.integers(keys, "first", 1, self.alphabet)
        steps = 1 + random.integers(keys, "steps", self.symbols - 1, self.alphabet - 1)
        symbols = torch.cat([first, steps], dim=1).cumsum(dim=1) % self.alphabet
        reached, targets = self._follow(symbols, cell.load)
        places = torch.arange(self.symbols, device=keys.device)
        groups = torch.where(targets == MISSING, MISSING_GROUP, octave((places - reached).clamp(min=1)))
        count = torch.full((keys.shape[0], 1), self.first_count + cell.load, device=keys.device)
        inputs = torch.cat([count, symbols + RESERVED], dim=1)
        return Batch(inputs, (places + 1).expand_as(targets), targets, groups)

    def _follow(self, symbols: Tensor, hops: int) -> tuple[Tensor, Tensor]:
        """The position reached, one past the end where the chain breaks, and the token there: both [N, symbols]."""
        rows, size = symbols.shape
        earlier = latest_same(symbols)
        step = torch.where(earlier < 0, size, earlier + 1)
        step = torch.cat([step, torch.full_like(step[:, :1], size)], dim=1)
        reached = torch.arange(size, device=symbols.device).expand(rows, size)
        for _ in range(hops):
            reached = step.gather(1, reached)
        named = torch.cat([symbols + RESERVED, torch.full_like(symbols[:, :1], MISSING)], dim=1)
        return reached, named.gather(1, reached)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        _, answers = self._follow(inputs[:, 1:] - RESERVED, cell.load)
        return answers.gather(1, positions - 1)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {
            "missing": self._missing,
            "most-frequent": self._most_frequent,
            "current-symbol": self._current_symbol,
            "other-symbol": self._other_symbol,
        }

    def _missing(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Always `~`."""
        return torch.full_like(positions, MISSING)

    def _most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent symbol so far."""
        return mode_so_far(inputs, RESERVED, self.alphabet).gather(1, positions)

    def _current_symbol(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The symbol just read, and `~` where that is likelier."""
        return self._early_missing(inputs.gather(1, positions), positions, cell)

    def _other_symbol(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The symbol before the one just read, and `~` where that is likelier: never the current symbol."""
        previous = inputs.gather(1, (positions - 1).clamp(min=1))
        return self._early_missing(previous, positions, cell)

    def _early_missing(self, answers: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """`~` at positions that k hops mostly leave.

        A hop goes back alphabet - 1 positions in the mean, with variance (alphabet - 1)(alphabet - 2); two thirds of a
        standard deviation beyond the mean, a quarter of the chains have ended.
        """
        back = self.alphabet - 1
        reach = cell.load * back + 2 / 3 * math.sqrt(cell.load * back * (back - 1))
        return torch.where(positions <= reach, MISSING, answers)

    def state_bits(self, cell: Cell) -> float:
        """Bits of the table that suffices: for each symbol, what 0, 1, ..., k - 1 hops lead to from after its last."""
        table = cell.load * self.alphabet * math.log2(self.alphabet)
        return table + math.log2(self.vocabulary - self.first_count)

    def group_label(self, group: int) -> str:
        return "missing" if group == MISSING_GROUP else octave_label(group)

    def spell(self, token: int) -> str:
        if token == MISSING:
            return "~"
        if token >= self.first_count:
            return f"hops={token - self.first_count}"
        letter = token - RESERVED
        if letter >= 0:
            return chr(ord("a") + letter) if self.alphabet <= 26 else f"s{letter}"
        return super().spell(token)
