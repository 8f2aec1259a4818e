"""`icl-bench kernels check`: its definition, its verdicts on right and wrong operators, its exit statuses."""

import json
import math
import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    # Read when the kernels are defined: it must be set before anything imports them.
    os.environ["TRITON_INTERPRET"] = "1"

from icl_bench import cli
from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.attention.api import attention
from icl_bench.kernels.measurement import check as checking
from icl_bench.kernels.measurement.check import CheckJob, check_job, form_errors, plan_checks, relative_error
from icl_bench.kernels.measurement.operators import OPERATORS, exact_outputs, operator_name, run_form
from icl_bench.kernels.measurement.problems import LENGTHS, Inputs, Problem, expand_tuples, make_inputs
from icl_bench.kernels.power.api import power_attention_with_state
from icl_bench.kernels.power.records import PowerState
from icl_bench.kernels.power.reference import expand_reference
from tests.kernels.numerics import assert_equal_in_float64

CPU = torch.device("cpu")
F32, F64 = torch.float32, torch.float64
SMALL = Problem("power", 20, F32, key=8, value=8, gated=True)


@pytest.mark.parametrize("key, p", [(5, 1), (5, 2), (4, 3), (3, 4)])
def test_the_expansion_is_the_references(key, p):
    x = torch.randn(2, 3, key, dtype=F64)
    assert_equal_in_float64("phi", expand_tuples(x, p), expand_reference(x, p))


@pytest.mark.parametrize(
    "problem",
    [
        Problem("power", 9, F64, heads=4, groups=2, key=4, value=5, gated=True, initial=True),
        Problem("power", 9, F64, key=4, value=5, p=3, normalize="none"),
        Problem("power", 9, F64, key=4, value=5, p=1, gated=True),
        Problem("attention", 9, F64, heads=4, groups=2, key=4, value=5, gated=True),
        Problem("attention", 9, F64, key=4, value=5, window=3),
    ],
    ids=operator_name,
)
def test_the_definition_is_the_references(problem):
    inputs = make_inputs(problem, CPU)
    q, k, v, log_g, s, z = inputs
    if problem.op == "attention":
        wanted = [attention(q, k, v, log_g, window=problem.window, impl="reference")]
    else:
        y, (last_s, last_z) = power_attention_with_state(
            q, k, v, log_g, p=problem.p, normalize=problem.normalize, impl="reference",
            initial_state=None if s is None else PowerState(s, z),
        )  # fmt: skip
        wanted = [y, last_s] if last_z is None else [y, last_s, last_z]
    found = exact_outputs(problem, inputs, torch.arange(problem.t))
    for name, a, b in zip("ysz", found, wanted, strict=False):
        assert_equal_in_float64(name, a, b)
    assert len(found) == len(wanted)
    assert_equal_in_float64("rows", exact_outputs(problem, inputs, torch.tensor([2, 7]))[0], wanted[0][:, [2, 7]])


def test_gates_differ_at_every_position_and_inputs_repeat():
    first, second = make_inputs(SMALL, CPU), make_inputs(SMALL, CPU)
    assert torch.equal(first.q, second.q) and first.log_g.unique().numel() == first.log_g.numel()


def test_problems_cover_all_lengths_gates_and_powers():
    for operator in OPERATORS.values():
        problems = list(operator.problems(torch.bfloat16, LENGTHS))
        assert {problem.t for problem in problems} == set(LENGTHS)
        for t in LENGTHS:
            assert {problem.gated for problem in problems if problem.t == t} == {False, True}
    powers = list(OPERATORS["power"].problems(torch.bfloat16, LENGTHS))
    assert {problem.p for problem in powers} == {1, 2, 3, 4} and any(problem.initial for problem in powers)


@pytest.mark.parametrize("impl", ["quadratic", "chunked", "triton"])
def test_a_right_operator_passes(impl):
    outputs, gradients = check_job(CheckJob(impl, (SMALL._replace(initial=True), SMALL._replace(t=1)), "cpu"))
    assert outputs.ok and gradients.ok and outputs.problems == 2
    assert 0 < outputs.error <= outputs.bound == 1e-5
    assert gradients.worst.startswith("d")


def wrong_gate(problem, impl, inputs):
    """Each gate decays its own token too."""
    return run_form(problem, impl, inputs._replace(log_g=inputs.log_g.roll(-1, 1)))


