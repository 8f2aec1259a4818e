"""In-context recall: a stream of pairs in which keys come back."""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, ContextContents, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most
from icl_bench.tasks.sampling import block_starts, first_true, latest_same, mode_so_far, noise, octave
from icl_bench.tasks.vocabulary import NOISE, Vocabulary


@TASKS.register("in-context-recall")
class InContextRecall(Task):
    """Recall the value of a key whenever the key comes back in a stream of pairs.

    An example has `keys` different keys with a value each. The sequence is a stream of pairs: keys drawn uniformly with
    repetition, each followed by its value. Values whose key has occurred before are scored, the last ones up to a
    number that every example has, which is the number of pairs minus `keys`. Answers are shown. `noise` is the fraction
    of the sequence that consists of noise tokens between pairs (noisy recall). With `motif` above 1, a key is a word of
    that many letters, and so is a value, of which every letter is scored (fuzzy recall); the later letters then follow
    from the known values that begin with the letters shown so far.

    The load is small, 24 bits at 8 keys, so the task checks whether a layer recalls at all, not how large its state is.

    Full size: `in-context-recall:length=128,keys=8`, `in-context-recall:length=128,keys=16,alphabet=16,noise=0.2` and
    `in-context-recall:length=512,keys=16,motif=3`. The alphabets of MAD have half of its vocabulary each: 8, 16, 32 and
    64; of these, 64 keys need `length=256`, where some key is certain to come back.

    Source: Poli et al., "Mechanistic design and scaling of hybrid architectures" (arXiv 2403.17844), tasks in-context,
    noisy and fuzzy recall. There, motifs of one to three letters are mixed in a sequence, two tokens of noise replace a
    pair at random, and every key that comes back is scored; here, as many as every example has.
    Chance: 1/alphabet; about .32 at 8 keys by naming the most frequent value.

    >>> task = InContextRecall(length=16, keys=(2,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'k3 v7 k1 v1 k3 v7 k1 v1 k3 v7 k1 v1 k1 v1 k3 v7'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[4, 6, 8, 10, 12, 14]], ['v7', 'v1', 'v7', 'v1', 'v1', 'v7'])
    """

    axes = (Axis("keys"),)
    load_name = "keys"
    budget = TrainingBudget(steps=300, lr=5e-3, params="keys=4")
    picture = "length=20,keys=3"
    by_rule = ("look-up-latest", "look-up-first", "look-up-frequent")

    length: int = Field(default=64, ge=4)
    """Positions in a sequence, T."""
    keys: IntegerList = (4, 8)
    """Numbers of different keys, each a cell that is trained and evaluated."""
    alphabet: int = Field(default=8, ge=2)
    """Number of letters for keys, and for values."""
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the sequence that is noise, rounded so that the rest is whole pairs."""
    motif: int = Field(default=1, ge=1, le=8)
    """Letters of a key, and of a value."""

    def check(self) -> None:
        check_at_most("keys", max(self.keys), "alphabet^motif", self.alphabet**self.motif)
        if max(self.keys) >= self._pairs:
            raise ValueError(
                f"keys must be below the number of pairs, {self._pairs} in length={self.length}, so that some come "
                f"back; got {max(self.keys)}; raise length or lower keys, noise or motif"
            )

    @property
    def _pairs(self) -> int:
        """Number of pairs in a sequence."""
        return (self.length - round(self.noise * self.length)) // (2 * self.motif)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"noise": NOISE, "keys": self.alphabet, "values": self.alphabet})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=self.length, load=sizes[0], scored=(self._pairs - sizes[0]) * self.motif)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        count, pairs, motif = cell.load, self._pairs, self.motif
        codes = random.distinct(keys, "keys", count, self.alphabet**motif)
        letters = torch.arange(motif, device=keys.device)
        words = codes[..., None] // self.alphabet**letters % self.alphabet + self.words.first("keys")
        values = random.integers(keys, "values", count * motif, self.alphabet) + self.words.first("values")
        values = values.view(words.shape)
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
        """Return the start of each pair [N, pairs], and the letters of its key and of its value [N, pairs, motif]."""
        letters = inputs >= self.words.first("keys")
        places = first_true(letters, 2 * self.motif * self._pairs).unflatten(1, (self._pairs, 2 * self.motif))
        words = inputs.gather(1, places.flatten(1)).view(places.shape)
        return places[..., 0], words[..., : self.motif], words[..., self.motif :]

    def _answer(self, inputs: Tensor, positions: Tensor, answers: Tensor) -> Tensor:
        """Return the answers at the scored positions, given one for each letter of each value: [N, pairs, motif]."""
        places = (
            self._stream(inputs)[0][..., None] + self.motif - 1 + torch.arange(self.motif, device=inputs.device)
        ).flatten(1)
        return torch.zeros_like(inputs).scatter(1, places, answers.flatten(1)).gather(1, positions)

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        _, words, values = self._stream(inputs)
        scale = self.alphabet ** torch.arange(self.motif, device=inputs.device)
        latest = latest_same(((words - self.words.first("keys")) * scale).sum(dim=-1)).clamp(min=0)
        return self._answer(inputs, positions, values.gather(1, latest[..., None].expand_as(values)))

    def floor_most_frequent(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the most frequent letter of the values so far."""
        return mode_so_far(inputs, self.words.first("values"), self.alphabet).gather(1, positions)

    def floor_value_so_far(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the next letter of the latest value that begins with the letters shown so far of this one."""
        values = self._stream(inputs)[2]
        index = torch.arange(values.shape[1], device=inputs.device)
        same = (values[:, :, None] == values[:, None]).int().cumprod(dim=-1)
        fits = torch.cat([torch.ones_like(same[..., :1]), same[..., :-1]], dim=-1)
        fits = fits * (index < index[:, None]).int()[..., None]
        latest = (fits * (index + 1)[:, None]).amax(dim=2) - 1
        return self._answer(inputs, positions, values.gather(1, latest.clamp(min=0)))

    def floor_latest_two(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value of the pair before if it has the same key, else that of the pair before that."""
        _, words, values = self._stream(inputs)
        same = (words[:, 1:] == words[:, :-1]).all(dim=-1, keepdim=True)
        one, two = (values[:, :1].expand(-1, back, -1) for back in (1, 2))
        before, earlier = torch.cat([one, values[:, :-1]], dim=1), torch.cat([two, values[:, :-2]], dim=1)
        repeated = torch.cat([torch.ones_like(same[:, :1]), same], dim=1)
        return self._answer(inputs, positions, torch.where(repeated, before, earlier))

    def floor_first_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the first value of the context."""
        values = self._stream(inputs)[2]
        return self._answer(inputs, positions, values[:, :1].expand_as(values))

    def contents(self, cell: Cell) -> ContextContents:
        return ContextContents(cell.load * self.motif, self.alphabet)
