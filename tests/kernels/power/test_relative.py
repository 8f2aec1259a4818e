"""The sum of scores that is raised by a share of its largest value: forms, steps, and its indifference to scales."""

import re

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.power.api import initial_power_state
from icl_bench.kernels.power.records import PowerInputs
from icl_bench.kernels.power.relative import relative_attention, relative_step
from tests.kernels.numerics import assert_equal_in_float64
from tests.kernels.power.test_api import make_inputs

F64 = torch.float64
SCALE, EPS = 0.7, 0.1
HEADS = [(2, 2, 2), (4, 2, 2), (1, 4, 1)]


def by_scores(inputs: PowerInputs, p: int) -> torch.Tensor:
    """Return y by the definition, from all scores."""
    q, k, v, log_g, _ = inputs.with_own_heads()
    assert log_g is not None
    k, v, log_g = (x.repeat_interleave(inputs.heads // x.shape[2], dim=2) for x in (k, v, log_g))
    c = log_g.cumsum(1)
    causal = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()
    decay = (c[:, :, None] - c[:, None]).masked_fill(~causal[None, :, :, None], -torch.inf).exp()
    weights = decay * (SCALE * torch.einsum("nihk,njhk->nijh", q, k)) ** p
    largest = decay * (SCALE * q.norm(dim=3)[:, :, None] * k.norm(dim=3)[:, None]) ** p
    return torch.einsum("nijh,njhv->nihv", weights, v) / (weights + EPS * largest).sum(2)[..., None]


def problem(p: int, heads: tuple[int, int, int]) -> PowerInputs:
    h, g, j = heads
    return PowerInputs(*make_inputs(p, 11, gated=True, heads=h, groups=g, key_heads=j), None)


@pytest.mark.parametrize("p", [2, 4])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("impl", ["quadratic", "chunked"])
def test_forms_and_steps_are_the_definition(impl, heads, p):
    inputs = problem(p, heads)
    leaves = [x.requires_grad_() for x in inputs[:4]]
    wanted = by_scores(inputs, p)
    y = relative_attention(inputs, p=p, eps=EPS, scale=SCALE, impl=impl)
    assert_equal_in_float64("y", y, wanted)
    along = torch.randn(y.shape, dtype=F64, generator=torch.Generator().manual_seed(4))
    found, exact = (torch.autograd.grad(x, leaves, along) for x in (y, wanted))
    for name, one, other in zip(("q", "k", "v", "log_g"), found, exact, strict=True):
        assert_equal_in_float64(f"gradient of {name}", one, other)
    state = initial_power_state(2, heads[1], 3, 2, p=p, normalize="sum", device="cpu", dtype=F64)
    with torch.no_grad():
        for t in range(11):
            token = PowerInputs(*(x[:, t] for x in inputs[:4]), state)
            one, state = relative_step(token, p=p, eps=EPS, scale=SCALE)
            assert_equal_in_float64(f"step {t}", one, wanted[:, t])
    assert state.z is not None


@pytest.mark.parametrize("p", [2, 4])
def test_neither_queries_nor_keys_count_by_their_scale(p):
    """Powers of two leave every digit; 2^-40 at p = 4 gives scores of 2^-320."""
    inputs = problem(p, (2, 2, 2))
    small = inputs._replace(q=inputs.q * 2.0**-40, k=inputs.k * 2.0**-40)
    y, scaled = (relative_attention(x, p=p, eps=EPS, scale=SCALE) for x in (inputs, small))
    torch.testing.assert_close(scaled, y, rtol=1e-12, atol=0)


def test_keys_of_zeros_give_zeros_and_odd_powers_are_refused():
    inputs = problem(2, (2, 2, 2))
    y = relative_attention(inputs._replace(k=torch.zeros_like(inputs.k)), p=2, eps=EPS)
    assert torch.equal(y, torch.zeros_like(y))
    message = "a sum of scores that eps is relative to needs an even p; got p = 3: use 2, 4 or 6"
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}$"):
        relative_attention(inputs, p=3, eps=EPS)
    with pytest.raises(ArgumentError, match="a step needs the state with z before the token"):
        relative_step(PowerInputs(*(x[:, 0] for x in inputs[:4]), None), p=2, eps=EPS)
