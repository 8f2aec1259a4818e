"""The Triton kernels of power attention in Triton's interpreter, at small sizes, against their float64 definition.

bfloat16 is left to the GPU tests: the interpreter's products of it are wrong.
"""

import pytest
import torch
import triton
import triton.language as tl

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.power.api import (
    initial_power_state,
    power_attention,
    power_attention_with_state,
    power_step,
)
from icl_bench.kernels.power.expansion import expand
from icl_bench.kernels.power.records import PowerInputs, PowerOptions
from icl_bench.kernels.power.spectrum import spectrum_attention
from icl_bench.kernels.power.triton import short_launch, table
from icl_bench.kernels.power.triton.launch import cumulative_gates
from icl_bench.kernels.power.triton.layout import from_tiles, tile_layout, to_tiles
from icl_bench.kernels.power.triton.ops import measured_chunk, power_attention_triton
from icl_bench.kernels.power.triton.problem import LowerTerms, PowerProblem, make_problem
from icl_bench.kernels.power.triton.rank_one_launch import norms_and_sums, query_reach
from icl_bench.kernels.power.triton.spectrum import fits_one_pass
from icl_bench.kernels.power.triton.step import power_step_triton
from icl_bench.kernels.power.triton.tiles import rounded
from tests.kernels.numerics import DEVICE, assert_gradients_lie_side_by_side, poison
from tests.kernels.power.power_oracle import Case

F32, F16 = torch.float32, torch.float16


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("t", [1, 7, 33], ids="T{}".format)
def test_quadratic_form_matches_the_definition(t, gated):
    Case(t=t, key=16, value=16, gated=gated, chunk=t, dtype=F32, device=DEVICE).check()


@pytest.mark.parametrize("p, normalize", [(1, "sum"), (3, "none"), (4, "sum"), (5, "none"), (6, "sum")])
def test_quadratic_form_of_any_power(p, normalize):
    Case(t=20, key=16, value=8, p=p, normalize=normalize, chunk=20, dtype=F32, device=DEVICE).check()


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("p, key, value", [(1, 5, 40), (2, 40, 5), (2, 16, 20), (3, 20, 16)])
def test_short_rows_pad_keys_and_values_to_one_width(p, key, value, gated):
    normalize = "none" if p == 3 else "sum"
    Case(
        t=40, key=key, value=value, heads=1, p=p, normalize=normalize, gated=gated, chunk=40, dtype=F32, device=DEVICE
    ).check()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("t", [32, 33, 64, 70], ids="T{}".format)
def test_chunks_match_the_definition(t, gated, p):
    Case(t=t, key=16, value=16, heads=1, p=p, gated=gated, chunk=32, dtype=F32, device=DEVICE).check()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_long_rows_match_the_definition(gated, p):
    t = table.SHORT_CHUNK + 14  # few enough that the decay of rows that are not there is finite too
    Case(t=t, key=16, value=16, heads=1, p=p, gated=gated, chunk=t, dtype=F32, device=DEVICE).check()


@pytest.mark.parametrize("decay", [None, 1.0, 1.5, 6.0])
def test_output_gradients_come_with_their_weights(decay, monkeypatch):
    """As in bfloat16, in a pass of keys and one of values; 2^-84, the decay of the last over a block, is beyond FAR."""
    monkeypatch.setattr(PowerProblem, "weighted_values", True)
    monkeypatch.setitem(table.LAUNCH_TABLES["ieee"], ("value_gradient", "tiles", 16), table.Blocks(32, 32, 4, 1, 1, 32))
    Case(t=90, key=16, value=16, gated=decay is not None, decay=decay, chunk=64, dtype=F32, device=DEVICE).check()


def test_pipelined_steps_through_a_state_take_two_key_channels():
    for (kernel, form, width), blocks in [
        entry for entries in table.LAUNCH_TABLES.values() for entry in entries.items()
    ]:
        if kernel in ("query_gradient", "key_gradient") and form == "tiles" and blocks.state_stages > 1:
            assert blocks.depth >= 2 * width, (kernel, width, blocks)


def test_kernels_take_the_blocks_of_the_nearest_variant(monkeypatch):
    blocks = {name: table.Blocks(16, 16, 4, stages) for stages, name in enumerate(("x", "lower_x", "gated_lower_x"))}
    monkeypatch.setitem(table.LAUNCH_TABLES, "bf16", {(name, "rows", 16): own for name, own in blocks.items()})
    for variant, name in {"": "x", "gated": "x", "lowers": "lower_x", "gated_lowers": "gated_lower_x"}.items():
        assert table.launch_blocks.__wrapped__("x", "rows", "bf16", 16, variant) == blocks[name], variant


