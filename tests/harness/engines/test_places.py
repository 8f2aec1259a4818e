"""Which idle worker takes the next fleet, where workers of a process share a GPU."""

import math

import torch

from icl_bench.harness.engines import places
from icl_bench.harness.engines.base import seconds_of
from icl_bench.harness.engines.places import WorkerSlot, common_end, seat_for
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
    made = WorkerSlot((process, steps), 0.0, ready)
    if steps:
        made.take(Item(fleet(steps)), 0.0)
        made.trained = trained
    return made


def chosen(*slots: WorkerSlot) -> str | None:
    found = seat_for(fleet(100), slots, Pool(), GPU)
    return found.slot.worker[0] if found else None


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


def test_a_fleet_waits_for_the_process_with_the_least_left_while_that_prepares_others(monkeypatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda device: 1 << 40)
    preparing = slot("a", 9), slot("a", 9, trained=None), slot("a")
    assert chosen(*preparing, slot("b", 900), slot("b")) is None
    assert chosen(*preparing, slot("b", 10), slot("b")) == "b"


def test_a_process_that_starts_takes_the_second_fleet(monkeypatch) -> None:
    """Nothing waits for a start but what would be prepared beside another fleet."""
    monkeypatch.setattr(memory, "total_memory", lambda device: 1 << 40)
    starting = slot("b", ready=False)
    assert chosen(slot("a"), starting) == "a"
    assert chosen(slot("a", 9, trained=None), slot("a"), starting) is None
    assert chosen(slot("a", 9), slot("a"), starting) == "a"


def test_fleets_beside_each_other_fit_the_memory_of_a_gpu(monkeypatch) -> None:
    needed = 2 * memory.estimate_bytes(fleet(9)[0])
    for total, wanted in ((2.1 * needed, "a"), (1.9 * needed, None)):
        monkeypatch.setattr(memory, "total_memory", lambda device, total=total: total)
        assert chosen(slot("a", 9), slot("a")) == wanted
    monkeypatch.setattr(memory, "total_memory", lambda device: 2.1 * needed)
    assert chosen(slot("a", 9), slot("a", 9), slot("a"), slot("b", 90), slot("b")) == "b"
    assert chosen(slot("a")) == "a"  # alone it may take what there is


def cut(steps: int, members: int, to_come: float, *slots: WorkerSlot) -> tuple[str, int]:
    """The process that takes a fleet, and how many members; `to_come` in fleets of one member."""
    settings = (f"train.steps={steps}",)
    specs = expand_request(Request("assoc-recall", ["linear"], seeds=range(members), settings=settings))
    seat = seat_for(specs, slots, Pool(), GPU, to_come * seconds_of(specs[:1]))
    return seat.slot.worker[0], seat.members


def test_the_last_fleets_are_cut_where_a_gpu_would_end_after_the_others(monkeypatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda device: 1 << 40)
    monkeypatch.setattr(places, "WORTH_CUTTING", 0.0)
    idle = slot("a"), slot("b")
    assert cut(1000, 5, 0, *idle) == ("a", 3)
    assert cut(1000, 5, 5, *idle) == ("a", 5)  # the other GPU has as much to do
    assert cut(1000, 5, 3, *idle) == ("a", 4)
    assert cut(1000, 6, 0, *idle, slot("c")) == ("a", 2)
    assert cut(1000, 5, 0, slot("a")) == ("a", 5)
    assert cut(1000, 5, 0, slot("a"), slot("b", ready=False)) == ("a", 3)
    assert cut(1000, 4, 0, slot("a"), slot("b", 2000), slot("b")) == ("a", 3)
    assert cut(1000, 4, 0, slot("a"), slot("b", 4000), slot("b")) == ("a", 4)
    assert cut(1000, 5, math.inf, *idle) == ("a", 5)
    monkeypatch.setattr(places, "WORTH_CUTTING", 1e9)
    assert cut(1000, 5, 0, *idle) == ("a", 5)


def test_processes_that_share_more_work_end_together_or_later() -> None:
    assert common_end([4.0], 6.0) == 10.0
    assert common_end([4.0, 0.0], 6.0) == 5.0
    assert common_end([9.0, 0.0, 1.0], 3.0) == 2.0
    assert common_end([0.0, 1.0, 9.0], 20.0) == 10.0
