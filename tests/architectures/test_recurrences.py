"""Each mixer equals its published recurrence, written here token by token and head by head in float64."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.architectures import Architecture
from tests.architectures.test_contract import architecture, inputs, mixer, varied

LENGTH = 7


class Layer(NamedTuple):
    """Parameters of one member by name, the resolved architecture, and one sequence [T, C]."""

    p: Mapping[str, Tensor]
    a: Architecture
    x: Tensor


def convolve(x: Tensor, taps: Tensor) -> Tensor:
    """Convolve by the definition: x [T, C], taps [L, C]."""
    return torch.stack([sum(taps[j] * x[t - j] for j in range(min(len(taps), t + 1))) for t in range(len(x))])


def projected(layer: Layer, silu: bool = False, heads: tuple[int, int, int] | None = None) -> list[Tensor]:
    """Return queries, keys and values after the convolution, [T, heads, width] each."""
    p, a = layer.p, layer.a
    mixed = layer.x @ p["project.weight"]
    if a.conv:
        mixed = convolve(mixed, p["conv.weight"]) + p.get("conv.bias", 0)
    mixed = functional.silu(mixed) if silu else mixed
    counts, widths = heads or (a.heads,) * 3, (a.d_key, a.d_key, a.d_value)
    parts = mixed.split([n * width for n, width in zip(counts, widths, strict=True)], dim=-1)
    return [part.view(len(part), n, -1) for part, n in zip(parts, counts, strict=True)]


def rms(x: Tensor, eps: float = 1e-5) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def layer_norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def rotated(x: Tensor, places: Tensor | None = None) -> Tensor:
    """Rotate pairs (i, i + K/2) of x [T, H, K] as complex numbers, by positions or by `places` [T, H]."""
    first, second = x.chunk(2, dim=-1)
    half = first.shape[-1]
    speeds = 10_000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    positions = torch.arange(len(x))[:, None].float() if places is None else places
    angles = positions[..., None] * speeds  # as the mixer: angles of positions in float32
    turned = torch.complex(first, second) * torch.complex(angles.cos(), angles.sin())
    return torch.cat([turned.real, turned.imag], dim=-1)


def loop(step: Callable[[Tensor, int], tuple[Tensor, Tensor]], state: Tensor, length: int = LENGTH) -> Tensor:
    """Return the outputs of a recurrence, [T, ...]: `step` takes the state and a token to the output and the state."""
    rows = []
    for t in range(length):
        y, state = step(state, t)
        rows.append(y)
    return torch.stack(rows)


def ret_net(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    q, k, v = projected(layer)
    q, k = rotated(q), rotated(k)
    decay = 1 - 2.0 ** (-5 - torch.arange(a.heads, dtype=torch.float64))[:, None, None]

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        s = decay * s + k[t][:, :, None] * v[t][:, None]
        return (s * q[t][:, :, None]).sum(1) / math.sqrt(a.d_key), s

    y = loop(step, torch.zeros(a.heads, a.d_key, a.d_value, dtype=torch.float64))
    gate = functional.silu(layer.x @ p["output_gate.weight"])
    return ((rms(y) * p["norm.weight"]).flatten(1) * gate) @ p["output.weight"]


def mamba_2(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    c, b, x = projected(layer, silu=True, heads=(1, 1, a.heads))
    d = functional.softplus(layer.x @ p["core.decay.steps.project.weight"] + p["core.decay.steps.step_bias"])
    decay = torch.exp(-d * p["core.decay.log_rate"].exp())

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        s = decay[t][:, None, None] * s + torch.einsum("k,h,hv->hkv", b[t, 0], d[t], x[t])
        return torch.einsum("hkv,k->hv", s, c[t, 0]) + p["core.skip.weight"] * x[t], s

    y = loop(step, torch.zeros(a.heads, a.d_key, a.d_value, dtype=torch.float64)).flatten(1)
    y = y * functional.silu(layer.x @ p["output_gate.weight"])
    return (rms(y) * p["norm.weight"]) @ p["output.weight"]


def m_lstm(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    q, k, v = projected(layer)
    i, f = (
        15 * torch.tanh((layer.x @ p[f"core.{name}.weight"] + p[f"core.{name}.bias"]) / 15)
        for name in ("input_gate", "forget_gate")
    )

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        write = i[t].exp()[:, None, None] * k[t][:, :, None]
        s = f[t].sigmoid()[:, None, None] * s + torch.cat([write * v[t][:, None], write], dim=-1)
        both = torch.einsum("hkv,hk->hv", s, q[t]) / math.sqrt(a.d_key)
        return both[:, :-1] / both[:, -1:].abs().clamp(min=1), s

    y = loop(step, torch.zeros(a.heads, a.d_key, a.d_value + 1, dtype=torch.float64))
    gate = torch.sigmoid(layer.x @ p["output_gate.weight"])
    return ((layer_norm(y, 1e-6) * p["norm.weight"]).flatten(1) * gate) @ p["output.weight"]


def attended(score: Callable[[int, int, int], Tensor], v: Tensor, eps: float = 0.0) -> Tensor:
    """Return weighted means of values for `score(i, j, head)`, [T, H, V]."""
    rows = []
    for i in range(LENGTH):
        weights = torch.stack([torch.stack([score(i, j, h) for j in range(i + 1)]) for h in range(v.shape[1])])
        rows.append(torch.einsum("hj,jhv->hv", weights / (weights.sum(1, keepdim=True) + eps), v[: i + 1]))
    return torch.stack(rows)


def based(layer: Layer) -> Tensor:
    q, k, v = projected(layer)

    def score(i: int, j: int, h: int) -> Tensor:
        s = q[i, h] @ k[j, h] / math.sqrt(layer.a.d_key)
        return 1 + s + s * s / 2

    return attended(score, v).flatten(1) @ layer.p["output.weight"]


def re_based(layer: Layer) -> Tensor:
    q, k, v = projected(layer)
    q, k = (
        layer_norm(x, 1e-5) * layer.p[f"core.{name}.weight"] + layer.p[f"core.{name}.bias"]
        for name, x in (("query_norm", q), ("key_norm", k))
    )
    y = attended(lambda i, j, h: (q[i, h] @ k[j, h]).square() / layer.a.d_key, v, 1e-6)
    return y.flatten(1) @ layer.p["output.weight"]


def power(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    q, k, v = projected(layer, silu=a.silu)
    if a.key_norm == "rms":
        q, k = rms(q, 1e-6) * p["key_norms.0.weight"], rms(k, 1e-6) * p["key_norms.1.weight"]
    if a.rope:
        places = torch.cumsum(1 + torch.tanh(layer.x @ p["speed.weight"]), 0) if a.learned_rope else None
        q, k = rotated(q, places), rotated(k, places)
    log_g = (
        functional.logsigmoid(linear(p, "gate", layer.x)) / a.gate_divisor if a.gate else torch.zeros(LENGTH, a.heads)
    )
    scale = a.scale or a.d_key**-0.5

    def score(i: int, j: int, h: int) -> Tensor:
        return (scale * q[i, h] @ k[j, h]) ** a.p * log_g[j + 1 : i + 1, h].sum().exp()

    y = attended(score, v, a.eps)
    if a.output_norm:
        y = rms(y, 1e-6) * p["norm.weight"]
    gate = functional.silu(linear(p, "output_gate", layer.x)) if a.output_gate == "silu" else 1
    return y.flatten(1) * gate @ p["output.weight"]


def softmax(layer: Layer) -> Tensor:
    q, k, v = projected(layer)
    q, k = l2(q), l2(k)
    y = attended(lambda i, j, h: (q[i, h] @ k[j, h] / math.sqrt(layer.a.d_key)).exp(), v)
    y = (rms(y, 1e-6) * layer.p["norm.weight"]).flatten(1)
    return y * torch.sigmoid(linear(layer.p, "output_gate", layer.x)) @ layer.p["output.weight"]


def fox(layer: Layer) -> Tensor:
    p, pro = layer.p, layer.a.pro
    q, k, v = projected(layer)
    forget = "core.attention.forget" if pro else "core.forget"
    log_f = functional.logsigmoid(linear(p, forget, layer.x))
    if pro:
        shares = [torch.sigmoid(layer.x @ p[f"core.{name}.weight"])[..., None] for name in ("key_shift", "value_shift")]
        before = [functional.pad(x[:-1], (0, 0, 0, 0, 1, 0)) for x in (k, v)]
        k, v = (s * b + (1 - s) * x for s, b, x in zip(shares, before, (k, v), strict=True))
        q, k = rms(q) * p["core.query_norm.weight"], rms(k) * p["core.key_norm.weight"]

    def score(i: int, j: int, h: int) -> Tensor:
        return torch.exp(q[i, h] @ k[j, h] / math.sqrt(layer.a.d_key) + log_f[j + 1 : i + 1, h].sum())

    y = attended(score, v)
    if pro:
        y = rms(y) * p["norm.weight"]
        y = y.flatten(1) * torch.sigmoid(layer.x @ p["output_gate.weight"])
    return y.flatten(1) @ p["output.weight"]


def l2(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def linear(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Apply a projection, or one in two factors, by the name of its parameters."""
    if f"{name}.weight" in p:
        return x @ p[f"{name}.weight"] + p.get(f"{name}.bias", 0)
    return linear(p, f"{name}.up", linear(p, f"{name}.down", x))


