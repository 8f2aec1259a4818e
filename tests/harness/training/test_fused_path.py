"""A whole training step through the Triton kernels, in their interpreter, against the plain forms."""

import pytest
import torch

from icl_bench.architectures import backbone as backbone
from icl_bench.architectures import decays as gate
from icl_bench.architectures import frame as frame
from icl_bench.architectures import gated_delta_net as gated_delta_net
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.kernels.delta import erasing as erasing
from icl_bench.kernels.fleet import adamw as adamw
from icl_bench.kernels.fleet import adapters as adapters
from icl_bench.kernels.fleet import chosen_queries as chosen_queries
from icl_bench.kernels.fleet import convolution as convolution
from icl_bench.kernels.fleet import cross_entropy as cross_entropy
from icl_bench.kernels.fleet import decays as decays
from icl_bench.kernels.fleet import delta_gates as delta_gates
from icl_bench.kernels.fleet import embedding as embedding
from icl_bench.kernels.fleet import erasing_keys as erasing_keys
from icl_bench.kernels.fleet import folded_convolution as folded_convolution
from icl_bench.kernels.fleet import gated_norm as gated_norm
from icl_bench.kernels.fleet import gated_unit as gated_unit
from icl_bench.kernels.fleet import norm as norm
from icl_bench.kernels.fleet import products as products
from icl_bench.kernels.fleet import rotation as rotation
from icl_bench.kernels.fleet import split_convolution as split_convolution
from icl_bench.kernels.fleet import state_space as state_space
from icl_bench.kernels.fleet import token_bonus as token_bonus
from icl_bench.kernels.fleet import token_pairs as token_pairs

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a CUDA device these are the kernels in use")
STEPS = 2
"""Updates: the second one finds other parameters, and moments that are not zero."""
FUSED = (
    adamw, adapters, chosen_queries, convolution, decays, delta_gates, embedding, erasing, erasing_keys,
    folded_convolution, frame, gate, gated_delta_net, gated_norm, gated_unit, norm, products, rotation,
    split_convolution, state_space, token_bonus, token_pairs,
)  # fmt: skip
MIXERS = ["gated-delta-net", "kda", "mamba", "mamba-2"]


def trained(arch: str, tied: bool, optimiser: str, layers: int) -> tuple[list[torch.Tensor], list[float]]:
    settings = ["model.d_model=16", f"model.tied={str(tied).lower()}", "train.batch=2", f"train.steps={STEPS}"]
    settings += [f"train.optimiser={optimiser}", f"model.layers={layers}"]
    runs = expand_request(Request("assoc-recall:length=8,pairs=2,vocab=64", [arch], seeds=(0, 1), settings=settings))
    trainer = Trainer(runs, Machine(torch.device("cpu")))
    for _ in range(STEPS):
        trainer.step()
    return [parameter.detach().clone() for parameter in trainer.model.parameters()], trainer.take_means(STEPS)[0]


@pytest.mark.parametrize(
    ("arch", "tied", "optimiser", "layers"),
    [
        ("gated-conv+power:p=3", True, "adamw", 2),
        ("linear:gate=true,rope=true", False, "adamw", 2),
        ("softmax", True, "muon", 2),
        ("power:conv=2,heads=2,d_key=5", True, "adamw", 2),
        ("window:w=5,conv=2", False, "adamw", 2),
        ("rwkv-7:heads=1", True, "adamw", 2),  # the second layer reads values of the first
        ("gla:heads=1", True, "adamw", 2),  # a layer before the last joins its output gate
    ]
    + [(mixer, True, "adamw", 1) for mixer in MIXERS],
)
def test_fused_and_plain_steps_agree(arch, tied, optimiser, layers, monkeypatch):
    plain, plain_losses = trained(arch, tied, optimiser, layers)
    for module in FUSED:
        monkeypatch.setattr(module, "takes_triton", lambda impl, x: True)
    monkeypatch.setattr("icl_bench.harness.training.trainer.has_triton", lambda x: True)
    monkeypatch.setattr(frame, "folds_taps", lambda weight: True)
    monkeypatch.setattr(frame, "takes_chosen", lambda q, k, v, chosen: True)
    from icl_bench.kernels.fleet.triton.cross_entropy import cross_entropy_triton

    monkeypatch.setattr(cross_entropy.ChunkedCrossEntropy, "apply", cross_entropy_triton)
    fused, fused_losses = trained(arch, tied, optimiser, layers)
    assert fused_losses == pytest.approx(plain_losses, rel=1e-5)
    # Adam divides by the size of the gradient: rounding of an entry near zero may turn into a share of a step of 1e-2.
    for own, right in zip(fused, plain, strict=True):
        assert float((own - right).norm() / right.norm()) < 1e-3


def test_rows_that_are_scored_for_nothing_change_nothing(monkeypatch):
    """On a GPU the last row of each example is scored too, against no target of its own."""
    runs = expand_request(Request("text:corpus=example,length=8,extrapolate=[]", ["softmax"], seeds=(0, 1)))
    ends = []
    for on_gpu in (False, True):
        monkeypatch.setattr(backbone, "has_triton", lambda x, on_gpu=on_gpu: on_gpu)
        trainer = Trainer(runs, Machine(torch.device("cpu")))
        trainer.step()
        ends.append((trainer.take_means(1), trainer.optimiser.buffers.gradients.clone()))
    (plain, gradients), (whole, others) = ends
    assert whole[0] == pytest.approx(plain[0], rel=1e-6) and whole[1] == pytest.approx(plain[1], rel=1e-6)
    # rows of other numbers are added in another order: eps for each of 64 rows of 7 tokens
    assert float((gradients - others).norm() / gradients.norm()) < 448 * torch.finfo(torch.float32).eps
