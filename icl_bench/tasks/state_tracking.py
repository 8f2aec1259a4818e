"""State tracking: the running product in a finite group."""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import model_validator
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
    octave,
    octave_label,
)

Group = Literal["parity", "z60", "s3", "a5", "s5"]
ORDER: Mapping[Group, int] = {"parity": 2, "z60": 60, "s3": 6, "a5": 60, "s5": 120}


def multiplication(group: Group) -> list[list[int]]:
    """The number of g·h, first g, then h, at row g and column h; element 0 is the neutral one."""
    order = ORDER[group]
    if group in ("parity", "z60"):
        return [[(g + h) % order for h in range(order)] for g in range(order)]
    elements = list(itertools.permutations(range(int(group[1]))))
    if group == "a5":
        elements = [element for element in elements if is_even(element)]
    number = {element: i for i, element in enumerate(elements)}
    return [[number[tuple(h[i] for i in g)] for h in elements] for g in elements]


def is_even(permutation: tuple[int, ...]) -> bool:
    """Whether the number of inversions is even."""
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


@functools.cache
def products(group: Group, device: torch.device) -> Tensor:
    """The table, flat: [order * order]. Kept on the device, since no copy to it may be part of a captured step."""
    return torch.tensor(multiplication(group), device=device).flatten()


@TASKS.register("state-tracking")
class StateTracking(Task):
    """Name the product of all group elements read so far, after each of them.

    The input is a sequence of uniform elements of a finite group; scored is every position, the target being the
    product of the elements up to it. `parity` and `z60` are sums, modulo 2 and 60; `s3` and `s5` are all permutations
    of three and five things, `a5` the even ones of five. The state is one element, a few bits: the task is a control in
    which a larger state must not help. What it takes is a transition that depends on the input and does not fade, for
    many steps; judge by longer sequences than were trained. No architecture here has one. Two layers of softmax learn
    the parity of 16 symbols, and then have .82 of 32 and .65 of 64 right; of `s3` they reach .64 at 16 symbols in 1500
    steps, of `s5` no more than the floor (one seed each). What learns these are transitions with negative or complex
    eigenvalues (Grazzi et al., arXiv 2411.12537), for `s5` products of them.

    Repeats: 16 bits of `parity` have 65,536 rows, most of which training meets, and test too: fine where lengths
    are judged that were not trained. Of 32 bits a million rows hold 2 of 10,000 test rows, of 16 elements of `s5` none.

    Full size: `state-tracking:group=s5,symbols=[16|32],extrapolate=[64|128|256]`, and with `group=parity` or `a5`.

    Source: Merrill, Petty and Sabharwal, "The illusion of state in state-space models" (arXiv 2404.08819).
    Chance: 1/order of the group; the first element is its own product.

    Budget: 1500 steps at 3e-3 on `state-tracking:symbols=16`, with softmax.

    >>> task = StateTracking(group="s3", symbols=(8,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'g2 g5 g4 g0 g0 g5 g2 g1'
    >>> " ".join(task.spell(token) for token in batch.targets[0].tolist())
    'g2 g3 g0 g0 g0 g5 g4 g2'
    """

    load_name = "symbols"

    group: Group = "parity"
    """The group: `parity`, `z60`, `s3`, `a5` or `s5`."""
    symbols: Many = (16, 32)
    """Lengths of the sequence, each a cell trained and evaluated."""
    extrapolate: Extra = ()
    """Lengths evaluated besides, not trained."""

    @model_validator(mode="after")
    def _check(self) -> "StateTracking":
        check_loads("symbols", (*self.symbols, *self.extrapolate))
        return self

    @property
    def order(self) -> int:
        """Number of elements."""
        return ORDER[self.group]

    @property
    def vocabulary(self) -> int:
        return RESERVED + self.order

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(symbols) for symbols in (*self.symbols, *self.extrapolate))

    def _cell(self, symbols: int) -> Cell:
        share = 1.0 if symbols in self.symbols else 0.0
        return Cell(label=f"symbols={symbols}", length=symbols, load=symbols, scored=symbols, share=share)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        inputs = random.integers(keys, "elements", cell.load, self.order) + RESERVED
        positions = torch.arange(cell.load, device=keys.device)
        groups = octave(positions + 1)
        return Batch(inputs, positions.expand_as(inputs), self._running(inputs), groups.expand_as(inputs))

    def _running(self, inputs: Tensor) -> Tensor:
        table = products(self.group, inputs.device)
        product = inputs - RESERVED
        step = 1
        # in log2 T rounds, each doubling what a product covers (Hillis and Steele, CACM 1986)
        while step < inputs.shape[1]:
            longer = table[product[:, :-step] * self.order + product[:, step:]]
            product = torch.cat([product[:, :step], longer], dim=1)
            step *= 2
        return product + RESERVED

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._running(inputs).gather(1, positions)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"current-element": self._current_element, "latest-two": self._latest_two}

    def _current_element(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The element just read."""
        return inputs.gather(1, positions)

    def _latest_two(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The product of the latest two elements: right at the first two positions."""
        now = inputs.gather(1, positions) - RESERVED
        before = inputs.gather(1, (positions - 1).clamp(min=0)) - RESERVED
        product = products(self.group, inputs.device)[before * self.order + now]
        return torch.where(positions == 0, now, product) + RESERVED

    def state_bits(self, cell: Cell) -> float:
        return math.log2(self.order)

    def group_label(self, group: int) -> str:
        return octave_label(group, "step")

    def spell(self, token: int) -> str:
        return f"g{token - RESERVED}" if token >= RESERVED else super().spell(token)