def delta_parts(layer: Layer, writes: int = 1) -> list[Tensor]:
    """Return q, k and v of the delta family, [T, G, width] (k and v [T, n, G, width] for n writes)."""
    a = layer.a
    shared = a.value_heads // a.heads
    q, k, v = projected(layer, silu=True, heads=(a.heads, writes * a.heads, writes * a.value_heads))
    k, v = k.unflatten(1, (writes, -1)), v.unflatten(1, (writes, -1))
    q, k = l2(q).repeat_interleave(shared, 1), l2(k).repeat_interleave(shared, 2)
    return [q, k, v] if writes > 1 else [q, k[:, 0], v[:, 0]]


def delta_family(layer: Layer, update: Callable[..., Tensor], q: Tensor, gate: Callable[[Tensor], Tensor]) -> Tensor:
    """Run `update(S [K, V], t, g)` for each value head g; then norm, gate and output projection."""
    a, p = layer.a, layer.p
    rows = torch.zeros(LENGTH, a.value_heads, a.d_value, dtype=torch.float64)
    for g in range(a.value_heads):
        s = torch.zeros(a.d_key, a.d_value, dtype=torch.float64)
        for t in range(LENGTH):
            s = update(s, t, g)
            rows[t, g] = s.T @ q[t, g] / math.sqrt(a.d_key)
    y = (rms(rows) * p["norm.weight"]).flatten(1)
    return (y * gate(linear(p, "output_gate", layer.x)) if gate else y) @ p["output.weight"]


