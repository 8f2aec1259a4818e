"""One tensor for queries, keys, values and the output gate: layers compute what they do with several."""

import pytest
import torch

from icl_bench.architectures import joined
from icl_bench.harness.conformance import vary
from tests.architectures.test_contract import inputs, mixer
from tests.kernels.numerics import DEVICE, draw

TOLERANCE = 3e-5
"""Three times the bound of the rule in float32, for what is rounded before and after it."""


def results(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    along = draw(*y.shape, seed=7).to(y)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], along)]


@pytest.mark.parametrize("text", ["gated-delta-net:heads=2", "gated-delta-net:heads=1,value_heads=3"])
def test_one_tensor_changes_neither_outputs_nor_gradients(text, monkeypatch):
    layer, x = mixer(text), inputs()
    vary(layer)
    plain = results(layer, x)
    monkeypatch.setattr(joined, "takes_triton", lambda impl, x: True)
    monkeypatch.setattr(joined, "LINE", 1)
    assert layer.joins(x)
    found = results(layer.float().to(DEVICE), x.float().to(DEVICE))
    for own, wanted in zip(found, plain, strict=True):
        assert (own.cpu() - wanted).norm() <= TOLERANCE * wanted.norm()


@pytest.mark.parametrize("options", ["conv=0", "output_gate=false", "d_value=5"])
def test_other_layers_keep_their_projections(options, monkeypatch):
    monkeypatch.setattr(joined, "takes_triton", lambda impl, x: True)
    assert not mixer(f"gated-delta-net:heads=2,{options}").joins(inputs())
