"""Power attention in Triton on a GPU against its float64 definition: the gate in front of any timing."""

import itertools

import pytest
import torch

from icl_bench.kernels.power.api import initial_power_state, power_attention_with_state, power_step
from icl_bench.kernels.power.records import PowerInputs, PowerOptions
from icl_bench.kernels.power.triton.ops import power_attention_triton
from icl_bench.kernels.power.triton.step import power_step_triton
from tests.kernels.numerics import assert_replays, poison
from tests.kernels.power.power_oracle import Case

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = [1, 7, 63, 64, 65, 100, 1000, 4097]
WIDTHS = [(16, 16), (16, 32), (16, 64), (32, 32), (64, 32), (64, 128), (128, 16), (128, 128), (24, 40), (100, 8)]
TYPES = [torch.bfloat16, torch.float32, torch.float16]
EVERY_PAIR = [
    (*widths, p, dtype)
    for i, widths in enumerate(WIDTHS)
    for p, dtype in itertools.product([1, 2], TYPES)
    if dtype == torch.bfloat16 or p == 1 + (i + TYPES.index(dtype)) % 2
]
"""All widths with p = 1 and 2 in bfloat16, and one of these in float32, the other in float16."""
OPTIONS = PowerOptions(p=2, scale=0.125, normalize="sum", eps=1e-6, chunk=128)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.mark.parametrize("t", LENGTHS)
@pytest.mark.parametrize(("dtype", "gated"), [(torch.float16, True), *itertools.product(TYPES[:2], (False, True))])
def test_lengths(t, gated, dtype):
    Case(t=t, gated=gated, dtype=dtype, chunk=128, keep=True).check()


@pytest.mark.parametrize("t", LENGTHS)
@pytest.mark.parametrize("p", [1, 2])
def test_lengths_in_the_quadratic_form(t, p):
    Case(t=t, p=p, chunk=t).check()


@pytest.mark.parametrize("t", [192, 250, 640, 1000])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("key", [16, 32, 64, 128])
def test_widths_in_the_quadratic_form(key, gated, t):
    Case(t=t, key=key, value=key, gated=gated, chunk=t).check()


@pytest.mark.parametrize("t", [200, 256])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("key", "value"), [(16, 32), (64, 32), (32, 64), (128, 64), (64, 16)])
def test_unlike_widths_of_short_rows(key, value, p, gated, t):
    Case(t=t, key=key, value=value, p=p, gated=gated, chunk=t).check()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("key", [16, 32, 64, 128])
def test_lengths_of_whole_blocks(key, gated, p):
    Case(t=384, key=key, value=key, p=p, gated=gated, chunk=128, heads=4, groups=2, initial=True, keep=True).check()


@pytest.mark.parametrize("decay", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("t", [1024, 1100])
@pytest.mark.parametrize("width", [64, 128])
def test_decays_that_sums_lack_and_others(width, t, decay):
    """Decays of 2^-4.5, 2^-68 and 2^-450 over a chunk, where sums lack up to 2^-40 until they end."""
    Case(t=t, key=width, value=width, decay=decay, chunk=512).check()


@pytest.mark.parametrize("t", [65, 1000, 4097])
@pytest.mark.parametrize("gated", [False, True])
def test_lengths_of_linear_attention(t, gated):
    Case(t=t, p=1, gated=gated, chunk=128, keep=True).check()


@pytest.mark.parametrize(("key", "value", "p", "dtype"), EVERY_PAIR)
def test_widths(key, value, p, dtype):
    Case(t=300, key=key, value=value, p=p, chunk=128, heads=4, groups=2, initial=True, keep=True, dtype=dtype).check()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("key", "value"), WIDTHS)
def test_widths_without_gates(key, value, p):
    Case(t=300, key=key, value=value, p=p, chunk=128, heads=4, groups=2, gated=False, initial=True, keep=True).check()


@pytest.mark.parametrize("heads, groups, key_heads", [(1, 4, 1), (2, 4, 2), (4, 4, 2), (4, 2, 1)])
@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_heads_share_keys_and_queries(dtype, p, heads, groups, key_heads):
    Case(
        t=300, heads=heads, groups=groups, key_heads=key_heads, key=64 if p < 4 else 16, value=32, p=p, chunk=128,
        normalize="none" if p == 1 else "sum", initial=True, keep=True, dtype=dtype,
    ).check()  # fmt: skip


@pytest.mark.parametrize("key", [129, 500])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_wide_keys_of_linear_attention(key, dtype):
    Case(t=300, key=key, p=1, normalize="none", chunk=128, initial=True, keep=True, dtype=dtype).check()