def test_blocks_meet_every_pair_once():
    for (kernel, form, _), blocks in [entry for entries in table.LAUNCH_TABLES.values() for entry in entries.items()]:
        if kernel.endswith(("forward", "query_gradient")):
            # blocks of keys fill what is before a block of rows, and itself
            assert blocks.m % blocks.n == 0, (kernel, form, blocks)
        elif kernel != "chunk_sums":
            assert blocks.n % blocks.m == 0, (kernel, form, blocks)


@pytest.mark.parametrize(
    "p, key, normalize",
    [(1, 20, "sum"), (2, 24, "sum"), (2, 16, "none"), (3, 5, "none"), (4, 5, "sum"), (5, 3, "none"), (6, 2, "sum")],
)
def test_states_enter_and_leave(p, key, normalize):
    Case(
        t=40, key=key, value=20, groups=1, p=p, normalize=normalize, chunk=32, initial=True, keep=True, dtype=F32,
        device=DEVICE,
    ).check()  # fmt: skip


def test_a_state_leaves_the_quadratic_form():
    Case(t=20, key=16, value=16, chunk=20, keep=True, dtype=F32, device=DEVICE).check()


@pytest.mark.parametrize("p", [2, 4])
def test_half_precision_matches_the_definition(p):
    Case(t=80, key=16 if p == 2 else 4, value=16, heads=1, p=p, chunk=64, dtype=F16, device=DEVICE).check()


def test_states_of_high_powers_keep_more_bits_than_bfloat16():
    case = Case(t=140, key=5, value=16, heads=1, p=4, chunk=128, initial=True, keep=True, device=DEVICE)
    gradients = case.errors()[1]
    assert gradients[-1] < 2e-3  # of the initial z; operands of bfloat16 round by 4e-3, those of tf32 by 5e-4


def test_large_half_precision_inputs_do_not_overflow():
    Case(t=20, key=16, value=16, p=4, size=100.0, chunk=20, dtype=F16, device=DEVICE).check()


def test_wide_values_are_cut_into_blocks():
    Case(t=10, key=16, value=130, heads=1, keep=True, chunk=10, dtype=F32, device=DEVICE).check()


@triton.jit
def _round_kernel(x, out, TYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(out + index, rounded(tl.load(x + index), TYPE, PRECISION))


@pytest.mark.parametrize(
    "kind, precision, bits", [(tl.bfloat16, "tf32", 7), (tl.float32, "tf32", 10), (tl.float32, "ieee", 23)]
)
def test_operands_are_rounded_to_their_bits(kind, precision, bits):
    special = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7F800000, -0x800000, 0, -0x80000000]).to(torch.int32)
    drawn = torch.randn(121, generator=torch.Generator().manual_seed(0)) * 1e3
    x = torch.cat([special.view(F32), drawn]).to(DEVICE)
    found = torch.empty_like(x)
    _round_kernel[(1,)](x, found, kind, precision, 128)
    assert found[:3].isnan().all()  # the sign that a carry would reach is kept out of it
    assert torch.equal(found[3:7], x[3:7])
    step = 2.0 ** (x[7:].abs().log2().floor() - bits)
    torch.testing.assert_close(found[7:], torch.round(x[7:] / step) * step, rtol=0, atol=0)


