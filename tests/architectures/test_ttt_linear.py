"""Test-time training equals gradient descent on the inner loss, with gradients from autograd, token by token."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import SpecError
from tests.architectures.test_contract import D_MODEL, architecture, inputs, mixer, recurrent, varied
from tests.architectures.test_recurrences import Layer, compare_with_published, linear, projected, rms, rotated

LENGTH = 35
"""Two whole minibatches and a part of one."""
MINIBATCH = 16


def published(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    q, k, v = projected(layer)
    places = torch.arange(LENGTH) % MINIBATCH
    q, k = (rotated(x, places[:, None].float()) for x in (q, k))
    rates = a.rate * torch.sigmoid(linear(p, "core.rate", layer.x)) / a.d_key
    depth = 1 if "core.inner.1.weight" not in p else 2
    rows = torch.zeros(LENGTH, a.heads, a.d_key, dtype=torch.float64)
    for h in range(a.heads):
        start = [p[f"core.inner.{n}.weight"][h] for n in range(depth)] + [
            p[f"core.biases.{n}.weight"][h, 0] for n in range(depth)
        ]
        sums = [torch.zeros_like(part) for part in start]
        for t in range(LENGTH):
            gradients = torch.func.grad(loss, argnums=0)(start, k[t, h], v[t, h], p, h)
            sums = [total + rates[t, h] * own for total, own in zip(sums, gradients, strict=True)]
            i = t % MINIBATCH
            factor = max(0.0, float(1 / (i + 1) + p["core.places.weight"][i]))
            now = [part - factor * total for part, total in zip(start, sums, strict=True)]
            rows[t, h] = q[t, h] + normed(inner(now, q[t, h]), p, h)
            if i == MINIBATCH - 1:
                start, sums = now, [torch.zeros_like(part) for part in now]
    y = rms(rows.flatten(1)) * p["norm.weight"] * functional.silu(linear(p, "output_gate", layer.x))
    return y @ p["output.weight"]


def inner(model: list[Tensor], x: Tensor) -> Tensor:
    depth = len(model) // 2
    for n in range(depth):
        x = (functional.gelu(x, approximate="tanh") if n else x) @ model[n] + model[depth + n]
    return x


def normed(z: Tensor, p: dict[str, Tensor], h: int) -> Tensor:
    return p["core.gain.weight"][h, 0] * functional.layer_norm(z, z.shape, eps=1e-6) + p["core.shift.weight"][h, 0]


def loss(model: list[Tensor], k: Tensor, v: Tensor, p: dict[str, Tensor], h: int) -> Tensor:
    return (normed(inner(model, k), p, h) - (v - k)).square().sum() / 2


@pytest.mark.parametrize("text", ["ttt-linear:heads=2,d_key=4", "ttt-mlp:heads=2,d_key=2,conv=2"])
def test_the_mixer_is_gradient_descent_on_its_loss(text: str) -> None:
    compare_with_published(text, published, LENGTH)


@pytest.mark.parametrize("text", ["ttt-linear:heads=2,d_key=4", "ttt-mlp:heads=2,d_key=2"])
def test_both_forms_agree_over_minibatches(text: str) -> None:
    layer, x = varied(mixer(text)), inputs(length=LENGTH)
    torch.testing.assert_close(layer(x), recurrent(layer, x)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("params", ["d_key=3", "d_key=4,d_value=6"])
def test_values_as_wide_as_keys_of_an_even_width_are_asked_for(params: str) -> None:
    with pytest.raises(SpecError, match="set an even d_key and leave d_value out"):
        architecture(f"ttt-linear:{params}").resolved(D_MODEL)
