"""Copying: a string, then the same string again."""

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    BOS,
    EOS,
    RESERVED,
    SEP,
    TASKS,
    Answers,
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

END = 31
"""Group of the end mark; no octave of a string reaches it."""


@TASKS.register("copy")
class Copy(Task):
    """Repeat a random string, symbol by symbol, and end where it ended.

    The input is `^ s | s`: a string of `symbols` letters and its copy. Scored are the separator and every letter of the
    copy: the target is the next letter, and the end mark after the last one. The answer is shown (teacher forcing): a
    model that lost its place finds it again. A model that keeps only which letters occurred, not their order, reaches
    the floor `bag`, one that guesses a letter the floor `most-frequent`; with `distinct_symbols`, where a letter occurs
    once, a single look-back at the previous letter suffices to continue, else the place must be kept.

    Full size: `copy:symbols=[8|16|24|32|40|48|56|64],extrapolate=[80|96|128|256|512]`, trained up to 64 letters and
    tested far beyond.

    Source: Jelassi et al., "Repeat After Me" (arXiv 2402.01032), whose code packs several strings in a sequence.
    Chance: 1/alphabet on letters; the end mark is known from the length, (symbols/alphabet + 1)/(symbols + 1) in all.

    Budget: 300 steps at 5e-3 on `copy:symbols=8`, with softmax.

    >>> task = Copy(symbols=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '^ i n h q | i n h q'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[5, 6, 7, 8, 9]], 'i n h q $')
    """

    load_name = "symbols"
    generative = True

    symbols: Many = (8, 16, 31)
    """Lengths of the string, each a cell trained and evaluated."""
    extrapolate: Extra = ()
    """Lengths evaluated besides, not trained."""
    alphabet: int = Field(default=26, ge=2)
    """Number of letters."""
    distinct_symbols: bool = False
    """Whether a letter occurs only once in a string, which is then at most `alphabet` long."""

    @model_validator(mode="after")
    def _check(self) -> "Copy":
        loads = (*self.symbols, *self.extrapolate)
        check_loads("symbols", loads)
        if self.distinct_symbols and max(loads) > self.alphabet:
            raise ValueError(
                f"distinct_symbols needs a letter for each symbol; got alphabet={self.alphabet} for {max(loads)} "
                f"symbols; raise alphabet to {max(loads)} or lower symbols"
            )
        return self

    @property
    def vocabulary(self) -> int:
        return RESERVED + self.alphabet

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(symbols) for symbols in (*self.symbols, *self.extrapolate))

    def _cell(self, symbols: int) -> Cell:
        share = 1.0 if symbols in self.symbols else 0.0
        return Cell(label=f"symbols={symbols}", length=2 * symbols + 2, load=symbols, scored=symbols + 1, share=share)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        rows, device = keys.shape[0], keys.device
        draw = random.distinct if self.distinct_symbols else random.integers
        string = draw(keys, "string", cell.load, self.alphabet) + RESERVED
        begin, separator, end = (torch.full((rows, 1), token, device=device) for token in (BOS, SEP, EOS))
        inputs = torch.cat([begin, string, separator, string], dim=1)
        positions = torch.arange(cell.load + 1, cell.length, device=device).expand(rows, -1)
        places = octave(torch.arange(1, cell.load + 1, device=device))
        groups = torch.cat([places, places.new_full((1,), END)]).expand(rows, -1)
        return Batch(inputs, positions, torch.cat([string, end], dim=1), groups)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return torch.cat([inputs, torch.full_like(inputs[:, :1], EOS)], dim=1).gather(
            1, self._source(inputs, positions, cell)
        )

    def _source(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Where in the string the next letter stands; past the inputs for the end mark."""
        place = positions - cell.load
        return torch.where(place > cell.load, inputs.shape[1], place)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"most-frequent": self._most_frequent, "bag": self._bag}

    def _most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent letter of the string, and the end mark where the length says so."""
        letter = inputs[:, 1 : cell.load + 1].mode(dim=1).values[:, None]
        return torch.where(positions == cell.length - 1, EOS, letter)

    def _bag(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The letter that occurs most in the string less what the copy has shown so far."""
        letters = torch.arange(RESERVED, self.vocabulary, device=inputs.device)
        occurs = (inputs[:, :, None] == letters).int()
        total = occurs[:, 1 : cell.load + 1].sum(dim=1, keepdim=True)
        shown = occurs[:, cell.load + 1 :].cumsum(dim=1)
        answers = (total - shown).argmax(dim=-1) + RESERVED
        return torch.where(positions == cell.length - 1, EOS, answers)

    def state_bits(self, cell: Cell) -> float:
        if self.distinct_symbols:
            return sum(math.log2(self.alphabet - i) for i in range(cell.load))
        return cell.load * math.log2(self.alphabet)

    def answers(self, cell: Cell) -> Answers | None:
        return None if self.distinct_symbols else Answers(cell.load, self.alphabet)

    def group_label(self, group: int) -> str:
        return "end" if group == END else octave_label(group, "symbol")

    def spell(self, token: int) -> str:
        letter = token - RESERVED
        if 0 <= letter < 26 and self.alphabet <= 26:
            return chr(ord("a") + letter)
        return f"s{letter}" if letter >= 0 else super().spell(token)
