"""Log-linear attention, on either base, equals its definition; its state grows as log T."""

import importlib
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import SpecError
from tests.architectures.test_contract import architecture, inputs, mixer, recurrent, varied
from tests.architectures.test_fla_recurrences import assert_close_with_gradients
from tests.architectures.test_recurrences import (
    Layer,
    compare_with_published,
    delta_parts,
    head_decays,
    linear,
    projected,
    rates,
    rms,
)

LENGTH = 37
SPEC = "log-linear:heads=2,d_key=3,levels=7"


def level(t: int, j: int) -> int:
    """Return the level of token j at token t: the first common ancestor of both in the binary tree of tokens."""
    found = 0
    while t != j:
        t, j, found = t // 2, j // 2, found + 1
    return found


def published(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    c, b, x = projected(layer, silu=True, heads=(1, 1, a.heads))
    d = functional.softplus(linear(p, "core.decay.steps.project", layer.x) + p["core.decay.steps.step_bias"])
    log_decay = -d * p["core.decay.log_rate"].exp()
    raw = linear(p, "core.project", layer.x).view(LENGTH, a.heads, a.levels)
    w = functional.softplus(p["core.scale.weight"] * raw)
    y = p["core.skip.weight"] * x
    for t in range(LENGTH):
        for j in range(t + 1):
            score = (c[t, 0] @ b[j, 0]) * torch.exp(log_decay[j + 1 : t + 1].sum(0)) * w[t, :, level(t, j)]
            y[t] += (score * d[j])[:, None] * x[j]
    y = y.flatten(1) * functional.silu(linear(p, "output_gate", layer.x))
    return (rms(y) * p["norm.weight"]) @ p["output.weight"]


def test_the_mixer_is_its_definition() -> None:
    compare_with_published(SPEC, published, LENGTH)


def published_delta(layer: Layer) -> Tensor:
    """Write with each token, then send what it wrote through the transitions of all later tokens."""
    a = layer.a
    (q, k, v), b, alpha = delta_parts(layer), rates(layer), head_decays(layer)
    raw = linear(layer.p, "core.project", layer.x).view(LENGTH, a.value_heads, a.levels)
    w = functional.softplus(layer.p["core.scale.weight"] * raw)
    y, eye = torch.zeros_like(v), torch.eye(a.d_key, dtype=torch.float64)
    for g in range(a.value_heads):
        for j in range(LENGTH):
            written = b[j, g] * torch.outer(k[j, g], v[j, g])
            for t in range(j, LENGTH):
                if t > j:
                    written = alpha[t, g] * (eye - b[t, g] * torch.outer(k[t, g], k[t, g])) @ written
                y[t, g] += w[t, g, level(t, j)] * (written.T @ q[t, g]) / math.sqrt(a.d_key)
    y = (rms(y) * layer.p["norm.weight"]).flatten(1) * functional.silu(linear(layer.p, "output_gate", layer.x))
    return y @ layer.p["output.weight"]


@pytest.mark.parametrize(
    "text",
    [
        "log-linear-delta:heads=2,d_key=3,levels=7",
        "log-linear-delta:heads=1,value_heads=2,d_key=3,levels=7,negative_eigenvalues=true",
    ],
)
def test_the_mixer_on_the_delta_rule_is_its_definition(text: str) -> None:
    compare_with_published(text, published_delta, LENGTH)


def test_equal_weights_of_levels_give_the_gated_delta_rule() -> None:
    made, plain, x = mixer("log-linear-delta:heads=2,levels=7"), mixer("gated-delta-net:heads=2"), inputs(length=LENGTH)
    with torch.no_grad():
        made.core.project.weight.zero_()
        made.core.project.weight.requires_grad_(False)
    own = dict(plain.named_parameters())
    for name, parameter in made.named_parameters():
        if name in own:
            own[name].data.copy_(parameter.data)
    q, k, v = made.operands(made.project(x))
    torch.testing.assert_close(made.core(q, k, v, x), math.log(2) * plain.core(q, k, v, x), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_the_core_is_that_of_flash_linear_attention() -> None:
    pytest.importorskip("fla")
    naive = importlib.import_module("fla.ops.log_linear_attn.naive")
    made, x = varied(mixer(SPEC, members=1)), inputs(members=1, length=16).requires_grad_()
    q, k, v = made.operands(made.project(x))
    core = made.core
    steps = core.decay.steps(x)
    weights = core.weights(x)[0]
    y = naive.naive_log_linear_attn(q[0], k[0], (steps[..., None] * v)[0], core.decay.log_decays(steps)[0], weights)
    assert_close_with_gradients((core(q, k, v, x) - core.skip(v) * v)[0], y, x)


@pytest.mark.parametrize("text", [SPEC, "log-linear-delta:heads=2,d_key=3,levels=7"])
def test_levels_above_a_block_are_those_of_the_recurrence_and_causal(text: str) -> None:
    made, x = varied(mixer(text)), inputs(length=LENGTH)
    whole, (stepped, _) = made(x), recurrent(made, x)
    torch.testing.assert_close(whole, stepped, rtol=1e-9, atol=1e-9)
    for changed in (5, 16, 33):
        other = x.clone()
        other[:, :, changed] += 1.0
        assert torch.equal(made(other)[:, :, :changed], whole[:, :, :changed])


def test_the_state_grows_by_a_level_for_each_doubling() -> None:
    sizes = [architecture(SPEC).state_size(12, length).sums for length in (1, 2, 3, 4, 5, 8, 9, 16)]
    assert [size // (2 * 3 * 12) for size in sizes] == [1, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("name", ["log-linear", "log-linear-delta"])
@pytest.mark.parametrize("parallel", [True, False])
def test_more_tokens_than_levels_have_weights_for_are_refused(name: str, parallel: bool) -> None:
    made, x = mixer(f"{name}:heads=2,levels=4"), inputs(length=9)
    with pytest.raises(SpecError, match=r"weights for 2\^\(levels - 1\) tokens; got token 9 with levels = 4; raise"):
        made(x) if parallel else made.step(x[:, :, 0], made.initial_state(2), 8)
