"""A test of a fleet in training, which loads what the first real one needs and changes nothing."""

import threading

import pytest
import torch

from icl_bench.harness.training import loop as loops
from icl_bench.harness.training import rehearsal
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.rehearsal import rehearse_test
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, TASK, specs


@pytest.fixture
def tested(monkeypatch) -> list[tuple[str, int]]:
    """Cells and numbers of examples that are tested from here on, by a process that has rehearsed nothing."""
    found: list[tuple[str, int]] = []
    whole = Trainer.test_cell

    def test_cell(trainer, cell, members, model, examples):
        found.append((cell.label, examples))
        return whole(trainer, cell, members, model, examples)

    monkeypatch.setattr(Trainer, "test_cell", test_cell)
    monkeypatch.setattr(rehearsal, "ONCE", threading.Lock())
    return found


def on_gpu(trainer: Trainer) -> Trainer:
    """Let a trainer of the CPU pass for one of a GPU."""
    trainer.machine = Machine(torch.device("cuda"))
    return trainer


def fleet(task: str = TASK) -> Trainer:
    return Trainer(specs("linear", seeds=(0, 1), task=task), Machine(CPU))


def test_a_process_rehearses_once_where_a_fleet_on_a_gpu_trains_for_long(tested, monkeypatch) -> None:
    monkeypatch.setattr(rehearsal, "MOST_EXAMPLES", 12)
    rehearse_test(fleet(), 60.0)
    rehearse_test(on_gpu(fleet()), 4.0)
    rehearse_test(on_gpu(fleet("copy:symbols=4")), 60.0)  # its answers are free-running
    assert not tested
    for _ in range(2):
        rehearse_test(on_gpu(fleet()), 60.0)
    assert tested == [("pairs=2", 12), ("pairs=4", 12)]


def test_a_fleet_trains_on_as_if_it_had_not_been_tested(tested) -> None:
    plain, rehearsed = fleet(), on_gpu(fleet())
    for steps in (6, 6):
        for _ in range(steps):
            plain.step()
            rehearsed.step()
        rehearse_test(rehearsed, 60.0)
    assert len(tested) == 2
    for name, tensor in plain.state().items():
        assert torch.equal(tensor, rehearsed.state()[name]), name


def test_a_fleet_among_others_rehearses_after_its_second_validation(monkeypatch) -> None:
    rehearsed: list[int] = []
    monkeypatch.setattr(loops, "rehearse_test", lambda trainer, seconds_left: rehearsed.append(trainer.done))

    def run() -> None:
        runs = specs("linear", extra=("evaluation.points=3",))
        TrainingLoop(Trainer(runs, Machine(CPU)), lambda progress: None, lambda *_: None).run()

    run()
    assert not rehearsed
    monkeypatch.setattr(TrainingLoop, "UNDER_WAY", {object()})
    run()
    assert rehearsed == [8, 12]
    assert len(TrainingLoop.UNDER_WAY) == 1
