"""One projection for queries, keys, values and gates: the layers compute what they do with several."""

import pytest
import torch

from icl_bench.architectures import joined
from icl_bench.harness.conformance import vary
from tests.architectures.test_contract import inputs, mixer
from tests.architectures.test_filling import results
from tests.kernels.numerics import DEVICE

TOLERANCE = 3e-5
"""Three times the bound of the rule in float32, for what is rounded before and after it."""


@pytest.mark.parametrize("some_positions", [False, True])
@pytest.mark.parametrize("text", ["gated-delta-net:heads=2", "gated-delta-net:heads=1,value_heads=3,output_gate=false"])
def test_one_projection_changes_neither_outputs_nor_gradients(text, some_positions, monkeypatch):
    layer, x = mixer(text), inputs()
    vary(layer)
    positions = torch.tensor([0, 3, 5]).expand(*x.shape[:2], 3) if some_positions else None
    plain = results(layer, x, positions)
    monkeypatch.setattr(joined, "takes_triton", lambda impl, x: True)
    widths = []
    monkeypatch.setattr(joined, "project", lambda x, weight: widths.append(weight.shape[2]) or x @ weight)
    positions = None if positions is None else positions.to(DEVICE)
    found = results(layer.float().to(DEVICE), x.float().to(DEVICE), positions)
    for own, wanted in zip(found, plain, strict=True):
        assert (own.cpu() - wanted).norm() <= TOLERANCE * wanted.norm()
    assert len(widths) == 1
    assert widths[0] % joined.ROW_UNIT == 0


@pytest.mark.parametrize("options", ["conv=0", "value_heads=2,conv=0,output_gate=false"])
def test_layers_without_a_convolution_keep_their_projections(options, monkeypatch):
    monkeypatch.setattr(joined, "takes_triton", lambda impl, x: True)
    assert not mixer(f"gated-delta-net:heads=2,{options}").joins(inputs())
