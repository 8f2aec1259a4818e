"""Random bits in Triton are those of torch's operators, bit for bit."""

import pytest
import torch

from icl_bench import random
from icl_bench.kernels.fleet.random_bits import (
    draw_bits,
    draw_distinct,
    draw_integers,
    draw_uniform,
    stable_order,
)
from tests.kernels.numerics import DEVICE

KEYS = random.row_keys(torch.tensor([random.stream("test", name) for name in range(3)])[:, None], torch.arange(7))
PURPOSE = random.stream("purpose", "x")


@pytest.mark.parametrize("count", [1, 5, 100])
@pytest.mark.parametrize(
    "draw",
    [
        draw_bits,
        lambda keys, purpose, count, impl: draw_integers(keys, purpose, count, 1, impl=impl),
        lambda keys, purpose, count, impl: draw_integers(keys, purpose, count, 8192, impl=impl),
        lambda keys, purpose, count, impl: draw_integers(keys, purpose, count, 2**31 - 1, impl=impl),
        draw_uniform,
    ],
    ids=["bits", "integers-1", "integers", "integers-most", "uniform"],
)
def test_draws_are_the_same(draw, count):
    plain = draw(KEYS, PURPOSE, count, impl="torch")
    fused = draw(KEYS.to(DEVICE), PURPOSE, count, impl="triton").cpu()
    assert fused.dtype == plain.dtype and torch.equal(fused, plain)


@pytest.mark.parametrize(("count", "high"), [(64, 4095), (64, 4096), (512, 512), (40, 521), (9, 100_003)])
def test_ciphers_are_the_same(count, high):
    # 521 and 100,003 are primes: their ciphers walk.
    plain = draw_distinct(KEYS, PURPOSE, count, high, impl="torch")
    assert torch.equal(draw_distinct(KEYS.to(DEVICE), PURPOSE, count, high, impl="triton").cpu(), plain)


@pytest.mark.parametrize("shape", [(3, 1), (2, 70, 28), (5, 256), (9, 130)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=str)
def test_orders_are_the_same(shape, dtype):
    values = torch.randint(-5, 40, shape, generator=torch.Generator().manual_seed(0)).to(dtype)  # with ties
    if dtype == torch.int64:
        values[..., 0] = -(2**63)
    plain = stable_order(values, impl="torch")
    assert torch.equal(stable_order(values.to(DEVICE), impl="triton").cpu(), plain)


def test_no_keys_draw_no_numbers():
    no_keys = KEYS.to(DEVICE)[:, :0]
    assert draw_integers(no_keys, PURPOSE, 4, 10, impl="triton").shape == (3, 0, 4)
    assert draw_distinct(no_keys, PURPOSE, 4, 1000, impl="triton").shape == (3, 0, 4)
    assert stable_order(draw_bits(no_keys, PURPOSE, 4, impl="triton"), impl="triton").shape == (3, 0, 4)
