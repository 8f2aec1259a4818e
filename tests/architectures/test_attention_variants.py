"""Latent, differential and sparse attention, and attention with sinks, equal their definitions, token by token."""

import math

import pytest
import torch
from torch import Tensor

from icl_bench.errors import SpecError
from tests.architectures.test_contract import D_MODEL, architecture, inputs, mixer, varied
from tests.architectures.test_recurrences import (
    Layer,
    attended,
    compare_with_published,
    linear,
    projected,
    rms,
    rotated,
)


def latent(layer: Layer) -> Tensor:
    p, a, tokens = layer.p, layer.a, len(layer.x)
    q = (layer.x @ p["query.weight"]).view(tokens, a.heads, a.d_key + a.d_rope)
    c, s = (layer.x @ p["compress.weight"]).split([a.d_latent, a.d_rope], dim=-1)
    made = ((rms(c, 1e-6) * p["norm.weight"]) @ p["expand.weight"]).view(tokens, a.heads, -1)
    k, v, r, s = made[..., : a.d_key], made[..., a.d_key :], rotated(q[..., a.d_key :]), rotated(s[:, None])[:, 0]

    def score(i: int, j: int, h: int) -> Tensor:
        return ((q[i, h, : a.d_key] @ k[j, h] + r[i, h] @ s[j]) / math.sqrt(a.d_key + a.d_rope)).exp()

    return attended(score, v).flatten(1) @ p["output.weight"]


def differential(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    q, k, v = projected(layer, heads=(2 * a.heads,) * 2 + (a.heads,))
    first = 0.8 - 0.6 * math.exp(-0.3)  # the layer under test is the second
    a_b, c_d = ((p[f"core.weight.{x}"] @ p[f"core.weight.{y}"]).exp() for x, y in ("ab", "cd"))
    both = [
        attended(lambda i, j, h, part=part: (q[i, 2 * h + part] @ k[j, 2 * h + part] / math.sqrt(a.d_key)).exp(), v)
        for part in (0, 1)
    ]
    y = rms(both[0] - (a_b - c_d + first) * both[1]) * p["core.norm.weight"] * (1 - first)
    return y.flatten(1) @ p["output.weight"]


def sparse(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    q, k, v = projected(layer)
    gates, rows = torch.sigmoid(linear(p, "core.branches", layer.x)).view(len(q), a.heads, 3), []
    for t in range(len(q)):
        for h in range(a.heads):
            ended, own = (t + 1) // a.block, t // a.block
            blocks = [slice(c * a.block, (c + 1) * a.block) for c in range(ended)]
            weights = softmax_of([q[t, h] @ k[block, h].mean(0) / math.sqrt(a.d_key) for block in blocks])
            compressed = sum((w * v[block, h].mean(0) for w, block in zip(weights, blocks, strict=True)), v[0, h] * 0)
            always = {0, own, max(0, own - 1)}
            others = sorted(set(range(ended)) - always, key=lambda c: -float(weights[c]))
            kept = always | set(others[: a.selected - len(always)])
            tokens = [j for j in range(t + 1) if j // a.block in kept]
            window = list(range(max(0, t + 1 - a.w), t + 1))
            read = [
                torch.stack(softmax_of([q[t, h] @ k[j, h] / math.sqrt(a.d_key) for j in seen])) @ v[seen, h]
                for seen in (tokens, window)
            ]
            rows.append(sum(g * part for g, part in zip(gates[t, h], [compressed, *read], strict=True)))
    return torch.stack(rows).view(len(q), -1) @ p["output.weight"]


def softmax_of(scores: list[Tensor]) -> list[Tensor]:
    return list(torch.stack(scores).softmax(0)) if scores else []


def with_sinks(layer: Layer) -> Tensor:
    a = layer.a
    q, k, v = projected(layer, heads=(a.heads, a.kv_heads, a.kv_heads))
    sinks, shared, rows = layer.p["core.sinks.weight"][:, 0], layer.a.heads // layer.a.kv_heads, []
    for i in range(len(q)):
        for h in range(layer.a.heads):
            scores = (k[: i + 1, h // shared] @ q[i, h] / math.sqrt(layer.a.d_key)).exp()
            rows.append(scores @ v[: i + 1, h // shared] / (scores.sum() + sinks[h].exp()))
    return torch.stack(rows).view(len(q), -1) @ layer.p["output.weight"]


def test_latent_attention_is_its_definition() -> None:
    compare_with_published("mla:heads=2,d_latent=5,d_rope=4,d_value=3", latent)


def test_differential_attention_is_its_definition() -> None:
    compare_with_published("differential:heads=2,d_key=3", differential)


@pytest.mark.parametrize("length", [1, 2, 19])
def test_sparse_attention_is_its_definition(length: int) -> None:
    compare_with_published("nsa:heads=2,w=3,block=2,selected=4", sparse, length)


def test_a_sparse_query_reads_no_block_that_it_does_not_select() -> None:
    """Of 12 tokens in blocks of 2, the last query selects the first and the last two blocks, and one other at most."""
    made, x = varied(mixer("nsa:heads=1,w=1,block=2,selected=3")), inputs(length=12)
    q, k, v = made.operands(made.project(x))
    base = made.core(q, k, v, x)[:, :, -1]
    v = v.clone()
    v[:, :, 4:6] += torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]  # the mean of their block stays
    assert torch.allclose(made.core(q, k, v, x)[:, :, -1], base, rtol=0, atol=1e-12)


def test_latent_attention_keeps_less_than_keys_and_values() -> None:
    """The cache does not depend on the number of heads."""
    few, many = (architecture(f"mla:heads={n},d_key=6,d_value=6").state_size(D_MODEL, 100) for n in (1, 8))
    assert few == many and few.cache == 100 * (6 + 2)


@pytest.mark.parametrize("text", ["softmax:sinks=true,heads=2,conv=2", "softmax:sinks=true,heads=4,kv_heads=2,d_key=3"])
def test_attention_with_sinks_is_its_definition(text: str) -> None:
    compare_with_published(text, with_sinks)


@pytest.mark.parametrize("other", ["gate", "alibi"])
def test_sinks_do_not_decay(other: str) -> None:
    assert "sinks" not in architecture("softmax").model_dump()
    with pytest.raises(SpecError, match="or sinks=false"):
        architecture(f"softmax:sinks=true,{other}=true").resolved(D_MODEL)


def test_an_odd_rotated_part_is_refused() -> None:
    with pytest.raises(SpecError, match="change d_rope"):
        architecture("mla:d_rope=3").resolved(D_MODEL)
