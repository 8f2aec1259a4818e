"""Cross-situational learning: which thing a word means, from scenes of several words and things."""

import math

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_at_most
from icl_bench.tasks.sampling import last_positions, octave, permutations
from icl_bench.tasks.vocabulary import SEP, Vocabulary, numbered


@TASKS.register("cross-situational")
class CrossSituational(Task):
    """Name the thing that a word means, from scenes that show several words and their things, unpaired.

    Each example has a meaning of its own for `lexicon` words: a thing each, all different. The context has `scenes`
    scenes; a scene lists `shown` different words, and then their things in another random order. Every word occurs at
    least once. After `|` each word is queried once, in random order: the target is its thing. No scene tells it: the
    thing must be found by what stands beside the word in most scenes. Where several things stand beside it equally
    often, each of them counts as right, as the context tells no more. Groups are the number of scenes of the word.

    Full size: `cross-situational:lexicon=16,shown=3,scenes=[8|16|32]`.

    Source: CogScale (arXiv 2605.19758), with other numbers. Chance: 1/shown, and more where words have few scenes, by a
    thing of the latest scene of the word.

    >>> task = CrossSituational(lexicon=3, shown=2, scenes=(3,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'w0 w2 t0 t1 w1 w2 t2 t1 w2 w1 t1 t2 | w0 w2 w1'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[13, 14, 15]], ['t0', 't1', 't2'])
    """

    axes = (Axis("scenes"),)
    load_name = "scenes"
    budget = TrainingBudget(steps=4000, lr=4e-3, params="scenes=16")
    picture = "lexicon=3,shown=2,scenes=3"
    by_rule = ("look-up-frequent",)
    group_unit = "scenes"
    several_correct = True

    scenes: IntegerList = (16, 32)
    """Numbers of scenes, each a cell that is trained and evaluated."""
    lexicon: int = Field(default=8, ge=2)
    """Number of words, and of things."""
    shown: int = Field(default=2, ge=2)
    """Words of a scene."""

    def check(self) -> None:
        check_at_most("shown", self.shown, "lexicon", self.lexicon)
        needed = -(-self.lexicon // self.shown)
        if min(self.scenes) < needed:
            raise ValueError(
                f"scenes must show every word; got scenes={min(self.scenes)} of {self.shown} words for {self.lexicon}; "
                f"raise scenes to {needed}"
            )

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"words": self.lexicon, "things": numbered("t", self.lexicon)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        length = 2 * self.shown * sizes[0] + 1 + self.lexicon
        return ExampleShape(length=length, load=sizes[0], scored=self.lexicon)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        meaning, asked = (random.permutation(keys, purpose, self.lexicon) for purpose in ("meaning", "queries"))
        named = self._named(keys, cell)
        order = permutations(keys, "things", cell.load, self.shown)
        things = meaning.gather(1, named.flatten(1)).view_as(named).gather(2, order)
        first_word, first_thing = self.words.first("words"), self.words.first("things")
        context = torch.cat([named + first_word, things + first_thing], dim=-1).flatten(1)
        inputs = torch.cat([context, torch.full_like(asked[:, :1], SEP), asked + first_word], dim=1)
        targets = meaning.gather(1, asked) + first_thing
        positions = last_positions(keys, cell.scored, cell.length)
        return Batch(inputs, positions, targets, octave(self._scenes_of(inputs, positions, cell).sum(dim=-1)))

    def _named(self, keys: Tensor, cell: Cell) -> Tensor:
        """Draw the words of the scenes, all words at least once: [N, scenes, shown]."""
        covering = -(-self.lexicon // self.shown)
        around = torch.arange(covering * self.shown, device=keys.device) % self.lexicon
        all_words = random.permutation(keys, "cover", self.lexicon)[:, around].unflatten(1, (covering, self.shown))
        free = permutations(keys, "words", cell.load - covering, self.lexicon)[..., : self.shown]
        order = random.permutation(keys, "scenes", cell.load)[..., None].expand(-1, -1, self.shown)
        return torch.cat([all_words, free], dim=1).gather(1, order)

    def _scenes(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        """Return the words and the things of the scenes, [N, scenes, shown] each."""
        scenes = inputs[:, : 2 * self.shown * cell.load].unflatten(1, (cell.load, 2 * self.shown))
        return scenes[..., : self.shown], scenes[..., self.shown :]

    def _scenes_of(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Mark the scenes of each queried word: [N, S, scenes]."""
        asked = inputs.gather(1, positions)
        return (asked[:, :, None, None] == self._scenes(inputs, cell)[0][:, None]).any(dim=-1)

    def _counts(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Count the scenes that each queried word shares with each thing: [N, S, lexicon]."""
        things = torch.arange(self.lexicon, device=inputs.device) + self.words.first("things")
        present = (self._scenes(inputs, cell)[1][..., None] == things).any(dim=2)
        return self._scenes_of(inputs, positions, cell).float() @ present.float()

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._counts(inputs, positions, cell).argmax(dim=-1) + self.words.first("things")

    def hits(self, answers: Tensor, batch: Batch, cell: Cell) -> Tensor:
        counts = self._counts(batch.inputs, batch.positions, cell)
        things = answers - self.words.first("things")
        own = counts.gather(-1, things.clamp(min=0, max=self.lexicon - 1)[..., None])[..., 0]
        return ((own == counts.amax(dim=-1)) & (things >= 0)).double()

    def floor_latest_scene(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name a thing of the latest scene of the word, picked by the position of the query."""
        marked = self._scenes_of(inputs, positions, cell)
        latest = torch.where(marked, torch.arange(cell.load, device=inputs.device), -1).amax(dim=-1)
        things = self._scenes(inputs, cell)[1].gather(1, latest[..., None].expand(-1, -1, self.shown))
        return things.gather(2, (positions % self.shown)[..., None])[..., 0]

    def floor_commonest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the thing of most scenes, whatever the word."""
        return self._scenes(inputs, cell)[1].flatten(1).mode(dim=1).values[:, None].expand_as(positions)

    def floor_rarest(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the thing of fewest scenes, whatever the word."""
        things = torch.arange(self.lexicon, device=inputs.device) + self.words.first("things")
        occurs = (self._scenes(inputs, cell)[1].flatten(1)[..., None] == things).sum(dim=1)
        return (occurs.argmin(dim=1, keepdim=True) + self.words.first("things")).expand_as(positions)

    def state_bits(self, cell: Cell) -> float:
        return math.lgamma(self.lexicon + 1) / math.log(2)
