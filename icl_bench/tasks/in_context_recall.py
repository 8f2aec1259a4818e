"""In-context recall: a stream of pairs in which keys come back."""

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    NOISE,
    RESERVED,
    TASKS,
    Answers,
    Batch,
    Cell,
    Many,
    Solver,
    Task,
    block_starts,
    check_loads,
    first_true,
    latest_same,
    mode_so_far,
    noise,
    octave,
    octave_label,
)


@TASKS.register("in-context-recall")
class InContextRecall(Task):
    """Recall the value of a key whenever the key comes back in a stream of pairs.

    An example has `keys` different keys with a value each. The sequence is a stream of pairs, keys drawn uniformly with
    repetition, every key followed by its value. Scored are values whose key came before, as many of the last ones as
    every example has: the number of pairs less `keys`. Answers are shown. `noise` fills that part of the sequence with
    noise tokens between pairs (noisy recall); with `motif` above 1 a key is a word of that many letters, and so is a
    value, of which every letter is scored (fuzzy recall): then later letters follow from the value that fits so far.

    The load is small, 24 bits at 8 keys: a first check that a layer recalls, not a measure of its state.

    Full size: `in-context-recall:length=128,keys=8`, `in-context-recall:length=128,keys=16,alphabet=16,noise=0.2` and
    `in-context-recall:length=512,keys=16,motif=3`; MAD's own alphabets have half the vocabulary each: 8, 16, 32, 64
    (of these 64 keys need `length=256`, where a return is certain).

    Source: Poli et al., "Mechanistic design and scaling of hybrid architectures" (arXiv 2403.17844), tasks in-context,
    noisy and fuzzy recall; there motifs have one to three letters in a sequence, noise comes in the place of pairs, two
    tokens by chance, and every return is scored, here as many as are certain.
    Chance: 1/alphabet; naming the most frequent value, near .32 at 8 keys.

    Budget: 300 steps at 5e-3 on `in-context-recall:keys=4`, with softmax.

    >>> task = InContextRecall(length=16, keys=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'k3 v7 k1 v1 k3 v7 k1 v1 k3 v7 k1 v1 k1 v1 k3 v7'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[4, 6, 8, 10, 12, 14]], ['v7', 'v1', 'v7', 'v1', 'v1', 'v7'])
    """

    load_name = "keys"

    length: int = Field(default=64, ge=4)
    """Positions in a sequence, T."""
    keys: Many = (4, 8)
    """Numbers of different keys, each a cell trained and evaluated."""
    alphabet: int = Field(default=8, ge=2)
    """Number of letters for keys, and for values."""
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Part of the sequence that is noise; rounded so that whole pairs are left."""
    motif: int = Field(default=1, ge=1, le=8)
    """Letters of a key and of a value."""

    @model_validator(mode="after")
    def _check(self) -> "InContextRecall":
        check_loads("keys", self.keys)
        if max(self.keys) > self.alphabet**self.motif:
            raise ValueError(
                f"keys must be at most alphabet^motif = {self.alphabet**self.motif}; got {max(self.keys)}; "
                f"raise alphabet or motif, or lower keys"
            )
        if max(self.keys) >= self._pairs:
            raise ValueError(
                f"keys must be below the number of pairs, {self._pairs} in length={self.length}, so that some come "
                f"back; got {max(self.keys)}; raise length or lower keys, noise or motif"
            )
        return self

    @property
    def _pairs(self) -> int:
        """Pairs in a sequence."""
        return (self.length - round(self.noise * self.length)) // (2 * self.motif)

    @property
    def first_value(self) -> int:
        """Lowest letter of values; letters of keys come before."""
        return RESERVED + NOISE + self.alphabet

    @property
    def vocabulary(self) -> int:
        return self.first_value + self.alphabet

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(label=f"keys={keys}", length=self.length, load=keys, scored=(self._pairs - keys) * self.motif)
            for keys in self.keys
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        count, pairs, motif = cell.load, self._pairs, self.motif
        codes = random.distinct(keys, "keys", count, self.alphabet**motif)
        letters = torch.arange(motif, device=keys.device)
        words = codes[..., None] // self.alphabet**letters % self.alphabet + RESERVED + NOISE
        values = random.integers(keys, "values", count * motif, self.alphabet).view(words.shape) + self.first_value
        drawn = random.integers(keys, "draws", pairs, count)
        stream = torch.cat([words, values], dim=-1).gather(1, drawn[..., None].expand(-1, -1, 2 * motif))
        starts = block_starts(keys, "places", pairs, 2 * motif, cell.length)
        spread = starts[..., None] + torch.arange(2 * motif, device=keys.device)
        inputs = noise(keys, cell.length).scatter(1, spread.flatten(1), stream.flatten(1))
        latest = latest_same(drawn)
        picked = pairs - 1 - first_true((latest >= 0).flip(1), pairs - count).flip(1)
        gaps = starts.gather(1, picked) - starts.gather(1, latest.gather(1, picked))
        positions = starts.gather(1, picked)[..., None] + motif - 1 + letters
        targets = values.gather(1, drawn.gather(1, picked)[..., None].expand_as(positions))
        groups = octave(gaps)[..., None].expand_as(positions)
        return Batch(inputs, positions.flatten(1), targets.flatten(1), groups.flatten(1))

    def _stream(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Start of each pair [N, pairs], letters of its key and of its value [N, pairs, motif]."""
        letters = inputs >= RESERVED + NOISE
        places = first_true(letters, 2 * self.motif * self._pairs).unflatten(1, (self._pairs, 2 * self.motif))
        words = inputs.gather(1, places.flatten(1)).view(places.shape)
        return places[..., 0], words[..., : self.motif], words[..., self.motif :]

    def _answer(self, inputs: Tensor, positions: Tensor, answers: Tensor) -> Tensor:
        """Read answers [N, pairs, motif], one for each letter of each value, at the scored positions."""
        starts, _, _ = self._stream(inputs)
        places = (starts[..., None] + self.motif - 1 + torch.arange(self.motif, device=inputs.device)).flatten(1)
        return torch.zeros_like(inputs).scatter(1, places, answers.flatten(1)).gather(1, positions)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        _, words, values = self._stream(inputs)
        scale = self.alphabet ** torch.arange(self.motif, device=inputs.device)
        latest = latest_same(((words - RESERVED - NOISE) * scale).sum(dim=-1)).clamp(min=0)
        return self._answer(inputs, positions, values.gather(1, latest[..., None].expand_as(values)))

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"most-frequent": self._most_frequent, "value-so-far": self._value_so_far}

    def _most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The letter that is most frequent in the values so far."""
        return mode_so_far(inputs, self.first_value, self.alphabet).gather(1, positions)

    def _value_so_far(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """The next letter of the latest value that begins with the letters shown; at first, of the latest value."""
        _, _, values = self._stream(inputs)
        index = torch.arange(values.shape[1], device=inputs.device)
        same = (values[:, :, None] == values[:, None]).int().cumprod(dim=-1)
        fits = torch.cat([torch.ones_like(same[..., :1]), same[..., :-1]], dim=-1)
        fits = fits * (index < index[:, None]).int()[..., None]
        latest = (fits * (index + 1)[:, None]).amax(dim=2) - 1
        return self._answer(inputs, positions, values.gather(1, latest.clamp(min=0)))

    def state_bits(self, cell: Cell) -> float:
        return cell.load * self.motif * math.log2(self.alphabet)

    def answers(self, cell: Cell) -> Answers:
        return Answers(cell.load * self.motif, self.alphabet)

    def group_label(self, group: int) -> str:
        return octave_label(group)

    def spell(self, token: int) -> str:
        for first, letter in ((self.first_value, "v"), (RESERVED + NOISE, "k"), (RESERVED, "n")):
            if token >= first:
                return f"{letter}{token - first}"
        return super().spell(token)
