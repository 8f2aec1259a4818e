"""Gated slot attention equals its published recurrence, and that of flash-linear-attention."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.delta.records import DeltaInputs
from tests.architectures.test_contract import inputs, mixer, varied
from tests.architectures.test_fla_recurrences import Witness, assert_close_with_gradients, witnessed
from tests.architectures.test_recurrences import LENGTH, Layer, compare_with_published, projected, rms

SPECS = ["gsa:heads=2,slots=5", "gsa:heads=2,slots=3,conv=2,d_key=4"]


def published(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    q, k, v = projected(layer, silu=True)
    keep = torch.sigmoid(layer.x @ p["core.forget.weight"]).view(LENGTH, a.heads, a.slots) ** (1 / 8)
    rows = torch.zeros_like(v)
    for h in range(a.heads):
        keys, values = torch.zeros(a.slots, a.d_key, dtype=v.dtype), torch.zeros(a.slots, a.d_value, dtype=v.dtype)
        for t in range(LENGTH):
            f = keep[t, h][:, None]
            keys, values = f * keys + (1 - f) * k[t, h], f * values + (1 - f) * v[t, h]
            rows[t, h] = torch.softmax(keys @ q[t, h] / math.sqrt(a.d_key), 0) @ values
    return (rms(functional.silu(rows)) * p["norm.weight"]).flatten(1) @ p["output.weight"]


@pytest.mark.parametrize("text", SPECS)
def test_the_mixer_is_its_published_recurrence(text: str) -> None:
    compare_with_published(text, published)


@pytest.mark.filterwarnings("ignore")
def test_the_core_computes_the_recurrence_of_flash_linear_attention() -> None:
    made, x = varied(mixer(SPECS[0])), inputs(length=40).requires_grad_()
    q, k, v = made.operands(made.project(x))
    log_decay, share, *_ = made.core.shares(x)
    witness = Witness("gsa.naive", "naive_recurrent_gsa", lambda i: (i.q, i.k, i.v, i.read, i.log_value_decay))
    operands = (q, k, v, None, None, share, None, log_decay)
    y = witnessed(witness, DeltaInputs(*(None if part is None else part.flatten(0, 1) for part in operands)))
    assert_close_with_gradients(made.core(q, k, v, x).flatten(0, 1), functional.silu(y), x)
