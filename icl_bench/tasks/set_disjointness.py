"""Set disjointness: do two sets have an element in common?"""

import math

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most
from icl_bench.tasks.sampling import distinct_ranks
from icl_bench.tasks.vocabulary import QUERY, RESERVED, SEP, Vocabulary

DISJOINT, MEETING = 5, 6
"""Tokens of the two answers."""
FEW = 24
"""Largest number of elements that are drawn one by one; this takes time in the square of their number."""


@TASKS.register("set-disjointness")
class SetDisjointness(Task):
    """Tell whether two sets, given one after the other, have an element in common.

    The input is `set | set ?`: `first` different elements, a separator, `second` different elements. In half of the
    examples the sets are disjoint; in the other half they share exactly one element. The question mark is scored. The
    first set must be kept whole until the second one comes, so its size determines the required state, and exchanging
    `first` and `second` changes this at an equal number of tokens. One bit for each example is little to learn from;
    small sets, trained together with large ones, start the learning. A token that is in both sets occurs twice, so that
    the counts of all tokens decide: a model that keeps their sum and no order does what the task asks for.

    Repeats: with two sets of two elements there are some 10^8 rows, a quarter of that if order is ignored. A million
    training rows include 11 % of the test rows, and the training budget about 1 %. With eight elements in the first
    set, none occurs again.

    Full size: `set-disjointness:first=[8|32|128],second=[8|32|128],alphabet=1024`; beyond it, `first=256`.

    Source: Arora et al., "Just read twice" (arXiv 2407.05483). Chance: 1/2.

    >>> task = SetDisjointness(first=(3,), second=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'e55 e110 e94 | e94 e14 e106 e63 ?'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[8]], ['yes'])
    """

    axes = (Axis("first"), Axis("second"))
    load_name = "first"
    budget = TrainingBudget(steps=1500, lr=3e-3, params="first=2,second=2")
    picture = "first=4,second=4"
    repeats = True
    by_rule = ("bag of tokens",)

    first: IntegerList = (2, 8)
    """Sizes of the first set; each is combined with every size of the second set."""
    second: IntegerList = (2, 8)
    """Sizes of the second set."""
    alphabet: int = Field(default=128, ge=2)
    """Number of elements to draw from."""

    def check(self) -> None:
        check_at_most("first + second", max(self.first) + max(self.second), "alphabet", self.alphabet)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"elements": self.alphabet}, special={DISJOINT: "no", MEETING: "yes"})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=sum(sizes) + 2, load=sizes[0], scored=1)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        first, second = cell.sizes
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
        """Draw different elements in random order, [N, count]; few of them without a shuffle of the alphabet."""
        if count > FEW:
            return random.distinct(keys, "elements", count, self.alphabet)
        return distinct_ranks(random.uniform(keys, "elements", count), self.alphabet)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        one, other = inputs[:, : cell.load], inputs[:, cell.load + 1 : -1]
        meet = (one[:, :, None] == other[:, None]).flatten(1).any(dim=1, keepdim=True)
        return DISJOINT + meet.long()

    def canonical(self, inputs: Tensor, cell: Cell) -> Tensor:
        sets = inputs[:, : cell.load], inputs[:, cell.load + 1 : -1]
        return torch.cat([one.sort(dim=1).values for one in sets], dim=1)

    def floor_disjoint(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Answer no everywhere."""
        return torch.full_like(positions, DISJOINT)

    def floor_meeting(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Answer yes everywhere."""
        return torch.full_like(positions, MEETING)

    def state_bits(self, cell: Cell) -> float:
        """Return the bits that name the first set: for any two first sets, some second set has different answers."""
        return math.log2(math.comb(self.alphabet, cell.load))

    def group_label(self, group: int) -> str:
        return "one in common" if group else "disjoint"
