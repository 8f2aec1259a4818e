"""Log-linear attention equals its definition and that of flash-linear-attention; its state grows as log T."""

import importlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import SpecError
from tests.architectures.test_contract import architecture, inputs, mixer, varied
from tests.architectures.test_fla_recurrences import assert_close_with_gradients
from tests.architectures.test_recurrences import Layer, compare_with_published, linear, projected, rms

LENGTH = 11
SPEC = "log-linear:heads=2,d_key=3,levels=5"


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


def test_the_state_grows_by_a_level_for_each_doubling() -> None:
    sizes = [architecture(SPEC).state_size(12, length).sums for length in (1, 2, 3, 4, 5, 8, 9, 16)]
    assert [size // (2 * 3 * 12) for size in sizes] == [1, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("parallel", [True, False])
def test_more_tokens_than_levels_have_weights_for_are_refused(parallel: bool) -> None:
    made, x = mixer("log-linear:heads=2,levels=4"), inputs(length=9)
    with pytest.raises(SpecError, match=r"weights for 2\^\(levels - 1\) tokens; got token 9 with levels = 4; raise"):
        made(x) if parallel else made.step(x[:, :, 0], made.initial_state(2), 8)
