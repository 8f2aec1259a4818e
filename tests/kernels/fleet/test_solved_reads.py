"""Reads by solved queries against their definition, direct solutions in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.fleet.solved_reads import solve, solved_reads
from tests.kernels.numerics import assert_within_tf32, draw


def operands(time: int, heads: int, widths: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    key, value = widths
    q, k = (functional.normalize(draw(2, 2, time, heads, key, seed=i), dim=-1).to(dtype) for i in range(2))
    v, log_g = draw(2, 2, time, heads, value, dtype=dtype, seed=2), -0.2 * draw(2, 2, time, heads, seed=3).abs()
    return [q, k, v, log_g, draw(2, 2, time, heads, seed=4).sigmoid(), 0.5 + draw(2, heads, key, seed=5).abs()]


def largest_condition(k: Tensor, log_g: Tensor, rate: Tensor, ridge: Tensor) -> float:
    """Bound the condition numbers of all systems by sums of rates, which bound the largest eigenvalues."""
    total, most = torch.zeros_like(rate[:, :, 0]), 0.0
    for t in range(k.shape[2]):
        total = log_g[:, :, t].exp() * total + rate[:, :, t] * k[:, :, t].double().square().sum(-1)
        most = max(most, float(total.max()))
    return (most + float(ridge.max())) / float(ridge.min())


@pytest.mark.parametrize(
    ("time", "heads", "widths"), [(37, 2, (6, 5)), (2, 1, (16, 16)), (48, 1, (20, 33)), (17, 1, (64, 40))], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_solved_reads(time, heads, widths, dtype):
    given = operands(time, heads, widths, dtype)
    # A residual of 2^-11 beside bfloat16 errs, for condition 4, as a product in tf32 does, of which there are four.
    products = 4 + largest_condition(given[1], *given[3:]) / 4
    assert_within_tf32(lambda *x, impl: solved_reads(*x, impl=impl), given, products)


def test_one_token_reads_what_it_wrote():
    q, k, v, log_g, rate, ridge = operands(1, 2, (16, 16), torch.bfloat16)
    y = solved_reads(q, k, v, log_g, rate, ridge, impl="triton").double()
    exact = solved_reads(*(x.double() for x in (q, k, v, log_g, rate, ridge)), impl="reference")
    bound = 2.0**-8 + 2.0**-9 * (4 + largest_condition(k, log_g, rate, ridge) / 4)
    assert float((y - exact).norm()) <= bound * float(exact.norm())


def test_repeated_keys_and_narrow_precision_reach_the_precision_of_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    unit = functional.normalize(torch.randn(3, 64, generator=generator), dim=-1)
    matrix = torch.einsum("nk,nl->kl", unit, unit) * 100 + 0.25 * torch.eye(64)  # three keys, written 100 times each
    target = torch.randn(5, 64, generator=generator)
    got = solve(lambda p: p @ matrix, target)
    expected = torch.linalg.solve(matrix.double(), target.double().T).T
    # 8 roundings of float32 times the condition number, 400
    assert float((got - expected).norm() / expected.norm()) < 8 * 400 * torch.finfo(torch.float32).eps


def test_shapes_are_checked():
    given = operands(5, 2, (4, 3), torch.float32)
    for place, name in ((0, "q"), (3, "log_g"), (4, "rate"), (5, "ridge")):
        with pytest.raises(ArgumentError, match=f"{name} must be"):
            solved_reads(*given[:place], given[place][:, 1:], *given[place + 1 :])


def test_kernels_refuse_what_they_do_not_take():
    with pytest.raises(KernelUnavailableError, match=r"half precision .* got torch.float32"):
        solved_reads(*operands(2, 1, (4, 4), torch.float32), impl="triton")
    with pytest.raises(KernelUnavailableError, match=r"widths of 64; got .* K=65, V=4"):
        solved_reads(*operands(2, 1, (65, 4), torch.float16), impl="triton")
    *tokens, log_g, rate, ridge = operands(2, 1, (4, 4), torch.float16)
    with pytest.raises(KernelUnavailableError, match=r"got .* torch.float32, torch.float64, torch.float32"):
        solved_reads(*tokens, log_g, rate.double(), ridge, impl="triton")
