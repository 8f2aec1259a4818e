"""States of power attention in one walk over a sequence, on a GPU: against float64, and the same bits twice."""

import pytest
import torch

from icl_bench.kernels.power.records import PowerInputs, PowerOptions
from icl_bench.kernels.power.triton import launch
from icl_bench.kernels.power.triton.ops import power_attention_triton
from icl_bench.kernels.power.triton.problem import TokenWeights, make_problem
from icl_bench.kernels.power.triton.walk import walk_states
from tests.kernels.numerics import assert_replays, poison
from tests.kernels.power.power_oracle import Case

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU")]
ROUNDING = 4e-3
"""Root mean square of the rounding of expanded rows, of weighted factors and of states to bfloat16, twice over."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


def joint_memory(n, t, heads, width):
    """Return three tensors that lie side by side in each token, as a projection leaves them."""
    made = torch.randn(n, t, 3, heads, width, generator=torch.Generator().manual_seed(0)).to("cuda", torch.bfloat16)
    return made.unbind(2)


def exact_states(problem, k, x, weights, gates, reverse):
    """Return the states before the chunks (in reverse, after them) in float64: [N*H, C, K, K, V] and [N*H, C, K, K]."""
    n, t, heads, width = k.shape
    rows, values = (y.double().transpose(1, 2).reshape(n * heads, t, width) for y in (k, x))
    value_weights, sum_weights = (torch.ones(n * heads, t, device=k.device, dtype=torch.float64),) * 2
    if weights is not None:
        sum_weights = weights.sum.double().view(n * heads, t)
        value_weights = value_weights if weights.value is None else weights.value.double().view(n * heads, t)
    state = torch.zeros(n * heads, width, width, width, device=k.device, dtype=torch.float64)
    normaliser = torch.zeros(n * heads, width, width, device=k.device, dtype=torch.float64)
    states, normalisers = [None] * problem.chunks, [None] * problem.chunks
    for c in reversed(range(problem.chunks)) if reverse else range(problem.chunks):
        own = slice(c * problem.chunk, min(t, (c + 1) * problem.chunk))
        states[c], normalisers[c] = state, normaliser
        u, v, f, total = rows[:, own], values[:, own], value_weights[:, own], sum_weights[:, own]
        decay = 1.0 if gates is None else gates.double().view(n * heads, t)[:, own.stop - 1].exp2()[:, None, None]
        normaliser = decay * normaliser + torch.einsum("rti,rtj,rt->rij", u, u, total)
        state = (decay if gates is None else decay[..., None]) * state
        state = state + torch.einsum("rti,rtj,rtv,rt->rijv", u, u, v, f)
    return torch.stack(states, 1), torch.stack(normalisers, 1)


def unpacked(problem, states):
    """Return packed states as matrices, those of a symmetric pair of tiles twice."""
    width = problem.v
    tiles = states[..., : problem.expanded].unflatten(2, (problem.layout.tiles, 16, 16, width))
    state = states.new_empty(*states.shape[:2], width, width, width)
    for b in range(width // 16):
        for a in range(b + 1):
            tile = tiles[:, :, b * (b + 1) // 2 + a]
            state[:, :, b * 16 : (b + 1) * 16, a * 16 : (a + 1) * 16] = tile.transpose(2, 3)
            state[:, :, a * 16 : (a + 1) * 16, b * 16 : (b + 1) * 16] = tile
    return state, states[..., problem.expanded : problem.used].unflatten(2, (width, width))


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("weighted, gated", [(0, False), (1, False), (1, True), (2, True)])
@pytest.mark.parametrize("n, t, chunk, width", [(1, 512, 128, 64), (2, 640, 256, 64), (2, 384, 128, 128)])
def test_states_are_those_of_their_definition(n, t, chunk, width, weighted, gated, reverse):
    k, x, _ = joint_memory(n, t, 2, width)
    problem = make_problem(k, k, x, 2, 1.0, True, 1e-6, chunk, False)
    torch.manual_seed(t)
    numbers = torch.rand(n, 2, t, device="cuda")
    weights = (None, TokenWeights(None, numbers), TokenWeights(numbers, numbers))[weighted]
    gates = -torch.rand(n, 2, t, device="cuda") if gated else None
    shape = (2 * n, problem.chunks, problem.elements)
    prefix = torch.randn(shape, device="cuda").bfloat16() if gated else None
    found, again = (torch.empty(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    dots = walk_states(problem, k, x, weights, gates, found, prefix, reverse=reverse)
    other = walk_states(problem, k, x, weights, gates, again, prefix, reverse=reverse)
    assert torch.equal(found, again)
    exact = exact_states(problem, k, x, weights, gates, reverse)
    assert all(error(a, b) <= ROUNDING for a, b in zip(unpacked(problem, found), exact, strict=True))
    if prefix is not None:
        assert torch.equal(dots, other)
        products = [(a.double() * b).flatten(2) for a, b in zip(unpacked(problem, prefix), exact, strict=True)]
        last = torch.arange(1, problem.chunks + 1, device="cuda").mul(chunk).clamp(max=t) - 1
        decays = gates.double().flatten(0, 1)[:, last].exp2()
        # Sums of random numbers cancel; the squares of their errors add up, at most two and two errors being one.
        size = 2**0.5 * sum(x.square().sum(2) for x in products).sqrt() * decays
        assert float((dots - sum(x.sum(2) for x in products) * decays).norm()) <= ROUNDING * float(size.norm())


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("normalize", ["sum", "none"])
@pytest.mark.parametrize("t, width", [(1024, 64), (1152, 64), (640, 128)])
def test_outputs_and_gradients_are_those_of_all_scores(monkeypatch, t, width, normalize, gated):
    served = []
    walks = launch.walks
    monkeypatch.setattr(launch, "walks", lambda *given: served.append(walks(*given)) or served[-1])
    Case(n=2, t=t, heads=6, groups=6, key=width, value=width, gated=gated, chunk=256, normalize=normalize).check()
    assert served == [True, True]


def attention(q, k, v, log_g=None, chunk=256):
    options = PowerOptions(p=2, scale=0.125, normalize="sum", eps=1e-6, chunk=chunk)
    return power_attention_triton(PowerInputs(q, k, v, log_g, None), options, keep_state=False)[0]


def gradients(q, k, v, log_g=None, *, dy):
    leaves = [x.detach().requires_grad_() for x in (q, k, v, log_g) if x is not None]
    y = attention(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, dy)


def test_a_captured_graph_replays_the_same_results():
    given = *joint_memory(1, 1024, 12, 64), -torch.rand(1, 1024, 12, device="cuda")
    dy = torch.randn(1, 1024, 12, 64, device="cuda").bfloat16()
    assert_replays(lambda: gradients(*given, dy=dy))


def test_tensors_of_one_projection_give_the_bits_of_copies():
    given = joint_memory(2, 768, 6, 64)
    dy = torch.randn(2, 768, 6, 64, device="cuda").bfloat16()
    copies = [x.contiguous() for x in given]
    for a, b in zip(gradients(*given, dy=dy), gradients(*copies, dy=dy), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("t, chunk", [(1024, 256), (5120, None)])
def test_compiled_functions_keep_whole_graphs(monkeypatch, t, chunk):
    monkeypatch.undo()  # torch's own fake tensors use torch.empty too
    leaves = [x.requires_grad_() for x in joint_memory(1, t, 12, 64)]
    compiled = torch.compile(lambda *xs: attention(*xs, chunk=chunk).sum(), fullgraph=True, backend="aot_eager")
    exact = torch.autograd.grad(attention(*leaves, chunk=chunk).sum(), leaves)
    for a, b in zip(torch.autograd.grad(compiled(*leaves), leaves), exact, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_the_current_one():
    given = joint_memory(1, 1024, 12, 64)
    dy = torch.randn(1, 1024, 12, 64, device="cuda").bfloat16()
    found = gradients(*(x.to("cuda:1") for x in given), dy=dy.to("cuda:1"))
    for a, b in zip(found, gradients(*given, dy=dy), strict=True):
        assert a.device == torch.device("cuda:1") and torch.equal(a.cpu(), b.cpu())
