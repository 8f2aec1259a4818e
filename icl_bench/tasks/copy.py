"""Copying: a string, then the same string again, forwards or backwards."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.schema import later
from icl_bench.tasks.base import TASKS, Batch, ContextContents, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_at_most
from icl_bench.tasks.sampling import continue_latest, last_positions, octave, octave_label
from icl_bench.tasks.vocabulary import BOS, EOS, RESERVED, SEP, Vocabulary, letters

END = 31
"""Group of the end mark, above the octave of any string."""


@TASKS.register("copy")
class Copy(Task):
    """Repeat a random string, symbol by symbol, and end where it ended.

    The input is `^ s | s`: a string of `symbols` letters and its copy. The separator and every letter of the copy are
    scored: the target is the next letter, and after the last letter the end mark. Answers are shown (teacher forcing),
    so a model that has lost its place can find it again. A model that keeps which letters occurred, but not their
    order, reaches the floor `bag`; one that guesses a letter reaches the floor `most-frequent`. With
    `distinct_symbols`, where a letter occurs only once, it suffices to look up the previous letter in the string.
    Otherwise the latest two letters nearly always do: the reference `induction`, which keeps the string but not the
    place in it, is right at over .96 of the positions. So high accuracy is no sign that the place is kept.

    With `order=reverse` the copy begins with the last letter (a palindrome). The j-th answer is then 2j - 1 tokens
    behind its letter, so that one example has every distance, by whose octave the positions are grouped: what a memory
    keeps by distance shows in one cell.

    Full size: `copy:symbols=[8|16|24|32|40|48|56|64],extrapolate=[80|96|128|256|512]`, which trains up to 64 letters
    and tests far beyond, and `copy:order=reverse,symbols=[16|32|64],extrapolate=[128|256]`.

    Source: Jelassi et al., "Repeat After Me" (arXiv 2402.01032), whose code packs several strings into a sequence;
    backwards, Kimi Linear (arXiv 2510.26692), section 5.1.
    Chance: 1/alphabet on letters; the end mark follows from the length, so (symbols/alphabet + 1)/(symbols + 1) in all.

    >>> task = Copy(symbols=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '^ i n h q | i n h q'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[5, 6, 7, 8, 9]], 'i n h q $')
    """

    axes = (Axis("symbols", extrapolated=True),)
    load_name = "symbols"
    budget = TrainingBudget(steps=300, lr=5e-3, params="symbols=8")
    picture = "symbols=8"
    by_rule = ("copy-distance", "copy-place")
    group_unit = "symbol"
    generative = True

    symbols: IntegerList = (8, 16, 31)
    """Lengths of the string, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = ()
    """Lengths of the string that are evaluated but not trained."""
    alphabet: int = Field(default=26, ge=2)
    """Number of letters."""
    distinct_symbols: bool = False
    """Use each letter at most once in a string, which is then at most `alphabet` long."""
    order: Literal["forward", "reverse"] = later("forward")
    """Order of the copy: that of the string, or the last letter first."""

    def check(self) -> None:
        if self.distinct_symbols:
            check_at_most("distinct symbols", max((*self.symbols, *self.extrapolate)), "alphabet", self.alphabet)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"symbols": letters(self.alphabet)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=2 * sizes[0] + 2, load=sizes[0], scored=sizes[0] + 1)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        rows, device = keys.shape[0], keys.device
        draw = random.distinct if self.distinct_symbols else random.integers
        string = draw(keys, "string", cell.load, self.alphabet) + RESERVED
        copied = self._in_order(string)
        begin, separator, end = (torch.full((rows, 1), token, device=device) for token in (BOS, SEP, EOS))
        inputs = torch.cat([begin, string, separator, copied], dim=1)
        positions = last_positions(keys, cell.scored, cell.length)
        place = torch.arange(1, cell.load + 1, device=device)
        places = octave(place if self.order == "forward" else 2 * place - 1)
        groups = torch.cat([places, places.new_full((1,), END)]).expand(rows, -1)
        return Batch(inputs, positions, torch.cat([copied, end], dim=1), groups)

    def _in_order(self, string: Tensor) -> Tensor:
        """Return the letters of a string in the order of their copy."""
        return string if self.order == "forward" else string.flip(1)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        copied = self._in_order(inputs[:, 1 : cell.load + 1])
        ended = torch.cat([copied, torch.full_like(inputs[:, :1], EOS)], dim=1)
        return ended.gather(1, positions - cell.load - 1)

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent letter of the string, and the end mark at the last position."""
        letter = inputs[:, 1 : cell.load + 1].mode(dim=1).values[:, None]
        return torch.where(positions == cell.length - 1, EOS, letter)

    def floor_first(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the letter that is copied first."""
        return self._in_order(inputs[:, 1 : cell.load + 1])[:, :1].expand_as(positions)

    def floor_latest_four(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the right letter where it is one of the latest four tokens, else the letter that is copied first."""
        back = 2 * (positions - cell.load) - 1 if self.order == "reverse" else cell.load
        first = self.floor_first(inputs, positions, cell)
        return torch.where(torch.as_tensor(back) <= 4, self.oracle(inputs, positions, cell), first)

    def floor_bag(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the letter with the most occurrences in the string that the copy has not yet shown."""
        alphabet = torch.arange(RESERVED, self.vocabulary, device=inputs.device)
        occurs = (inputs[:, :, None] == alphabet).int()
        total = occurs[:, 1 : cell.load + 1].sum(dim=1, keepdim=True)
        shown = occurs[:, cell.load + 1 :].cumsum(dim=1)
        answers = (total - shown).argmax(dim=-1) + RESERVED
        return torch.where(positions == cell.length - 1, EOS, answers)

    def reference_induction(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the letter that follows the latest equal two letters of the string, or the latest equal letter."""
        # the separator begins the copy as the begin mark begins the string
        string = torch.cat([torch.full_like(inputs[:, :1], SEP), self._in_order(inputs[:, 1 : cell.load + 1])], dim=1)
        letters = continue_latest(string, inputs[:, cell.load :].unfold(1, 2, 1))
        return torch.where(positions == cell.length - 1, EOS, letters)

    def state_bits(self, cell: Cell) -> float:
        if self.distinct_symbols:
            return sum(math.log2(self.alphabet - i) for i in range(cell.load))
        return super().state_bits(cell)

    def contents(self, cell: Cell) -> ContextContents | None:
        return None if self.distinct_symbols else ContextContents(cell.load, self.alphabet)

    def group_label(self, group: int) -> str:
        unit = self.group_unit if self.order == "forward" else "gap"
        return "end" if group == END else octave_label(group, unit)
