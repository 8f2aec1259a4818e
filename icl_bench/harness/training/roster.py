"""The members of a fleet that a trainer still holds, and the state of all members in one checkpoint.

A member that has diverged, or that was accurate enough to stop, is never updated again, but costs as much time as an
active one. Once at least half of the members that a trainer holds are such, `Roster.narrow` goes on with a trainer of
the active members alone. `Roster.widen` then puts what this trainer measures in the places of its members among all
members, and `Roster.with_stopped` returns a trainer that can test members which stopped too.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from icl_bench.harness.training.trainer import MEMBER_BUFFER, Trainer
from icl_bench.kernels.fleet.layout import ParameterLayout
from icl_bench.runs.spec import RunSpec

Measured = TypeVar("Measured")

FLAT = {"parameters", "means", "squares", "working"}
"""Names of the flat buffers, in which the values of a member lie as the layout of the parameters says."""
MEMBER_AXIS = {"alive": 0, "died_at": 0, "sums": 1, "course": 1}
"""Axis of the members in the tensors that are not flat; tensors named in neither are common to all members."""


class Roster:
    """The members of a fleet, and those among them that a trainer holds."""

    def __init__(self, members: int) -> None:
        self.size = members
        self.held = list(range(members))  # index in the fleet of each member that the trainer holds
        self.dropped: dict[int, int] = {}  # step at which a member that was dropped had diverged or 0, by its index
        self.last_state: dict[str, Tensor] = {}  # of all members, on the CPU, when members were last dropped

    def widen(self, values: Sequence[Measured], missing: Measured) -> list[Measured]:
        """Put the values of the members held in their places among all members; `missing` for those dropped."""
        whole = [missing] * self.size
        for member, value in zip(self.held, values, strict=True):
            whole[member] = value
        return whole

    def diverged_at(self, trainer: Trainer) -> list[int]:
        """Return the step at which each member was found to have diverged; 0 for active members."""
        steps = self.widen(trainer.diverged_at, 0)
        return [self.dropped.get(member, step) for member, step in enumerate(steps)]

    def active(self, trainer: Trainer) -> list[int]:
        """Return the members that are still updated, by their index in the fleet; waits for the device."""
        active = trainer.optimiser.state.active.tolist()
        return [member for member, updated in zip(self.held, active, strict=True) if updated]

    def with_stopped(self, trainer: Trainer, specs: Sequence[RunSpec]) -> Trainer:
        """Return a trainer of all members, of these specifications, if some were dropped that had not diverged.

        It is the same trainer otherwise.
        """
        if all(self.dropped.values()):
            return trainer
        state, self.last_state = self.state(trainer), {}
        drop_graphs(trainer)
        self.held, self.dropped = list(range(self.size)), {}
        whole = Trainer(specs, trainer.machine)
        self.set_state(whole, trainer.done, state)
        return whole

    def narrow(self, trainer: Trainer) -> Trainer:
        """Return a trainer of the active members if they are at most half of those held, else the same trainer.

        Waits for the device.
        """
        active = self.active(trainer)
        if not active or 2 * len(active) > len(self.held):
            return trainer
        self.last_state = {name: tensor.cpu() for name, tensor in self.state(trainer).items()}
        steps = dict(zip(self.held, trainer.diverged_at, strict=True))
        self.dropped |= {member: step for member, step in steps.items() if member not in active}
        drop_graphs(trainer)
        specs = [spec for spec, member in zip(trainer.specs, self.held, strict=True) if member in active]
        self.held = active
        narrowed = Trainer(specs, trainer.machine)
        self.set_state(narrowed, trainer.done, self.last_state)
        return narrowed

    def state(self, trainer: Trainer) -> dict[str, Tensor]:
        """Return the state of all members: those dropped as they were when they were dropped."""
        if not self.last_state:
            return trainer.state()
        whole = {name: tensor.clone() for name, tensor in self.last_state.items()}
        held = StateOfMembers(trainer.state(), trainer.optimiser.layout, range(len(self.held)))
        copy_members(held, StateOfMembers(whole, self.layout(trainer), self.held))
        return whole

    def spoiled(self, trainer: Trainer, state: Mapping[str, Tensor]) -> str | None:
        """Return the name of a tensor of all members that holds a NaN for an active one; None if there is none.

        No step leaves any: a member whose loss is NaN is never updated.
        """
        whole = StateOfMembers(state, self.layout(trainer), range(self.size))
        for name in sorted(FLAT & state.keys()):
            if any(bool(row[state["alive"]].isnan().any()) for row in whole.rows(name)):
                return name
        return None

    def restore(self, trainer: Trainer, step: int, state: Mapping[str, Tensor]) -> Trainer:
        """Continue from the state of all members after `step` steps; the trainer must hold all, at their start."""
        self.set_state(trainer, step, state)
        return self.narrow(trainer)

    def set_state(self, trainer: Trainer, step: int, state: Mapping[str, Tensor]) -> None:
        """Take a trainer from its start to a step, with the members it holds as they are in the state of all."""
        held = StateOfMembers(trainer.state(), trainer.optimiser.layout, range(len(self.held)))
        copy_members(StateOfMembers(state, self.layout(trainer), self.held), held)
        trainer.skip_to(step)

    def layout(self, trainer: Trainer) -> ParameterLayout:
        """Return the layout of the parameters of all members."""
        return trainer.optimiser.layout._replace(members=self.size)


def drop_graphs(trainer: Trainer) -> None:
    """Drop the graphs of a trainer that makes no more steps, so that their memory serves the one that follows."""
    for graphs in (trainer.refill_graphs, trainer.update_graphs):
        graphs.graphs.clear()


class StateOfMembers(NamedTuple):
    """Some of the members whose state a set of tensors holds."""

    tensors: Mapping[str, Tensor]
    layout: ParameterLayout
    """Layout of the flat tensors among them."""
    members: Sequence[int]
    """Indices along the axis of members."""

    def rows(self, name: str) -> list[Tensor]:
        """Return views of a tensor with the members first; none if the tensor is common to all members."""
        tensor = self.tensors[name]
        if name in FLAT:
            return self.layout.rows(tensor)
        if name.startswith(MEMBER_BUFFER):
            return [tensor]
        return [tensor.movedim(MEMBER_AXIS[name], 0)] if name in MEMBER_AXIS else []


@torch.no_grad()
def copy_members(source: StateOfMembers, target: StateOfMembers) -> None:
    """Copy the state of members to as many members of the target, and what is common to all members."""
    for name, tensor in target.tensors.items():
        pairs = list(zip(source.rows(name), target.rows(name), strict=True))
        for old, new in pairs:
            new[list(target.members)] = old[list(source.members)].to(new.device)
        if not pairs:
            tensor.copy_(source.tensors[name])
