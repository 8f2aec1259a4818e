"""n-gram look-up: what follows an n-gram in a string, asked after the string or before it."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_at_most
from icl_bench.tasks.sampling import continue_latest, last_positions
from icl_bench.tasks.vocabulary import BOS, RESERVED, SEP, Vocabulary, letters


@TASKS.register("ngram-lookup")
class NgramLookup(Task):
    """Continue an n-gram as it continues in a string; the n-gram is given after the string or before it.

    With `side=suffix` the input is `^ string | ngram answer`, and the whole string must be kept until the n-gram is
    known. With `side=prefix` it is `^ ngram | string | answer`, and only the n-gram and its continuation must be kept.
    The kinds of tokens are the same, so the difference between the two sides is the effect of the required state. The
    n-gram is one that occurs once in the string; if all n-grams repeat, which is very unlikely, the latest occurrence
    that has a continuation counts. The `answer` tokens that follow the n-gram are scored; each is shown before the next
    (teacher forcing).

    Full size: `ngram-lookup:symbols=[16|32|48|64],ngram=3,answer=5,extrapolate=[96|128|256|512]`, for both sides.

    Source: Jelassi et al., "Repeat After Me" (arXiv 2402.01032), whose code also asks for repeated n-grams.
    Chance: 1/alphabet.

    >>> task = NgramLookup(symbols=(8,), ngram=2, answer=2)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '^ i n h q f c b y | f c b'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[11, 12]], 'b y')
    """

    axes = (Axis("symbols", extrapolated=True),)
    load_name = "symbols"
    budget = TrainingBudget(steps=500, lr=5e-3, params="symbols=16")
    picture = "symbols=12,ngram=2,answer=3"
    generative = True

    side: Literal["suffix", "prefix"] = "suffix"
    """Place of the n-gram: `suffix` after the string, `prefix` before it."""
    symbols: IntegerList = (16, 32, 48)
    """Lengths of the string, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = ()
    """Lengths of the string that are evaluated but not trained."""
    alphabet: int = Field(default=26, ge=2)
    """Number of letters."""
    ngram: int = Field(default=3, ge=1)
    """Letters of the n-gram."""
    answer: int = Field(default=4, ge=1)
    """Letters of the answer."""

    def check(self) -> None:
        lengths = (*self.symbols, *self.extrapolate)
        check_at_most("ngram + answer", self.ngram + self.answer, "symbols", min(lengths))
        # so that some n-gram occurs only once
        check_at_most("symbols", max(lengths), "alphabet^ngram", self.alphabet**self.ngram)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"letters": letters(self.alphabet)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        length = (1 if self.side == "suffix" else 2) + sizes[0] + self.ngram + self.answer
        return ExampleShape(length=length, load=sizes[0], scored=self.answer)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        string = random.integers(keys, "string", cell.load, self.alphabet) + RESERVED
        start = self._start(keys, string)
        span = torch.arange(self.ngram + self.answer, device=keys.device)
        ngram, answer = string.gather(1, start + span).split([self.ngram, self.answer], dim=1)
        begin, separator = (torch.full_like(start, token) for token in (BOS, SEP))
        after = [begin, string, separator, ngram]
        parts = after if self.side == "suffix" else [begin, ngram, separator, string, separator]
        positions = last_positions(keys, cell.scored, cell.length)
        groups = torch.arange(self.answer, device=keys.device).expand_as(answer)
        return Batch(torch.cat([*parts, answer[:, :-1]], dim=1), positions, answer, groups)

    def _codes(self, string: Tensor) -> Tensor:
        """Code the n-gram that begins at each position as a number: [N, symbols - ngram + 1]."""
        scale = self.alphabet ** torch.arange(self.ngram, device=string.device)
        return ((string - RESERVED).unfold(1, self.ngram, 1) * scale).sum(dim=-1)

    def _start(self, keys: Tensor, string: Tensor) -> Tensor:
        """Draw the start of the n-gram to continue, uniformly among n-grams that occur once: [N, 1]."""
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
        """Return the last position with that code: [N, starts], [N, 1] -> [N, 1]."""
        places = torch.arange(codes.shape[1], device=codes.device)
        return torch.where(codes == code, places, -1).amax(dim=1, keepdim=True)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        string, begin = self._string(inputs, cell), cell.load + 2 if self.side == "suffix" else 1
        ngram = inputs[:, begin : begin + self.ngram]
        count = cell.load - self.ngram - self.answer + 1
        start = self._latest(self._codes(string)[:, :count], self._codes(ngram))
        return string.gather(1, start + self.ngram + torch.arange(self.answer, device=inputs.device))

    def _string(self, inputs: Tensor, cell: Cell) -> Tensor:
        begin = 1 if self.side == "suffix" else self.ngram + 2
        return inputs[:, begin : begin + cell.load]

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent letter of the string."""
        return self._string(inputs, cell).mode(dim=1).values[:, None].expand_as(positions)

    def floor_any_letter(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the letter in the middle of the string."""
        return self._string(inputs, cell)[:, cell.load // 2, None].expand_as(positions)

    def reference_induction(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the letter that follows the latest equal two letters of the string, or the latest equal letter."""
        given, shown = inputs[:, -self.ngram - self.answer :], inputs[:, cell.length - self.answer + 1 :]
        if self.side == "prefix":
            given = torch.cat([inputs[:, : self.ngram + 1], shown], dim=1)
        return continue_latest(self._string(inputs, cell), given[:, self.ngram - 1 :].unfold(1, 2, 1))

    def state_bits(self, cell: Cell) -> float:
        kept = cell.load if self.side == "suffix" else self.ngram + self.answer
        return kept * math.log2(self.alphabet)

    def group_label(self, group: int) -> str:
        return f"letter {group + 1}"
