"""Lower degrees read from the state of one power: by all scores, by steps, in parts, and their gradients."""

import re

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.power.api import initial_power_state
from icl_bench.kernels.power.expansion import expand
from icl_bench.kernels.power.records import PowerInputs
from icl_bench.kernels.power.spectrum import contract_state, spectrum_attention, spectrum_step
from tests.kernels.numerics import assert_equal_in_float64
from tests.kernels.power.test_api import make_inputs

F64 = torch.float64
SCALE = 0.7
HEADS = [(2, 2, 2), (4, 2, 2), (1, 4, 1)]


def by_scores(inputs, lower, p):
    """Return y from the polynomial of all scores and norms."""
    q, k, v, log_g, _ = inputs.with_own_heads()
    k, v, log_g = (x.repeat_interleave(inputs.heads // x.shape[2], dim=2) for x in (k, v, log_g))
    c = log_g.cumsum(1)
    t = q.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool).tril()
    decay = (c[:, :, None] - c[:, None]).masked_fill(~causal[None, :, :, None], -torch.inf).exp()
    score = SCALE * torch.einsum("nihk,njhk->nijh", q, k)
    norms = SCALE * q.norm(dim=3)[:, :, None] * k.norm(dim=3)[:, None]
    weights = score**p
    for m in range(1, p // 2 + 1):
        weights = weights + lower[..., m - 1] * score ** (p - 2 * m) * norms ** (2 * m)
    return torch.einsum("nijh,njhv->nihv", weights * decay, v)


def problem(p, heads):
    h, g, j = heads
    inputs = make_inputs(p, 11, gated=True, heads=h, groups=g, key_heads=j)
    lower = torch.randn(max(h, g), p // 2, dtype=F64, generator=torch.Generator().manual_seed(7))
    return PowerInputs(*inputs, None), lower


def steps(inputs, lower, p, state):
    outputs = []
    for t in range(inputs.q.shape[1]):
        token = PowerInputs(*(x[:, t] for x in inputs[:4]), state)
        y, state = spectrum_step(token, lower, p=p, scale=SCALE)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize("p", [2, 3, 4, 5])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("impl, chunk", [("quadratic", None), ("chunked", 4)])
def test_forms_and_steps_are_the_polynomial_of_scores(impl, chunk, heads, p):
    inputs, lower = problem(p, heads)
    leaves = [x.requires_grad_() for x in (*inputs[:4], lower)]
    wanted = by_scores(inputs, lower, p)
    y, state = spectrum_attention(inputs, lower, p=p, scale=SCALE, impl=impl, chunk=chunk)
    assert_equal_in_float64("y", y, wanted)
    along = torch.randn(y.shape, dtype=F64, generator=torch.Generator().manual_seed(4))
    found, exact = (torch.autograd.grad(x, leaves, along) for x in (y, wanted))
    for name, one, other in zip(("q", "k", "v", "log_g", "lower"), found, exact, strict=True):
        assert_equal_in_float64(f"gradient of {name}", one, other)
    start = initial_power_state(2, heads[1], 3, 2, p=p, normalize="none", device="cpu", dtype=F64)
    with torch.no_grad():
        stepped, last = steps(inputs, lower, p, start)
    assert_equal_in_float64("steps", stepped, wanted)
    assert_equal_in_float64("state", last.s, state.s)


@pytest.mark.parametrize("p", [2, 3, 4])
def test_the_state_carries_every_degree(p):
    inputs, lower = problem(p, (4, 2, 2))
    whole, _ = spectrum_attention(inputs, lower, p=p, scale=SCALE, impl="chunked", chunk=4)
    parts = (PowerInputs(*(x[:, part] for x in inputs[:4]), None) for part in (slice(5), slice(5, None)))
    first, state = spectrum_attention(next(parts), lower, p=p, scale=SCALE, impl="chunked", chunk=4)
    rest, _ = spectrum_attention(next(parts)._replace(state=state), lower, p=p, scale=SCALE, impl="chunked", chunk=4)
    assert_equal_in_float64("y", torch.cat([first, rest], dim=1), whole)


@pytest.mark.parametrize("p", [2, 3, 4, 6])
def test_a_contraction_is_the_lower_expansion_times_the_square_of_the_norm(p):
    k = torch.randn(5, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    lower = expand(k, p - 2) if p > 2 else torch.ones(5, 1, dtype=F64)
    found = contract_state(expand(k, p)[..., None], 4, p)[..., 0]
    assert_equal_in_float64("contraction", found, k.square().sum(-1, keepdim=True) * lower)


def test_weights_of_tokens_and_half_types():
    inputs, lower = problem(2, (2, 2, 2))
    low = PowerInputs(*(x.bfloat16() for x in inputs[:3]), inputs.log_g.float(), None)
    by_token = lower.float().expand(2, 11, 2, 1)
    y, state = spectrum_attention(low, by_token, p=2, scale=SCALE)
    assert (y.dtype, state.s.dtype, state.z) == (torch.bfloat16, torch.float32, None)
    exact = PowerInputs(*(x.double() for x in low[:4]), None)
    wanted = by_scores(exact, lower, 2)
    # the bound of `kernels check` in bfloat16: values times norms are rounded once more, at a quarter of eps
    assert (y.double() - wanted).norm() / wanted.norm() < 5e-3


def test_weights_that_do_not_fit_are_refused():
    inputs, lower = problem(4, (2, 2, 2))
    message = (
        "p must be at least 2, with p // 2 lower degrees; got p = 4 and weights [2, 1]: "
        "give one weight for each of the degrees p - 2, p - 4, .."
    )
    with pytest.raises(ArgumentError, match=f"^{re.escape(message)}$"):
        spectrum_attention(inputs, lower[:, :1], p=4)
    with pytest.raises(ArgumentError, match="a step needs the state before the token"):
        spectrum_step(PowerInputs(*(x[:, 0] for x in inputs[:4]), None), lower, p=4)
