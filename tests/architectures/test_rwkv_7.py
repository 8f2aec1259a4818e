"""RWKV-7 equals its published recurrence, channel ramps and residual of values included."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures import rwkv_7
from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.base import FirstLayer, LayerContext
from icl_bench.architectures.initialisation import initialise
from icl_bench.architectures.interface import Tokens
from icl_bench.errors import SpecError
from icl_bench.harness.conformance import vary
from icl_bench.runs.spec import ModelSpec
from tests.architectures.test_contract import architecture, inputs, mixer, varied
from tests.architectures.test_recurrences import layer_norm
from tests.kernels.numerics import DEVICE

LENGTH = 7
TOLERANCE = 3e-5
"""Three times the bound of the rule in float32, for what is rounded before and after it."""


def published(p: dict[str, Tensor], x: Tensor, v_first: Tensor | None, heads: int) -> Tensor:
    """Return the output for a sequence x [T, C], and v_first [T, H, V] in a later layer."""
    before = functional.pad(x[:-1], (0, 0, 1, 0))

    def stream(name: str, share: str) -> Tensor:
        return (x + (before - x) * p[f"shifted.share_{share}"]) @ p[f"shifted.weight_{name}"]

    def risen(name: str, hidden: Tensor) -> Tensor:
        return (hidden @ p[f"{name}.weight"] + p.get(f"{name}.bias", 0)).view(len(x), heads, -1)

    r, k, v = (stream(name, name).view(len(x), heads, -1) for name in "rkv")
    w = torch.exp(-math.exp(-0.5) * torch.sigmoid(risen("decay", torch.tanh(stream("w", "w")))))
    a = torch.sigmoid(risen("rate", stream("a", "a")))
    if v_first is not None:
        v = v + (v_first - v) * torch.sigmoid(risen("residual", stream("v1", "v")))
    kappa = k * p["erasing.weight"]
    kappa = kappa / kappa.norm(dim=-1, keepdim=True)
    written = k * (1 + (a - 1) * p["weakening.weight"])
    rows = []
    s = torch.zeros(heads, k.shape[-1], v.shape[-1], dtype=torch.float64)
    for t in range(len(x)):
        erased = (a[t] * kappa[t])[:, :, None] * torch.einsum("hkv,hk->hv", s, kappa[t])[:, None]
        s = w[t][:, :, None] * s - erased + written[t][:, :, None] * v[t][:, None]
        rows.append(torch.einsum("hkv,hk->hv", s, r[t]))
    y = layer_norm(torch.stack(rows), 1e-5 * v.shape[-1]) * p["norm.weight"] + p["norm.bias"]
    y = y + (r * written * p["bonus.weight"]).sum(-1, keepdim=True) * v
    return (y * risen("gate", torch.sigmoid(stream("g", "g")))).flatten(1) @ p["output.weight"]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("text", ["rwkv-7:heads=2", "rwkv-7:heads=1,d_key=3,d_value=5"])
def test_the_mixer_is_its_published_recurrence(text: str, index: int) -> None:
    made, full, x = varied(mixer(text, index=index)), architecture(text).resolved(12), inputs(length=LENGTH)
    first, values = FirstLayer(), torch.randn(2, 2, LENGTH, full.heads, full.d_value, dtype=torch.float64)
    first.values = values if index else None
    got = made(x, first)
    for m in range(2):
        own = {name: parameter[m].detach() for name, parameter in made.named_parameters()}
        expected = published(own, x[m, 1], values[m, 1] if index else None, full.heads)
        torch.testing.assert_close(got[m, 1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(DEVICE == "cuda", reason="on a device these kernels take half types alone")
@pytest.mark.parametrize("at_positions", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_one_operator_changes_neither_outputs_nor_gradients(
    index: int, at_positions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core as one operator on the columns of one projection, beside its parts one after the other in float64."""
    layer, x = mixer("rwkv-7:heads=1,d_key=16,d_value=16", index=index), inputs(length=LENGTH)
    positions = torch.tensor([[[0, 5, 2], [6, 1, 3]]] * 2) if at_positions else None
    vary(layer)
    values = torch.randn(2, 2, LENGTH, 1, 16, dtype=torch.float64)

    def results(x: Tensor, values: Tensor) -> list[Tensor]:
        first, leaves = FirstLayer(), [x.clone().requires_grad_(), values.clone().requires_grad_()]
        first.values = leaves[1] if index else None
        y = layer(leaves[0], first) if positions is None else layer.forward_at(leaves[0], positions, first)
        outputs = [y] if index else [y, first.values]
        found = torch.autograd.grad(outputs, [leaves[0], *layer.parameters(), *leaves[1 : 1 + index]], outputs)
        return [*outputs, *found]

    wanted = results(x, values)
    monkeypatch.setattr(rwkv_7, "takes_erasing_delta", lambda rows, options: True)
    layer = layer.float()
    found = results(x.float(), values.float())
    for i, (actual, exact) in enumerate(zip(found, wanted, strict=True)):
        error = ((actual.double() - exact).norm() / exact.norm().clamp(min=1e-9)).item()
        assert error < TOLERANCE, f"result {i}: {error:.1e}"


def test_decays_start_as_published() -> None:
    layers, width = 5, 128
    made = architecture("rwkv-7:heads=2").build(1, width, LayerContext(3, layers))
    initialise(made, [0])
    n, rho = torch.arange(width, dtype=torch.float64), 3 / 4
    z = (n % 64 - 31.5) / 31.5
    w0 = -6 + 6 * (n / 127) ** (1 + rho**0.3) + 0.5 + 2.5 * z * z.abs()
    torch.testing.assert_close(made.decay.bias[0].double(), w0, rtol=1e-5, atol=1e-5)
    a0 = -0.19 + 0.3 * z * z.abs() + 0.4 * (n / 127 - 0.5)
    torch.testing.assert_close(made.rate.bias[0].double(), a0, rtol=1e-5, atol=1e-5)
    share = made.shifted.get_parameter("share_w")[0].double()
    torch.testing.assert_close(share, 1 - (n / width) ** (0.9 * (1 - 3 / layers)), rtol=1e-5, atol=1e-5)
    up = made.decay.weight[0].double()
    torch.testing.assert_close(up @ up.T, 0.01 * torch.eye(len(up), dtype=torch.float64), rtol=1e-4, atol=1e-6)


def model(*archs: str) -> Backbone:
    settings = ModelSpec(d_model=12, tied=False)
    return varied(Backbone([0, 1], Tokens(11), [architecture(arch) for arch in archs], settings, "auto").double())


@pytest.mark.parametrize(
    "archs", [("rwkv-7",) * 3, ("delta-net", "rwkv-7"), ("gated-conv", "rwkv-7:value_residual=false")]
)
def test_values_of_the_first_layer_reach_later_ones_in_both_forms(archs: tuple[str, ...]) -> None:
    made = model(*archs)
    ids, positions = torch.arange(2 * 3 * 7).view(2, 3, 7) * 5 % 11, torch.arange(7).expand(2, 3, 7)
    whole, state = made(ids, positions), made.initial_state(3)
    for t in range(7):
        logits, state = made.step(ids[:, :, t], state, t)
        torch.testing.assert_close(logits, whole[:, :, t], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("first", "has"), [("gated-conv", "none"), ("delta-net:heads=2", r"\(2, 6\)")])
def test_a_first_layer_with_values_of_another_shape_is_refused(first: str, has: str) -> None:
    with pytest.raises(SpecError, match=rf"width\] = \(4, 3\); the first layer has {has}; change the first layer, or"):
        model(first, "rwkv-7")
