"""State-space models, long convolutions and minGRU equal their published equations, written here in float64."""

import cmath
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import SpecError
from tests.architectures.test_contract import architecture, inputs, mixer
from tests.architectures.test_recurrences import (
    LENGTH,
    Layer,
    compare_with_published,
    convolve,
    linear,
    loop,
    projected,
    rms,
)


def mamba(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    x, z = linear(p, "project", layer.x).chunk(2, dim=-1)
    x = functional.silu(convolve(x, p["conv.weight"]) + p["conv.bias"])
    low, b, c = linear(p, "select", x).split([1, a.d_state, a.d_state], dim=-1)
    d = functional.softplus(linear(p, "steps", low) + p["step_bias.weight"])
    rate = p["log_rate.weight"].view(-1, a.d_state).exp()

    def step(h: Tensor, t: int) -> tuple[Tensor, Tensor]:
        h = torch.exp(-d[t][:, None] * rate) * h + torch.outer(d[t] * x[t], b[t])
        return h @ c[t] + p["skip.weight"] * x[t], h

    y = loop(step, torch.zeros(x.shape[1], a.d_state, dtype=torch.float64))
    return y * functional.silu(z) @ p["output.weight"]


def min_gru(layer: Layer) -> Tensor:
    z, u = torch.sigmoid(linear(layer.p, "gate", layer.x)), linear(layer.p, "candidate", layer.x)
    candidate = torch.where(u >= 0, u + 0.5, torch.sigmoid(u))

    def step(h: Tensor, t: int) -> tuple[Tensor, Tensor]:
        h = (1 - z[t]) * h + z[t] * candidate[t]
        return h, h

    return loop(step, torch.zeros(z.shape[1], dtype=torch.float64)) @ layer.p["output.weight"]


def min_lstm(layer: Layer) -> Tensor:
    f, i = (torch.sigmoid(linear(layer.p, name, layer.x)) for name in ("gate", "entry"))
    u = linear(layer.p, "candidate", layer.x)
    candidate = torch.where(u >= 0, u + 0.5, torch.sigmoid(u))

    def step(c: Tensor, t: int) -> tuple[Tensor, Tensor]:
        c = (f[t] * c + i[t] * candidate[t]) / (f[t] + i[t])
        return c, c

    return loop(step, torch.zeros(f.shape[1], dtype=torch.float64)) @ layer.p["output.weight"]


def hyena(layer: Layer) -> Tensor:
    p, a, width = layer.p, layer.a, layer.x.shape[1]
    x1, x2, v = (convolve(linear(p, "project", layer.x), p["conv.weight"]) + p["conv.bias"]).chunk(3, dim=-1)
    taps = []
    for t in range(LENGTH):
        share = t / a.length
        angles = [2 * math.pi * share * rate for rate in (1e-4, 1.0)]
        h = torch.tensor([share, *map(math.cos, angles), *(-math.sin(w) for w in angles)], dtype=torch.float64)
        for i in range(3):
            h = torch.sin(p["filters.frequency"] * (h @ p[f"filters.weight{i}"] + p[f"filters.bias{i}"]))
        slow, fast = abs(math.log(0.01)) / 1.5, abs(math.log(0.01)) / 0.3
        decay = torch.tensor([slow + (fast - slow) * c / (width - 1) for c in range(width)], dtype=torch.float64)
        taps.append(h @ p["filters.weight3"] * torch.exp(-share * decay))
    u = v * x1
    y = torch.stack([sum(taps[j] * u[t - j] for j in range(t + 1)) for t in range(LENGTH)]) + p["filters.direct"] * u
    return y * x2 @ p["output.weight"]


def h3(layer: Layer) -> Tensor:
    p, size = layer.p, layer.a.d_head
    q, k, v = linear(p, "project", layer.x).chunk(3, dim=-1)
    k = convolve(k, p["shift.weight"]) + p["direct.weight"] * k
    heads = q.shape[1] // size
    y = torch.zeros_like(q)
    for h in range(heads):
        taps = [diagonal_tap(layer, h, lag) for lag in range(LENGTH)]
        taps[0] += float(p["memory.direct"][h])
        for t in range(LENGTH):
            for a in range(size):
                for b in range(size):
                    i, j = h * size + a, h * size + b
                    y[t, j] += q[t, i] * sum(taps[t - s] * k[s, i] * v[s, j] for s in range(t + 1))
    return linear(p, "output", y)


def diagonal_tap(layer: Layer, head: int, lag: int) -> float:
    """Return one tap of the filter of a head, by complex powers of Python."""
    p, pairs, total = layer.p, layer.a.d_state // 2, 0.0
    d = math.exp(float(p["memory.log_step"][head]))
    for n in range(head * pairs, (head + 1) * pairs):
        a = complex(-math.exp(float(p["memory.log_decay"][n])), float(p["memory.frequency"][n]))
        c, b = (
            complex(float(p[f"memory.{name}_real"][n]), float(p[f"memory.{name}_imaginary"][n]))
            for name in ("read", "write")
        )
        total += 2 * (c * d * b / (1 - d * a / 2) * ((1 + d * a / 2) / (1 - d * a / 2)) ** lag).real
    return total


def mamba_3(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    q, k, v = projected(layer, heads=(1, 1, a.heads))
    q, k = (
        rms(part) * p[f"key_norms.{i}.weight"] + p[f"core.{name}.weight"]
        for i, (part, name) in enumerate([(q, "query_bias"), (k, "key_bias")])
    )
    d = functional.softplus(linear(p, "core.steps.project", layer.x) + p["core.steps.step_bias"])
    decay = torch.exp(-d * functional.softplus(linear(p, "core.rate", layer.x)).clamp(min=1e-4))
    share = torch.sigmoid(linear(p, "core.share", layer.x))
    speed = math.pi * torch.tanh(linear(p, "core.speed", layer.x))
    rows = torch.zeros_like(v)
    for h in range(a.heads):
        s, angle = torch.zeros(a.d_key, a.d_value, dtype=torch.float64), [0.0] * (a.d_key // 4)
        last = torch.zeros_like(s)
        for t in range(LENGTH):
            angle = [own + float(speed[t, i] * d[t, h]) for i, own in enumerate(angle)]
            q_t, k_t = turned(q[t, h], angle), turned(k[t, h], angle)
            now = torch.outer(k_t, v[t, h])
            s = decay[t, h] * s + (1 - share[t, h]) * d[t, h] * decay[t, h] * last + share[t, h] * d[t, h] * now
            last, rows[t, h] = now, s.T @ q_t + p["core.skip.weight"][h] * v[t, h]
    return rows.flatten(1) * functional.silu(linear(p, "output_gate", layer.x)) @ p["output.weight"]


def turned(x: Tensor, angles: list[float]) -> Tensor:
    """Rotate pairs (i, i + P) of the first channels of x [K] as complex numbers."""
    pairs, out = len(angles), x.clone()
    for i, angle in enumerate(angles):
        z = complex(float(x[i]), float(x[i + pairs])) * cmath.exp(1j * angle)
        out[i], out[i + pairs] = z.real, z.imag
    return out


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("h3:d_head=3,d_state=4", h3),
        ("hyena:length=9,hidden=5", hyena),
        ("mamba:d_state=3", mamba),
        ("mamba-3:heads=2,d_key=10", mamba_3),
        ("min-gru:d_inner=7", min_gru),
        ("min-lstm:d_inner=7", min_lstm),
    ],
)
def test_a_mixer_is_its_published_recurrence(text: str, published: Callable[[Layer], Tensor]) -> None:
    compare_with_published(text, published)


def test_filters_of_a_long_sequence_are_products_of_powers() -> None:
    """More distances than a block of powers holds, against powers one by one."""
    made = mixer("h3:d_head=6,d_state=4").requires_grad_(False)
    own = {name: parameter[0].detach() for name, parameter in made.named_parameters()}
    layer = Layer(own, architecture("h3:d_head=6,d_state=4").resolved(12), inputs()[0, 0])
    filters = made.memory(70)
    for lag in (1, 31, 32, 69):
        assert float(filters[0, 1, lag]) == pytest.approx(diagonal_tap(layer, 1, lag), rel=1e-9)


def test_hyena_refuses_a_sequence_beyond_its_filters() -> None:
    with pytest.raises(SpecError, match="reach over at most `length` tokens; got 9 for length = 8; raise it"):
        mixer("hyena:length=8")(inputs(length=9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h3:d_state=3", "d_state must be even, as states are complex numbers; got 3"),
        ("h3:d_head=5", "d_head must divide the model width 12; got 5"),
        ("mamba-3:d_key=3", "half of the keys is rotated in pairs, so d_key is at least 4; got 3"),
        ("ret-net:d_key=3", "rotated keys have an even d_key; got 3"),
        ("kda:heads=4,value_heads=6", "value_heads must be a multiple of heads = 4; got 6"),
        ("delta-net:heads=13", "heads must be at most the model width 12; got 13"),
    ],
)
def test_sizes_that_a_mixer_cannot_have_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        architecture(text).resolved(12)
