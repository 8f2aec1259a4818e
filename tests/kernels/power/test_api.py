import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from icl_bench.kernels.power.api import (
    initial_power_state,
    power_attention,
    power_attention_with_state,
    power_step,
)
from icl_bench.kernels.power.chunked import cheapest_chunk, power_form_costs
from icl_bench.kernels.power.expansion import expand, expanded_width, read_state, write_state
from icl_bench.kernels.power.records import PowerState
from icl_bench.kernels.power.reference import expand_reference
from tests.kernels.numerics import assert_equal_in_float64, assert_within_rounding, largest

F64 = torch.float64
# phi(q).phi(k) rounds at the size of |q|^p |k|^p, and (q.k)^p may be far smaller: this eps, in place of the default,
# keeps a normaliser from being as small as that rounding, so that the forms can agree to FLOAT64_TOLERANCE.
EPS = 0.1
MODES = [(p, normalize) for p in (1, 2, 4, 6) for normalize in ("sum", "none")] + [(3, "none"), (5, "none")]
FORMS = [("quadratic", None), ("chunked", 1), ("chunked", 16), ("chunked", None)]


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_g: Tensor | None


def make_inputs(p, t, *, gated, n=2, heads=2, groups=2, key_heads=None, key_width=3, value_width=2, seed=0, dtype=F64):
    """Random inputs with a different gate at every position; non-negative q and k for p = 1, as its sum needs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    q, k = draw(n, t, heads, key_width), draw(n, t, key_heads or groups, key_width)
    v = draw(n, t, groups, value_width)
    if p == 1:
        q, k = q.abs(), k.abs()
    kind = F64 if dtype == F64 else torch.float32
    log_g = torch.nn.functional.logsigmoid(2 + draw(n, t, groups)).to(kind) if gated else None
    return Inputs(q.to(dtype), k.to(dtype), v.to(dtype), log_g)


def random_state(inputs, p, normalize):
    """A state that a sequence leaves, so that its normaliser is one that can occur."""
    earlier = make_inputs(
        p,
        5,
        gated=False,
        n=inputs.q.shape[0],
        heads=inputs.v.shape[2],
        groups=inputs.v.shape[2],
        key_width=inputs.k.shape[3],
        value_width=inputs.v.shape[3],
        seed=1,
        dtype=inputs.q.dtype,
    )
    return power_attention_with_state(*earlier, p=p, normalize=normalize, impl="reference")[1]


def part_of(inputs, part):
    return Inputs(*(None if x is None else x[:, part] for x in inputs))


def step_through(inputs, state, **options):
    outputs = []
    for t in range(inputs.q.shape[1]):
        gate = None if inputs.log_g is None else inputs.log_g[:, t]
        out, state = power_step(inputs.q[:, t], inputs.k[:, t], inputs.v[:, t], gate, state, **options)
        outputs.append(out)
    return torch.stack(outputs, dim=1), state


def assert_same(actual, expected):
    (out, state), (expected_out, expected_state) = actual, expected
    assert_equal_in_float64("out", out, expected_out)
    assert_equal_in_float64("s", state.s, expected_state.s)
    assert (state.z is None) == (expected_state.z is None)
    if state.z is not None:
        assert_equal_in_float64("z", state.z, expected_state.z)


@pytest.mark.parametrize("heads, groups", [(2, 2), (6, 2), (3, 1)], ids=["H2-G2", "H6-G2", "H3-G1"])
@pytest.mark.parametrize("t", [1, 7, 64, 100], ids="T{}".format)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_all_forms_agree_with_the_definition(gated, t, heads, groups):
    for p, normalize in MODES:
        inputs = make_inputs(p, t, gated=gated, heads=heads, groups=groups)
        options = {"p": p, "normalize": normalize, "eps": EPS}
        expected = power_attention_with_state(*inputs, **options, impl="reference")
        for impl, chunk in FORMS if t < 100 else FORMS[2:]:
            assert_same(power_attention_with_state(*inputs, **options, impl=impl, chunk=chunk), expected)
        start = initial_power_state(2, groups, 3, 2, p=p, normalize=normalize, device="cpu", dtype=F64)
        assert_same(step_through(inputs, start, **options), expected)


@pytest.mark.parametrize("p, normalize", MODES)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_a_sequence_in_two_parts_equals_the_whole(gated, p, normalize):
    inputs = make_inputs(p, 30, gated=gated, heads=4)
    options = {"p": p, "normalize": normalize, "eps": EPS}
    begin = random_state(inputs, p, normalize)
    expected = power_attention_with_state(*inputs, **options, initial_state=begin, impl="reference")
    first, rest = (part_of(inputs, part) for part in (slice(11), slice(11, None)))
    for impl, chunk in [*FORMS, ("reference", None)]:
        start, state = power_attention_with_state(*first, **options, initial_state=begin, impl=impl, chunk=chunk)
        end, state = power_attention_with_state(*rest, **options, initial_state=state, impl=impl, chunk=chunk)
        assert_same((torch.cat([start, end], dim=1), state), expected)
    assert_same(step_through(inputs, begin, **options), expected)
    assert_same(step_through(inputs, begin, impl="reference", **options), expected)


def gradients(inputs, state, p, normalize, impl, chunk):
    """Of a random linear function of the output and the final state, by name."""
    leaves = {
        name: x.detach().requires_grad_()
        for name, x in [*inputs._asdict().items(), *state._asdict().items()]
        if x is not None
    }
    given = Inputs(*(leaves.get(name) for name in Inputs._fields))
    begin = PowerState(leaves["s"], leaves.get("z"))
    options = {"p": p, "normalize": normalize, "impl": impl, "chunk": chunk, "eps": EPS}
    out, end = power_attention_with_state(*given, **options, initial_state=begin)
    generator = torch.Generator().manual_seed(2)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=F64)).sum() for x in (out, *end) if x is not None)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("p, normalize", MODES)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_gradients_are_those_of_the_definition(gated, p, normalize):
    inputs = make_inputs(p, 23, gated=gated, heads=4)
    begin = random_state(inputs, p, normalize)
    expected = gradients(inputs, begin, p, normalize, "reference", None)
    for impl, chunk in [("quadratic", None), ("chunked", 5), ("chunked", 1)]:
        for name, gradient in gradients(inputs, begin, p, normalize, impl, chunk).items():
            assert_equal_in_float64(f"{impl}, {chunk}: gradient of {name}", gradient, expected[name])


@pytest.mark.parametrize("p", [1, 2, 3])
def test_gradients_agree_with_finite_differences(p):
    inputs = make_inputs(p, 5, gated=True, n=1, key_width=2, value_width=1)
    leaves = [x.requires_grad_() for x in inputs]
    for impl in ("quadratic", "chunked"):

        def run(*given, impl=impl):
            return power_attention(*given, p=p, normalize="sum" if p < 3 else "none", impl=impl, chunk=2)

        assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("p", range(1, 7))
def test_expansion_has_the_power_as_its_inner_product(p):
    x, y = (torch.randn(4, 5, dtype=F64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert expand(x, p).shape[-1] == expanded_width(5, p) == math.comb(5 + p - 1, p)
    assert_equal_in_float64("phi(x).phi(y)", (expand(x, p) * expand(y, p)).sum(-1), (x * y).sum(-1) ** p)
    assert_equal_in_float64("phi(x)", expand(x, p), expand_reference(x, p))


def test_expansion_entries_are_in_lexicographic_order():
    x = torch.tensor([2.0, 3.0, 5.0], dtype=F64)
    assert torch.equal(expand(x, 1), x)
    root = math.sqrt(2)
    assert_equal_in_float64("phi", expand(x, 2), torch.tensor([4, 6 * root, 10 * root, 9, 15 * root, 25], dtype=F64))


@pytest.mark.parametrize("p", [1, 2, 4])
def test_products_with_the_expansion_agree_with_it(p):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 3, dtype=F64, generator=generator, requires_grad=True)
    v = torch.randn(2, 6, 2, dtype=F64, generator=generator, requires_grad=True)
    s = torch.randn(2, expanded_width(3, p), 2, dtype=F64, generator=generator, requires_grad=True)
    pairs = {
        "read": (read_state(x, s, p), expand_reference(x, p) @ s, (x, s)),
        "write": (write_state(x, v, p), expand_reference(x, p).mT @ v, (x, v)),
    }
    for name, (actual, expected, leaves) in pairs.items():
        assert_equal_in_float64(name, actual, expected)
        along = torch.randn(actual.shape, dtype=F64, generator=generator)
        results = (torch.autograd.grad(y, leaves, along) for y in (actual, expected))
        for gradient, expected_gradient in zip(*results, strict=True):
            assert_equal_in_float64(f"gradient of {name}", gradient, expected_gradient)


@pytest.mark.parametrize("impl, chunk", [*FORMS, ("reference", None)])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_later_tokens_change_no_bit_of_earlier_outputs(p, gated, impl, chunk):
    inputs = make_inputs(p, 40, gated=gated, dtype=torch.float32)
    before = power_attention(*inputs, p=p, impl=impl, chunk=chunk)
    for position in (1, 17, 39):
        changed = Inputs(*(None if x is None else x.clone() for x in inputs))
        for x in changed:
            if x is not None:
                x[:, position] -= 1.0
        after = power_attention(*changed, p=p, impl=impl, chunk=chunk)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position], before[:, position])


@pytest.mark.parametrize("impl, chunk", FORMS)
def test_strong_gates_neither_overflow_nor_leave_a_trace(impl, chunk):
    inputs = make_inputs(2, 40, gated=True, dtype=torch.float32)
    log_g = torch.full_like(inputs.log_g, -60.0)  # e^(60 * 39) is far beyond float32
    leaves = [x.requires_grad_() for x in (*inputs[:3], log_g)]
    out = power_attention(*leaves, p=2, eps=0.0, impl=impl, chunk=chunk)
    torch.testing.assert_close(out, inputs.v, rtol=1e-5, atol=0)  # each token sees itself alone: a v / a, rounded
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), leaves))


def plain_attention(q, k, v, log_g, p, normalize):
    """The definition with each operation in the type of q; heads equal groups."""
    t, kind = q.shape[1], q.dtype
    weights = (torch.einsum("nihk,njhk->nhij", q, k) * q.shape[-1] ** -0.5) ** p
    if log_g is not None:
        c = log_g.cumsum(dim=1).transpose(1, 2)
        weights = weights * (c[..., None] - c[..., None, :]).tril().exp().to(kind)
    weights = weights * torch.ones(t, t, dtype=kind).tril()
    out = torch.einsum("nhij,njhv->nihv", weights, v)
    return out / (weights.sum(dim=-1).transpose(1, 2)[..., None] + EPS) if normalize == "sum" else out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p, normalize", [(1, "sum"), (2, "sum"), (2, "none"), (3, "none"), (4, "sum")])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_low_precision_errs_no_more_than_the_plain_definition(gated, p, normalize, dtype):
    inputs = make_inputs(p, 100, gated=gated, key_width=8, value_width=8, dtype=dtype)
    exact_leaves = [x.detach().double().requires_grad_() for x in inputs if x is not None]
    leaves = [x.detach().clone().requires_grad_() for x in inputs if x is not None]
    gate = [] if gated else [None]
    along = torch.randn(inputs.v.shape, generator=torch.Generator().manual_seed(3)).to(dtype)

    def with_gradients(run, leaves):
        out = run(*leaves, *gate)
        return [out, *torch.autograd.grad(out, leaves, along.to(out.dtype))]

    exact = with_gradients(
        lambda *x: power_attention(*x, p=p, normalize=normalize, eps=EPS, impl="reference"), exact_leaves
    )
    plain = with_gradients(lambda *x: plain_attention(*x, p, normalize), leaves)
    for impl, chunk in [("quadratic", None), ("chunked", 16), ("chunked", 64)]:
        actual = with_gradients(
            lambda *x, impl=impl, chunk=chunk: power_attention(
                *x, p=p, normalize=normalize, eps=EPS, impl=impl, chunk=chunk
            ),
            leaves,
        )
        assert actual[0].dtype == dtype
        for name, *values in zip(["out", *Inputs._fields], actual, exact, plain, strict=False):
            # what reaches and what leaves a gate is summed apart over T: terms of the size of dy.y that cancel
            walk = largest((along * exact[0]).sum(-1)) * math.sqrt(100) if name == "log_g" else 0.0
            assert_within_rounding(f"{impl}: {name}", *values, walk=walk)


@pytest.mark.parametrize("p, normalize", [(1, "sum"), (2, "sum"), (2, "none"), (4, "sum")])
@pytest.mark.parametrize("impl, chunk", [("quadratic", None), ("chunked", 512)])
def test_float32_errs_no_more_where_the_log_gates_add_up_to_hundreds(impl, chunk, p, normalize):
    """float32 holds the sum -780 to 3e-5: decays and gradients that were made of it would err by 30 to 300 eps."""
    inputs = make_inputs(p, 1000, gated=True, n=1, groups=1, key_width=8, value_width=8, dtype=torch.float32)
    log_g = torch.nn.functional.logsigmoid(torch.randn(1, 1000, 1, generator=torch.Generator().manual_seed(5)))
    begin = random_state(inputs, p, normalize)
    given = [*inputs[:3], log_g, *(x for x in begin if x is not None)]
    generator = torch.Generator().manual_seed(3)
    along = [torch.randn(x.shape, generator=generator) for x in (inputs.q, *given[4:])]

    def with_gradients(kind, impl, chunk):
        leaves = [x.detach().to(kind).requires_grad_() for x in given]
        state = PowerState(leaves[4], leaves[5] if normalize == "sum" else None)
        options = {"p": p, "normalize": normalize, "eps": EPS, "impl": impl, "chunk": chunk, "initial_state": state}
        y, end = power_attention_with_state(*leaves[:4], **options)
        outputs = [x for x in (y, *end) if x is not None]
        return [*outputs, *torch.autograd.grad(outputs, leaves, [x.to(kind) for x in along])]

    exact = with_gradients(F64, "reference", None)
    for i, (a, b) in enumerate(zip(with_gradients(torch.float32, impl, chunk), exact, strict=True)):
        # p scores of 8 products each, their power, a decay, a product with a gradient and one over tokens that count
        # (about 3, the gates' mean being .45): 2 p + 8 roundings of at most eps / 2, none of which grows with T
        budget = (p + 4) * torch.finfo(torch.float32).eps
        error = ((a.double() - b).norm() / b.norm()).item()
        assert error <= budget, f"output or gradient {i}: relative error {error:.2g} over {budget:.2g}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, F64], ids=str)
def test_types_of_outputs_and_states(dtype):
    inputs = make_inputs(2, 9, gated=True, dtype=dtype)
    kind = F64 if dtype == F64 else torch.float32
    for impl in ("quadratic", "chunked", "reference", "auto"):
        out, state = power_attention_with_state(*inputs, p=2, impl=impl, chunk=4)
        assert (out.dtype, state.s.dtype, state.z.dtype) == (dtype, kind, kind)
    out, state = step_through(inputs, state, p=2)
    assert (out.dtype, state.s.dtype, state.z.dtype) == (dtype, kind, kind)


def test_auto_takes_the_cheaper_form():
    assert power_form_costs(64, 16, 16, 2, 64)[0] < power_form_costs(64, 16, 16, 2, 64)[1]
    short, long = make_inputs(2, 48, gated=True), make_inputs(2, 3000, gated=True, n=1, groups=1, heads=1)
    for inputs, impl in ((short, "quadratic"), (long, "chunked")):
        chosen, other = (power_attention(*inputs, p=2, impl=form) for form in (impl, "auto"))
        assert torch.equal(chosen, other)


def test_costs_by_hand():
    """T = 100, K = 4, V = 3, p = 2, chunks of 32: D = 10, a score costs 39, an expanded key 36, a boundary 10 * 4."""
    assert power_form_costs(100, 4, 3, 2, 32) == (100**2 * 39, 100 * 32 * 39 + 2 * 100 * 10 * 36 + 3 * 4 * 40 * 32)
    assert cheapest_chunk(64, 64, 2) == 512  # the root of 3 * 2080 * 65 * 32 / 160 is 285
    assert cheapest_chunk(4, 3, 2) == 64


@pytest.mark.parametrize("key_width, p", [(4, 1), (16, 2), (64, 2), (32, 4)])
def test_cheapest_chunk_is_a_power_of_two_in_range(key_width, p):
    chunk = cheapest_chunk(key_width, key_width, p)
    assert 64 <= chunk <= 1024
    assert chunk.bit_count() == 1


# torch itself instantiates the autograd functions while it traces them
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_forms_compile_without_a_break():
    inputs = make_inputs(2, 20, gated=True, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    for impl in ("quadratic", "chunked"):

        def run(*x, impl=impl):
            return power_attention(*x, p=2, impl=impl, chunk=8)

        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
        eager, traced = run(*leaves), compiled(*leaves)
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-6)
        for a, b in zip(*(torch.autograd.grad(y.sum(), leaves) for y in (eager, traced)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_state_elements_and_zeros():
    state = initial_power_state(2, 3, 4, 5, p=2, normalize="sum", device="cpu", dtype=torch.bfloat16)
    assert state.s.shape == (2, 3, 10, 5)
    assert state.z.shape == (2, 3, 10)
    assert not any(x.any() for x in state)
    assert initial_power_state(2, 3, 4, 5, p=3, normalize="none", device="cpu", dtype=F64).z is None


def test_heads_read_the_group_they_belong_to():
    inputs = make_inputs(2, 6, gated=False, heads=4, groups=2)
    before = power_attention(*inputs, p=2)
    inputs.v[:, :, 1] += 1.0
    changed = power_attention(*inputs, p=2) != before
    assert [head.any().item() for head in changed.unbind(2)] == [False, False, True, True]


@pytest.mark.parametrize("heads, groups, key_heads", [(1, 4, 1), (2, 6, 3), (4, 2, 1)])
@pytest.mark.parametrize("impl, chunk", [*FORMS[:3], ("reference", None)])
def test_heads_that_share_keys_and_queries_are_heads_of_their_own(impl, chunk, heads, groups, key_heads):
    """Each output head alone, with the query, the key and the values that the rule gives it, has the same results."""
    inputs = make_inputs(2, 9, gated=True, heads=heads, groups=groups, key_heads=key_heads)
    leaves = [x.requires_grad_() for x in inputs]
    options = {"p": 2, "eps": EPS, "impl": impl}
    y, state = power_attention_with_state(*leaves, **options, chunk=chunk)
    outputs = max(heads, groups)
    alone = []
    for o in range(outputs):
        g = o * groups // outputs
        parts = [(leaves[0], o * heads // outputs), (leaves[1], g * key_heads // groups), (leaves[2], g)]
        given = [x[:, :, i : i + 1] for x, i in parts]
        alone.append(power_attention(*given, leaves[3][:, :, g : g + 1], p=2, eps=EPS, impl="reference"))
    expected = torch.cat(alone, dim=2)
    assert_equal_in_float64("y", y, expected)
    along = torch.randn(y.shape, dtype=F64, generator=torch.Generator().manual_seed(4))
    found, wanted = (torch.autograd.grad(x, leaves, along) for x in (y, expected))
    for name, one, other in zip(Inputs._fields, found, wanted, strict=True):
        assert_equal_in_float64(f"gradient of {name}", one, other)
    start = initial_power_state(2, groups, 3, 2, p=2, normalize="sum", device="cpu", dtype=F64)
    with torch.no_grad():
        assert_same(step_through(inputs, start, **options), (y, state))


@pytest.mark.parametrize(("p", "width"), [(1, 40), (2, 6), (3, 5)])
def test_the_chunked_form_trains_under_autocast(p: int, width: int) -> None:
    """The product with the state comes out in bfloat16 there, and so does its gradient, outside of autocast."""
    normalize = "sum" if p == 2 else "none"
    generator = torch.Generator().manual_seed(p)
    q, k, v = (
        torch.randn(2, 24, 1, size, generator=generator).bfloat16().requires_grad_() for size in (width, width, 8)
    )
    wanted = torch.autograd.grad(
        power_attention(q, k, v, p=p, normalize=normalize, impl="chunked", chunk=8).float().sum(), (q, k, v)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = power_attention(q, k, v, p=p, normalize=normalize, impl="chunked", chunk=8)
    found = torch.autograd.grad(y.float().sum(), (q, k, v))
    for one, other in zip(found, wanted, strict=True):
        # A handful of roundings to 8 bits, relative to the largest entry.
        bound = 8 * torch.finfo(torch.bfloat16).eps * float(other.float().abs().max())
        assert float((one.float() - other.float()).abs().max()) <= bound
