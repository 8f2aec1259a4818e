"""Selective copying: repeat the data, leave out the blanks."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, OptionalIntegers, check_length
from icl_bench.tasks.sampling import first_true, last_positions, octave
from icl_bench.tasks.vocabulary import PAD, QUERY, RESERVED, Vocabulary, letters


@TASKS.register("selective-copy")
class SelectiveCopy(Task):
    """Repeat, in order, the symbols that stand at random places among blanks.

    `symbols` symbols stand at uniform places among blanks; then come as many query marks. The marks are scored: the
    target at the i-th mark is the i-th symbol. Answers are not shown, so a model must count marks to know the place,
    and must choose the inputs to keep by what they are. More `symbols` at a fixed length test capacity; a larger
    `length` at fixed symbols tests selection.

    `variant=mad` is the generator of MAD, as in its code: 14 symbols by default; every blank is put before a uniformly
    drawn symbol, so that no blank follows the last one; a single mark, and then blanks, take the place of the query
    marks.

    Full size: `selective-copy:length=512,symbols=[8|16|32|64|96|128]` for capacity and
    `selective-copy:length=[128|256|512|1024],symbols=16,extrapolate=4096` for selection. The published task of Mamba
    has 16 symbols of 15 kinds in 4096 tokens; that of MAD is `selective-copy:variant=mad,length=256,symbols=16`.

    Source: Gu and Dao, "Mamba" (arXiv 2312.00752), section 4.1; MAD (arXiv 2403.17844). Chance: 1/alphabet.

    >>> task = SelectiveCopy(length=(16,), symbols=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    '· i · · · j a p · · · · ? ? ? ?'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[12, 13, 14, 15]], 'i j a p')
    """

    axes = (Axis("length", extrapolated=True), Axis("symbols"))
    load_name = "symbols"
    answer_alphabet = "alphabet"
    budget = TrainingBudget(steps=1000, lr=5e-3, params="symbols=4")
    picture = "length=20,symbols=5"

    variant: Literal["default", "mad"] = "default"
    """Generator: `default`, or `mad` for the published one."""
    length: IntegerList = (64,)
    """Positions in a sequence, T; every length is combined with every number of symbols."""
    symbols: IntegerList = (4, 8, 16)
    """Numbers of symbols to repeat."""
    extrapolate: OptionalIntegers = ()
    """Lengths that are evaluated but not trained."""
    alphabet: int = Field(default=16, ge=2)
    """Number of kinds of symbols; 14 in `mad`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_variant(cls, data: object) -> object:
        """Write out the defaults of the variant, so that equal tasks have equal parameters."""
        return {"alphabet": 14, **data} if isinstance(data, dict) and data.get("variant") == "mad" else data

    def check(self) -> None:
        symbols, shortest = max(self.symbols), min((*self.length, *self.extrapolate))
        contents = f"{symbols} symbols, each with a place and a query{', and a mark' if self._marks else ''}"
        check_length(shortest, 2 * symbols + self._marks, contents, "symbols")

    @property
    def _marks(self) -> int:
        """Number of marks between the data and the scored positions."""
        return 1 if self.variant == "mad" else 0

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"symbols": letters(self.alphabet)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=sizes[0], load=sizes[1], scored=sizes[1])

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        rows, symbols = keys.shape[0], cell.load
        data = random.integers(keys, "symbols", symbols, self.alphabet) + RESERVED
        body = cell.length - symbols - self._marks
        places = self._places(keys, symbols, body)
        inputs = torch.full((rows, cell.length), PAD, device=keys.device).scatter_(1, places, data)
        inputs[:, body : body + self._marks if self._marks else cell.length] = QUERY
        positions = last_positions(keys, cell.scored, cell.length)
        return Batch(inputs, positions, data, octave(positions - places))

    def _places(self, keys: Tensor, symbols: int, body: int) -> Tensor:
        """Draw the places of the symbols, in order: [N, symbols]."""
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

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent symbol."""
        return self._data(inputs, cell).mode(dim=1).values[:, None].expand_as(positions)

    def floor_latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the symbol that stands closest to the queries."""
        return self._data(inputs, cell)[:, -1:].expand_as(positions)

    def floor_second_latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the symbol before the one that stands closest to the queries."""
        return self._data(inputs, cell)[:, -2:][:, :1].expand_as(positions)

    def floor_first(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the first symbol."""
        return self._data(inputs, cell)[:, :1].expand_as(positions)

    def floor_usual_place(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name for the r-th query the token at the likeliest place of the r-th symbol, if blanks fall independently."""
        order = torch.arange(cell.load, device=inputs.device)
        blanks = cell.length - 2 * cell.load - self._marks
        place = order + (blanks + 1) * (order + 1) // cell.load
        return inputs[:, place.clamp(max=cell.length - cell.load - self._marks - 1)]
