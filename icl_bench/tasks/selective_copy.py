"""Selective copying: repeat the data, leave out the blanks."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    PAD,
    QUERY,
    RESERVED,
    TASKS,
    Answers,
    Batch,
    Cell,
    Extra,
    Many,
    Solver,
    Task,
    check_loads,
    first_true,
    octave,
    octave_label,
)


@TASKS.register("selective-copy")
class SelectiveCopy(Task):
    """Repeat in order the symbols that stand at random places among blanks.

    `symbols` symbols stand at uniform places in a stretch of blanks; then follow as many query marks. Scored are the
    marks: the target at the i-th is the i-th symbol. Answers are not shown, so the place has to come from counting
    marks, and which inputs to keep from what they are: `symbols` at a fixed length tests capacity, `length` at fixed
    symbols tests selection.

    `variant=mad` is the generator of MAD as its code has it: 14 symbols by default; every blank falls before a symbol
    drawn uniformly, so that none follows the last one; a single mark, then blanks, stand for the query marks.

    Full size: `selective-copy:length=512,symbols=[8|16|32|64|96|128]` for capacity and
    `selective-copy:length=[128|256|512|1024],symbols=16,extrapolate=4096` for selection. Mamba's own has 16 symbols of
    15 kinds in 4096 tokens, MAD's is `selective-copy:variant=mad,length=256,symbols=16`.

    Source: Gu and Dao, "Mamba" (arXiv 2312.00752), section 4.1; MAD (arXiv 2403.17844). Chance: 1/alphabet.

    Budget: 1000 steps at 5e-3 on `selective-copy:symbols=4`, with softmax.

    >>> task = SelectiveCopy(length=(16,), symbols=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '· i · · · j a p · · · · ? ? ? ?'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[12, 13, 14, 15]], 'i j a p')
    """

    load_name = "symbols"

    variant: Literal["default", "mad"] = "default"
    """`default`, or `mad` for the published generator."""
    length: Many = (64,)
    """Positions in a sequence, T; with `symbols` they span the grid of cells."""
    symbols: Many = (4, 8, 16)
    """Numbers of symbols to repeat."""
    extrapolate: Extra = ()
    """Lengths evaluated besides, not trained."""
    alphabet: int = Field(default=16, ge=2)
    """Number of kinds of symbols; 14 in `mad`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_variant(cls, data: object) -> object:
        """Write out what the variant leaves open, so that equal tasks have equal parameters."""
        if not isinstance(data, dict) or data.get("variant") != "mad":
            return data
        return {"alphabet": 14, **data}

    @model_validator(mode="after")
    def _check(self) -> "SelectiveCopy":
        lengths = (*self.length, *self.extrapolate)
        check_loads("length", lengths)
        check_loads("symbols", self.symbols)
        mark = self._marks
        if 2 * max(self.symbols) + mark > min(lengths):
            raise ValueError(
                f"symbols must be at most {'(length - 1)' if mark else 'length'} / 2 = {(min(lengths) - mark) // 2}, a "
                f"place and a query each; got {max(self.symbols)}; raise length to {2 * max(self.symbols) + mark} or "
                f"lower symbols"
            )
        return self

    @property
    def _marks(self) -> int:
        """Positions between the data and the scored ones."""
        return 1 if self.variant == "mad" else 0

    @property
    def vocabulary(self) -> int:
        return RESERVED + self.alphabet

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        lengths = (*self.length, *self.extrapolate)
        return tuple(self._cell(length, symbols) for length in lengths for symbols in self.symbols)

    def _cell(self, length: int, symbols: int) -> Cell:
        share = 1.0 if length in self.length else 0.0
        label = f"length={length},symbols={symbols}"
        return Cell(label=label, length=length, load=symbols, scored=symbols, share=share)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        rows, symbols = keys.shape[0], cell.load
        data = random.integers(keys, "symbols", symbols, self.alphabet) + RESERVED
        body = cell.length - symbols - self._marks
        places = self._places(keys, symbols, body)
        inputs = torch.full((rows, cell.length), PAD, device=keys.device).scatter_(1, places, data)
        inputs[:, body : body + self._marks if self._marks else cell.length] = QUERY
        positions = torch.arange(cell.length - symbols, cell.length, device=keys.device).expand(rows, -1)
        return Batch(inputs, positions, data, octave(positions - places))

    def _places(self, keys: Tensor, symbols: int, body: int) -> Tensor:
        """Where the symbols stand, in order: [N, symbols]."""
        if self.variant == "default":
            return random.distinct(keys, "places", symbols, body).sort(dim=-1).values
        before = random.integers(keys, "blanks", body - symbols, symbols)
        blanks = torch.zeros(len(keys), symbols, dtype=torch.int64, device=keys.device)
        blanks.scatter_add_(1, before, torch.ones_like(before))
        return blanks.cumsum(dim=1) + torch.arange(symbols, device=keys.device)

    def _data(self, inputs: Tensor, cell: Cell) -> Tensor:
        return inputs.gather(1, first_true(inputs >= RESERVED, cell.load))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._data(inputs, cell)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"most-frequent": self._most_frequent, "latest": self._latest}

    def _most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent symbol."""
        return self._data(inputs, cell).mode(dim=1).values[:, None].expand_as(positions)

    def _latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The symbol nearest to the queries."""
        return self._data(inputs, cell)[:, -1:].expand_as(positions)

    def state_bits(self, cell: Cell) -> float:
        return cell.load * math.log2(self.alphabet)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.load, self.alphabet)

    def group_label(self, group: int) -> str:
        return octave_label(group)

    def spell(self, token: int) -> str:
        letter = token - RESERVED
        if letter < 0:
            return super().spell(token)
        return chr(ord("a") + letter) if self.alphabet <= 26 else f"s{letter}"
