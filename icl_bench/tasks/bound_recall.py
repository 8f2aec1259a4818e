"""Bound recall: name the value of the agent that holds an object now."""

import math

import torch
from pydantic import Field
from torch import Tensor

from icl_bench import random
from icl_bench.tasks.base import TASKS, Batch, TrainingBudget
from icl_bench.tasks.cells import Axis, Cell, ExampleShape, IntegerList
from icl_bench.tasks.dilution import Diluted
from icl_bench.tasks.sampling import first_match, last_positions, most_frequent, octave, pick_by_position
from icl_bench.tasks.vocabulary import SEP, Vocabulary


@TASKS.register("bound-recall")
class BoundRecall(Diluted):
    """Name the value of the agent that now holds each object.

    The context lists the facts `agent value`, one for each agent, in random order, then events `object agent`: each of
    `objects` objects is given to an agent once, in random order, and then `updates` times as many events give an object
    to an agent, both drawn uniformly. After `|` every object is queried once, in random order: the target is the value
    of the agent that holds it now. So the latest event of the object must be found, and then the fact of its agent; a
    window that holds the facts and the latest events has both, and groups are therefore the number of events since the
    object was given. The floors name the value of an agent that the object was given to at some time (`any-holder`,
    `usual-holder`, `first-holder`), or of the latest event (`latest-event`).

    Full size: `bound-recall:objects=[4|8|16]`.

    Source: FactWorld, composite_copy_v2, with values from a larger alphabet and objects queried all at once.
    Chance: 1/agents by a value of the context.

    >>> task = BoundRecall(objects=(2,), updates=1, agents=2)
    >>> batch = task.sample(random.row_keys(torch.tensor(1), torch.arange(1)), task.eval_cells[0])
    >>> " ".join(task.spell(token) for token in batch.inputs[0].tolist())
    'a0 v59 a1 v10 o1 a0 o0 a1 o1 a1 o1 a1 | o0 o1'
    >>> batch.positions.tolist(), [task.spell(token) for token in batch.targets[0].tolist()]
    ([[13, 14]], ['v10', 'v10'])
    """

    axes = (Axis("objects"),)
    load_name = "objects"
    budget = TrainingBudget(steps=4000, lr=4e-3, params="objects=4")
    picture = "objects=2,updates=1,agents=3"
    group_unit = "age"

    objects: IntegerList = (4, 8)
    """Numbers of objects, each a cell that is trained and evaluated."""
    updates: int = Field(default=4, ge=1)
    """Events after the first ones, for each object."""
    agents: int | None = Field(default=None, ge=2)
    """Number of agents; as many as objects, and at least 8, unless it is given."""
    values: int = Field(default=64, ge=2)
    """Number of values; agents may share one."""

    @property
    def words(self) -> Vocabulary:
        agents = max(self._agents(count) for count in self.objects)
        names = {"agents": agents, "objects": max(self.objects), "values": self.values}
        return Vocabulary(names | self.noise_alphabet)

    def _agents(self, objects: int) -> int:
        return self.agents or max(8, objects)

    def shape(self, sizes: tuple[int, ...]) -> ExampleShape:
        objects = sizes[0]
        facts, events = self._agents(objects), objects * (1 + self.updates)
        return ExampleShape(length=2 * (facts + events) + 1 + objects, load=objects, scored=objects)

    def context_tokens(self, cell: Cell) -> int:
        return cell.length - cell.scored - 1

    def sample_undiluted(self, keys: Tensor, cell: Cell) -> Batch:
        objects, agents = cell.load, self._agents(cell.load)
        events = objects * (1 + self.updates)
        listed = random.permutation(keys, "agents", agents)
        values = random.integers(keys, "values", agents, self.values) + self.words.first("values")
        given = torch.cat(
            [random.permutation(keys, "first", objects), random.integers(keys, "given", events - objects, objects)], 1
        )
        holders = random.integers(keys, "holders", events, agents)
        asked = random.permutation(keys, "queries", objects)
        facts = torch.stack([listed + self.words.first("agents"), values], dim=-1)
        happened = torch.stack([given + self.words.first("objects"), holders + self.words.first("agents")], dim=-1)
        parts = [facts.flatten(1), happened.flatten(1), torch.full_like(asked[:, :1], SEP)]
        inputs = torch.cat([*parts, asked + self.words.first("objects")], dim=1)
        positions = last_positions(keys, cell.scored, cell.length)
        age = events - self._last_event(inputs, positions, cell)
        return Batch(inputs, positions, self.oracle_undiluted(inputs, positions, cell), octave(age))

    def _events(self, inputs: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
        """Return the objects and the agents of the events, [N, events] each."""
        facts = 2 * self._agents(cell.load)
        events = inputs[:, facts : cell.length - cell.scored - 1]
        return events[:, 0::2], events[:, 1::2]

    def _given(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Mark the events of each queried object: [N, S, events]."""
        return inputs.gather(1, positions)[:, :, None] == self._events(inputs, cell)[0][:, None]

    def _last_event(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Return the number of the latest event of each queried object: [N, S]."""
        given = self._given(inputs, positions, cell)
        return torch.where(given, torch.arange(given.shape[-1], device=inputs.device), -1).amax(dim=-1)

    def _value_of(self, inputs: Tensor, events: Tensor, cell: Cell) -> Tensor:
        """Return the value of the agent of each event given by number: [N, S] -> [N, S]."""
        facts = inputs[:, : 2 * self._agents(cell.load)]
        agents = self._events(inputs, cell)[1].gather(1, events)
        return facts[:, 1::2].gather(1, first_match(agents, facts[:, 0::2]))

    def oracle_undiluted(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        return self._value_of(inputs, self._last_event(inputs, positions, cell), cell)

    def floor_any_holder(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value of an agent that the object was given to, picked by the position of the query."""
        given = self._given(inputs, positions, cell)
        choice = 1 + positions % given.sum(dim=-1)
        picked = (given & (given.cumsum(dim=-1) == choice[..., None])).int().argmax(dim=-1)
        return self._value_of(inputs, picked, cell)

    def floor_usual_holder(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value that the agents of most events of the object have."""
        given = self._given(inputs, positions, cell)
        events = torch.arange(given.shape[-1], device=inputs.device).expand(inputs.shape[0], -1)
        return most_frequent(self._value_of(inputs, events, cell), given)

    def floor_first_holder(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value of the first agent that the object was given to."""
        return self._value_of(inputs, self._given(inputs, positions, cell).int().argmax(dim=-1), cell)

    def floor_latest_event(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value of the agent of the latest event of any object."""
        last = torch.full_like(positions, self._events(inputs, cell)[0].shape[1] - 1)
        return self._value_of(inputs, last, cell)

    def floor_any_value(self, inputs: Tensor, positions: Tensor, cell: Cell) -> Tensor:
        """Name the value of an agent, picked by the position of the query."""
        return pick_by_position(inputs[:, 1 : 2 * self._agents(cell.load) : 2], positions)

    def state_bits(self, cell: Cell) -> float:
        agents = self._agents(cell.load)
        return agents * math.log2(self.values) + cell.load * math.log2(agents)
