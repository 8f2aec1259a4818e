"""Softmax attention in operators of torch, its step and its cache against the definition in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, scaled_dot_product_attention

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.attention.api import attention, attention_step, empty_cache
from icl_bench.kernels.attention.blocked import attention_by_blocks, attention_form_costs, default_block
from icl_bench.kernels.attention.records import AttentionInputs, AttentionOptions
from tests.kernels.attention.attention_oracle import BOUNDS, check, make_case
from tests.kernels.numerics import assert_equal_in_float64, assert_within_rounding, largest

F64 = torch.float64
WINDOWS = [None, 1, 2, 9, 16, 50]


def make_inputs(t, *, gated, n=2, heads=2, groups=2, key_width=3, value_width=2, dtype=F64) -> list[Tensor]:
    """Random q, k, v and, where gated, a different gate at every position."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    inputs = [draw(n, t, heads, key_width), draw(n, t, groups, key_width), draw(n, t, groups, value_width)]
    gate = logsigmoid(2 + draw(n, t, groups)).to(F64 if dtype == F64 else torch.float32)
    return [x.to(dtype) for x in inputs] + ([gate] if gated else [])


def step_through(inputs, window, cache):
    outputs = []
    for t in range(inputs[0].shape[1]):
        token = [x[:, t] for x in inputs]
        out, cache = attention_step(*token, *[None] * (4 - len(inputs)), cache, window=window)
        outputs.append(out)
    return torch.stack(outputs, dim=1), cache


def torch_forms(window, t):
    """Forms in operators of torch by name: the one that "torch" takes, all scores at once, blocks of several widths."""

    def by_blocks(block):
        def run(*inputs):
            options = AttentionOptions(window or t, inputs[0].shape[-1] ** -0.5)
            return attention_by_blocks(AttentionInputs(*inputs), options, block)

        return run

    forms = {"torch": lambda *x: attention(*x, window=window, impl="torch"), "whole": by_blocks(t)}
    return forms | ({f"blocks of {block}": by_blocks(block) for block in (1, 16, 64)} if window else {})


def with_gradients(run, inputs, along):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = run(*leaves)
    return [out, *torch.autograd.grad(out, leaves, along.to(out.dtype))]


@pytest.mark.parametrize("heads, groups", [(2, 2), (6, 2), (3, 1)], ids=["H2-G2", "H6-G2", "H3-G1"])
@pytest.mark.parametrize("t", [1, 7, 64, 100], ids="T{}".format)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_all_forms_agree_with_the_definition(gated, t, heads, groups):
    inputs = make_inputs(t, gated=gated, heads=heads, groups=groups)
    for window in WINDOWS:
        expected = attention(*inputs, window=window, impl="reference")
        forms = torch_forms(window, t) | {"auto": lambda *x, window=window: attention(*x, window=window)}
        if not gated:
            forms["sdpa"] = lambda *x, window=window: attention(*x, window=window, impl="sdpa")
        for name, form in forms.items():
            assert_equal_in_float64(f"{name}, window {window}", form(*inputs), expected)
        cache = empty_cache(2, groups, 3, 2, gated=gated, device="cpu", dtype=F64)
        out, cache = step_through(inputs, window, cache)
        assert_equal_in_float64(f"step, window {window}", out, expected)
        assert cache.k.shape[1] == cache.v.shape[1] == min(t, window or t)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_gradients_are_those_of_the_definition(gated, window):
    inputs = make_inputs(37, gated=gated, heads=4)
    along = torch.randn(2, 37, 4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    expected = with_gradients(lambda *x: attention(*x, window=window, impl="reference"), inputs, along)
    for form, run in torch_forms(window, 37).items():
        for name, a, b in zip(
            ["out", "q", "k", "v", "log_g"], with_gradients(run, inputs, along), expected, strict=False
        ):
            if window == 1 and name in ("q", "k", "log_g"):
                assert largest(a) < 1e-12  # a single key has weight 1 whatever its score
            else:
                assert_equal_in_float64(f"{form}: {name}", a, b)


@pytest.mark.parametrize("block", [3, 7])
def test_gradients_agree_with_finite_differences(block):
    leaves = [x.requires_grad_() for x in make_inputs(7, gated=True, n=1, key_width=2, value_width=1)]
    assert torch.autograd.gradcheck(
        lambda *x: attention_by_blocks(AttentionInputs(*x), AttentionOptions(3, 0.7), block), leaves
    )


def test_agrees_with_torch():
    q, k, v = make_inputs(40, gated=False)
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    for impl in ("auto", "reference", "torch", "sdpa"):
        assert_equal_in_float64(impl, attention(q, k, v, impl=impl), expected)


@pytest.mark.parametrize("window", [None, 1, 16])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_later_tokens_change_no_bit_of_earlier_outputs(gated, window):
    inputs = make_inputs(70, gated=gated, dtype=torch.float32)
    forms = torch_forms(window, 70) | {"auto": lambda *x: attention(*x, window=window)}
    if not gated:
        forms["sdpa"] = lambda *x: attention(*x, window=window, impl="sdpa")
    for name, run in forms.items():
        before = run(*inputs)
        for position in (1, 33, 69):
            changed = [x.clone() for x in inputs]
            for x in changed:
                x[:, position] -= 1.0
            after = run(*changed)
            assert torch.equal(after[:, :position], before[:, :position]), name
            assert not torch.equal(after[:, position], before[:, position]), name


@pytest.mark.parametrize("impl", ["reference", "torch", "sdpa", "step", "blocks of 16"])
@pytest.mark.parametrize("window", [1, 2, 16, 20])
def test_a_window_sees_exactly_its_keys(window, impl):
    def run(*inputs):
        if impl == "step":
            return step_through(inputs, window, empty_cache(2, 2, 3, 2, gated=False, device="cpu", dtype=F64))[0]
        if impl == "blocks of 16":
            return torch_forms(window, 40)[impl](*inputs)
        return attention(*inputs, window=window, impl=impl)

    query = 33
    inputs = make_inputs(40, gated=False)
    before = run(*inputs)[:, query]
    for key, seen in ((query - window, False), (query - window + 1, True), (query, True), (query + 1, False)):
        changed = [x.clone() for x in inputs]
        changed[2][:, key] += 1.0
        assert torch.equal(run(*changed)[:, query], before) != seen


def test_strong_gates_neither_overflow_nor_leave_a_trace():
    q, k, v, log_g = make_inputs(40, gated=True, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in (q, k, v, torch.full_like(log_g, -200.0))]
    for window in (None, 5):
        for name, run in torch_forms(window, 40).items():
            out = run(*leaves)
            assert torch.equal(out, v), name
            assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), leaves)), name


