"""`icl-bench kernels check`: its definition, its verdicts on right and wrong operators, its exit statuses."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.measurement import check as checking
from icl_bench.kernels.measurement.check import CheckJob, check_job, form_errors, plan_checks, relative_error, run_form
from icl_bench.kernels.measurement.operators import OPERATORS
from icl_bench.kernels.measurement.problem import LENGTHS
from icl_bench.kernels.measurement.scan import MeasuredSelective
from icl_bench.kernels.measurement.scores import MeasuredPower

CPU = torch.device("cpu")
F32, F64 = torch.float32, torch.float64
SMALL = MeasuredPower(t=20, dtype=F32, key=8, value=8, gated=True)


def test_problems_cover_all_lengths():
    for operator in OPERATORS.values():
        problems = list(operator.problems(torch.bfloat16, LENGTHS))
        assert {problem.t for problem in problems} >= set(LENGTHS)
        assert all(problem.impls == operator.impls for problem in problems)


@pytest.mark.parametrize("impl", ["quadratic", "chunked", "triton"])
def test_a_right_operator_passes(impl):
    outputs, gradients = check_job(CheckJob(impl, (replace(SMALL, initial=True), replace(SMALL, t=1)), "cpu"))
    assert outputs.ok and gradients.ok and outputs.problems == 2
    assert 0 < outputs.error <= outputs.bound == 1e-5
    assert gradients.worst.startswith("d")


def wrong_gate(problem, impl, inputs):
    """Each gate decays its own token too."""
    return run_form(problem, impl, {**inputs, "log_g": inputs["log_g"].roll(-1, 1)})


def wrong_gradient(problem, impl, inputs):
    constant = run_form(problem, impl, {name: x.detach() for name, x in inputs.items()})
    return {name: 0.5 * y + 0.5 * constant[name] for name, y in run_form(problem, impl, inputs).items()}


def unwritten(problem, impl, inputs):
    """One element of the output is never written."""
    outputs = run_form(problem, impl, inputs)
    mask = torch.ones_like(outputs["y"])
    mask[0, 3, 0, 0] = 0
    return {**outputs, "y": torch.where(mask == 1, outputs["y"], torch.empty_like(outputs["y"]))}


def wrong_shape(problem, impl, inputs):
    outputs = run_form(problem, impl, inputs)
    return {**outputs, "y": outputs["y"][..., :1]}


@pytest.mark.parametrize(
    "run, outputs, gradients", [(wrong_gate, False, False), (wrong_gradient, True, False), (unwritten, False, False)]
)
def test_a_wrong_operator_is_caught(run, outputs, gradients):
    problem = replace(SMALL, states=run is not wrong_gate)
    found = check_job(CheckJob("quadratic", (problem,), "cpu"), run)
    if run is unwritten:
        assert found[0].error is None and not found[0].ok and found[0].worst.startswith("y")
        return
    assert [x.ok for x in found] == [outputs, gradients]


def test_a_raised_error_is_a_finding():
    for finding in check_job(CheckJob("quadratic", (SMALL,), "cpu"), wrong_shape):
        assert not finding.ok and finding.error is None and "T=20" in finding.worst


def test_a_lost_process_is_no_pass():
    lost = CheckJob("quadratic", (SMALL,), "cpu").failed("its process died")
    assert [x.what for x in lost] == ["outputs", "gradients"] and not any(x.ok for x in lost)


def test_few_queries_give_the_gradients_of_all_keys():
    for error in form_errors(replace(SMALL, states=False), "chunked", CPU, run_form, torch.tensor([5, 19])):
        assert error.ok, error


def test_few_sequences_give_the_gradients_of_their_members():
    problem = MeasuredSelective(t=9, dtype=F32, n=6, members=3, channels=4, states=2)
    errors = form_errors(problem, "sequential", CPU, run_form, torch.tensor([1, 4]))
    assert {error.name for error in errors} == {
        "y",
        *(f"d{name}" for name in ("x", "dt", "a", "b", "c", "d", "dt_bias")),
    }
    assert all(error.ok for error in errors), errors


def test_outputs_alone_are_compared_without_gradients():
    assert [x.name for x in form_errors(SMALL, "chunked", CPU, run_form, gradients=False)] == ["y", "s", "z"]


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
        plan_checks(CPU, (), ["triton"], ["bfloat16"], False)
    with pytest.raises(ArgumentError, match="--impl is one of"):
        plan_checks(CPU, ("power",), ["sdpa"], [], False)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(KernelUnavailableError, match="set TRITON_INTERPRET=1"):
        plan_checks(CPU, (), ["triton"], [], False)
    jobs = plan_checks(CPU, ("power", "attention"), [], [], False)
    assert {job.impl for job in jobs} == {"quadratic", "chunked", "torch", "sdpa"}


@pytest.fixture
def command(command):
    """Return a function that runs a command of the group `kernels`."""
    return partial(command, "kernels")


QUICK = ("check", "--device", "cpu", "--op", "attention", "--impl", "torch", "--dtype", "float32", "--quick")


def test_the_command_prints_errors_beside_their_bounds(command):
    status, out, err = command(*QUICK)
    assert status == 0 and "1e-05" in out and "window gated" in out and "BROKEN" not in out
    assert "problems" in err


def test_the_command_exits_with_3_where_a_bound_is_broken(command, monkeypatch):
    def off(problem, impl, inputs):
        return {name: 1.001 * y for name, y in problem.run(impl, inputs).items()}

    monkeypatch.setattr(checking, "run_form", off)
    status, out, _ = command(*QUICK, "--json")
    document = json.loads(out)
    assert status == 3 and document["ok"] is False
    assert set(document["findings"][0]) >= {"op", "impl", "error", "bound", "device", "versions", "date", "revision"}


@pytest.mark.parametrize("wrong", [("--op", "norm"), ("--dtype", "int8"), ("--impl", "cuda"), ("--device", "tpu")])
def test_a_wrong_argument_is_one_line_and_status_2(command, wrong):
    status, _, err = command("check", *wrong)
    assert status == 2 and err.startswith("Error: ") and len(err.splitlines()) == 1


def test_problems_of_all_kinds_are_checked_in_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * checking.MEMORY_OF_A_PROCESS, 0))
    kinds = [(replace(SMALL, initial=True), replace(SMALL, t=1)), (replace(SMALL, t=2),)]
    jobs = [CheckJob(impl, problems, "cpu") for impl, problems in zip(("chunked", "quadratic"), kinds, strict=True)]
    found = dict(checking._run_jobs(jobs, torch.device("cuda")))
    assert {job: [(x.ok, x.problems) for x in findings] for job, findings in found.items()} == {
        jobs[0]: [(True, 2)] * 2,
        jobs[1]: [(True, 1)] * 2,
    }
