"""Fleets cut to the memory of a device."""

import pytest

from icl_bench.harness.training.memory import cut_evenly, estimate_bytes, fit_memory
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
