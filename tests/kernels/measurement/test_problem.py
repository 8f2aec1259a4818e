"""Problems of every operator: their exact results are the references', their inputs repeat, their parts are parts."""

from dataclasses import replace

import pytest
import torch

from icl_bench.kernels.measurement.convolution import MeasuredConvolution
from icl_bench.kernels.measurement.delta import MeasuredDelta, delta_problems
from icl_bench.kernels.measurement.operators import OPERATORS
from icl_bench.kernels.measurement.problem import FEW_LENGTHS
from icl_bench.kernels.measurement.scan import MeasuredLinear, MeasuredSelective
from icl_bench.kernels.measurement.scores import MeasuredAttention, MeasuredPower, expand_tuples, power_problems
from icl_bench.kernels.power.reference import expand_reference
from tests.kernels.numerics import assert_equal_in_float64

CPU, F64 = torch.device("cpu"), torch.float64
SHARED = {"heads": 4, "groups": 2, "key_heads": 2, "key": 4, "value": 5}
DELTA = MeasuredDelta(t=9, dtype=F64, n=3, heads=1, groups=2, key=4, value=5)
PROBLEMS = [
    MeasuredPower(t=9, dtype=F64, gated=True, initial=True).varied(SHARED),
    MeasuredPower(t=9, dtype=F64, key=4, value=5, p=3, normalize="none"),
    MeasuredPower(t=9, dtype=F64, key=4, value=5, p=1, gated=True),
    MeasuredPower(t=9, dtype=F64, key=4, value=5, heads=1, groups=4, initial=True),
    MeasuredAttention(t=9, dtype=F64, gated=True).varied(SHARED),
    MeasuredAttention(t=9, dtype=F64, key=4, value=5, window=3),
    DELTA,
    replace(DELTA, gate="head", initial=True, substeps=2, beta=2.0),
    replace(DELTA, gate="head", reads="undecayed", keys="four"),
    replace(DELTA, gate="channel", rule="untied", reads="undecayed", initial=True),
    replace(DELTA, gate="channel", rule="linear", bonus=True, initial=True),
    replace(DELTA, gate="value", rule="linear"),
    MeasuredSelective(t=9, dtype=F64, n=6, members=3, channels=4, states=3, initial=True),
    MeasuredSelective(t=9, dtype=F64, n=6, members=2, channels=4, states=3, bias=False),
    MeasuredLinear(t=9, dtype=F64, n=3, channels=4, initial=True),
    MeasuredConvolution(t=9, dtype=F64, n=6, members=3, channels=4, cached=5),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.place)
def test_the_definition_is_the_references(problem):
    inputs = problem.inputs(CPU)
    wanted = problem.run("reference", inputs)
    everything = torch.arange((problem.n, problem.t)[problem.checked_axis])
    found = problem.exact(inputs, everything)
    assert set(found) == set(wanted)
    for name, y in wanted.items():
        assert_equal_in_float64(name, found[name], y)
    some = everything[1::2] if len(everything) > 1 else everything
    part = problem.exact(problem.part(inputs, some), some)["y"]
    assert_equal_in_float64("a part", part, wanted["y"].index_select(problem.checked_axis, some))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.place)
def test_inputs_repeat_and_gates_differ_at_every_position(problem):
    first, second = problem.inputs(CPU), problem.inputs(CPU)
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    for name in ("log_g", "log_decay", "log_value_decay"):
        if name in first:
            # Gates of channels may meet their bound
            assert first[name].unique().numel() > 0.9 * first[name].numel()


@pytest.mark.parametrize("op", OPERATORS)
def test_sizes_and_work_grow_with_the_length(op):
    for case in OPERATORS[op].small_table(True):
        problem = case.problem
        assert problem.longer().t == 2 * problem.t and problem.few().n <= problem.n
        assert sum(problem.longer().work()) > 1.9 * sum(problem.work()) > 0
        assert problem.name in problem.title and f"T={problem.t}" in problem.title


def test_checked_problems_hold_the_cases_that_break_solvers_and_gates():
    delta = list(delta_problems(torch.float32, FEW_LENGTHS))
    assert {problem.keys for problem in delta} == {"random", "same", "four", "close"}
    assert {problem.log_decay for problem in delta} == {None, 0.0, -5.0, -50.0}
    assert max(problem.beta for problem in delta) == 2.0 and any(problem.substeps > 1 for problem in delta)
    power = list(power_problems(torch.float32, FEW_LENGTHS))
    assert {problem.p for problem in power} == {1, 2, 3, 4} and any(problem.initial for problem in power)
    assert any(problem.heads < problem.groups for problem in power)


def test_close_keys_have_a_cosine_of_nine_tenths():
    keys = replace(DELTA, t=50, key=64, keys="close").inputs(CPU)["k"][0, :, 0]
    assert ((keys @ keys.T).tril(-1).sum() / (50 * 49 / 2)).item() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("key, p", [(5, 1), (5, 2), (4, 3), (3, 4)])
def test_the_expansion_is_the_references(key, p):
    x = torch.randn(2, 3, key, dtype=F64)
    assert_equal_in_float64("phi", expand_tuples(x, p), expand_reference(x, p))