@pytest.mark.parametrize("t", [3, 130])
def test_more_sequences_than_a_grid_has_rows(t):
    leaves = [torch.randn(33_000, t, 2, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    log_g = -torch.rand(33_000, t, 2, device="cuda")

    def run(rows):
        part = [x[rows] for x in leaves]
        y = power_attention_triton(
            PowerInputs(*part, log_g[rows], None), OPTIONS._replace(scale=0.25), keep_state=False
        )[0]
        return y, *torch.autograd.grad(y, part, torch.ones_like(y))

    halves = zip(run(slice(16_500)), run(slice(16_500, None)), strict=True)
    for whole, half in zip(run(slice(None)), halves, strict=True):
        assert torch.equal(whole, torch.cat(half))


@pytest.mark.parametrize("p", [3, 4, 5, 6])
@pytest.mark.parametrize("key", [16, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_powers_in_the_quadratic_form(p, key, dtype):
    Case(t=200, key=key, p=p, normalize="sum" if p % 2 == 0 else "none", chunk=200, dtype=dtype).check()


@pytest.mark.parametrize("p", [3, 4])
@pytest.mark.parametrize("key", [16, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_powers_in_the_chunked_form(p, key, dtype):
    normalize = "sum" if p % 2 == 0 else "none"
    Case(t=300, key=key, value=32, p=p, normalize=normalize, chunk=128, initial=True, keep=True, dtype=dtype).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [3, 4])
def test_large_inputs_do_not_overflow(p, dtype):
    normalize = "sum" if p % 2 == 0 else "none"
    size = 1.0 if normalize == "none" else 30.0
    Case(t=200, key=16, p=p, normalize=normalize, chunk=200, size=size, dtype=dtype).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [128, 300])
def test_what_is_no_number_stays_seen(chunk, dtype):
    case = Case(t=300, key=16, value=16, gated=False, chunk=chunk, dtype=dtype)
    case.inputs[1][0, 200, 0, 0] = float("nan")
    y = case.triton()[0]
    assert y[:, 200:].isnan().all() and y[:, :200].isfinite().all()


def test_a_captured_graph_replays_the_same_results():
    leaves = [x.requires_grad_() for x in Case(t=300, chunk=128).inputs if x is not None]
    dy = torch.randn(1, 300, 2, 64, device="cuda", dtype=torch.bfloat16)

    def step():
        y, _ = power_attention_triton(PowerInputs(*leaves, None), OPTIONS, keep_state=False)
        return y.detach(), *torch.autograd.grad(y, leaves, dy)

    assert_replays(step)


def test_results_repeat_bit_for_bit():
    case = Case(t=1000, heads=4, groups=2, chunk=128, keep=True, initial=True)
    for a, b in zip(case.triton(), case.triton(), strict=True):
        assert torch.equal(a, b)


def test_compiled_functions_keep_whole_graphs(monkeypatch):
    monkeypatch.undo()  # torch's own fake tensors use torch.empty too
    q, k, v, log_g, _, _ = (None if x is None else x.requires_grad_() for x in Case(t=300, chunk=128).inputs)

    def loss(q, k, v, log_g):
        return power_attention_triton(PowerInputs(q, k, v, log_g, None), OPTIONS, keep_state=False)[0].sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    exact = torch.autograd.grad(loss(q, k, v, log_g), (q, k, v, log_g))
    found = torch.autograd.grad(compiled(q, k, v, log_g), (q, k, v, log_g))
    for a, b in zip(found, exact, strict=True):
        assert torch.equal(a, b)


def test_steps_of_more_sequences_than_a_grid_has_rows():
    q, k, v = (torch.rand(70_000, 1, 4, device="cuda") for _ in range(3))
    state = initial_power_state(70_000, 1, 4, 4, p=2, normalize="sum", device="cuda", dtype=torch.float32)
    found, new = power_step(q, k, v, None, state, p=2, impl="triton")
    wanted, after = power_step(q, k, v, None, state, p=2, impl="chunked")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p, key", [(1, 64), (2, 16), (2, 64), (4, 16)])
def test_steps_are_the_recurrence(p, key):
    case = Case(t=2, key=key, value=64, heads=4, groups=2, p=p, initial=True, keep=True, dtype=torch.float32)
    q, k, v, log_g, s, z = case.inputs
    exact = case.exact()
    for t in range(2):
        y, s, z = power_step_triton(q[:, t], k[:, t], v[:, t], log_g[:, t], s, z, p, case.scale, 1e-6)
        torch.testing.assert_close(y, exact[0][:, t].float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(s, exact[1].float(), rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("p, normalize, chunk", [(1, "sum", 128), (2, "sum", 128), (2, "sum", 300), (3, "none", 128)])
def test_a_device_that_is_not_the_current_one(p, normalize, chunk):
    case = Case(t=300, key=16, value=32, p=p, normalize=normalize, chunk=chunk, initial=True, keep=True)
    with torch.cuda.device(0):
        exact = case.triton()
        case.inputs = [None if x is None else x.to("cuda:1") for x in case.inputs]
        found = case.triton()
        assert torch.cuda.current_device() == 0
    for a, b in zip(found, exact, strict=True):
        assert a.device == torch.device("cuda:1")
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_step_on_a_device_that_is_not_the_current_one():
    q, k, v = (torch.rand(3, 2, 8, device="cuda:1") for _ in range(3))
    state = initial_power_state(3, 2, 8, 8, p=2, normalize="sum", device="cuda:1", dtype=torch.float32)
    with torch.cuda.device(0):
        found, new = power_step(q, k, v, None, state, p=2, impl="triton")
    y, after = power_attention_with_state(*(x[:, None] for x in (q, k, v)), p=2, impl="quadratic")
    torch.testing.assert_close(found, y[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new, after, rtol=1e-5, atol=1e-5)
