"""Contenders from outside: compiled forms that pass a state on, and inputs in the order of another package."""

import importlib
import math
import sys
import types

import pytest
import torch
import triton

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


@pytest.mark.parametrize(
    ("fields", "module", "function", "bound"),
    [
        ({"gate": "channel"}, "kda", "chunk_kda", -5.0),
        ({"gate": "channel", "rule": "untied", "reads": "undecayed"}, "rwkv7", "chunk_rwkv7", -0.607),
    ],
)
def test_fla_is_given_the_bound_of_gates(fields, module, function, bound, monkeypatch):
    """Without it the package takes a path without tensor cores, which its own layers do not."""
    given = {}
    made = types.ModuleType(f"fla.ops.{module}")
    setattr(made, function, lambda *args, **options: given.update(options) or args)
    monkeypatch.setattr(importlib, "import_module", {made.__name__: made}.__getitem__)
    monkeypatch.setattr(peers, "installed", lambda problem, name: True)
    problem = MeasuredDelta(n=1, t=3, dtype=F32).varied(fields)
    inputs = problem.inputs(CPU)
    peers.contender_run(problem, "fla", CPU)(inputs)
    assert given["safe_gate"] and given["lower_bound"] == bound <= inputs["log_decay"].min()


@pytest.fixture
def tuner(monkeypatch):
    """The autotuner of a module of a package, with 5 configurations."""
    configs = [triton.Config({}, num_warps=2**i) for i in range(5)]
    made = triton.autotune(configs, key=["size"], cache_results=True)(triton.jit(lambda size: size))
    module = types.ModuleType("tuned_package.kernels")
    module.kernel = made
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_processes_share_the_configurations_of_a_package(tuner):
    whole, kept = tuner.configs, []
    for share in range(2):
        tuner.configs = whole
        peers.keep_share("tuned_package", share, 2)
        kept += tuner.configs
    assert sorted(x.num_warps for x in kept) == [x.num_warps for x in whole]
    assert not tuner.cache_results  # a choice among some is of no use to others


def test_a_share_is_compiled_without_a_launch(tuner, monkeypatch):
    from triton.runtime.errors import OutOfResources

    asked = []

    def run(*args, grid, warmup, **meta):
        asked.append((args, warmup, meta))
        if meta["num_warps"] > 4:
            raise OutOfResources(2, 1, "shared memory")
        return types.SimpleNamespace(run=None)

    monkeypatch.setattr(tuner, "fn", types.SimpleNamespace(run=run))
    configs = tuner.configs
    peers.keep_share("tuned_package", 0, 1)
    times = [tuner._bench(7, config=config, grid=(1,), warmup=False, extra=3) for config in configs]
    assert times == [[0.0] * 3] * 3 + [[math.inf] * 3] * 2
    assert all(args == (7,) and warmup and meta["extra"] == 3 for args, warmup, meta in asked)


def test_choices_of_a_package_are_forgotten(tuner):
    tuner.cache[(256,)] = tuner.configs[0]
    peers.forget_choices("another_package")
    assert tuner.cache
    peers.forget_choices("tuned_package")
    assert not tuner.cache
