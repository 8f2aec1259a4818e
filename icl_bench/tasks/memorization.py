"""Memorization: values that only the weights can know."""

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, Task, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList, check_multiple
from icl_bench.tasks.sampling import latest_same
from icl_bench.tasks.vocabulary import QUERY, Vocabulary


@TASKS.register("memorization")
class Memorization(Task):
    """Name the value of each key in a dictionary that never changes and is never shown.

    A one-to-one dictionary from keys to values is fixed by the seed `dictionary`. The input is keys, drawn uniformly
    with repetition, each followed by a query mark. The marks are scored: the target is the value of the key before.
    Nothing in the context helps, so the task is a control: it measures what the weights hold, which no state needs to
    carry, and reveals an architecture that is ahead on other tasks only because of its parameters. Test examples
    necessarily have keys that occurred in training; their sequences are new. The two groups are the first and the later
    occurrences of a key.

    Full size, as in MAD: `memorization:length=32,keys=127`.

    Source: Poli et al., "Mechanistic design and scaling of hybrid architectures" (arXiv 2403.17844), task memorization.
    Chance: 1/keys.

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

    length: int = Field(default=32, ge=2)
    """Positions in a sequence, T, two for each key."""
    keys: IntegerList = (32, 127)
    """Numbers of keys, each a cell that is trained and evaluated; a smaller dictionary is a part of a larger one."""
    dictionary: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the dictionary."""

    def check(self) -> None:
        check_multiple("length", self.length, 2)

    @property
    def words(self) -> Vocabulary:
        return Vocabulary({"keys": max(self.keys), "values": max(self.keys)})

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        return ExampleShape(length=self.length, load=sizes[0], scored=self.length // 2)

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        drawn = random.integers(keys, "keys", cell.scored, cell.load) + self.words.first("keys")
        inputs = torch.stack([drawn, torch.full_like(drawn, QUERY)], dim=-1).flatten(1)
        positions = torch.arange(1, cell.length, 2, device=keys.device).expand_as(drawn)
        return Batch(inputs, positions, self._values(drawn), (latest_same(drawn) >= 0).long())

    def _values(self, key_ids: Tensor) -> Tensor:
        """Look up the value of each key: [N, S] -> [N, S]."""
        seed = torch.full((1,), random.stream("dictionary", self.dictionary), device=key_ids.device)
        numbers = random.permutation(seed, "values", max(self.keys))[0][key_ids - self.words.first("keys")]
        return numbers + self.words.first("values")

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._values(inputs.gather(1, positions - 1))

    def floor_constant(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value of key 0 everywhere."""
        return self._values(torch.full_like(positions, self.words.first("keys")))

    def state_bits(self, cell: Cell) -> float:
        """Return 0: the dictionary is not in the context."""
        return 0.0

    def group_label(self, group: int) -> str:
        return "key seen before" if group else "new key"