def plain_attention(q, k, v, log_g=None, *, window):
    """The definition with each operation in the type of q; heads equal groups."""
    scores = torch.einsum("nihk,njhk->nhij", q, k) * q.shape[-1] ** -0.5
    if log_g is not None:
        c = log_g.cumsum(dim=1).transpose(1, 2)
        scores = scores + (c[..., None] - c[..., None, :]).to(q.dtype)
    ones = torch.ones(scores.shape[-2:], dtype=torch.bool)
    seen = ones.tril() & ones.triu(1 - (window or len(ones)))
    return torch.einsum("nhij,njhv->nihv", scores.masked_fill(~seen, -torch.inf).softmax(dim=-1), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_low_precision_errs_no_more_than_the_plain_definition(gated, window, dtype):
    inputs = make_inputs(100, gated=gated, key_width=8, value_width=8, dtype=dtype)
    along = torch.randn(inputs[2].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = with_gradients(
        lambda *x: attention(*x, window=window, impl="reference"), [x.double() for x in inputs], along
    )
    plain = with_gradients(lambda *x: plain_attention(*x, window=window), inputs, along)
    for form, run in torch_forms(window, 100).items():
        actual = with_gradients(run, inputs, along)
        assert actual[0].dtype == dtype
        for name, *values in zip(["out", "q", "k", "v", "log_g"], actual, exact, plain, strict=False):
            assert_within_rounding(f"{form}: {name}", *values)


@pytest.mark.parametrize("window", [None, 16, 50])
def test_gate_gradients_in_bfloat16_cancel_what_rounded_weights_lose(window, monkeypatch):
    """On CUDA, as here, weights are rounded for their product; a gate's gradient sums over all later tokens."""

    def rounded(x):
        return x.dtype if x.dtype == torch.bfloat16 else accumulation_dtype(x.dtype)

    monkeypatch.setattr("icl_bench.kernels.attention.blocked.factor_dtype", rounded)
    q, k, v, along, log_g = make_case(300, n=2, h=4, k=32, v=32, gated=True, dtype=torch.bfloat16)
    exact = with_gradients(
        lambda *x: attention(*x, window=window, impl="reference"), [x.double() for x in (q, k, v, log_g)], along
    )
    for form, run in torch_forms(window, 300).items():
        found = with_gradients(run, (q, k, v, log_g), along)
        bounds = [BOUNDS[torch.bfloat16][0], *[BOUNDS[torch.bfloat16][1]] * 4]
        for name, a, b, bound in zip(["out", "q", "k", "v", "log_g"], found, exact, bounds, strict=True):
            check(f"{form}: {name}", a, b, bound, natural=1.0)


def test_auto_takes_the_cheaper_form():
    for t, blocked in ((32, False), (600, True)):
        block = default_block(t, 3, 2, 16)
        whole, blocks = attention_form_costs(t, 3, 2, 16, block)
        assert (blocks < whole) == blocked
        inputs = make_inputs(t, gated=True)
        chosen = (
            torch_forms(16, t)["whole"](*inputs)
            if not blocked
            else attention_by_blocks(AttentionInputs(*inputs), AttentionOptions(16, 3**-0.5), block)
        )
        assert torch.equal(attention(*inputs, window=16, impl="torch"), chosen)


@pytest.mark.parametrize(
    "t, window, gated, taken",
    [
        (90, None, False, "sdpa"),
        (90, 90, False, "sdpa"),  # no key is out of sight
        (90, 200, False, "sdpa"),
        (90, 8, False, "sdpa"),
        (600, 8, False, "torch"),  # blocks cost less than all scores
        (90, 8, True, "torch"),
        (90, 90, True, "torch"),
    ],
)
def test_auto_takes_a_form_by_what_a_query_sees(t, window, gated, taken):
    inputs = make_inputs(t, gated=gated)
    assert torch.equal(attention(*inputs, window=window), attention(*inputs, window=window, impl=taken))


# torch itself instantiates the autograd functions while it traces them
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_forms_compile_without_a_break():
    leaves = [x.requires_grad_() for x in make_inputs(40, gated=True, dtype=torch.float32)]
    run = torch_forms(9, 40)["blocks of 16"]
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*leaves), run(*leaves), rtol=1e-5, atol=1e-6)
