"""A test of an untrained copy, which loads what the first real one needs."""

import threading
from contextlib import nullcontext

import pytest
import torch

from icl_bench.harness.training import rehearsal
from icl_bench.harness.training.rehearsal import rehearse, rehearse_test
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.harness.training.small_runs import CPU, specs

GPU = Machine(torch.device("cuda"))


def test_a_process_rehearses_once_where_a_fleet_on_a_gpu_trains_for_long(monkeypatch) -> None:
    tested = []
    monkeypatch.setattr(rehearsal, "ONCE", threading.Lock())
    monkeypatch.setattr(rehearsal, "rehearse", lambda *copied: tested.append(copied))
    runs = specs("linear")
    for machine, seconds in ((Machine(CPU), 60.0), (GPU, 4.0), (GPU, 60.0), (GPU, 60.0)):
        rehearse_test(runs, machine, seconds)
    for thread in threading.enumerate():
        if thread.name == "rehearse_test":
            thread.join()
    assert tested == [(runs, GPU)]


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("all is used")])
def test_a_copy_is_tested_whatever_memory_there_is(monkeypatch, error) -> None:
    tested = []

    def test(trainer, models) -> None:
        tested.append((len(trainer.specs), trainer.spec.evaluation.examples, len(models)))
        if error is not None:
            raise error

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(Trainer, "test", test)
    monkeypatch.setattr(rehearsal, "MOST_EXAMPLES", 3)
    rehearse(specs("linear"), Machine(CPU))
    assert tested == [(len(specs("linear")), 3, 1)]
