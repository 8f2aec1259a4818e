"""The long convolution in operators of torch and its step against the definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.long_convolution.api import long_convolution, long_convolution_step
from icl_bench.kernels.long_convolution.fourier import fast_length
from tests.kernels.long_convolution.convolution_oracle import assert_close_to_exact, convolution_case
from tests.kernels.numerics import assert_equal_in_float64

F64 = torch.float64
PLAIN = pytest.mark.parametrize("impl", ["toeplitz", "fft"])
LENGTHS = pytest.mark.parametrize("t", [1, 7, 16, 65, 100], ids="T{}".format)


@LENGTHS
def test_the_definition_is_the_sum_over_lags(t):
    case = convolution_case(t, dtype=F64)
    filters = case["filters"].repeat_interleave(2, dim=0)
    wanted = torch.zeros_like(case["u"])
    for lag in range(t):
        wanted[:, lag:] += filters[:, None, :, lag] * case["u"][:, : t - lag]
    assert_equal_in_float64("y", long_convolution(**case, impl="reference"), wanted)


@LENGTHS
@pytest.mark.parametrize("past, extra", [(0, 0), (5, 3)], ids=["whole", "cache"])
@PLAIN
def test_plain_forms_give_the_definition_and_its_gradients(t, past, extra, impl):
    assert_close_to_exact(convolution_case(t, past=past, extra=extra, dtype=F64), impl, 1e-12)
    assert_close_to_exact(convolution_case(t, past=past, extra=extra), impl, 1e-5)


@PLAIN
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_the_outputs_alone(dtype, impl):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert_close_to_exact(convolution_case(40, past=3, dtype=dtype), impl, torch.finfo(dtype).eps / 2)


def test_lengths_of_transforms_are_quick_and_long_enough():
    lengths = [fast_length(least) for least in range(1, 200)]
    assert all(least <= length <= 1.25 * least for least, length in enumerate(lengths, 1))
    assert lengths[:8] == [1, 2, 3, 4, 5, 6, 8, 8] and fast_length(8193) == 8640


def test_later_tokens_change_no_bit_of_earlier_outputs():
    u, filters = convolution_case(50).values()
    before = long_convolution(u, filters)
    for place in (1, 20, 49):
        changed = u.clone()
        changed[:, place:] -= 1.0
        assert torch.equal(long_convolution(changed, filters)[:, :place], before[:, :place])


@pytest.mark.parametrize("impl", ["reference", "toeplitz", "fft"])
def test_halves_through_the_cache_equal_the_whole(impl):
    case = convolution_case(20, dtype=F64)
    whole = long_convolution(**case, impl=impl)
    first, second = case["u"].split([7, 13], dim=1)
    parts = [
        long_convolution(first, case["filters"], impl=impl),
        long_convolution(second, case["filters"], cache=first, impl=impl),
    ]
    assert_equal_in_float64("halves", torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("dtype", [F64, torch.bfloat16], ids=str)
def test_steps_equal_the_convolution(dtype):
    case = convolution_case(12, dtype=dtype)
    cache, outputs = case["u"][:, :0], []
    for t in range(12):
        y, cache = long_convolution_step(case["u"][:, t], case["filters"], cache)
        outputs.append(y)
    assert torch.equal(cache, case["u"])
    error = (torch.stack(outputs, 1) - long_convolution(**case, impl="reference")).double().norm()
    assert error <= (1e-12 if dtype == F64 else 0.004) * case["u"].double().norm()


def test_a_nan_spoils_no_earlier_output_of_the_step():
    case = convolution_case(6)
    for place in (0, 3):
        u = case["u"].clone()
        u[:, place] = torch.nan
        y, _ = long_convolution_step(u[:, 2], case["filters"], u[:, :2])
        assert y.isnan().all() == (place == 0) and y.isnan().any() == (place == 0)


def test_gradients_agree_with_finite_differences():
    case = convolution_case(4, batch=1, channels=2, past=2, dtype=F64)
    leaves = [x.requires_grad_() for x in case.values()]
    assert torch.autograd.gradcheck(lambda u, filters, cache: long_convolution(u, filters, cache=cache), leaves)


@pytest.mark.parametrize(
    "name, make, message",
    [
        ("u", lambda x: x[0], r"u must be \[N, T, C\]"),
        ("u", lambda x: x[:3], "N must be a multiple of M"),
        ("u", lambda x: x[..., :2], "same C"),
        ("filters", lambda x: x.bfloat16(), "filters float32"),
        ("filters", lambda x: x[..., :8], "reach over all 9 tokens"),
        ("cache", lambda x: x[:1], r"cache must be \[N, P, C\]"),
        ("cache", lambda x: x.half(), "the type of u"),
        ("cache", lambda x: x.to("meta"), "on one device"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name, make, message):
    case = convolution_case(6, past=3)
    with pytest.raises(ArgumentError, match=message):
        long_convolution(**case | {name: make(case[name])})


def test_an_unknown_form_is_refused():
    with pytest.raises(ArgumentError, match="impl must be one of"):
        long_convolution(**convolution_case(4), impl="fast")


def test_compiles_without_a_break():
    case = convolution_case(9)
    compiled = torch.compile(lambda **tensors: long_convolution(**tensors), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**case), long_convolution(**case))
