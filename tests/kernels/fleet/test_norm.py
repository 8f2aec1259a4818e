"""RMS norms against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.norm import add_paired_norm, add_rms_norm, rms_norm
from tests.kernels.numerics import assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


@TYPES
@pytest.mark.parametrize("shape", [(2, 3, 5, 12), (1, 1, 1, 1), (2, 70, 2, 64), (1, 3, 130)], ids=str)
def test_norm(shape, dtype):
    x, weight = draw(*shape, dtype=dtype), draw(shape[0], shape[-1], seed=1)
    assert_forms_match_reference(rms_norm, [x, weight], walk=(x.numel() / x.shape[-1]) ** 0.5)


@TYPES
def test_norm_after_a_sum(dtype):
    x, y = draw(2, 3, 11, 20, dtype=dtype), draw(2, 3, 11, 20, dtype=dtype, seed=1)
    assert_forms_match_reference(add_rms_norm, [x, y, draw(2, 20, seed=2)], walk=6.0)


@TYPES
def test_norm_and_its_input(dtype):
    inputs = [draw(2, 3, 11, 20, dtype=dtype), draw(2, 20, seed=2)]
    assert_forms_match_reference(lambda x, weight, impl: add_rms_norm(x, None, weight, impl=impl), inputs, walk=6.0)


@TYPES
@pytest.mark.parametrize("length", [1, 11])
def test_norm_beside_the_token_before(length, dtype):
    x, y = draw(2, 3, length, 20, dtype=dtype), draw(2, 3, length, 20, dtype=dtype, seed=1)
    assert_forms_match_reference(add_paired_norm, [x, y, draw(2, 20, seed=2)], walk=12.0)
    inputs = [x, draw(2, 20, seed=2)]
    assert_forms_match_reference(lambda x, weight, impl: add_paired_norm(x, None, weight, impl=impl), inputs, walk=12.0)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="weight must be"):
        rms_norm(draw(2, 3, 4), draw(2, 3))
    with pytest.raises(ArgumentError, match="y must be"):
        add_rms_norm(draw(2, 3, 4), draw(2, 3, 5), draw(2, 4))
    with pytest.raises(ArgumentError, match="x must be"):
        add_paired_norm(draw(2, 3, 4), None, draw(2, 4))
    with pytest.raises(ArgumentError, match="y must be"):
        add_paired_norm(draw(2, 3, 4, 5), draw(2, 3, 4), draw(2, 5))
