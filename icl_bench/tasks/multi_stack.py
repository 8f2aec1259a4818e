"""Multi-stack: name the value that each pop takes from one of several stacks."""

import math
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most, check_multiple
from icl_bench.tasks.vocabulary import Vocabulary, numbered

FILLING = 0.7
"""Fraction of pushes in the first half; that of pops in the second."""


class Operations(NamedTuple):
    """The operations of examples, [N, operations] each."""

    push: Tensor
    """Push, else pop."""
    stack: Tensor
    """Number of the stack."""
    item: Tensor
    """Push that put the value there: the operation itself, or the push whose value a pop takes."""
    deep: Tensor
    """Pop of another value than the one that was pushed last on its stack."""


class Pushes(NamedTuple):
    """Positions of pushes on the stack of the operation at each position, [N, T] each."""

    top: Tensor
    """Push whose value is the top."""
    last: Tensor
    second_last: Tensor
    """The push before the last one; the last one where it is the only one."""
    oldest: Tensor
    """Push at the bottom of the stack."""


@TASKS.register("multi-stack")
class MultiStack(Task):
    """Name the value that each pop takes from one of several stacks.

    An operation is `+i v`, which puts the value v on stack i, or `-i`, which takes the top of stack i; the target at
    `-i` is the value taken, which is not shown unless `shown`. In the first half 7 of 10 operations are pushes, in the
    second half 3 of 10, so that stacks fill and drain and end empty; an operation on empty stacks is a push. Stacks,
    and among pops those that are not empty, are equally likely. `queries` pops are scored, deep ones first: those that
    do not take the value pushed last on their stack, which a table of last writes knows. Where an example has too few
    of them, the rest are `shallow`, a group of its own. So judge by the group `deep`. More stacks at equal operations
    hold as many values and need more addresses. The floor `second-last` names the push before the last one, `oldest`
    the bottom of the stack, which is the only value left at many pops of the second half.

    Full size: `multi-stack:operations=128,stacks=[1|4|8],queries=16`.

    Source: Kimi Linear (arXiv 2510.26692), section 5.1, with stacks that fill before they drain. Chance: 1/values.

    >>> task = MultiStack(operations=10, stacks=(2,), queries=2)
    >>> batch = task.sample(random.row_keys(torch.tensor(3), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '+1 v31 +1 v19 +1 v0 +0 v26 -1 -1 +1 v22 -0 -1 -1'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[9, 14]], ['v19', 'v31'])
    """

    axes = (Axis("stacks"),)
    load_name = "stacks"
    budget = TrainingBudget(steps=3000, lr=4e-3, params="stacks=1")
    picture = "operations=10,stacks=2,queries=2"

    operations: int = Field(default=40, ge=4)
    """Number of operations, even; half of them are pops."""
    stacks: IntegerList = (1, 4)
    """Numbers of stacks, each a cell that is trained and evaluated."""
    queries: int = Field(default=4, ge=1)
    """Number of pops that are scored."""
    values: int = Field(default=64, ge=2)
    """Number of values; they may repeat."""
    shown: bool = False
    """Show the value taken after each pop."""

    def check(self) -> None:
        check_multiple("operations", self.operations, 2)
        check_at_most("queries", self.queries, "operations / 2", self.operations // 2)

    @property
    def words(self) -> Vocabulary:
        most = max(self.stacks)
        return Vocabulary({"push": numbered("+", most), "pop": numbered("-", most), "values": self.values})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        length = self.operations * (4 if self.shown else 3) // 2
        return ExampleShape(length=length, load=sizes[0], scored=self.queries)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        made = self._operations(keys, cell.load)
        values = random.integers(keys, "values", self.operations, self.values) + self.words.first("values")
        taken = values.gather(1, made.item)
        kinds = torch.where(made.push, self.words.first("push"), self.words.first("pop"))
        two = made.push | self.shown
        places = two.int().cumsum(dim=1) - two.int() + torch.arange(self.operations, device=keys.device)
        inputs = taken.new_empty((keys.shape[0], cell.length + 1))
        inputs.scatter_(1, torch.where(two, places + 1, cell.length), taken)  # the last column takes what is not shown
        inputs.scatter_(1, places, kinds + made.stack)
        wanted = torch.where(made.push, 0.0, 1.0 + made.deep + random.uniform(keys, "asked", self.operations))
        asked = torch.argsort(wanted, dim=1, descending=True, stable=True)[:, : cell.scored].sort(dim=1).values
        groups = made.deep.long().gather(1, asked)
        return Batch(inputs[:, :-1].contiguous(), places.gather(1, asked), taken.gather(1, asked), groups)

    def _operations(self, keys: Tensor, stacks: int) -> Operations:
        """Draw the operations of examples; of each half exactly 7 and 3 of 10 are pushes, or the nearest numbers."""
        rows, count = keys.shape[0], self.operations
        push = self._kinds(random.uniform(keys, "kinds", count))
        choices = random.uniform(keys, "stacks", count).split(1, dim=1)
        top = torch.full((rows, stacks), -1, device=keys.device)
        popped = torch.zeros_like(top, dtype=torch.bool)
        below = torch.empty((rows, count), dtype=torch.int64, device=keys.device)
        steps = []
        for i, pushed in enumerate(push.split(1, dim=1)):
            allowed = ((top >= 0) | pushed).cumsum(dim=1, dtype=torch.float64)
            stack = (allowed <= choices[i] * allowed[:, -1:]).sum(dim=1, keepdim=True)
            under = top.gather(1, stack)
            below[:, i : i + 1] = under
            item = torch.where(pushed, i, under)
            top.scatter_(1, stack, torch.where(pushed, i, below.gather(1, item)))
            # the top of a stack is not its last push after a pop
            steps.append((stack, item, popped.gather(1, stack)))
            popped.scatter_(1, stack, ~pushed)
        stack, item, after_pop = (torch.cat(part, dim=1) for part in zip(*steps, strict=True))
        return Operations(push, stack, item, ~push & after_pop)

    def _kinds(self, draws: Tensor) -> Tensor:
        """Choose the operations that are pushes, of each half a fixed number but where stacks are empty: [N, count]."""
        half = self.operations // 2
        filling = round(FILLING * half)
        left_over = half - torch.arange(half, device=draws.device)
        scaled = (draws * left_over.repeat(2)).T.contiguous()
        pushes, kinds = torch.zeros_like(scaled[0]), []
        before = pushes  # pushes of the first half
        for i, draw in enumerate(scaled):
            before = pushes if i == half else before
            wanted = half - filling if i >= half else filling
            kinds.append((draw < wanted - (pushes - before)) | (pushes + pushes == i))
            pushes = pushes + kinds[-1]
        return torch.stack(kinds, dim=1)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._values(inputs, positions, self._pushes(inputs, cell).top)

    def floor_last_write(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value pushed last on the stack."""
        return self._values(inputs, positions, self._pushes(inputs, cell).last)

    def floor_second_last(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value pushed on the stack before the last one."""
        return self._values(inputs, positions, self._pushes(inputs, cell).second_last)

    def floor_oldest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value at the bottom of the stack."""
        return self._values(inputs, positions, self._pushes(inputs, cell).oldest)

    def _values(self, inputs: Tensor, positions: Tensor, pushes: Tensor) -> Tensor:
        """Return the values that stand after the chosen pushes: [N, S], [N, T] -> [N, S]."""
        return inputs.gather(1, pushes.gather(1, positions) + 1)

    def _pushes(self, inputs: Tensor, cell: Cell) -> Pushes:
        """Read an example token by token, and keep the pushes that a pop at each position could name."""
        rows, stacks, first = inputs.shape[0], cell.load, self.words.first("push")
        top, last, second_last, oldest = (inputs.new_full((rows, stacks), -1) for _ in range(4))
        below, found = torch.empty_like(inputs), []
        for i in range(cell.length):
            push = (inputs[:, i] >= first) & (inputs[:, i] < self.words.first("pop"))
            pop = (inputs[:, i] >= self.words.first("pop")) & (inputs[:, i] < self.words.first("values"))
            stack = torch.where(push | pop, (inputs[:, i] - first) % max(self.stacks), 0)[:, None]
            named = [each.gather(1, stack)[:, 0] for each in (top, last, second_last, oldest)]
            found.append(Pushes(*named))
            below[:, i] = named[0]
            under = torch.where(pop, below.gather(1, named[0][:, None].clamp(min=0))[:, 0], named[0])
            top = top.scatter(1, stack, torch.where(push, i, under)[:, None])
            second_last = second_last.scatter(1, stack, torch.where(push, named[1], named[2])[:, None])
            last = last.scatter(1, stack, torch.where(push, i, named[1])[:, None])
            oldest = oldest.scatter(1, stack, torch.where(push & (named[0] < 0), i, named[3])[:, None])
        pushes = Pushes(*(torch.stack(part, dim=1) for part in zip(*found, strict=True)))
        return pushes._replace(second_last=torch.where(pushes.second_last < 0, pushes.last, pushes.second_last))

    def state_bits(self, cell: Cell) -> float:
        half = self.operations // 2
        held = 2 * round(FILLING * half) - half
        return held * math.log2(self.values) + math.log2(math.comb(held + cell.load - 1, held))

    def group_label(self, group: int) -> str:
        return "deep" if group else "shallow"
