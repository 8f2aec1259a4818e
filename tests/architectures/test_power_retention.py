"""The preset is the layer of its authors: their operator, in the package `retention`, between the parts they train.

`pip install --no-deps retention==1.0.7 einops` in an environment of its own makes these tests run; they need no GPU,
since the package has a plain form beside its kernels.
"""

import importlib
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.architectures.test_contract import inputs, mixer, varied
from tests.architectures.test_recurrences import rotated

LENGTH = 40
SPEC = "power-retention:heads=4,kv_heads=2,d_key=16,d_value=16,eps=1e-12"
"""Keys of a multiple of 16, which the package takes; it adds 1e-6 to the sum of scores after dividing by the largest
score, so that the eps of `power` has no counterpart there."""
LARGEST_ERROR = 2 * LENGTH * torch.finfo(torch.float32).eps
"""Relative to the largest entry: two roundings of float32 a token. The package raises the sum, at least 1, by 1e-6,
which the norm of the output cancels, and absolute scores by 1e-7, which is below this."""


def authors_layer(p: Mapping[str, Tensor], x: Tensor, retention: Callable[..., Tensor], chunk: int | None) -> Tensor:
    """Return the output [B, T, C] for the weights of one member: their layer, in parts of torch, around `retention`."""
    mixed = x @ p["project.weight"]
    taps = p["conv.weight"].flip(0).T[:, None]  # the last tap of torch's convolution is that of the token itself
    mixed = functional.conv1d(functional.pad(mixed.mT, (len(taps[0, 0]) - 1, 0)), taps, groups=len(taps)).mT
    q, k, v = (part.unflatten(-1, (-1, 16)) for part in functional.silu(mixed).split([64, 32, 32], dim=-1))
    q, k = (torch.stack([rotated(sequence) for sequence in part]).to(x.dtype) for part in (q, k))
    log_g = functional.logsigmoid(x @ p["gate.weight"] + p["gate.bias"]) / 16
    y = retention(q, k, v, log_g, deg=2, chunk_size=chunk)
    y = functional.rms_norm(y, (16,), p["norm.weight"], eps=1e-6).flatten(-2)
    return y * functional.silu(x @ p["output_gate.weight"]) @ p["output.weight"]


@pytest.mark.parametrize("chunk", [None, 8])
def test_copied_weights_give_the_outputs_and_gradients_of_the_package(chunk: int | None) -> None:
    pytest.importorskip("retention", exc_type=ImportError)
    retention = importlib.import_module("retention.reference").power_retention
    made, x = varied(mixer(SPEC, members=1)).requires_grad_(), inputs(members=1, length=LENGTH).requires_grad_()
    own = dict(made.named_parameters())
    copied = {name: parameter[0].detach().float().requires_grad_() for name, parameter in own.items()}
    single = x[0].detach().float().requires_grad_()
    got, expected = made(x)[0], authors_layer(copied, single, retention, chunk)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    pairs = {"output": (got, expected), "x": (x.grad[0], single.grad)}
    pairs |= {name: (own[name].grad[0], copied[name].grad) for name in own}
    for name, (mine, theirs) in pairs.items():
        assert float((mine - theirs).detach().abs().max()) <= LARGEST_ERROR * float(theirs.detach().abs().max()), name
