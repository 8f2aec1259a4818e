"""Whole models on a CUDA device, in the type of training: their fused steps against plain operators."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.graphs import WARM_STEPS
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.kernels import backends

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = ("train.steps=20", "train.batch=4", "model.d_model=64", "model.layers=2")
TASK = "assoc-recall:length=80,pairs=8,vocab=64"
MIXERS = [
    "delta-net", "gated-delta-net", "gla", "gsa", "hyena", "kda", "linear:gate=true,rope=true", "log-linear", "lstm",
    "mamba", "mamba-2", "mamba-3", "mesa-net", "path", "power:p=2,gate=true,rope=true", "rwkv-6", "rwkv-7",
    "softmax:rope=true",
]  # fmt: skip
RECOMPUTED = [
    "softmax:rope=true", "window:w=8,rope=true", "linear:rope=true", "power:p=2,rope=true,gate=true",
    "power:p=2,normalizer=rms,rope=true", "power:p=4,d_key=8,spectrum=learned", "gated-delta-net", "rwkv-6",
]  # fmt: skip


class Step(NamedTuple):
    """The loss of each member in the first step of a fleet, and the gradient of each parameter."""

    losses: Tensor
    gradients: list[Tensor]


def first_step(arch: str, machine: Machine, precision: str = "bfloat16") -> Step:
    specs = expand_request(Request(TASK, [arch], settings=SETTINGS, seeds=(0, 1), precision=precision))
    trainer = Trainer(specs, machine._replace(graphs=False))
    trainer.step()
    gradients = [x.double().cpu() for x in trainer.optimiser.gradients]
    return Step(torch.tensor(trainer.take_means(1)[0], dtype=torch.float64), gradients)


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    return float(sum((x - y).square().sum() for x, y in zip(some, others, strict=True)) ** 0.5)


@pytest.mark.parametrize("arch", MIXERS)
def test_a_fused_step_is_as_exact_as_plain_operators(arch: str, monkeypatch) -> None:
    """Twice as far from float32 as operators of torch in bfloat16, at most; no tensor by the size of its gradient.

    A term that a kernel leaves out, or adds twice, changes a gradient by about its own size. One that is 0 on paper, of
    a product with an activation of 0, has the error of that activation: a tanh by the approximations of `logistic` is
    2^-20 from it.
    """
    exact = first_step(arch, Machine(CPU), "float32")
    fused = first_step(arch, Machine(CUDA))
    with monkeypatch.context() as patch:
        patch.setattr(backends, "_INSTALLED", False)
        plain = first_step(arch, Machine(CUDA))
    assert fused.losses.sub(exact.losses).abs().max() < 2 * (plain.losses - exact.losses).abs().max() + 2**-8
    assert distance(fused.gradients, exact.gradients) < 2 * distance(plain.gradients, exact.gradients)
    whole = distance(exact.gradients, [torch.zeros_like(x) for x in exact.gradients])
    for own, right, rounded in zip(fused.gradients, exact.gradients, plain.gradients, strict=True):
        assert (own - right).norm() <= right.norm() / 4 + 4 * (rounded - right).norm() + 2**-20 * whole


@pytest.mark.parametrize("arch", ["rwkv-6", "rwkv-7", "power:p=2,rope=true,gate=true"])
def test_captured_steps_follow_eager_steps(arch: str) -> None:
    specs = expand_request(Request(TASK, [arch], settings=SETTINGS, seeds=(0, 1), precision="bfloat16"))
    captured, eager = (Trainer(specs, Machine(CUDA, graphs=graphs)) for graphs in (True, False))
    steps = WARM_STEPS + 3
    for _ in range(steps):
        captured.step()
        eager.step()
    # products of the library may differ by the memory that they get: half a unit of bfloat16 in a loss
    assert captured.take_means(steps)[0] == pytest.approx(eager.take_means(steps)[0], rel=2**-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("arch", RECOMPUTED)
def test_activations_computed_twice_change_no_gradient(arch: str, precision: str) -> None:
    kept, twice = (first_step(arch, Machine(CUDA, recompute=again), precision) for again in (False, True))
    assert torch.equal(kept.losses, twice.losses)
    assert all(torch.equal(x, y) for x, y in zip(kept.gradients, twice.gradients, strict=True))
