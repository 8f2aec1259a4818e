"""The Triton kernels of the delta rule in Triton's interpreter, at small sizes, against float64.

bfloat16 is left to the GPU tests: the interpreter's products of it are wrong.
"""

import pytest
import torch

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.delta.api import delta_rule, delta_step
from icl_bench.kernels.delta.triton import launch
from icl_bench.kernels.delta.triton.ops import delta_triton
from icl_bench.kernels.delta.triton.table import CHUNK, segment_length
from tests.kernels.delta.delta_oracle import VARIANTS, check, make_problem, results
from tests.kernels.numerics import DEVICE, poison

F32 = torch.float32
QUICK = {
    "delta-net", "gated-delta-net", "kda", "rwkv-7", "comba", "unbounded-untied", "channel-delta-product", "rwkv-6",
    "gsa",
}  # fmt: skip
"""Variants that together run every branch of the kernels; the GPU tests run them all."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.mark.parametrize("name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in VARIANTS])
def test_variants_match_the_definition(name):
    check(delta_triton, *make_problem(VARIANTS[name], t=21, groups=2, key=8, value=6, dtype=F32, device=DEVICE))


@pytest.mark.parametrize("t", [1, 16, 17])
def test_lengths(t):
    check(delta_triton, *make_problem(VARIANTS["gated-delta-net"], t=t, groups=1, dtype=F32, device=DEVICE))


SEGMENTED = {"delta-net", "kda", "untied-heads", "channel-delta-product", "rwkv-6"}
"""Variants that together run every branch of the kernels of segments."""


@pytest.mark.parametrize("name", [x if x in SEGMENTED else pytest.param(x, marks=pytest.mark.slow) for x in VARIANTS])
def test_segments_in_parallel_match_the_definition(name, monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: 2 * CHUNK)
    t = 70 // VARIANTS[name].substeps
    check(delta_triton, *make_problem(VARIANTS[name], t=t, groups=1, key=8, value=6, dtype=F32, device=DEVICE))


@pytest.mark.slow
def test_segments_of_wide_values_without_a_first_state(monkeypatch):
    monkeypatch.setattr(launch, "segment_length", lambda *sizes: CHUNK)
    problem = make_problem(VARIANTS["gated-delta-net"], t=20, groups=1, key=100, value=50, dtype=F32, initial=False,
                           device=DEVICE)  # fmt: skip
    check(delta_triton, *problem)


@pytest.mark.parametrize("tokens", [1, 16, 255, 1024, 4097, 65_536])
@pytest.mark.parametrize("heads", [1, 12, 100, 32_768])
def test_segments_are_whole_chunks_and_fill_the_device_at_most(tokens, heads):
    length = segment_length(tokens, heads, 64, 64)
    segments = -(-tokens // length)
    assert segments == 1 or (length % CHUNK == 0 and 2 * heads * segments <= 1056)
    assert (segments > 1) == (tokens >= 1024 and heads <= 100)


@pytest.mark.parametrize("keys", ["same", "few", "cosine"])
def test_repeated_keys(keys):
    inputs, options = make_problem(VARIANTS["delta-net"], t=20, groups=1, keys=keys, dtype=F32, device=DEVICE)
    check(delta_triton, inputs._replace(beta=torch.full_like(inputs.beta, 2.0)), options)


@pytest.mark.parametrize("decay", [0.0, -5.0, -1000.0])
@pytest.mark.parametrize("name", ["gated-delta-net", "kda", "unbounded-kda", "gsa"])
def test_gates_however_strong(name, decay):
    check(delta_triton, *make_problem(VARIANTS[name], t=16, groups=1, decay=decay, dtype=F32, device=DEVICE))


@pytest.mark.parametrize("name", ["hgrn2", "gsa"])
def test_heads_with_mild_decays_are_as_without_steep_ones_beside_them(name):
    inputs, options = make_problem(VARIANTS[name], t=20, heads=2, groups=2, decay=-3.9, dtype=F32, device=DEVICE)
    field = "log_value_decay" if VARIANTS[name].value_gate else "log_decay"
    steep = getattr(inputs, field).clone()
    steep[:, 7, 1] = -90.0
    mixed = inputs._replace(**{field: steep})
    check(delta_triton, mixed, options)
    mild, both = (results(lambda x: delta_rule(x, options, "triton"), given)["y"] for given in (inputs, mixed))
    assert torch.equal(mild[:, :, 0], both[:, :, 0])


def test_untied_decays_at_their_bound():
    inputs, options = make_problem(VARIANTS["rwkv-7"], t=20, groups=1, dtype=F32, device=DEVICE)
    decays = torch.full_like(inputs.log_decay, launch.UNTIED_BOUND)
    check(delta_triton, inputs._replace(log_decay=decays), options._replace(least_log_decay=launch.UNTIED_BOUND))


def test_a_rate_of_zero_has_a_gradient():
    inputs, options = make_problem(VARIANTS["gated-delta-net"], t=20, groups=1, dtype=F32, device=DEVICE)
    rates = torch.where(torch.arange(20, device=DEVICE) % 3 == 0, 0.0, inputs.beta[0, :, 0])
    check(delta_triton, inputs._replace(beta=rates[None, :, None]), options)


def test_wide_values_are_split_over_programs():
    check(delta_triton, *make_problem(VARIANTS["kda"], t=20, key=100, value=50, dtype=F32, device=DEVICE))


def test_half_precision():
    check(delta_triton, *make_problem(VARIANTS["gated-delta-net"], t=20, dtype=torch.float16, device=DEVICE))


def test_decays_of_channels_in_the_type_of_the_vectors():
    inputs, options = make_problem(VARIANTS["gla"], t=20, dtype=torch.float16, device=DEVICE)
    inputs = inputs._replace(log_decay=inputs.log_decay.half())
    check(delta_triton, inputs, options)
    assert results(lambda x: delta_rule(x, options, "triton"), inputs)["dlog_decay"].dtype == torch.float16


def test_two_runs_are_equal_bit_for_bit():
    inputs, options = make_problem(VARIANTS["kda"], n=2, t=20, dtype=F32, device=DEVICE)
    first, second = (results(lambda x: delta_rule(x, options, "triton"), inputs) for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_a_step_is_the_plain_step():
    inputs, options = make_problem(VARIANTS["gated-delta-product"], t=1, heads=2, dtype=F32, device=DEVICE)
    for found, plain in zip(
        delta_step(inputs, options, "triton"), delta_step(inputs, options, "chunked"), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_strided_views_are_read_in_place():
    inputs, options = make_problem(VARIANTS["delta-net"], n=2, t=20, heads=2, dtype=F32, device=DEVICE)
    strided = inputs._replace(
        q=inputs.q.transpose(1, 2).contiguous().transpose(1, 2), v=torch.cat([inputs.v, inputs.v], dim=3)[..., :6],
        beta=inputs.beta.transpose(1, 2).contiguous().transpose(1, 2),
    )  # fmt: skip
    for plain, view in zip(
        results(lambda x: delta_rule(x, options, "triton"), inputs).values(),
        [*delta_rule(strided, options, "triton")], strict=False,
    ):  # fmt: skip
        assert torch.equal(plain, view)


def test_what_the_kernels_do_not_take_is_refused():
    inputs, options = make_problem(VARIANTS["delta-net"], device=DEVICE)
    with pytest.raises(KernelUnavailableError, match=r"takes float32, bfloat16 and float16; got torch\.float64"):
        delta_rule(inputs, options, "triton")
    inputs, options = make_problem(VARIANTS["delta-net"], key=129, dtype=F32, device=DEVICE)
    with pytest.raises(KernelUnavailableError, match=r"key widths up to 128 .* got K=129, V=6"):
        delta_rule(inputs, options, "triton")
