"""RWKV-6 equals its published recurrence, and that of flash-linear-attention; its ramps start as published."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures.base import LayerContext
from icl_bench.architectures.initialisation import initialise
from icl_bench.kernels.delta.records import DeltaInputs
from tests.architectures.test_contract import architecture, inputs, mixer, varied
from tests.architectures.test_fla_recurrences import Witness, assert_close_with_gradients, heads_first, witnessed
from tests.architectures.test_recurrences import layer_norm

LENGTH = 7
SPECS = ["rwkv-6:heads=2", "rwkv-6:heads=1,d_key=3,d_value=5"]


def published(p: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """Return the output for a sequence x [T, C]."""
    change = functional.pad(x[:-1], (0, 0, 1, 0)) - x
    hidden = torch.tanh((x + change * p["mixed.share"]) @ p["mixed.down"]).view(len(x), 5, 32)
    parts = {}
    for s, name in enumerate("wkvrg"):
        mixed = x + change * (p["mixed.shares"][s] + hidden[:, s] @ p["mixed.up"][s])
        parts[name] = mixed @ p[f"projections.{name}.weight"]
    k, v, r = (parts[name].view(len(x), heads, -1) for name in "kvr")
    z = torch.tanh(parts["w"]) @ p["decay.weight"] + p["decay.bias"]
    w = torch.exp(-torch.minimum(z.exp(), torch.tensor(5.0))).view(k.shape)
    rows, s = [], torch.zeros(heads, k.shape[-1], v.shape[-1], dtype=torch.float64)
    for t in range(len(x)):
        written = k[t][:, :, None] * v[t][:, None]
        rows.append(torch.einsum("hkv,hk->hv", s + p["bonus.weight"][:, :, None] * written, r[t]))
        s = w[t][:, :, None] * s + written
    y = layer_norm(torch.stack(rows), 1e-5 * v.shape[-1]) * p["norm.weight"] + p["norm.bias"]
    return (y.flatten(1) * functional.silu(parts["g"])) @ p["output.weight"]


@pytest.mark.parametrize("text", SPECS)
def test_the_mixer_is_its_published_recurrence(text: str) -> None:
    made, full, x = varied(mixer(text, index=1)), architecture(text).resolved(12), inputs(length=LENGTH)
    made.decay.bias[:, 1] = 3.0  # reaches the bound of decays
    got = made(x)
    for m in range(2):
        own = {name: parameter[m].detach() for name, parameter in made.named_parameters()}
        torch.testing.assert_close(got[m, 1], published(own, x[m, 1], full.heads), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_the_mixer_computes_the_recurrence_of_flash_linear_attention() -> None:
    made, x = varied(mixer(SPECS[0], members=1)), inputs(members=1, length=40).requires_grad_()
    parts = made.parts(x, functional.pad(x[:, :, :-1], (0, 0, 1, 0)))
    own = made.inputs(parts, parts["v"].unflatten(-1, made.value_shape))
    witness = Witness(
        "rwkv6.recurrent_naive",
        "naive_recurrent_rwkv6",
        lambda i: (*heads_first(i.q, i.k, i.v, i.log_decay), i.bonus[0], 1.0),
    )
    y = witnessed(witness, DeltaInputs(*(None if part is None else part.flatten(0, 1) for part in own)))
    expected = made.finish(y.unflatten(0, x.shape[:2]).double(), own)
    assert_close_with_gradients(made.mix(x, None)[0], expected, x)


def test_decays_bonus_and_shares_start_as_published() -> None:
    layers, width = 5, 128
    made = architecture("rwkv-6:heads=2").build(1, width, LayerContext(3, layers))
    initialise(made, [0])
    n, rho = torch.arange(width, dtype=torch.float64), 3 / 4
    pairs = [
        (made.decay.bias[0], -6 + 5 * (n / 127) ** (0.7 + 1.3 * rho)),
        (made.bonus.weight[0].flatten(), rho * (1 - n / 127) + 0.1 * ((n + 1) % 3 - 1)),
        (made.mixed.shares[0, 2], 1 - ((n / width) ** (1 - 3 / layers) + 0.3 * rho)),
        (made.mixed.shares[0, 4], 1 - (n / width) ** (0.5 * (1 - 3 / layers))),
    ]
    for got, expected in pairs:
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