def rates(layer: Layer, name: str = "core.rate") -> Tensor:
    return (2 if layer.a.negative_eigenvalues else 1) * torch.sigmoid(linear(layer.p, name, layer.x))


def head_decays(layer: Layer) -> Tensor:
    """Return the decays of heads, [T, G]."""
    p = layer.p
    steps = functional.softplus(linear(p, "core.decay.steps.project", layer.x) + p["core.decay.steps.step_bias"])
    return torch.exp(-p["core.decay.log_rate"].exp() * steps)


def channel_decays(layer: Layer, safe: bool) -> Tensor:
    """Return the decays of key channels, [T, G, K]."""
    p, a = layer.p, layer.a
    z = linear(p, "core.decay.project", layer.x).view(LENGTH, a.value_heads, a.d_key) + p["core.decay.step_bias"]
    rate = p["core.decay.log_rate"].exp()
    return torch.exp(-5 * torch.sigmoid(rate * z) if safe else -rate * functional.softplus(z))


def delta_net(layer: Layer) -> Tensor:
    (q, k, v), b = delta_parts(layer), rates(layer)
    eye = torch.eye(layer.a.d_key, dtype=torch.float64)

    def update(s: Tensor, t: int, g: int) -> Tensor:
        write = b[t, g] * k[t, g]
        return (eye - torch.outer(write, k[t, g])) @ s + torch.outer(write, v[t, g])

    return delta_family(layer, update, q, None)


