"""Packing, and fleets that cannot go on: the members continue in smaller fleets, or alone."""

import torch

from icl_bench.harness.training import attempt
from icl_bench.harness.training.fleet import pack, run_fleet
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.store import Store
from tests.harness.training.small_runs import CPU, specs


def quiet(progress) -> None:
    """Ignore the progress."""


RUNS = [specs("softmax", seeds=[seed], extra=("train.steps=2",))[0] for seed in range(5)]


class FailingTrainers:
    """Trainers that fail in fleets of more than so many members."""

    def __init__(self, most, error):
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, specs, machine):
        self.sizes.append(len(specs))
        if len(specs) > self.most:
            raise self.error
        return Trainer(specs, machine)


def run_with_failures(monkeypatch, tmp_path, most, error, runs=RUNS):
    trainers, store = FailingTrainers(most, error), Store(tmp_path)
    monkeypatch.setattr(attempt, "Trainer", trainers)
    results = run_fleet(runs, store, Machine(CPU), quiet)
    assert [result.id for result in results] == [run.id for run in runs]
    assert [store.load(run.id).result for run in runs] == results
    return trainers.sizes, [result.status for result in results], results


def test_a_fleet_too_large_is_halved_until_it_fits(monkeypatch, tmp_path):
    sizes, statuses, _ = run_with_failures(monkeypatch, tmp_path, 2, torch.OutOfMemoryError("CUDA out of memory."))
    assert sizes == [5, 2, 3, 1, 2] and statuses == ["ok"] * 5
    assert Store(tmp_path).load(RUNS[0].id).manifest.fleet_size == 2


def test_what_does_not_fit_alone_is_out_of_memory(monkeypatch, tmp_path):
    sizes, statuses, results = run_with_failures(
        monkeypatch, tmp_path, 0, torch.OutOfMemoryError("no room\nat all"), RUNS[:2]
    )
    assert sizes == [2, 1, 1] and statuses == ["oom"] * 2 and results[0].detail == "no room"


def test_after_a_fault_of_a_kernel_members_run_in_processes_of_their_own(monkeypatch, tmp_path):
    fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    sizes, statuses, results = run_with_failures(monkeypatch, tmp_path, 0, fault, RUNS[:2])
    assert sizes == [2] and statuses == ["ok"] * 2
    monkeypatch.undo()
    alone = run_fleet(RUNS[:1], Store(tmp_path / "other"), Machine(CPU), quiet)[0]
    assert alone.cells == results[0].cells


def test_a_process_that_ends_without_a_result_is_one(monkeypatch, tmp_path):
    monkeypatch.setenv("ICL_BENCH_CRASH_AT", "step-done")
    fault = RuntimeError("CUDA error: unspecified launch failure")
    _, statuses, results = run_with_failures(monkeypatch, tmp_path, 0, fault, RUNS[:1])
    assert statuses == ["crashed"] and "status -9" in (results[0].detail or "")


def test_other_errors_are_results(monkeypatch, tmp_path):
    sizes, statuses, results = run_with_failures(monkeypatch, tmp_path, 0, RuntimeError("shapes differ"), RUNS[:2])
    assert sizes == [2] and statuses == ["error"] * 2 and "shapes differ" in (results[0].detail or "")


def test_packing_keeps_apart_what_differs_in_shape() -> None:
    runs = specs("softmax", seeds=(0, 1, 2), lrs=(1e-3, 1e-2)) + specs("window:w=4", seeds=(0, 1))
    fleets = pack(runs, 4)
    assert [len(fleet) for fleet in fleets] == [4, 2, 2]
    assert [run.id for fleet in fleets for run in fleet] == [run.id for run in runs]
