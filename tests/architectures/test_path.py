"""PaTH attention equals its definition by products of reflection matrices, and that of flash-linear-attention."""

import importlib
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

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


@pytest.mark.filterwarnings("ignore")
def test_the_core_is_that_of_flash_linear_attention() -> None:
    pytest.importorskip("fla")
    naive = importlib.import_module("fla.ops.path_attn.naive")
    made, x = varied(mixer("path:heads=2", members=1)), inputs(members=1, length=24).requires_grad_()
    q, k, v = made.operands(made.project(x))
    w, b = made.core.reflections(x), made.core.strengths(x)
    y = naive.naive_path_attn(*(part[0] for part in (q, k, v, w, b, torch.zeros_like(b))), k.shape[-1] ** -0.5, 8)
    assert_close_with_gradients(made.core(q, k, v, x)[0], y, x)
