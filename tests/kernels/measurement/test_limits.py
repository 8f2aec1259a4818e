"""Shares of the limits of machines."""

import pytest
import torch

from icl_bench.kernels.measurement.limits import Work, limit_share
from icl_bench.kernels.measurement.measure import moved_bytes


def test_the_resource_that_takes_longest_binds():
    # 4.8 GB at 4.8 TB/s are 1 ms of the 2 ms taken, and .0989e12 operations at 989e12 a second a tenth of a millisecond
    share, resource = limit_share("NVIDIA H200", 2.0, Work(products=9.89e10), 4_800_000_000)
    assert (share, resource) == (pytest.approx(0.5), "bytes")
    assert limit_share("NVIDIA H200", 2.0, Work(exponentials=8.4e9), 0) == (pytest.approx(1.0), "exponentials")
    assert limit_share("a machine", 2.0, Work(), 1) is None


def test_a_backward_pass_is_two_products_and_moves_inputs_three_times():
    assert Work(1.0, 1.0, 1.0).with_backward() == (3.0, 3.0, 2.0)
    x, y = torch.zeros(10, dtype=torch.float16), torch.zeros(5)
    assert moved_bytes({"x": x}, y) == (20 + 20, 3 * 20 + 2 * 20)
