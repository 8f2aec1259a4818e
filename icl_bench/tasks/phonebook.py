"""Phonebook: look up the number of a name."""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, ContextContents, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_at_most
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.sampling import most_frequent
from icl_bench.tasks.vocabulary import SEP, Alphabet, Vocabulary

COLON, SEMICOLON = 5, 6
FRAME = 4
"""Tokens of an entry in addition to its digits: two for the name, a colon, a semicolon."""


@TASKS.register("phonebook")
class Phonebook(Diluted):
    """Recall the number, digit by digit, that stands next to a name in a list.

    The list has `entries` lines `first last : d1 ... dm ;`. A name is two tokens, and any two names differ; digits are
    uniform. After `|` come `queries` lines again, different ones in random order. In these lines the colon and all but
    the last digit are scored: the target is the next digit. Answers are shown (teacher forcing), so only the first
    digit, a group of its own, needs the name: later digits follow from the entries whose digits agree so far. The floor
    `digits-so-far` does this, and leaves out entries already queried. So judge by the first digit, or by exact match.

    Full size: `phonebook:entries=[4|8|16|32|64],digits=6,queries=4,extrapolate=[96|128|256]`.

    Source: Jelassi et al., "Repeat After Me" (arXiv 2402.01032), with tokens in place of text.
    Chance: 1/10 for a digit; 1/entries for the first digit by naming one of the list.

    >>> task = Phonebook(entries=(2,), digits=3, queries=1)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'a21 b51 : 0 3 0 ; a27 b49 : 0 3 7 ; | a21 b51 : 0 3 0 ;'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[17, 18, 19]], ['0', '3', '0'])
    """

    axes = (Axis("entries", extrapolated=True),)
    load_name = "entries"
    budget = TrainingBudget(steps=300, lr=1e-2, params="entries=3")
    picture = "entries=3,digits=3,queries=1"
    generative = True

    entries: IntegerList = (3, 6)
    """Numbers of entries, each a cell that is trained and evaluated."""
    extrapolate: OptionalIntegers = ()
    """Numbers of entries that are evaluated but not trained."""
    digits: int = Field(default=3, ge=1)
    """Digits of a number."""
    queries: int = Field(default=2, ge=1)
    """Number of entries that are queried."""
    names: int = Field(default=64, ge=1)
    """Size of the alphabet of first names, and of that of last names."""

    def check(self) -> None:
        numbers = (*self.entries, *self.extrapolate)
        check_at_most("queries", self.queries, "entries", min(numbers))
        check_at_most("entries", max(numbers), "names^2", self.names**2)

    @property
    def words(self) -> Vocabulary:
        marks = {COLON: ":", SEMICOLON: ";"}
        names: dict[str, Alphabet | int] = {"a": self.names, "b": self.names, "digits": Alphabet(10, str)}
        return Vocabulary(names | self.noise_alphabet, special=marks)

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        length = (sizes[0] + self.queries) * (self.digits + FRAME) + 1
        return ExampleShape(length=length, load=sizes[0], scored=self.queries * self.digits)

    def context_tokens(self, cell: Cell) -> int:
        return cell.load * (self.digits + FRAME)

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        rows, entries = keys.shape[0], cell.load
        names = random.distinct(keys, "names", entries, self.names**2)
        first, last = names // self.names + self.words.first("a"), names % self.names + self.words.first("b")
        numbers = random.integers(keys, "digits", entries * self.digits, 10) + self.words.first("digits")
        marks = [torch.full((rows, entries, 1), token, device=keys.device) for token in (COLON, SEMICOLON)]
        lines = torch.cat([torch.stack([first, last], -1), marks[0], numbers.view(rows, entries, -1), marks[1]], dim=-1)
        asked = random.distinct(keys, "queries", self.queries, entries)
        queries = lines.gather(1, asked[..., None].expand(-1, -1, lines.shape[2]))
        edge = torch.full((rows, 1), SEP, device=keys.device)
        inputs = torch.cat([lines.flatten(1), edge, queries.flatten(1)], dim=1)
        line = torch.arange(entries, entries + self.queries, device=keys.device)[:, None]
        digit = torch.arange(self.digits, device=keys.device)
        positions = 1 + line * (self.digits + FRAME) + 2 + digit
        groups = digit.expand_as(positions).flatten().expand(rows, -1)
        return Batch(inputs, positions.flatten().expand(rows, -1), queries[..., 3:-1].flatten(1), groups)

    def _lines(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        """Return the lines of the list [N, entries, m + 4] and those of the queries [N, queries, m + 4]."""
        width = self.digits + FRAME
        listed, asked = inputs[:, : cell.load * width], inputs[:, cell.load * width + 1 :]
        return listed.unflatten(1, (cell.load, width)), asked.unflatten(1, (self.queries, width))

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        listed, asked = self._lines(inputs, cell)
        match = (asked[:, :, None, :2] == listed[:, None, :, :2]).all(dim=-1)
        place = match.int().argmax(dim=-1)[..., None].expand(-1, -1, self.digits)
        return listed[..., 3:-1].gather(1, place).flatten(1)

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent digit of the list at the same place of a number."""
        return self._lines(inputs, cell)[0][..., 3:-1].mode(dim=1).values.repeat(1, self.queries)

    def floor_digits_so_far(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent next digit of the entries not yet queried whose number begins with those shown."""
        listed, asked = (lines[..., 3:-1] for lines in self._lines(inputs, cell))
        same = (asked[:, :, None] == listed[:, None]).int().cumprod(dim=-1)
        before = same[..., -1].cumsum(dim=1) - same[..., -1]
        fits = torch.cat([torch.ones_like(same[..., :1]), same[..., :-1]], dim=-1) * (before == 0)[..., None]
        digits = [most_frequent(listed[..., i], fits[..., i] > 0) for i in range(self.digits)]
        return torch.stack(digits, dim=2).flatten(1)

    def contents(self, cell: Cell) -> ContextContents:
        return ContextContents(cell.load * self.digits, 10)

    def group_label(self, group: int) -> str:
        return f"digit {group + 1}"
