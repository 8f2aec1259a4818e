"""Modular arithmetic: the value of an expression in prefix notation."""

import functools
import math

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers
from icl_bench.tasks.vocabulary import Alphabet, Vocabulary

OPERATORS = "+-*"


@TASKS.register("modular-arithmetic")
class ModularArithmetic(Task):
    """Evaluate an expression of sums, differences and products in prefix notation.

    An expression has `operators` operators, each `+`, `-` or `*` with equal probability, and one operand more, uniform
    in 0..`modulus` - 1. An operator comes before its two operands; of the operators below it a uniform number is in the
    first. The last token is scored: the target is the value modulo `modulus`. Groups are the depth of the expression,
    operators one below the other. Next to nothing has to be kept of the context: the pending operators and the values
    before them. The table of 3 modulus^2 results is in the weights. So this is a control: an architecture that is ahead
    here is so by its depth or its optimisation and not by its state. A product by 0 makes 0 the most frequent value,
    the floor `zero`.

    Repeats: with two operators and a small modulus some test examples occur in training.

    Full size: `modular-arithmetic:operators=[2|4|8],modulus=23`; in the published task up to 10, 13 and 16 operators,
    tested at the most: `modular-arithmetic:operators=[1|2|3|4|5|6|7|8|9|10],modulus=23`.

    Source: Allen-Zhu, "Physics of Language Models: Part 4.1" (arXiv 2512.17351), task Mano, without its synonyms and
    length token. Chance: 1/modulus; by naming 0 up to .22 for a modulus of 7, and
    .07 for one of 23.

    >>> task = ModularArithmetic(operators=(3,), modulus=10)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '- 7 + - 9 1 9'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[6]], ['0'])
    """

    axes = (Axis("operators", extrapolated=True),)
    load_name = "operators"
    budget = TrainingBudget(steps=4000, lr=2e-3, params="operators=2")
    picture = "operators=4,modulus=10"
    by_rule = ("n-gram",)
    group_unit = "depth"
    repeats = True

    operators: IntegerList = (2, 4, 8)
    """Numbers of operators, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = ()
    """Numbers of operators that are evaluated but not trained."""
    modulus: int = Field(default=7, ge=2, le=1000)
    """Number of values."""

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"operators": Alphabet(3, OPERATORS.__getitem__), "values": Alphabet(self.modulus, str)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=2 * sizes[0] + 1, load=sizes[0], scored=1)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        kinds = random.integers(keys, "operators", cell.length, len(OPERATORS)) + self.words.first("operators")
        operands = random.integers(keys, "operands", cell.length, self.modulus) + self.words.first("values")
        operator, depth = self._shape_of_tree(keys, cell)
        inputs = torch.where(operator, kinds, operands)
        positions = torch.full_like(inputs[:, :1], cell.length - 1)
        return Batch(inputs, positions, self.oracle(inputs, positions, cell), depth)

    def _shape_of_tree(self, keys: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        """Draw which tokens are operators, [N, T], and the depth of the expression, [N, 1]."""
        draws = random.uniform(keys, "splits", cell.length)
        # expressions that are still to be written, the next one last: their operators, and the operators above them
        sizes, above = (torch.zeros(len(keys), cell.load + 2, dtype=torch.int64, device=keys.device) for _ in range(2))
        sizes[:, 0] = cell.load
        end, deepest, operators = torch.zeros_like(keys)[:, None], torch.zeros_like(keys)[:, None], []
        for i in range(cell.length):
            size, over = sizes.gather(1, end), above.gather(1, end)
            operator = size > 0
            first = (draws[:, i : i + 1] * size).long()
            sizes = sizes.scatter(1, end, size - 1 - first).scatter(1, end + 1, first)
            above = above.scatter(1, end, over + 1).scatter(1, end + 1, over + 1)
            deepest = torch.maximum(deepest, over)
            end = torch.where(operator, end + 1, end - 1).clamp(min=0)
            operators.append(operator)
        return torch.cat(operators, dim=1), deepest

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        first = self.words.first("values")
        values = torch.zeros(len(inputs), cell.load + 2, dtype=torch.int64, device=inputs.device)
        end = torch.full_like(inputs[:, :1], -1)
        for i in reversed(range(cell.length)):
            token = inputs[:, i : i + 1]
            one, other = values.gather(1, end.clamp(min=0)), values.gather(1, (end - 1).clamp(min=0))
            results = torch.cat([one + other, one - other, one * other], dim=1) % self.modulus
            operator = token < first
            kind = (token - self.words.first("operators")).clamp(max=len(OPERATORS) - 1)
            end = torch.where(operator, end - 1, end + 1)
            values = values.scatter(1, end, torch.where(operator, results.gather(1, kind), token - first))
        return values[:, :1] + first

    def floor_zero(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name 0."""
        return torch.full_like(positions, self.words.first("values"))

    def floor_last_operand(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the last operand."""
        return inputs.gather(1, positions)

    def state_bits(self, cell: Cell) -> float:
        return mean_depth(cell.load) * math.log2(len(OPERATORS) * self.modulus)


@functools.lru_cache
def depth_at_most(operators: int, depth: int) -> float:
    """Return the probability that an expression has at most that depth."""
    if operators == 0 or depth == 0:
        return float(operators == 0)
    splits = range(operators)
    return sum(depth_at_most(i, depth - 1) * depth_at_most(operators - 1 - i, depth - 1) for i in splits) / operators


def mean_depth(operators: int) -> float:
    """Return the mean depth of expressions."""
    return sum(1 - depth_at_most(operators, depth) for depth in range(operators))