def wrong_gradient(problem, impl, inputs):
    detached = Inputs(*(None if x is None else x.detach() for x in inputs))
    pairs = zip(run_form(problem, impl, inputs), run_form(problem, impl, detached), strict=True)
    return [0.5 * y + 0.5 * constant for y, constant in pairs]


def unwritten(problem, impl, inputs):
    """One element of the output is never written."""
    y, *states = run_form(problem, impl, inputs)
    mask = torch.ones_like(y)
    mask[0, 3, 0, 0] = 0
    return [torch.where(mask == 1, y, torch.empty_like(y)), *states]


def wrong_shape(problem, impl, inputs):
    y, *states = run_form(problem, impl, inputs)
    return [y[..., :1], *states]


@pytest.mark.parametrize(
    "run, outputs, gradients", [(wrong_gate, False, False), (wrong_gradient, True, False), (unwritten, False, False)]
)
def test_a_wrong_operator_is_caught(run, outputs, gradients):
    problem = SMALL._replace(states=run is not wrong_gate)
    found = check_job(CheckJob("quadratic", (problem,), "cpu"), run)
    if run is unwritten:
        assert found[0].error is None and not found[0].ok and found[0].worst.startswith("y")
        return
    assert [x.ok for x in found] == [outputs, gradients]


def test_a_raised_error_is_a_finding():
    for finding in check_job(CheckJob("quadratic", (SMALL,), "cpu"), wrong_shape):
        assert not finding.ok and finding.error is None and "T=20" in finding.worst


def test_a_lost_process_is_no_pass():
    lost = CheckJob("quadratic", (SMALL,), "cpu").failed("its process died", 0)
    assert [x.what for x in lost] == ["outputs", "gradients"] and not any(x.ok for x in lost)


def test_few_queries_give_the_gradients_of_all_keys():
    rows = torch.tensor([5, 19])
    for error in form_errors(SMALL._replace(states=False), "chunked", CPU, run_form, rows):
        assert error.ok, error


def test_nan_and_other_shapes_are_within_no_bound():
    x = torch.ones(3)
    assert math.isnan(relative_error(x, torch.ones(2), 0.0))
    assert not relative_error(torch.tensor([1.0, math.nan, 1.0]), x, 0.0) <= 1e9
    assert relative_error(x * 1.5, x, 0.0) == 0.5 and relative_error(x * 0, x * 0, 0.0) == 0.0


def test_memory_is_poisoned_inside_and_settings_come_back():
    with checking.poisoned_memory():
        assert torch.empty(5).isnan().all() and torch.ones(2).new_empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_forms_and_types_that_cannot_run_are_refused(monkeypatch):
    with pytest.raises(ArgumentError, match="interpreter is right in float32 and float16"):
        plan_checks(CPU, None, ["triton"], ["bfloat16"], False)
    with pytest.raises(ArgumentError, match="--impl is one of"):
        plan_checks(CPU, "power", ["sdpa"], [], False)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(KernelUnavailableError, match="set TRITON_INTERPRET=1"):
        plan_checks(CPU, None, ["triton"], [], False)
    assert {job.impl for job in plan_checks(CPU, None, [], [], False)} == {"quadratic", "chunked", "torch", "sdpa"}


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["icl-bench", "kernels", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return run


QUICK = ("check", "--device", "cpu", "--op", "attention", "--impl", "torch", "--dtype", "float32", "--quick")


def test_the_command_prints_errors_beside_their_bounds(command):
    status, out, err = command(*QUICK)
    assert status == 0 and "1e-05" in out and "window gated" in out and "BROKEN" not in out
    assert "problems" in err


def test_the_command_exits_with_3_where_a_bound_is_broken(command, monkeypatch):
    def off(problem, impl, inputs):
        return [y * 1.001 for y in run_form(problem, impl, inputs)]

    monkeypatch.setattr(checking, "run_form", off)
    status, out, _ = command(*QUICK, "--json")
    document = json.loads(out)
    assert status == 3 and document["ok"] is False
    assert set(document["findings"][0]) >= {"op", "impl", "error", "bound", "device", "versions", "date", "revision"}


@pytest.mark.parametrize("wrong", [("--op", "norm"), ("--dtype", "int8"), ("--impl", "cuda"), ("--device", "tpu")])
def test_a_wrong_argument_is_one_line_and_status_2(command, wrong):
    status, _, err = command("check", *wrong)
    assert status == 2 and err.startswith("Error: ") and len(err.splitlines()) == 1
