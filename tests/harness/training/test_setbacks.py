"""Fleets that do not fit, and faults of kernels: the members go on in smaller fleets, or alone."""

import pytest
import torch

from icl_bench.harness.training import fleet
from icl_bench.harness.training.fleet import Machine, run_fleet
from icl_bench.harness.training.memory import estimate, fit, parts
from icl_bench.harness.training.setbacks import kind_of
from icl_bench.harness.training.trainer import Trainer
from icl_bench.runs.store import Store
from tests.harness.training.test_fleet import CPU, specs

RUNS = [specs("softmax", seeds=[seed], extra=("train.steps=2",))[0] for seed in range(5)]


class Mute:
    def progressed(self, progress):
        pass


class Machinery:
    """Trainers that fail in fleets of more than so many members."""

    def __init__(self, most, error):
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, specs, *rest):
        self.sizes.append(len(specs))
        if len(specs) > self.most:
            raise self.error
        return Trainer(specs, *rest)


def carried_out(monkeypatch, tmp_path, most, error, runs=RUNS):
    machinery, store = Machinery(most, error), Store(tmp_path)
    monkeypatch.setattr(fleet, "Trainer", machinery)
    results = run_fleet(runs, store, Machine(CPU), Mute())
    assert [result.id for result in results] == [run.id for run in runs]
    assert [store.load(run.id).result for run in runs] == results
    return machinery.sizes, [result.status for result in results], results


def test_a_fleet_too_large_is_halved_until_it_fits(monkeypatch, tmp_path):
    sizes, statuses, _ = carried_out(monkeypatch, tmp_path, 2, torch.OutOfMemoryError("CUDA out of memory."))
    assert sizes == [5, 2, 3, 1, 2] and statuses == ["ok"] * 5
    assert Store(tmp_path).load(RUNS[0].id).manifest.fleet_size == 2


def test_what_does_not_fit_alone_is_out_of_memory(monkeypatch, tmp_path):
    sizes, statuses, results = carried_out(
        monkeypatch, tmp_path, 0, torch.OutOfMemoryError("no room\nat all"), RUNS[:2]
    )
    assert sizes == [2, 1, 1] and statuses == ["oom"] * 2 and results[0].detail == "no room"


def test_after_a_fault_of_a_kernel_members_run_in_processes_of_their_own(monkeypatch, tmp_path):
    fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    sizes, statuses, results = carried_out(monkeypatch, tmp_path, 0, fault, RUNS[:2])
    assert sizes == [2] and statuses == ["ok"] * 2
    monkeypatch.undo()
    alone = run_fleet(RUNS[:1], Store(tmp_path / "other"), Machine(CPU), Mute())[0]
    assert alone.cells == results[0].cells


def test_a_process_that_ends_without_a_result_is_one(monkeypatch, tmp_path):
    monkeypatch.setenv("ICL_BENCH_CRASH_AT", "step-done")
    fault = RuntimeError("CUDA error: unspecified launch failure")
    _, statuses, results = carried_out(monkeypatch, tmp_path, 0, fault, RUNS[:1])
    assert statuses == ["crashed"] and "status -9" in (results[0].detail or "")


def test_other_errors_are_results(monkeypatch, tmp_path):
    sizes, statuses, results = carried_out(monkeypatch, tmp_path, 0, RuntimeError("shapes differ"), RUNS[:2])
    assert sizes == [2] and statuses == ["error"] * 2 and "shapes differ" in (results[0].detail or "")


def test_kinds_of_setbacks():
    assert kind_of(torch.OutOfMemoryError("x")) == kind_of(RuntimeError("can't allocate memory: 4 bytes")) == "memory"
    assert kind_of(RuntimeError("Triton Error [CUDA]: misaligned address")) == "fault"
    assert kind_of(RuntimeError("sizes do not match")) is None and kind_of(ValueError("CUDA error")) is None
    try:
        try:
            raise torch.OutOfMemoryError("first")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert kind_of(error) == "memory"


@pytest.mark.parametrize(("fitting", "sizes"), [(32, [5]), (5, [5]), (4, [2, 3]), (2, [1, 2, 2]), (0, [1] * 5)])
def test_parts_are_few_and_even(fitting, sizes):
    cut = parts(RUNS, fitting)
    assert [len(part) for part in cut] == sizes and [run for part in cut for run in part] == RUNS


def test_the_estimate_grows_with_what_takes_memory():
    small = specs("softmax")[0]
    for setting in ("train.batch=4096", "model.d_model=256", "model.layers=8", "model.mlp=4"):
        assert estimate(specs("softmax", extra=(setting,))[0]) > estimate(small)
    assert estimate(small) < estimate(small, members=1000) < 1000 * estimate(small)
    assert fit(RUNS, CPU, "auto") == [RUNS]
