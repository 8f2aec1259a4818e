"""Which idle worker takes the next fleet, where workers of a process share a GPU."""

import torch

from icl_bench.harness.engines.places import WorkerSlot, slot_for
from icl_bench.harness.engines.queues import Item
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training import memory

GPU = torch.device("cuda")


class Pool:
    """Workers are (process, number)."""

    def place_of(self, worker) -> object:
        return worker[0]


def fleet(steps: int):
    return expand_request(Request("assoc-recall", ["linear"], settings=(f"train.steps={steps}",)))


def slot(process: str, steps: int = 0, trained: float | None = 0.0, ready: bool = True) -> WorkerSlot:
    return WorkerSlot((process, steps), 0.0, ready, Item(fleet(steps)) if steps else None, 0.0, trained)


def chosen(*slots: WorkerSlot) -> str | None:
    found = slot_for(fleet(100), slots, Pool(), GPU)
    return found.worker[0] if found else None


def test_the_process_with_the_least_left_takes_the_next_fleet(monkeypatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda device: 1 << 40)
    assert chosen(slot("a", 900), slot("a"), slot("b", 1000), slot("b")) == "a"
    assert chosen(slot("a", 900), slot("a"), slot("b", 1000, trained=0.5), slot("b")) == "b"
    assert chosen(slot("a", 900), slot("a"), slot("b", ready=False)) == "a"  # does not wait for a start
    assert chosen(slot("a", 900), slot("a"), slot("b")) == "b"


def test_a_process_prepares_one_fleet_at_a_time_and_two_while_it_trains_none(monkeypatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda device: 1 << 40)
    assert chosen(slot("a", 9, trained=None), slot("a")) == "a"
    assert chosen(slot("a", 9, trained=None), slot("a", 9, trained=None), slot("a")) is None
    assert chosen(slot("a", 9, trained=None), slot("a", 9), slot("a")) is None
    assert chosen(slot("a", 9), slot("a", 9), slot("a")) == "a"


def test_fleets_beside_each_other_fit_the_memory_of_a_gpu(monkeypatch) -> None:
    needed = 2 * memory.estimate_bytes(fleet(9)[0])
    for total, wanted in ((2.1 * needed, "a"), (1.9 * needed, None)):
        monkeypatch.setattr(memory, "total_memory", lambda device, total=total: total)
        assert chosen(slot("a", 9), slot("a")) == wanted
    assert chosen(slot("a")) == "a"  # alone it may take what there is
