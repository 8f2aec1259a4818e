"""The idle worker that takes the next fleet, where workers of one process train beside each other on one GPU.

It is one of the process that has least left to do and memory for the fleet, so that GPUs come to an end together; the
last fleets are cut where one GPU would end after the others. A process prepares one fleet at a time, or two as long as
it trains none, since its threads share one lock of Python; a fleet waits for that rather than for the end of its GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from icl_bench.harness.engines import messages
from icl_bench.harness.engines.base import seconds_of
from icl_bench.harness.engines.queues import Item
from icl_bench.runs.spec import RunSpec

if TYPE_CHECKING:
    import torch

WORTH_CUTTING = 2.0
"""Seconds of a fleet, by the rule of thumb, from which it may be cut: each part is built and captured by itself."""
WHOLE = 1e-6
"""Share of a member that is an error of rounding."""


@dataclass(eq=False)
class WorkerSlot:
    """A worker and its fleet."""

    worker: messages.Worker
    last_heard: float
    """Time of the last message, on the clock of the submission."""
    ready: bool = False
    item: Item | None = None
    assigned_at: float = 0.0
    """Time at which the fleet was assigned, on the same clock."""
    seconds: float = 0.0
    """Estimated seconds of the whole fleet, by the rule of thumb."""
    trained: float | None = None
    """Share of the fleet's steps that are done; None before its first report."""

    def take(self, item: Item, clock: float) -> None:
        """Take a fleet at this time."""
        self.item, self.assigned_at, self.seconds, self.trained = item, clock, seconds_of(item.specs), None

    @property
    def seconds_left(self) -> float:
        """Estimated seconds of what is left of the fleet."""
        return 0.0 if self.item is None else self.seconds * (1 - (self.trained or 0.0))


class Seat(NamedTuple):
    """An idle worker for a fleet."""

    slot: WorkerSlot
    members: int
    """Number of members to give it now: all, or as many as let the processes come to an end together."""


def seat_for(
    specs: Sequence[RunSpec],
    slots: Sequence[WorkerSlot],
    pool: messages.WorkerPool,
    device: "torch.device",
    to_come: float = float("inf"),
) -> Seat | None:
    """Return the idle worker for a fleet; None where the process that would take it has to go on first.

    `to_come` are the estimated seconds of all fleets after this one.
    """
    starting = not all(slot.ready for slot in slots)
    idle: dict[object, WorkerSlot] = {}
    busy: dict[object, list[WorkerSlot]] = {}
    for slot in slots:
        place = pool.place_of(slot.worker)
        others = busy.setdefault(place, [])  # also of a process that starts: it has nothing left to do
        if slot.item is not None:
            others.append(slot)
        elif slot.ready:
            idle.setdefault(place, slot)
    left = {place: sum(other.seconds_left for other in others) for place, others in busy.items()}
    for place in sorted(idle, key=left.__getitem__):
        if prepares(busy[place], starting):
            return None
        if fits(specs, busy[place], device):
            return Seat(idle[place], members_for(specs, left[place], list(left.values()), to_come))
    return None


def members_for(specs: Sequence[RunSpec], here: float, left: Sequence[float], to_come: float) -> int:
    """Return how many members of a fleet to train where `here` seconds are left, of so many seconds in each process.

    All of them, unless this process would then end after the others even if these did all that is to come.
    """
    seconds = seconds_of(specs)
    if len(specs) == 1 or seconds < WORTH_CUTTING:
        return len(specs)
    share = min(1.0, (common_end(left, seconds + to_come) - here) / seconds)
    return max(1, math.ceil(len(specs) * share - WHOLE))


def common_end(left: Sequence[float], more: float) -> float:
    """Return the time at which processes end together that share so many more seconds, apart from longer ones."""
    ordered = sorted(left)
    for count in range(1, len(ordered)):
        filled = sum(ordered[count] - one for one in ordered[:count])
        if filled >= more:
            return (sum(ordered[:count]) + more) / count
    return (sum(ordered) + more) / len(ordered)


def prepares(others: Sequence[WorkerSlot], starting: bool) -> bool:
    """Return whether a process with these fleets prepares as many as it may.

    Those are two as long as it trains none, unless another process is `starting`, which would take the second one.
    """
    preparing = sum(other.trained is None for other in others)
    return preparing > 1 or (preparing > 0 and (starting or len(others) > 1))


def fits(specs: Sequence[RunSpec], others: Sequence[WorkerSlot], device: "torch.device") -> bool:
    """Return whether a fleet fits beside these on a GPU by its memory; alone it may take what there is."""
    if not others:
        return True
    from icl_bench.harness.training.memory import TRUSTED_FRACTION, estimate_bytes, total_memory

    fleets = [specs, *(other.item.specs for other in others if other.item is not None)]
    needed = sum(estimate_bytes(fleet[0], len(fleet)) for fleet in fleets)
    return needed <= TRUSTED_FRACTION * total_memory(device)
