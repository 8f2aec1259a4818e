"""MesaNet solves its linear systems: outputs and gradients equal those of direct solution, by the card and by fla."""

import importlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.architectures.test_contract import architecture, inputs, mixer, varied
from tests.architectures.test_fla_recurrences import assert_close_with_gradients
from tests.architectures.test_recurrences import Layer, convolve, rms

LENGTH = 7
SPECS = ["mesa-net:heads=2,d_value=5", "mesa-net:conv=0,d_key=4"]


def published(layer: Layer) -> Tensor:
    p, a = layer.p, layer.a
    mixed = layer.x @ p["project.weight"]
    qk, v = mixed.split([2 * a.heads * a.d_key, a.heads * a.d_value], dim=-1)
    qk = functional.silu(convolve(qk, p["conv.weight"]) if a.conv else qk)
    q, k = (x.unflatten(-1, (a.heads, a.d_key)) for x in qk.chunk(2, dim=-1))
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    v = v.unflatten(-1, (a.heads, a.d_value))
    g = torch.sigmoid(layer.x @ p["core.forget.weight"] + p["core.forget.bias"])
    b = torch.sigmoid(layer.x @ p["core.write.weight"] + p["core.write.bias"])
    ridge = torch.diag_embed(functional.softplus(p["core.raw_ridge.weight"]) + 0.25)
    rows = []
    keys, values = torch.zeros_like(ridge), torch.zeros(a.heads, a.d_key, a.d_value, dtype=torch.float64)
    for t in range(LENGTH):
        written = b[t][:, None] * k[t]
        keys = g[t][:, None, None] * keys + torch.einsum("hi,hj->hij", written, k[t])
        values = g[t][:, None, None] * values + torch.einsum("hi,hv->hiv", written, v[t])
        rows.append(torch.einsum("hkv,hk->hv", values, torch.linalg.solve(keys + ridge, q[t])))
    return (rms(torch.stack(rows)) * p["norm.weight"]).flatten(1) @ p["output.weight"]


@pytest.mark.parametrize("text", SPECS)
def test_outputs_and_gradients_are_those_of_direct_solution(text: str) -> None:
    made, full = varied(mixer(text)).requires_grad_(), architecture(text).resolved(12)
    x = inputs(length=LENGTH).requires_grad_()
    weights = torch.randn(LENGTH, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = made(x)[0, 1]
    expected = published(Layer({name: parameter[0] for name, parameter in made.named_parameters()}, full, x[0, 1]))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    sources = [x, *made.parameters()]
    for own, other in zip(*(torch.autograd.grad((y * weights).sum(), sources) for y in (got, expected)), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore")
def test_the_core_computes_the_recurrence_of_flash_linear_attention() -> None:
    pytest.importorskip("fla")
    naive = importlib.import_module("fla.ops.mesa_net.naive")
    made, x = varied(mixer("mesa-net:heads=2", members=1)), inputs(members=1, length=24).requires_grad_()
    q, k, v = made.operands(made.project(x))
    core = made.core
    rate, log_g = core.write(x)[0].sigmoid(), core.forget(x)[0]
    y, *_ = naive.naive_mesa_net_exact(q[0], k[0], v[0], log_g, core.ridge()[0], rate)
    assert_close_with_gradients(core(q, k, v, x)[0], y, x)
