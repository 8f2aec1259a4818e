"""Phonebook: look up the number of a name."""

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
    Extra,
    Many,
    Solver,
    Task,
    check_loads,
)

COLON, SEMICOLON = 5, 6
FRAME = 4
"""Tokens of an entry besides its digits: two for the name, a colon, a semicolon."""


@TASKS.register("phonebook")
class Phonebook(Task):
    """Recall the number, digit by digit, that stands beside a name in a list.

    The list has `entries` lines `first last : d1 ... dm ;`; names are two tokens and differ in at least one, digits are
    uniform. After `|` come `queries` lines of it again, different ones in random order. Scored are the colon and all
    but the last digit of these: the target is the next digit. The answer is shown (teacher forcing), so that only the
    first digit, a group of its own, needs the name: later ones follow from the entry whose digits fit so far, which
    the floor `digits-so-far` does, leaving out entries already asked. Read the first digit, or exact match.

    Full size: `phonebook:entries=[4|8|16|32|64],digits=6,queries=4,extrapolate=[96|128|256]`.

    Source: Jelassi et al., "Repeat After Me" (arXiv 2402.01032), with tokens in place of text.
    Chance: 1/10 a digit; 1/entries for the first digit by naming one of the list.

    Budget: 300 steps at 1e-2 on `phonebook:entries=3`, with softmax.

    >>> task = Phonebook(entries=(2,), digits=3, queries=1)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'a21 b51 : 0 3 0 ; a27 b49 : 0 3 7 ; | a21 b51 : 0 3 0 ;'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[17, 18, 19]], ['0', '3', '0'])
    """

    load_name = "entries"
    generative = True

    entries: Many = (3, 6)
    """Numbers of entries, each a cell trained and evaluated."""
    extrapolate: Extra = ()
    """Numbers of entries evaluated besides, not trained."""
    digits: int = Field(default=3, ge=1)
    """Digits of a number."""
    queries: int = Field(default=2, ge=1)
    """Entries asked."""
    names: int = Field(default=64, ge=1)
    """Size of the alphabet of first names, and of that of last names."""

    @model_validator(mode="after")
    def _check(self) -> "Phonebook":
        loads = (*self.entries, *self.extrapolate)
        check_loads("entries", loads)
        if self.queries > min(loads):
            raise ValueError(
                f"queries must be at most entries; got queries={self.queries} for entries={min(loads)}; lower queries"
            )
        if max(loads) > self.names**2:
            raise ValueError(
                f"names^2 must reach the number of entries; got names={self.names} for entries={max(loads)}; "
                f"raise names to {math.isqrt(max(loads) - 1) + 1}"
            )
        return self

    @property
    def first_digit(self) -> int:
        """The digit 0; first names begin at RESERVED, last names follow them."""
        return RESERVED + 2 * self.names

    @property
    def vocabulary(self) -> int:
        return self.first_digit + 10

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(self._cell(entries) for entries in (*self.entries, *self.extrapolate))

    def _cell(self, entries: int) -> Cell:
        return Cell(
            label=f"entries={entries}",
            length=(entries + self.queries) * (self.digits + FRAME) + 1,
            load=entries,
            scored=self.queries * self.digits,
            share=1.0 if entries in self.entries else 0.0,
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        rows, entries = keys.shape[0], cell.load
        names = random.distinct(keys, "names", entries, self.names**2)
        names = torch.stack([names // self.names, self.names + names % self.names], dim=-1) + RESERVED
        numbers = random.integers(keys, "digits", entries * self.digits, 10) + self.first_digit
        marks = [torch.full((rows, entries, 1), token, device=keys.device) for token in (COLON, SEMICOLON)]
        lines = torch.cat([names, marks[0], numbers.view(rows, entries, -1), marks[1]], dim=-1)
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
        """Entries [N, entries, m + 4] and queries [N, queries, m + 4]."""
        width = self.digits + FRAME
        listed, asked = inputs[:, : cell.load * width], inputs[:, cell.load * width + 1 :]
        return listed.unflatten(1, (cell.load, width)), asked.unflatten(1, (self.queries, width))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        listed, asked = self._lines(inputs, cell)
        match = (asked[:, :, None, :2] == listed[:, None, :, :2]).all(dim=-1)
        place = match.int().argmax(dim=-1)[..., None].expand(-1, -1, self.digits)
        return listed[..., 3:-1].gather(1, place).flatten(1)

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"most-frequent": self._most_frequent, "digits-so-far": self._digits_so_far}

    def _most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The most frequent digit of the list at that place in a number."""
        listed, _ = self._lines(inputs, cell)
        return listed[..., 3:-1].mode(dim=1).values.repeat(1, self.queries)

    def _digits_so_far(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The next digit of the first entry not asked before whose number begins with the digits shown."""
        listed, asked = (lines[..., 3:-1] for lines in self._lines(inputs, cell))
        same = (asked[:, :, None] == listed[:, None]).int().cumprod(dim=-1)
        before = same[..., -1].cumsum(dim=1) - same[..., -1]
        fits = torch.cat([torch.ones_like(same[..., :1]), same[..., :-1]], dim=-1) * (before == 0)[..., None]
        return listed.gather(1, fits.argmax(dim=2)).flatten(1)

    def state_bits(self, cell: Cell) -> float:
        return cell.load * self.digits * math.log2(10)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.load * self.digits, 10)

    def group_label(self, group: int) -> str:
        return f"digit {group + 1}"

    def spell(self, token: int) -> str:
        if token >= self.first_digit:
            return str(token - self.first_digit)
        if token >= RESERVED:
            name = token - RESERVED
            return f"a{name}" if name < self.names else f"b{name - self.names}"
        return {COLON: ":", SEMICOLON: ";"}.get(token) or super().spell(token)
