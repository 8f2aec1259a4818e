"""Memorization: values that only the weights can know."""

import functools
import math

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.schema import later
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_length, check_multiple
from icl_bench.tasks.sampling import latest_same, permutations
from icl_bench.tasks.vocabulary import QUERY, Vocabulary

NAME = 2
"""Tokens of the name of an entity."""


@TASKS.register("memorization")
class Memorization(Task):
    """Name the value of each key in a dictionary that never changes and is never shown.

    A one-to-one dictionary from keys to values is fixed by the seed `dictionary`. The input is keys, drawn uniformly
    with repetition, each followed by a query mark. The marks are scored: the target is the value of the key before.
    Nothing in the context helps, so the task is a control: it measures what the weights hold, which no state needs to
    carry, and reveals an architecture that is ahead on other tasks only because of its parameters. Test examples
    necessarily have keys that occurred in training; their sequences are new. The two groups are the first and the later
    occurrences of a key.

    With `exposures=E` the keys are entities that training shows E times each on average, so that numbers of updates
    follow from it: `train.steps` times `train.batch` examples hold E occurrences of each entity. An entity has a name
    of two tokens, neither of which tells it apart, and a value for each of its `attributes`, all independent and
    uniform. An example lists as many entities as fit in `length`, drawn uniformly with repetition, each by its name and
    then its attributes in random order. The attributes are scored: the target is the value of this attribute of the
    entity. Of the keys · attributes · log2(values) bits, weights hold those that the loss lacks, keys · attributes ·
    loss / ln 2; `benchmarks/stored_bits.py` divides them by the parameters.

    Full size, as in MAD: `memorization:length=32,keys=127`; bits by exposure,
    `memorization:exposures=10,keys=[1000|4000|16000],length=48` and
    `memorization:exposures=100,keys=[1000|4000|16000],length=48`.

    Source: Poli et al., "Mechanistic design and scaling of hybrid architectures" (arXiv 2403.17844), task memorization;
    exposures, Allen-Zhu, "Physics of Language Models: Part 4.1" (arXiv 2512.17351), task Capo, without its English.
    Chance: 1/keys; with exposures 1/values.

    >>> task = Memorization(length=12, keys=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'k1 ? k0 ? k1 ? k2 ? k1 ? k0 ?'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[1, 3, 5, 7, 9, 11]], ['v0', 'v2', 'v0', 'v1', 'v0', 'v2'])
    """

    axes = (Axis("keys", lowest=2),)
    load_name = "keys"
    budget = TrainingBudget(steps=300, lr=5e-3, params="keys=32")
    picture = "length=16,keys=6"
    by_rule = ("n-gram", "bag of tokens")

    length: int = Field(default=32, ge=2)
    """Positions in a sequence, T, two for each key; with exposures at most so many, for whole entities."""
    keys: IntegerList = (32, 127)
    """Numbers of keys, each a cell that is trained and evaluated; a smaller dictionary is a part of a larger one."""
    dictionary: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the dictionary."""
    exposures: int | None = later(None, ge=1)
    """Mean number of times that training shows an entity; none for keys of one token, trained by `train.steps`."""
    attributes: int = later(4, ge=1)
    """Attributes of an entity, where there are exposures."""
    values: int = later(64, ge=2)
    """Values of an attribute, where there are exposures."""

    def check(self) -> None:
        if self.exposures is None:
            check_multiple("length", self.length, 2)
        else:
            check_length(self.length, NAME + self.attributes, "an entity with its attributes", "attributes")

    @property
    def _side(self) -> int:
        """Number of tokens from which the first, and the second, token of a name is taken."""
        return math.isqrt(max(self.keys) - 1) + 1

    @property
    def words(self) -> Vocabulary:
        if self.exposures is None:
            return Vocabulary({"keys": max(self.keys), "values": max(self.keys)})
        names = {"first": self._side, "second": self._side}
        return Vocabulary({**names, "attributes": self.attributes, "values": self.values})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        if self.exposures is None:
            return ExampleShape(length=self.length, load=sizes[0], scored=self.length // 2)
        entities = self.length // (NAME + self.attributes)
        length, scored = entities * (NAME + self.attributes), entities * self.attributes
        return ExampleShape(length=length, load=sizes[0], scored=scored)

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        if self.exposures is None:
            return super().eval_cells
        return tuple(cell.model_copy(update={"weight": float(cell.load)}) for cell in super().eval_cells)

    @property
    def training_examples(self) -> int | None:
        if self.exposures is None:
            return None
        return -(-self.exposures * sum(self.keys) // (self.length // (NAME + self.attributes)))

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        if self.exposures is not None:
            return self._sample_entities(keys, cell)
        drawn = random.integers(keys, "keys", cell.scored, cell.load) + self.words.first("keys")
        inputs = torch.stack([drawn, torch.full_like(drawn, QUERY)], dim=-1).flatten(1)
        positions = torch.arange(1, cell.length, 2, device=keys.device).expand_as(drawn)
        return Batch(inputs, positions, self._values(drawn), (latest_same(drawn) >= 0).long())

    def _sample_entities(self, keys: Tensor, cell: Cell) -> Batch:
        count, width = cell.scored // self.attributes, NAME + self.attributes
        drawn = random.integers(keys, "entities", count, cell.load)
        asked = permutations(keys, "attributes", count, self.attributes)  # [N, entities, attributes]
        names = [drawn // self._side + self.words.first("first"), drawn % self._side + self.words.first("second")]
        parts = [torch.stack(names, dim=-1), asked + self.words.first("attributes")]
        inputs = torch.cat(parts, dim=-1).flatten(1)
        positions = torch.arange(cell.length, device=keys.device).view(count, width)[:, NAME:].flatten()
        facts = self._facts(drawn).gather(2, asked) + self.words.first("values")
        seen = (latest_same(drawn) >= 0).long()[..., None].expand_as(asked)
        return Batch(inputs, positions.expand(len(keys), -1), facts.flatten(1), seen.flatten(1))

    def _facts(self, entities: Tensor) -> Tensor:
        """Return the numbers of the values of entities: [...] -> [..., attributes]."""
        stream = torch.full((1,), random.stream("facts", self.dictionary), device=entities.device)
        return random.integers(random.row_keys(stream, entities), "values", self.attributes, self.values)

    def _values(self, key_ids: Tensor) -> Tensor:
        """Look up the value of each key: [N, S] -> [N, S]."""
        seed = torch.full((1,), random.stream("dictionary", self.dictionary), device=key_ids.device)
        numbers = random.permutation(seed, "values", max(self.keys))[0][key_ids - self.words.first("keys")]
        return numbers + self.words.first("values")

    def _attributes(self, inputs: Tensor) -> Tensor:
        """Read the numbers of the attributes asked: [N, entities, attributes]."""
        asked: Tensor = inputs.unflatten(1, (-1, NAME + self.attributes))[..., NAME:]
        return asked - self.words.first("attributes")

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        if self.exposures is None:
            return self._values(inputs.gather(1, positions - 1))
        shown = inputs.unflatten(1, (-1, NAME + self.attributes))
        first, second = shown[..., 0] - self.words.first("first"), shown[..., 1] - self.words.first("second")
        facts = self._facts(first * self._side + second).gather(2, self._attributes(inputs))
        return facts.flatten(1) + self.words.first("values")

    def floor_constant(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value of key 0 everywhere; with exposures, the value of the attribute that most entities have."""
        if self.exposures is None:
            return self._values(torch.full_like(positions, self.words.first("keys")))
        usual = usual_values(self, cell.load).to(inputs.device)
        return usual[self._attributes(inputs)].flatten(1) + self.words.first("values")

    def state_bits(self, cell: Cell) -> float:
        """Return 0: the dictionary is not in the context."""
        return 0.0

    def group_label(self, group: int) -> str:
        return "key seen before" if group else "new key"


@functools.lru_cache
def usual_values(task: Memorization, entities: int) -> Tensor:
    """Return the value of each attribute that most of the first `entities` entities have, [attributes]."""
    return task._facts(torch.arange(entities)).mode(dim=0).values
