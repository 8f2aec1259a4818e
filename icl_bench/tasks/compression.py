"""Compression: any symbol of a string, by its place, after the string has gone by."""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList
from icl_bench.tasks.sampling import last_positions, octave
from icl_bench.tasks.vocabulary import SEP, Alphabet, Vocabulary, letters


@TASKS.register("compression")
class Compression(Task):
    """Name the symbol at each place of a string; the places are asked in random order.

    The input is `string | places`: uniform symbols, a separator, and then the number of every place once, in random
    order. These numbers are scored: the target is the symbol at that place. Answers are not shown and no order helps,
    so the whole string must be kept at once, and each symbol must be found by its place alone.

    Full size: `compression:symbols=[31|63|127|255]`, the lengths of MAD without the token that ends them.

    Source: Poli et al., "Mechanistic design and scaling of hybrid architectures" (arXiv 2403.17844), task compression.
    There a decoder sees only one vector, the output of an encoder at the last token, and is asked for every place in
    turn. Here the state of the layers lies between string and places, and this state is what is measured.
    Chance: 1/alphabet.

    >>> task = Compression(symbols=(5,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'e h e j d | 1 2 0 3 4'
    >>> batch.positions.tolist(), " ".join(task.spell(token) for token in batch.targets[0].tolist())
    ([[6, 7, 8, 9, 10]], 'h e e j d')
    """

    axes = (Axis("symbols", lowest=2),)
    load_name = "symbols"
    answer_alphabet = "alphabet"
    budget = TrainingBudget(steps=500, lr=5e-3, params="symbols=8")
    picture = "symbols=8"

    symbols: IntegerList = (8, 16, 31)
    """Lengths of the string, each a cell that is trained and evaluated."""
    alphabet: int = Field(default=15, ge=2)
    """Number of symbols; the vocabulary of MAD, 16, includes the ending token."""

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"symbols": letters(self.alphabet), "places": Alphabet(max(self.symbols), str)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=2 * sizes[0] + 1, load=sizes[0], scored=sizes[0])

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        string = random.integers(keys, "string", cell.load, self.alphabet) + self.words.first("symbols")
        asked = random.permutation(keys, "places", cell.load)
        inputs = torch.cat([string, torch.full_like(asked[:, :1], SEP), asked + self.words.first("places")], dim=1)
        positions = last_positions(keys, cell.scored, cell.length)
        return Batch(inputs, positions, string.gather(1, asked), octave(positions - asked))

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return inputs.gather(1, inputs.gather(1, positions) - self.words.first("places"))

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent symbol of the string."""
        return inputs[:, : cell.load].mode(dim=1).values[:, None].expand_as(positions)

    def floor_latest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the last symbol of the string."""
        return inputs[:, cell.load - 1, None].expand_as(positions)

    def floor_first(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the first symbol of the string."""
        return inputs[:, :1].expand_as(positions)

    def floor_latest_four(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the symbol where it is one of the latest four tokens, else the last symbol of the string."""
        near = positions - inputs.gather(1, positions) + self.words.first("places") < 4
        return torch.where(near, self.oracle(inputs, positions, cell), self.floor_latest(inputs, positions, cell))
