"""Memorization: values that only the weights can know."""

from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import (
    QUERY,
    RESERVED,
    TASKS,
    Batch,
    Cell,
    Many,
    Solver,
    Task,
    check_loads,
    latest_same,
)


@TASKS.register("memorization")
class Memorization(Task):
    """Name the value of each key in a dictionary that never changes and is never shown.

    A dictionary from keys to values, one to one, is fixed by `dictionary`. The input is keys drawn uniformly with
    repetition, each followed by a query mark; scored are the marks: the target is the value of the key before. Nothing
    in the context helps, so the task is a control: it measures what the weights hold, which no state needs to carry,
    and shows an architecture up that is ahead elsewhere for its parameters alone. Test examples have keys that were
    trained on, as they must; their sequences are new. Groups tell the first occurrence of a key from later ones.

    Full size, as MAD has it: `memorization:length=32,keys=127`.

    Source: Poli et al., "Mechanistic design and scaling of hybrid architectures" (arXiv 2403.17844), task memorization.
    Chance: 1/keys.

    Budget: 300 steps at 5e-3 on `memorization:keys=32`, with softmax.

    >>> task = Memorization(length=12, keys=(4,))
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'k1 ? k0 ? k1 ? k2 ? k1 ? k0 ?'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[1, 3, 5, 7, 9, 11]], ['v0', 'v2', 'v0', 'v1', 'v0', 'v2'])
    """

    load_name = "keys"

    length: int = Field(default=32, ge=2)
    """Positions in a sequence, T, two a key."""
    keys: Many = (32, 127)
    """Numbers of keys in use, each a cell trained and evaluated; the smaller dictionary is a part of the larger one."""
    dictionary: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the dictionary."""

    @model_validator(mode="after")
    def _check(self) -> "Memorization":
        check_loads("keys", self.keys, lowest=2)
        if self.length % 2:
            raise ValueError(f"length must be even; got {self.length}; try {self.length + 1}")
        return self

    @property
    def first_value(self) -> int:
        """Lowest value id; there are as many values as keys."""
        return RESERVED + max(self.keys)

    @property
    def vocabulary(self) -> int:
        return self.first_value + max(self.keys)

    @property
    def eval_cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(label=f"keys={keys}", length=self.length, load=keys, scored=self.length // 2) for keys in self.keys
        )

    def sample(self, keys: Tensor, cell: Cell) -> Batch:
        drawn = random.integers(keys, "keys", cell.scored, cell.load) + RESERVED
        inputs = torch.stack([drawn, torch.full_like(drawn, QUERY)], dim=-1).flatten(1)
        positions = torch.arange(1, cell.length, 2, device=keys.device).expand_as(drawn)
        return Batch(inputs, positions, self._values(drawn), (latest_same(drawn) >= 0).long())

    def _values(self, key_ids: Tensor) -> Tensor:
        """What the dictionary has for each key, [N, S]."""
        seed = torch.full((1,), random.stream("dictionary", self.dictionary), device=key_ids.device)
        return random.permutation(seed, "values", max(self.keys))[0][key_ids - RESERVED] + self.first_value

    def oracle(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._values(inputs.gather(1, positions - 1))

    @property
    def floors(self) -> Mapping[str, Solver]:
        return {"constant": self._constant}

    def _constant(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Always the value of the first key."""
        return self._values(torch.full_like(positions, RESERVED))

    def state_bits(self, cell: Cell) -> float:
        """None: the dictionary is not in the context."""
        return 0.0

    def group_label(self, group: int) -> str:
        return "key seen before" if group else "new key"

    def spell(self, token: int) -> str:
        if token >= self.first_value:
            return f"v{token - self.first_value}"
        return f"k{token - RESERVED}" if token >= RESERVED else super().spell(token)
