"""Contenders from outside: compiled forms that pass a state on, and inputs in the order of another package."""

import pytest
import torch

from icl_bench.kernels.measurement import peers
from icl_bench.kernels.measurement.delta import MeasuredDelta
from icl_bench.kernels.measurement.measure import timed_passes
from icl_bench.kernels.measurement.scan import MeasuredLinear, MeasuredSelective

CPU, F32 = torch.device("cpu"), torch.float32


@pytest.mark.parametrize(
    ("problem", "form"),
    [
        (MeasuredSelective(n=4, t=21, channels=6, states=3, members=2, dtype=F32), "sequential"),
        (MeasuredLinear(n=2, t=21, channels=6, dtype=F32), "sequential"),
        (MeasuredDelta(n=2, t=150, dtype=F32, gate="head"), "chunked"),
    ],
)
def test_compiled_steps_pass_the_state_on(problem, form, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda body, dynamic: lambda inputs: calls.append(1) or body(inputs))
    inputs = problem.inputs(CPU)
    run = peers.contender_run(problem, f"compiled {form}", CPU)
    assert torch.equal(run(inputs), problem.run(form, inputs)["y"]) and len(calls) == 3


def test_a_package_is_given_sequences_in_its_own_order():
    problem = MeasuredSelective(n=2, t=5, channels=4, states=3, members=2, dtype=F32)
    inputs = problem.inputs(CPU)
    stored = peers.stored_inputs(problem, "mamba-ssm", inputs)
    assert all(torch.equal(x, inputs[name]) and x.shape == inputs[name].shape for name, x in stored.items())
    assert {name for name, x in stored.items() if x.mT.is_contiguous()} == {"x", "dt", "b", "c"}
    assert peers.stored_inputs(problem, "auto", inputs) is inputs
    seen = []

    def run(given):
        seen.append(given["x"].mT.is_contiguous())
        return (given["x"].mT * 2).mT

    forward, both = timed_passes(run, stored)
    assert forward().mT.is_contiguous() and both()[0].mT.is_contiguous() and all(seen)