def gated_delta_net(layer: Layer) -> Tensor:
    (q, k, v), b, alpha = delta_parts(layer), rates(layer), head_decays(layer)
    eye = torch.eye(layer.a.d_key, dtype=torch.float64)

    def update(s: Tensor, t: int, g: int) -> Tensor:
        write = b[t, g] * k[t, g]
        return alpha[t, g] * (eye - torch.outer(write, k[t, g])) @ s + torch.outer(write, v[t, g])

    return delta_family(layer, update, q, functional.silu if layer.a.output_gate else None)


def kda(layer: Layer) -> Tensor:
    (q, k, v), b, alpha = delta_parts(layer), rates(layer), channel_decays(layer, layer.a.safe_gate)
    eye = torch.eye(layer.a.d_key, dtype=torch.float64)

    def update(s: Tensor, t: int, g: int) -> Tensor:
        write = b[t, g] * k[t, g]
        return (eye - torch.outer(write, k[t, g])) @ (alpha[t, g][:, None] * s) + torch.outer(write, v[t, g])

    return delta_family(layer, update, q, torch.sigmoid)


def gdn_2(layer: Layer) -> Tensor:
    a, (q, k, v), alpha = layer.a, delta_parts(layer), channel_decays(layer, safe=False)
    b = rates(layer, "core.erasing").view(LENGTH, a.heads, -1).repeat_interleave(a.value_heads // a.heads, 1)
    w = torch.sigmoid(linear(layer.p, "core.writing", layer.x)).view(v.shape)
    eye = torch.eye(a.d_key, dtype=torch.float64)

    def update(s: Tensor, t: int, g: int) -> Tensor:
        decayed = alpha[t, g][:, None] * s
        return (eye - torch.outer(k[t, g], b[t, g] * k[t, g])) @ decayed + torch.outer(k[t, g], w[t, g] * v[t, g])

    return delta_family(layer, update, q, torch.sigmoid)


def comba(layer: Layer) -> Tensor:
    (q, k, v), b, alpha = delta_parts(layer), rates(layer), head_decays(layer)
    shared = layer.a.value_heads // layer.a.heads
    d, minus = (layer.p[f"core.{name}.weight"].repeat_interleave(shared, 0) for name in ("weakening", "correction"))
    p = k * torch.sigmoid(d)

    def update(s: Tensor, t: int, g: int) -> Tensor:
        return alpha[t, g] * s + b[t, g] * torch.outer(k[t, g], v[t, g] - s.T @ p[t, g])

    return delta_family(layer, update, q - minus * p, torch.sigmoid)


def gated_delta_product(layer: Layer) -> Tensor:
    n = layer.a.n
    (q, k, v), b = delta_parts(layer, n), rates(layer).view(LENGTH, n, -1)
    alpha = head_decays(layer) if layer.a.gate else torch.ones(LENGTH, layer.a.value_heads)

    def update(s: Tensor, t: int, g: int) -> Tensor:
        s = alpha[t, g] * s
        for j in range(n):
            s = s + b[t, j, g] * torch.outer(k[t, j, g], v[t, j, g] - s.T @ k[t, j, g])
        return s

    return delta_family(layer, update, q, functional.silu)


def gated_linear(layer: Layer, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor) -> Tensor:
    """Return linear attention with a decay for each key channel, [T, H, V]."""

    def step(s: Tensor, t: int) -> tuple[Tensor, Tensor]:
        s = alpha[t][:, :, None] * s + k[t][:, :, None] * v[t][:, None]
        return torch.einsum("hkv,hk->hv", s, q[t]) / math.sqrt(layer.a.d_key), s

    return loop(step, torch.zeros(layer.a.heads, layer.a.d_key, layer.a.d_value, dtype=torch.float64))


def gla(layer: Layer) -> Tensor:
    q, k, v = projected(layer, silu=layer.a.conv > 0)
    alpha = torch.sigmoid(linear(layer.p, "core.decay", layer.x)).view(k.shape) ** (1 / 16)
    y = (rms(gated_linear(layer, q, k, v, alpha)) * layer.p["norm.weight"]).flatten(1)
    return y * functional.silu(linear(layer.p, "output_gate", layer.x)) @ layer.p["output.weight"]


def hgrn2(layer: Layer) -> Tensor:
    q, f, v = projected(layer)
    bound = torch.sigmoid(layer.p["core.bound.weight"]) if "core.bound.weight" in layer.p else 0
    alpha = bound + (1 - bound) * torch.sigmoid(f)
    y = gated_linear(layer, functional.silu(q), 1 - alpha, v, alpha).flatten(1)
    return (rms(y) * layer.p["norm.weight"]) @ layer.p["output.weight"]


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("based:heads=2,d_key=3", based),
        ("comba:heads=1,value_heads=2,d_key=3,d_value=4", comba),
        ("delta-net:heads=2", delta_net),
        ("delta-net:heads=2,conv=0,negative_eigenvalues=true", delta_net),
        ("fox:heads=2", fox),
        ("fox:pro=false,conv=2", fox),
        ("gated-delta-net:heads=2,value_heads=4,d_key=3,d_value=2", gated_delta_net),
        ("gated-delta-net:heads=2,conv=0,output_gate=false,negative_eigenvalues=true", gated_delta_net),
        ("gated-delta-product:heads=2,d_key=3,d_value=4", gated_delta_product),
        ("gated-delta-product:heads=1,value_heads=2,n=3,gate=false,d_key=3", gated_delta_product),
        ("gdn-2:heads=1,value_heads=2,d_key=3", gdn_2),
        ("gla:heads=2", gla),
        ("gla:heads=2,conv=2", gla),
        ("hgrn2:heads=2", hgrn2),
        ("kda:heads=2,value_heads=4,d_key=3,d_value=4", kda),
        ("kda:heads=2,safe_gate=false,negative_eigenvalues=true", kda),
        ("m-lstm:heads=2,d_value=5", m_lstm),
        ("mamba-2:heads=2,d_key=3", mamba_2),
        ("power:p=2,heads=2,key_norm=rms,scale=0.5,eps=0.1", power),
        ("power-retention:heads=2,d_key=4", power),
        ("power-retention:heads=2,d_key=4,learned_rope=true", power),
        ("re-based:heads=2,d_key=3", re_based),
        ("ret-net:heads=2", ret_net),
        ("softmax:key_norm=l2,output_norm=true,output_gate=sigmoid", softmax),
    ],
)  # fmt: skip
def test_a_mixer_is_its_published_recurrence(text: str, published: Callable[[Layer], Tensor]) -> None:
    compare_with_published(text, published)


def compare_with_published(text: str, published: Callable[[Layer], Tensor], length: int = LENGTH) -> None:
    """Compare a mixer, both members, with a function of the parameters of one member and one sequence."""
    made, full, x = varied(mixer(text, index=1)), architecture(text).resolved(12), inputs(length=length)
    got = made(x)
    for m in range(2):
        own = {name: parameter[m].detach() for name, parameter in made.named_parameters()}
        expected = published(Layer(own, full, x[m, 1]))
        torch.testing.assert_close(got[m, 1], expected, rtol=1e-9, atol=1e-9)
