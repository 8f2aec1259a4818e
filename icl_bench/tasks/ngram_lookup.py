"""n-gram look-up: what follows an n-gram in a string, asked after the string or before it."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    BOS,
    RESERVED,
    SEP,
    TASKS,
    Batch,
    Cell,
    Extra,
    Many,
    Solver,
    Task,
    check_loads,
)


@TASKS.register("ngram-lookup")
class NgramLookup(Task):
    """Continue an n-gram as it continues in a string, the n-gram being given after the string or before it.

    `side=suffix`: the input is `^ string | ngram answer`, and the whole string must be kept until the n-gram is known.
    `side=prefix`: it is `^ ngram | string | answer`, and the n-gram and its continuation are all there is to keep. The
    tokens are the same, so the difference between the two is what the size of the state costs. The n-gram is one that
    occurs once; where all occur again, which chance hardly brings about, its latest place with a continuation counts.
    Scored are the `answer` tokens that follow it, each shown before the next (teacher forcing).

    Full size: `ngram-lookup:symbols=[16|32|48|64],ngram=3,answer=5,extrapolate=[96|128|256|512]`, for either side.

    Source: Jelassi et al., "Repeat After Me" (arXiv 2402.01032), whose code also asks for repeated n-grams.
    Chance: 1/alphabet.

    Budget: 500 steps at 5e-3 on `ngram-lookup:symbols=16`, with softmax.

    >>> task = NgramLookup(symbols=(8,), ngram=2, answer=2)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '^ i n h q f c b y | f c b'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[11, 12]], 'b y')
    """

    load_name = "symbols"
    generative = True

    side: Literal["suffix", "prefix"] = "suffix"
    """Whether the n-gram comes after the string or before it."""
    symbols: Many = (16, 32, 48)
    """Lengths of the string, each a cell trained and evaluated."""
    extrapolate: Extra = ()
    """Lengths evaluated besides, not trained."""
    alphabet: int = Field(default=26, ge=2)
    """Number of letters."""
    ngram: int = Field(default=3, ge=1)
    """Letters of the n-gram."""
    answer: int = Field(default=4, ge=1)
    """Letters of the answer."""

    @model_validator(mode="after")
    def _check(self) -> "NgramLookup":
        loads = (*self.symbols, *self.extrapolate)
        check_loads("symbols", loads)
        least = self.ngram + self.answer
        if min(loads) < least:
            raise ValueError(
                f"symbols must hold an n-gram and its answer, {self.ngram} + {self.answer}; got {min(loads)}; "
                f"raise symbols to {least}"
            )
        if self.alphabet**self.ngram < max(loads):
            raise ValueError(
                f"alphabet^ngram must reach the number of symbols, so that some n-gram occurs once; "
                f"got {self.alphabet}^{self.ngram} for {max(loads)}; raise alphabet or ngram"
            )
        return self

    @property
    def vocabulary(self) -> int:
        return RESERVED + self.alphabet

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(symbols) for symbols in (*self.symbols, *self.extrapolate))

    def _cell(self, symbols: int) -> Cell:
        marks = 2 if self.side == "suffix" else 3
        return Cell(
            label=f"symbols={symbols}",
            length=marks + symbols + self.ngram + self.answer - 1,
            load=symbols,
            scored=self.answer,
            share=1.0 if symbols in self.symbols else 0.0,
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        string = random.integers(keys, "string", cell.load, self.alphabet) + RESERVED
        start = self._start(keys, string)
        span = torch.arange(self.ngram + self.answer, device=keys.device)
        ngram, answer = string.gather(1, start + span).split([self.ngram, self.answer], dim=1)
        begin, separator = (torch.full_like(start, token) for token in (BOS, SEP))
        if self.side == "suffix":
            parts = [begin, string, separator, ngram, answer[:, :-1]]
        else:
            parts = [begin, ngram, separator, string, separator, answer[:, :-1]]
        positions = torch.arange(cell.length - self.answer, cell.length, device=keys.device).expand_as(answer)
        groups = torch.arange(self.answer, device=keys.device).expand_as(answer)
        return Batch(torch.cat(parts, dim=1), positions, answer, groups)

    def _codes(self, string: Tensor) -> Tensor:
        """A number for the n-gram that begins at each position: [N, symbols - ngram + 1]."""
        scale = self.alphabet ** torch.arange(self.ngram, device=string.device)
        return ((string - RESERVED).unfold(1, self.ngram, 1) * scale).sum(dim=-1)

    def _start(self, keys: Tensor, string: Tensor) -> Tensor:
        """Where the n-gram that is asked for begins, uniform among those that occur once: [N, 1]."""
        codes = self._codes(string)
        count = string.shape[1] - self.ngram - self.answer + 1
        ordered, order = codes.sort(dim=1)
        alone = torch.ones_like(codes, dtype=torch.bool)
        same = ordered[:, 1:] == ordered[:, :-1]
        alone[:, 1:] &= ~same
        alone[:, :-1] &= ~same
        once = torch.zeros_like(alone).scatter(1, order, alone)[:, :count]
        picked = (random.uniform(keys, "start", count) + once).argmax(dim=1, keepdim=True)
        return self._latest(codes[:, :count], codes.gather(1, picked))

    def _latest(self, codes: Tensor, code: Tensor) -> Tensor:
        """The last position with that code: [N, W], [N, 1] -> [N, 1]."""
        places = torch.arange(codes.shape[1], device=codes.device)
        return torch.where(codes == code, places, -1).amax(dim=1, keepdim=True)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        string, ngram = self._string(inputs, cell), self._ngram(inputs, cell)
        count = cell.load - self.ngram - self.answer + 1
        start = self._latest(self._codes(string)[:, :count], self._codes(ngram))
        return string.gather(1, start + self.ngram + torch.arange(self.answer, device=inputs.device))

    def _string(self, inputs: Tensor, cell: Cell) -> Tensor:
        begin = 1 if self.side == "suffix" else self.ngram + 2
        return inputs[:, begin : begin + cell.load]

    def _ngram(self, inputs: Tensor, cell: Cell) -> Tensor:
        begin = cell.load + 2 if self.side == "suffix" else 1
        return inputs[:, begin : begin + self.ngram]

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"most-frequent": self._most_frequent, "any-letter": self._any_letter}

    def _most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent letter of the string."""
        return self._string(inputs, cell).mode(dim=1).values[:, None].expand_as(positions)

    def _any_letter(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The letter in the middle of the string."""
        middle = self._string(inputs, cell)[:, cell.load // 2, None]
        return middle.expand_as(positions)

    def state_bits(self, cell: Cell) -> float:
        kept = cell.load if self.side == "suffix" else self.ngram + self.answer
        return kept * math.log2(self.alphabet)

    def group_label(self, group: int) -> str:
        return f"letter {group + 1}"

    def spell(self, token: int) -> str:
        letter = token - RESERVED
        if letter < 0:
            return super().spell(token)
        return chr(ord("a") + letter) if self.alphabet <= 26 else f"s{letter}"