@pytest.mark.parametrize("p, key", [(1, 7), (2, 20), (3, 5), (4, 6)])
def test_tiles_hold_products_of_the_factors_and_come_back(p, key):
    layout = tile_layout(key, p)
    q, k = torch.randn(2, 1, 1, key, dtype=torch.float64).float()
    tiles = to_tiles(layout, expand(k, p)[..., None])
    torch.testing.assert_close(from_tiles(layout, tiles)[..., 0], expand(k, p))
    counts = torch.tensor([_count(layout, i) for i in range(layout.tiles)])
    repeats = counts.repeat_interleave(layout.expanded // layout.tiles)[None, None, :, None]
    score = (to_tiles(layout, expand(q, p)[..., None]) * tiles * repeats).sum()
    # The products cancel in the sum: float32 errors are relative to the score of parallel vectors.
    torch.testing.assert_close(score, (q @ k.mT).squeeze() ** p, rtol=0, atol=1e-5 * float(q.norm() * k.norm()) ** p)


def _count(layout, tile):
    """2 for a tile off the diagonal of a symmetric state."""
    b = int(((8 * tile + 1) ** 0.5 - 1) / 2)
    return 1 if not layout.symmetric or tile == b * (b + 3) // 2 else 2


def test_operators_keep_their_contract():
    q, k, v = (torch.randn(1, 40, heads, 16, device=DEVICE, requires_grad=True) for heads in (2, 1, 1))
    log_g = -torch.rand(1, 40, 1, device=DEVICE)
    arguments = (q, k, v, log_g, None, None, 2, 0.25, True, 1e-6, 32, True, True)
    torch.library.opcheck(
        torch.ops.icl_bench.power_forward.default, arguments, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize("part", [0, 1])
def test_a_gradient_of_one_part_of_the_state_is_that_of_plain_torch(part):
    """No gradient of y arrives then, nor of the other part, nor of what the operator keeps for itself."""
    q, k, v = (torch.randn(1, 40, heads, 16, device=DEVICE, requires_grad=True) for heads in (2, 1, 1))
    gradients = [
        torch.autograd.grad(power_attention_with_state(q, k, v, p=2, impl=impl)[1][part].square().sum(), (k,))
        for impl in ("triton", "chunked")
    ]
    for found, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.parametrize("chunk", [32, None])
def test_operators_go_through_compilation_without_a_break(chunk):
    q, k, v = (torch.randn(1, 40, heads, 16, device=DEVICE, requires_grad=True) for heads in (2, 1, 1))
    options = PowerOptions(2, 0.25, "sum", 1e-6, chunk)

    def run(q, k, v):
        return power_attention_triton(PowerInputs(q, k, v, None, None), options, keep_state=False)[0].sum()

    exact = torch.autograd.grad(run(q, k, v), (q, k, v))
    found = torch.autograd.grad(torch.compile(run, backend="aot_eager", fullgraph=True)(q, k, v), (q, k, v))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b)


def test_results_repeat_bit_for_bit():
    inputs = Case(t=70, key=16, value=16, chunk=32, keep=True, dtype=F32, device=DEVICE)
    for first, second in zip(inputs.triton(), inputs.triton(), strict=True):
        assert torch.equal(first, second)


def test_measured_chunk_is_the_sequence_while_it_is_short():
    assert measured_chunk(256, 64, 2) == 256
    assert measured_chunk(65_536, 64, 2) < 65_536
    lengths = [max(t for t in range(256, 65_536, 256) if measured_chunk(t, k, 2) == t) for k in (16, 32, 64, 128)]
    assert lengths == sorted(lengths)  # a larger state pays later
    assert measured_chunk(65_536, 128, 4) == 65_536  # no state is affordable


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_wide_keys_of_linear_attention_are_cut_into_blocks(gated):
    Case(
        t=20, key=133, value=8, heads=4, groups=2, p=1, normalize="none", gated=gated, chunk=16, initial=True,
        keep=True, dtype=F32, device=DEVICE,
    ).check()  # fmt: skip


@pytest.mark.parametrize("width, dtype", [(129, F32), (16, torch.float64)])
def test_what_cannot_run_is_refused(width, dtype):
    x = torch.zeros(1, 4, 1, width, dtype=dtype, device=DEVICE)
    with pytest.raises(KernelUnavailableError, match="impl='triton' needs"):
        power_attention_triton(PowerInputs(x, x, x, None, None), PowerOptions(2, 1.0, "sum", 1e-6, None))


@pytest.mark.parametrize("p, normalize", [(1, "sum"), (2, "sum"), (3, "none")])
@pytest.mark.parametrize("heads, groups", [(2, 1), (1, 2)])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_steps_are_the_recurrence(p, normalize, gated, heads, groups):
    case = Case(
        t=3, key=9, value=20, heads=heads, groups=groups, key_heads=1, p=p, normalize=normalize, gated=gated,
        initial=True, keep=True, dtype=F32, device=DEVICE,
    )  # fmt: skip
    q, k, v, log_g, s, z = case.inputs
    exact = case.exact()
    for t in range(3):
        gate = None if log_g is None else log_g[:, t]
        y, s, new_z = power_step_triton(q[:, t], k[:, t], v[:, t], gate, s, z, p, case.scale, 1e-6)
        z = None if z is None else new_z
        torch.testing.assert_close(y, exact[0][:, t].float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(s, exact[1].float(), rtol=1e-5, atol=1e-5)


def test_the_door_takes_the_step_and_refuses_gradients():
    # Positive, so that the one weight is not near zero, where dividing by it magnifies the rounding of both forms.
    q, k, v = (torch.rand(1, heads, width, device=DEVICE) for heads, width in ((2, 9), (1, 9), (1, 4)))
    state = initial_power_state(1, 1, 9, 4, p=2, normalize="sum", device=DEVICE, dtype=F32)
    plain, new = power_step(q, k, v, None, state, p=2, impl="chunked")
    found, after = power_step(q, k, v, None, state, p=2, impl="triton")
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(after, new)
    with pytest.raises(KernelUnavailableError, match="the Triton step has no gradient"):
        power_step(q.requires_grad_(), k, v, None, state, p=2, impl="triton")


@pytest.mark.parametrize(
    "p, normalize, key, heads, groups, key_heads",
    [
        (1, "none", 16, 1, 4, 1),
        (2, "sum", 16, 1, 2, 1),
        (4, "sum", 4, 4, 2, 1),
        pytest.param(2, "sum", 16, 2, 4, 2, marks=pytest.mark.slow),
        pytest.param(3, "none", 4, 2, 4, 2, marks=pytest.mark.slow),
    ],
)
def test_heads_share_keys_and_queries(p, normalize, key, heads, groups, key_heads):
    Case(
        t=37, heads=heads, groups=groups, key_heads=key_heads, key=key, value=16, p=p, normalize=normalize, chunk=16,
        initial=True, keep=True, dtype=F32, device=DEVICE,
    ).check()  # fmt: skip


@pytest.mark.parametrize("p", [2, 3])
def test_lower_degrees_are_read_from_the_same_kernels(p):
    """Degree 0 of p = 2 has keys of one channel."""
    given = Case(t=20, heads=1, groups=2, key_heads=1, key=5, value=16, normalize="none", dtype=F32, device=DEVICE)
    q, k, v, log_g, _, _ = given.inputs
    lower = torch.full((2, 1), -0.3, device=DEVICE)
    found, _ = spectrum_attention(PowerInputs(q, k, v, log_g, None), lower, p=p, impl="triton", chunk=20)
    exact = PowerInputs(q.double(), k.double(), v.double(), log_g.double(), None)
    wanted, _ = spectrum_attention(exact, lower.double(), p=p, impl="quadratic")
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize(
    "p, t, heads, groups, key_heads, gated, by_token, chunk, short",
    [
        (2, 20, 2, 2, 2, True, True, None, True),
        (2, 70, 1, 2, 1, False, False, None, True),
        (3, 70, 1, 2, 1, True, False, None, True),
        (4, 20, 2, 2, 2, True, True, None, True),
        (5, 40, 1, 1, 1, False, False, None, True),
        (6, 20, 1, 1, 1, True, True, None, True),
        (2, 70, 1, 2, 1, True, False, None, False),
        (3, 70, 2, 1, 1, True, False, None, False),
        (4, 20, 2, 2, 2, False, True, None, False),
        (2, 150, 1, 2, 1, True, False, 64, False),
        (2, 150, 2, 2, 1, False, False, 64, False),
        pytest.param(2, table.SHORT_CHUNK + 14, 2, 1, 1, True, False, None, False, marks=pytest.mark.slow),
        pytest.param(3, table.SHORT_CHUNK + 14, 1, 1, 1, True, False, None, False, marks=pytest.mark.slow),
        pytest.param(4, table.SHORT_CHUNK + 14, 2, 1, 1, False, True, None, False, marks=pytest.mark.slow),
    ],
)
def test_one_pass_makes_all_degrees_and_their_gradients(
    p, t, heads, groups, key_heads, gated, by_token, chunk, short, monkeypatch
):
    """The first sequence has a key of zeros, and without weights by token each sequence has its own."""
    monkeypatch.setattr(short_launch, "ARITHMETIC", {"ieee"} if short else set())
    case = Case(
        t=t, heads=heads, groups=groups, key_heads=key_heads, key=5, value=16, p=p, normalize="none", gated=gated,
        dtype=F32, device=DEVICE,
    )  # fmt: skip
    q, k, v, log_g, _, _ = case.inputs
    k = k.detach().clone()
    k[0, 3] = 0
    generator = torch.Generator().manual_seed(3)
    lower = torch.randn(len(q), t if by_token else 1, max(heads, groups), p // 2, generator=generator).to(DEVICE)
    dy = torch.randn(len(q), t, max(heads, groups), 16, generator=generator).to(DEVICE)
    assert fits_one_pass(PowerInputs(q, k, v, log_g, None), lower, p, chunk)

    def results(kind, impl):
        given = [None if x is None else x.detach().to(kind).requires_grad_() for x in (q, k, v, log_g, lower)]
        inputs = PowerInputs(*given[:4], None)
        y, _ = spectrum_attention(inputs, given[4], p=p, impl=impl, keep_state=False, chunk=chunk)
        leaves = [x for x in given if x is not None]
        return [y, *torch.autograd.grad(y, leaves, dy.to(kind))]

    for found, wanted in zip(results(F32, "triton"), results(torch.float64, "quadratic"), strict=True):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("gated", [False, True])
def test_sums_over_the_blocks_before_and_after(gated):
    """More blocks than one step of the pass takes, in two chunks of which the second is shorter and ends in a block."""
    t, chunk, generator = 1000, 640, torch.Generator().manual_seed(5)
    q, k, v, dy = (torch.randn(1, t, heads, 16, generator=generator).to(DEVICE) for heads in (2, 1, 1, 2))
    log_g = -0.05 * torch.rand(1, t, 1, generator=generator).to(DEVICE)
    given = make_problem(q, k, v, 2, 1.0, False, 0.0, chunk, False)._replace(rank_one=True)
    gates = cumulative_gates(log_g, chunk)[0] if gated else None
    norms, query_norms, before = norms_and_sums(given, q, k, v, gates)
    weights, traces = torch.ones(1, 1, 2, 1, device=DEVICE), torch.zeros(1, given.chunks, 16, device=DEVICE)
    nothing = LowerTerms(weights, norms, query_norms, before, traces)
    after = query_reach(given, dy, gates, nothing).sums

    rows = given.lower_rows
    c = torch.zeros(t, device=DEVICE) if gates is None else gates[0, 0].double()
    keys = k[0, :, 0].double().square().sum(1)[:, None] * v[0, :, 0].double()
    queries = (q[0].double().square().sum(2)[..., None] * dy[0].double()).sum(1)
    for block in range(before.shape[2]):
        first, last = block * rows, min(t, block * rows + rows) - 1
        start = first // chunk * chunk
        earlier, later = slice(start, first), slice(last + 1, min(t, start + chunk))
        wanted = ((c[first] - c[earlier]).exp2()[:, None] * keys[earlier]).sum(0)
        assert (before[0, 0, block] - wanted).norm() <= 1e-5 * (1 + wanted.norm())
        wanted = ((c[later] - c[last]).exp2()[:, None] * queries[later]).sum(0)
        assert (after[0, 0, block] - wanted).norm() <= 1e-5 * (1 + wanted.norm())


def test_sequences_of_a_member_share_its_weights():
    case = Case(
        t=20, n=4, heads=2, groups=2, key_heads=2, key=5, value=16, p=2, normalize="none", dtype=F32, device=DEVICE
    )
    q, k, v, log_g, _, _ = case.inputs
    lower = torch.randn(2, 1, 2, 1, generator=torch.Generator().manual_seed(3)).to(DEVICE)

    def results(weights, impl):
        leaf = weights.detach().requires_grad_()
        y, _ = spectrum_attention(PowerInputs(q, k, v, log_g, None), leaf, p=2, impl=impl, keep_state=False)
        return y, torch.autograd.grad(y.square().sum(), leaf)[0]

    alone, each = results(lower.repeat_interleave(2, dim=0), "quadratic")
    for impl in ("quadratic", "triton"):
        found, gradient = results(lower, impl)
        assert (found - alone).norm() <= 1e-5 * alone.norm()
        wanted = each.unflatten(0, (2, 2)).sum(1)
        assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("t", [20, 40], ids="T{}".format)
def test_gradients_of_heads_side_by_side_are_made_in_one_tensor(t):
    assert_gradients_lie_side_by_side(lambda *parts: power_attention(*parts, p=2, impl="triton", chunk=32), t)
