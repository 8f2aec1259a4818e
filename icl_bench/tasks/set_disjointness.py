"""Set disjointness: do two sets have an element in common?"""

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    QUERY,
    RESERVED,
    SEP,
    TASKS,
    Batch,
    Cell,
    Many,
    Solver,
    Task,
    check_loads,
    distinct_ranks,
)

DISJOINT, MEETING = 5, 6
"""The two answers."""
FEW = 24
"""Elements up to which drawing one by one is quicker, in squares of their number."""


@TASKS.register("set-disjointness")
class SetDisjointness(Task):
    """Tell whether two sets, one given after the other, have an element in common.

    The input is `set | set ?`: `first` different elements, a separator, `second` different elements. In half of the
    examples the sets are disjoint, in the other half they share exactly one element. Scored is the question mark. The
    first set has to be kept whole until the second one comes: its size sets the state needed, and swapping `first` and
    `second` changes that at equal tokens. One bit an example teaches slowly; small sets, trained on along with large
    ones, start it.

    Repeats: of two sets of two there are some 10^8 rows, a quarter but for order: a million hold 11 % of the test, and
    the budget about 1 %. Where the first set has eight elements, none comes again.

    Full size: `set-disjointness:first=[8|32|128],second=[8|32|128],alphabet=1024`; beyond, `first=256`.

    Source: Arora et al., "Just read twice" (arXiv 2407.05483). Chance: 1/2.

    Budget: 1500 steps at 3e-3 on `set-disjointness:first=2,second=2`, with softmax.

    >>> task = SetDisjointness(first=(3,), second=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'e55 e110 e94 | e94 e14 e106 e63 ?'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[8]], ['yes'])
    """

    load_name = "first"

    first: Many = (2, 8)
    """Sizes of the set that comes first; with `second` they span the grid of cells."""
    second: Many = (2, 8)
    """Sizes of the set that comes second."""
    alphabet: int = Field(default=128, ge=2)
    """Number of elements there are."""

    @model_validator(mode="after")
    def _check(self) -> "SetDisjointness":
        check_loads("first", self.first)
        check_loads("second", self.second)
        least = max(self.first) + max(self.second)
        if least > self.alphabet:
            raise ValueError(
                f"alphabet must hold two disjoint sets, {max(self.first)} + {max(self.second)}; got {self.alphabet}; "
                f"raise alphabet to {least} or lower first or second"
            )
        return self

    @property
    def vocabulary(self) -> int:
        return RESERVED + self.alphabet

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(label=f"first={first},second={second}", length=first + second + 2, load=first, scored=1)
            for first in self.first
            for second in self.second
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        first, second = cell.load, cell.length - cell.load - 2
        elements = self._elements(keys, first + second) + RESERVED
        one, other = elements.split([first, second], dim=1)
        meet = random.integers(keys, "meet", 1, 2)
        shared = one.gather(1, random.integers(keys, "shared", 1, first))
        place = random.integers(keys, "place", 1, second)
        other = other.scatter(1, place, torch.where(meet == 1, shared, other.gather(1, place)))
        marks = [torch.full_like(meet, token) for token in (SEP, QUERY)]
        inputs = torch.cat([one, marks[0], other, marks[1]], dim=1)
        return Batch(inputs, torch.full_like(meet, cell.length - 1), DISJOINT + meet, meet)

    def _elements(self, keys: Tensor, count: int) -> Tensor:
        """Different elements in random order, [N, count]: few of them one by one, without a shuffle of the alphabet."""
        if count > FEW:
            return random.distinct(keys, "elements", count, self.alphabet)
        return distinct_ranks(random.uniform(keys, "elements", count), self.alphabet)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        one, other = inputs[:, : cell.load], inputs[:, cell.load + 1 : -1]
        meet = (one[:, :, None] == other[:, None]).flatten(1).any(dim=1, keepdim=True)
        return DISJOINT + meet.long()

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"disjoint": self._disjoint, "meeting": self._meeting}

    def _disjoint(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Always no."""
        return torch.full_like(positions, DISJOINT)

    def _meeting(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Always yes."""
        return torch.full_like(positions, MEETING)

    def state_bits(self, cell: Cell) -> float:
        """Bits that name the first set: every one of them asks for another answer to some second set."""
        return math.log2(math.comb(self.alphabet, cell.load))

    def group_label(self, group: int) -> str:
        return "one in common" if group else "disjoint"

    def spell(self, token: int) -> str:
        if token >= RESERVED:
            return f"e{token - RESERVED}"
        return {DISJOINT: "no", MEETING: "yes"}.get(token) or super().spell(token)
