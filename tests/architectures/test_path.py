"""PaTH attention equals its definition by products of reflection matrices, and that of flash-linear-attention."""

import importlib
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from icl_bench.architectures.initialisation import initialise
from icl_bench.architectures.path import Path, PathCore
from tests.architectures.test_contract import inputs, mixer, varied
from tests.architectures.test_fla_recurrences import assert_close_with_gradients
from tests.architectures.test_recurrences import (
    LENGTH,
    Layer,
    attended,
    compare_with_published,
    convolve,
    linear,
    projected,
)

SPEC = "path:heads=2,d_key=3"
TOKENS = 256


def published(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    q, k, v = projected(layer)
    w = functional.silu(convolve(linear(p, "core.project", layer.x), p["core.conv.weight"])).view(LENGTH, a.heads, -1)
    w = w / (w.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    b = 2 * torch.sigmoid(linear(p, "core.strength", layer.x))
    eye = torch.eye(a.d_key, dtype=torch.float64)

    def score(i: int, j: int, h: int) -> Tensor:
        key = k[j, h]
        for s in range(j + 1, i + 1):
            key = (eye - b[s, h] * torch.outer(w[s, h], w[s, h])) @ key
        return torch.exp(q[i, h] @ key / math.sqrt(a.d_key))

    return attended(score, v).flatten(1) @ p["output.weight"]


def test_the_mixer_is_its_definition() -> None:
    compare_with_published(SPEC, published)


ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton takes tensors of a CPU in its interpreter alone")


@pytest.mark.parametrize("impl", ["torch", pytest.param("triton", marks=ON_CPU)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_steps_are_the_parallel_form_in_half_precision(impl, dtype) -> None:
    """At full strength along one direction, where a rounding of its length would grow with every token."""
    core, (q, k, v) = PathCore(1, 8, Path(heads=2, d_key=4, d_value=5), impl), heads(dtype)
    initialise(core, [0])
    core.project = nn.Identity()  # products of all tokens and of one may differ in their roundings
    nn.init.zeros_(core.strength.weight)
    nn.init.constant_(core.strength.bias, 100.0)
    x = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(1)).to(dtype).expand(1, 1, TOKENS, 8)
    state, rows = core.initial_state(1, x), []
    for t in range(TOKENS):
        y, state = core.step(q[:, :, t], k[:, :, t], v[:, :, t], x[:, :, t], state)
        rows.append(y)
    lengths = state.seen.keys.norm(dim=-1) / k.float().norm(dim=-1)
    assert lengths.max() <= 1 + TOKENS * 2 * torch.finfo(torch.float32).eps  # two roundings a token
    stepped, y = torch.stack(rows, dim=2).double(), core(q, k, v, x).double()
    # Each is rounded once; the kernel's scores, of about 1, pass products in tf32 (`assert_within_tf32`).
    products = 5 + TOKENS / 32 if impl == "triton" else 0
    bound = torch.finfo(dtype).eps + 2 * products * 2.0**-10
    assert (y - stepped).norm() <= bound * stepped.norm()


def heads(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 1, TOKENS, 2, width, generator=generator).to(dtype) for width in (4, 4, 5))


@pytest.mark.filterwarnings("ignore")
def test_the_core_is_that_of_flash_linear_attention() -> None:
    pytest.importorskip("fla")
    naive = importlib.import_module("fla.ops.path_attn.naive")
    made, x = varied(mixer("path:heads=2", members=1)), inputs(members=1, length=24).requires_grad_()
    q, k, v = made.operands(made.project(x))
    w, b = made.core.reflections(x), made.core.strengths(x)
    w = w / (w.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    y = naive.naive_path_attn(*(part[0] for part in (q, k, v, w, b, torch.zeros_like(b))), k.shape[-1] ** -0.5, 8)
    assert_close_with_gradients(made.core(q, k, v, x)[0], y, x)
