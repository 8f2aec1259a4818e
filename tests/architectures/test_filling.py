"""Zero channels behind heads: layers compute what they do without them, and the rows that kernels see are aligned."""

import pytest
import torch
from torch import Tensor

from icl_bench.architectures import frame
from icl_bench.architectures.filling import CHANNELS, fill_heads
from icl_bench.architectures.frame import HeadsMixer
from icl_bench.harness.conformance import vary
from icl_bench.kernels.fleet.records import Groups
from tests.architectures.test_contract import inputs, mixer

FILLED = [
    "power:p=2,heads=2,d_key=5,d_value=30,conv=2",
    "power:p=3,heads=4,kv_heads=2,d_key=7,d_value=16,gate=true",
    "linear:heads=2,d_key=11,d_value=31,conv=2",
    "linear:heads=2,normalizer=raw,d_key=16,d_value=9,conv=0",
    "window:w=3,heads=2,d_value=31,conv=4",
    "softmax:heads=4,kv_heads=1,d_key=7,alibi=true",
]
UNFILLED = [
    "linear:feature_map=elu,d_key=5", "power:offset=learned,d_key=5", "power:spectrum=learned,d_key=5",
    "softmax:rope=true,d_key=6", "softmax:sinks=true,d_key=5", "linear:key_norm=rms,d_key=5",
    "window:w=3,output_gate=silu,d_value=5", "softmax:heads=1,d_key=16,d_value=32",
]  # fmt: skip


def results(layer: HeadsMixer, x: Tensor, positions: Tensor | None = None) -> list[Tensor]:
    """The output for a layer, and the gradients of x and of all parameters."""
    x = x.clone().requires_grad_()
    y = layer(x) if positions is None else layer.forward_at(x, positions)
    weights = torch.arange(y.numel(), dtype=y.dtype).view(y.shape).sin()
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])]


# Differences are those of sums in another order, in float64.
@pytest.mark.parametrize("some_positions", [False, True])
@pytest.mark.parametrize("text", FILLED)
def test_zeros_change_neither_outputs_nor_gradients(
    text: str, some_positions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = mixer(text), inputs()
    vary(layer)
    positions = torch.tensor([0, 3, 5]).expand(*x.shape[:2], 3) if some_positions else None
    plain = results(layer, x, positions)
    monkeypatch.setattr(frame, "takes_triton", lambda impl, x: True)
    seen: list[Tensor] = []
    layer.core.register_forward_pre_hook(lambda _, parts: seen.extend(parts[:3]))
    for own, wanted in zip(results(layer, x, positions), plain, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-12)
    assert len(seen) == 3
    assert all(stride % CHANNELS == 0 for part in seen for stride in (part.shape[-1], *part.stride()[:-1]))


@pytest.mark.parametrize("text", UNFILLED)
def test_layers_that_would_change_or_gain_nothing_stay_as_they_are(text: str) -> None:
    assert not mixer(text).can_fill


def test_blocks_are_filled_in_order() -> None:
    x = torch.arange(1.0, 8.0).requires_grad_()
    filled = fill_heads(x, [Groups(2, 2, 3), Groups(1, 3, 4)])
    assert filled.tolist() == [1, 2, 0, 3, 4, 0, 5, 6, 7, 0]
    (gradient,) = torch.autograd.grad((filled * torch.arange(10.0)).sum(), x)
    assert gradient.tolist() == [0, 1, 3, 4, 6, 7, 8]
