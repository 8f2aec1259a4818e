"""Fleets cut to the memory of a device."""

import pytest

from icl_bench.errors import SpecError
from icl_bench.harness.training import memory
from icl_bench.harness.training.memory import check_memory, cut_evenly, estimate_bytes, fit_memory
from icl_bench.harness.training.trainer import Machine
from tests.harness.training.small_runs import CPU, specs

RUNS = specs("softmax", seeds=range(5))


@pytest.mark.parametrize(("fitting", "sizes"), [(32, [5]), (5, [5]), (4, [2, 3]), (2, [1, 2, 2]), (0, [1] * 5)])
def test_parts_are_few_and_even(fitting, sizes):
    cut = cut_evenly(RUNS, fitting)
    assert [len(part) for part in cut] == sizes and [run for part in cut for run in part] == RUNS


def test_the_estimate_grows_with_what_takes_memory():
    small = specs("softmax")[0]
    for setting in ("train.batch=4096", "model.d_model=256", "model.layers=8", "model.mlp=4"):
        assert estimate_bytes(specs("softmax", extra=(setting,))[0]) > estimate_bytes(small)
    assert estimate_bytes(small) < estimate_bytes(small, members=1000) < 1000 * estimate_bytes(small)
    assert fit_memory(RUNS, Machine(CPU)) == [RUNS]


def test_parts_of_a_batch_and_activations_that_are_computed_again_take_less(monkeypatch):
    (large,) = specs("softmax", extra=("train.batch=4096", "model.layers=8"))
    whole, parts, again = (estimate_bytes(large, 1, *saving) for saving in ((), (4,), (1, True)))
    assert whole / 4 < parts < whole / 2 and whole / 8 < again < whole / 2
    monkeypatch.setattr(memory, "total_memory", lambda device: whole / memory.ESTIMATE_MARGIN / 2)
    with pytest.raises(SpecError, match="or add --accumulate 8"):
        check_memory([large], Machine(CPU))
    check_memory([large], Machine(CPU, accumulate=4))


def test_layers_from_outside_are_not_computed_again():
    with pytest.raises(SpecError, match=r"--recompute is for built-in layers .* got torch\.nn:Identity; leave it out"):
        check_memory(specs("torch.nn:Identity"), Machine(CPU, recompute=True))
