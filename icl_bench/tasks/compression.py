"""Compression: any symbol of a string, by its place, after the string has gone by."""

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    RESERVED,
    SEP,
    TASKS,
    Answers,
    Batch,
    Cell,
    Many,
    Solver,
    Task,
    check_loads,
    octave,
    octave_label,
)


@TASKS.register("compression")
class Compression(Task):
    """Name the symbol at each place of a string, the places being asked in random order.

    The input is `string | places`: uniform symbols, a separator, then the number of every place once, in random order.
    Scored are these numbers: the target is the symbol that stands there. Answers are not shown, and no order helps, so
    that the whole string must be kept at once, each symbol to be found by its place alone.

    Full size: `compression:symbols=[31|63|127|255]`, MAD's lengths less the token that ends them.

    Source: Poli et al., "Mechanistic design and scaling of hybrid architectures" (arXiv 2403.17844), task compression.
    There an encoder's output at the last token, one vector, is all that a decoder sees, with every place in turn; here
    what lies between string and places is the state of the layers, which is what is measured. Chance: 1/alphabet.

    Budget: 500 steps at 5e-3 on `compression:symbols=8`, with softmax.

    >>> task = Compression(symbols=(5,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'e h e j d | 1 2 0 3 4'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[6, 7, 8, 9, 10]], 'h e e j d')
    """

    load_name = "symbols"

    symbols: Many = (8, 16, 31)
    """Lengths of the string, each a cell trained and evaluated."""
    alphabet: int = Field(default=15, ge=2)
    """Number of symbols; MAD's vocabulary of 16 has the ending token besides."""

    @model_validator(mode="after")
    def _check(self) -> "Compression":
        check_loads("symbols", self.symbols, lowest=2)
        return self

    @property
    def first_place(self) -> int:
        """The token of place 0; symbols come before."""
        return RESERVED + self.alphabet

    @property
    def vocabulary(self) -> int:
        return self.first_place + max(self.symbols)

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(label=f"symbols={symbols}", length=2 * symbols + 1, load=symbols, scored=symbols)
            for symbols in self.symbols
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        string = random.integers(keys, "string", cell.load, self.alphabet) + RESERVED
        asked = random.permutation(keys, "places", cell.load)
        inputs = torch.cat([string, torch.full_like(asked[:, :1], SEP), asked + self.first_place], dim=1)
        positions = torch.arange(cell.load + 1, cell.length, device=keys.device).expand_as(asked)
        return Batch(inputs, positions, string.gather(1, asked), octave(positions - asked))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return inputs.gather(1, inputs.gather(1, positions) - self.first_place)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"most-frequent": self._most_frequent, "latest": self._latest}

    def _most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent symbol of the string."""
        return inputs[:, : cell.load].mode(dim=1).values[:, None].expand_as(positions)

    def _latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The last symbol of the string."""
        return inputs[:, cell.load - 1, None].expand_as(positions)

    def state_bits(self, cell: Cell) -> float:
        return cell.load * math.log2(self.alphabet)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.load, self.alphabet)

    def group_label(self, group: int) -> str:
        return octave_label(group)

    def spell(self, token: int) -> str:
        if token >= self.first_place:
            return f"{token - self.first_place}"
        letter = token - RESERVED
        if letter < 0:
            return super().spell(token)
        return chr(ord("a") + letter) if self.alphabet <= 26 else f"s{letter}"
