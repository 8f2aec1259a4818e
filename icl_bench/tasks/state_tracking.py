"""State tracking: the running product in a finite group."""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers
from icl_bench.tasks.sampling import last_positions, octave
from icl_bench.tasks.vocabulary import RESERVED, Vocabulary, numbered

Group = Literal["parity", "z60", "s3", "a5", "s5"]
ORDER: Mapping[Group, int] = {"parity": 2, "z60": 60, "s3": 6, "a5": 60, "s5": 120}
"""Number of elements of each group."""


def multiplication(group: Group) -> list[list[int]]:
    """Return the multiplication table: row g, column h has the number of g·h, first g, then h; element 0 is neutral."""
    order = ORDER[group]
    if group in ("parity", "z60"):
        return [[(g + h) % order for h in range(order)] for g in range(order)]
    elements = list(itertools.permutations(range(int(group[1]))))
    if group == "a5":  # permutations with an even number of inversions
        elements = [one for one in elements if sum(a > b for a, b in itertools.combinations(one, 2)) % 2 == 0]
    number = {element: i for i, element in enumerate(elements)}
    return [[number[tuple(h[i] for i in g)] for h in elements] for g in elements]


@functools.cache
def products(group: Group, device: torch.device) -> Tensor:
    """Return the flat multiplication table, [order * order], on a device.

    The table stays on the device, since a captured training step must not contain a copy to it.
    """
    return torch.tensor(multiplication(group), device=device).flatten()


@TASKS.register("state-tracking")
class StateTracking(Task):
    """Name the product of all group elements read so far, after each element.

    The input is a sequence of uniform elements of a finite group. Every position is scored: the target is the product
    of the elements up to it. `parity` and `z60` are sums modulo 2 and 60; `s3` and `s5` are all permutations of three
    and five things; `a5` is the even permutations of five. The state is one element, a few bits, so the task is a
    control in which a larger state must not help. It requires a transition that depends on the input and does not fade
    over many steps; judge a model by sequences longer than those in training. Delta rules with
    `negative_eigenvalues=true` and `gated-delta-product` have such a transition, decays alone have none. Two layers of
    softmax learn the parity of 16 symbols, and then reach .82 at 32 symbols and .65 at 64; on `s3` they reach .64 at 16
    symbols in 1500 steps, on `s5` no more than the floor (one seed each). Transitions with negative or complex
    eigenvalues learn these groups (Grazzi et al., arXiv 2411.12537), products of them `s5`.

    Repeats: 16 bits of `parity` have 65,536 rows, most of which occur in training and again in the test; this is
    acceptable where the lengths that are judged were not trained. With 32 bits, a million training rows include 2 of
    10,000 test rows; with 16 elements of `s5`, none.

    Full size: `state-tracking:group=s5,symbols=[16|32],extrapolate=[64|128|256]`, and the same with `group=parity` or
    `group=a5`.

    Source: Merrill, Petty and Sabharwal, "The illusion of state in state-space models" (arXiv 2404.08819).
    Chance: 1/order of the group; the first element is its own product.

    >>> task = StateTracking(group="s3", symbols=(8,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'g2 g5 g4 g0 g0 g5 g2 g1'
    >>> " ".join(task.spell(token) for token in batch.targets[0].tolist())
    'g2 g3 g0 g0 g0 g5 g4 g2'
    """

    axes = (Axis("symbols", extrapolated=True),)
    repeats = True
    load_name = "symbols"
    budget = TrainingBudget(steps=1500, lr=3e-3, params="symbols=16")
    picture = "group=s3,symbols=16"
    group_unit = "step"

    group: Group = "parity"
    """Group: `parity`, `z60`, `s3`, `a5` or `s5`."""
    symbols: IntegerList = (16, 32)
    """Lengths of the sequence, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = ()
    """Lengths of the sequence that are evaluated but not trained."""

    @property
    def order(self) -> int:
        """Number of elements of the group."""
        return ORDER[self.group]

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"elements": numbered("g", self.order)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=sizes[0], load=sizes[0], scored=sizes[0])

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        inputs = random.integers(keys, "elements", cell.load, self.order) + RESERVED
        positions = last_positions(keys, cell.scored, cell.length)
        return Batch(inputs, positions, self._running(inputs), octave(positions[:1] + 1).expand_as(positions))

    def _running(self, inputs: Tensor) -> Tensor:
        table = products(self.group, inputs.device)
        product = inputs - RESERVED
        step = 1
        # log2 T rounds, each of which doubles the elements that a product covers (Hillis and Steele, CACM 1986)
        while step < inputs.shape[1]:
            product = torch.cat([product[:, :step], table[product[:, :-step] * self.order + product[:, step:]]], dim=1)
            step *= 2
        return product + RESERVED

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._running(inputs).gather(1, positions)

    def floor_current_element(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the current element."""
        return inputs.gather(1, positions)

    def floor_latest_two(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the product of the latest two elements, which is right at the first two positions."""
        return self._product_of_latest(inputs, positions, 2)

    def floor_latest_four(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the product of the latest four elements, which is right at the first four positions."""
        return self._product_of_latest(inputs, positions, 4)

    def _product_of_latest(self, inputs: Tensor, positions: Tensor, count: int) -> Tensor:
        """Return the product of the latest elements at each position, of fewer where there are not so many."""
        table, product = products(self.group, inputs.device), inputs.gather(1, positions) - RESERVED
        for back in range(1, count):
            before = inputs.gather(1, (positions - back).clamp(min=0)) - RESERVED
            product = torch.where(positions < back, product, table[before * self.order + product])
        return product + RESERVED

    def state_bits(self, cell: Cell) -> float:
        return math.log2(self.order)
