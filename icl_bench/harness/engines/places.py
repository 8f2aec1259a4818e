"""The idle worker that takes the next fleet, where workers of one process train beside each other on one GPU.

Of the processes with room it is the one that has least left to do, so that GPUs come to an end together; a process
prepares one fleet at a time, or two as long as it trains none, since its threads share one lock of Python.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from icl_bench.harness.engines import messages
from icl_bench.harness.engines.base import seconds_of
from icl_bench.harness.engines.queues import Item
from icl_bench.runs.spec import RunSpec

if TYPE_CHECKING:
    import torch


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
    trained: float | None = None
    """Share of the fleet's steps that are done; None before its first report."""

    @property
    def seconds_left(self) -> float:
        """Estimated seconds of what is left of the fleet, by the rule of thumb."""
        return 0.0 if self.item is None else seconds_of(self.item.specs) * (1 - (self.trained or 0.0))


def slot_for(
    specs: Sequence[RunSpec], slots: Sequence[WorkerSlot], pool: messages.WorkerPool, device: "torch.device"
) -> WorkerSlot | None:
    """Return the idle worker for a fleet; None where every process with one has to go on first."""
    beside: dict[object, list[WorkerSlot]] = {}
    for slot in slots:
        if slot.item is not None:
            beside.setdefault(pool.place_of(slot.worker), []).append(slot)
    chosen, least = None, float("inf")
    for slot in slots:
        if slot.ready and slot.item is None:
            others = beside.get(pool.place_of(slot.worker), [])
            left = sum(other.seconds_left for other in others)
            if left < least and has_room(specs, others, device):
                chosen, least = slot, left
    return chosen


def has_room(specs: Sequence[RunSpec], others: Sequence[WorkerSlot], device: "torch.device") -> bool:
    """Return whether a process with these fleets may start another one, by its threads and by the memory of its GPU."""
    if not others:
        return True
    from icl_bench.harness.training.memory import TRUSTED_FRACTION, estimate_bytes, total_memory

    preparing = sum(other.trained is None for other in others)
    if preparing > 1 or (preparing and len(others) > 1):
        return False
    fleets = [specs, *(other.item.specs for other in others if other.item is not None)]
    needed = sum(estimate_bytes(fleet[0], len(fleet)) for fleet in fleets)
    return needed <= TRUSTED_FRACTION * total_memory(device)
