"""Products of heads against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.products import blend, gated_product, scale_heads
from tests.kernels.numerics import assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


@TYPES
@pytest.mark.parametrize("added", [True, False], ids=["added", "alone"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 4, 12), (130, 3, 5), (2, 64)], ids=str)
def test_scaled_heads(shape, added, dtype):
    inputs = [draw(*shape, dtype=dtype), draw(*shape[:-1], seed=1)] + [draw(*shape, dtype=dtype, seed=2)] * added
    assert_forms_match_reference(scale_heads, inputs, walk=3 * shape[-1] ** 0.5)


@TYPES
@pytest.mark.parametrize("activation", ["silu", "sigmoid", "none"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 12), (5, 260)], ids=str)
def test_gated_product(shape, activation, dtype):
    inputs = [draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)]
    run = lambda x, gate, impl: gated_product(x, gate, activation, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, inputs, walk=10.0)


@TYPES
@pytest.mark.parametrize("shape", [(2, 3, 7, 12), (5, 260)], ids=str)
def test_blend(shape, dtype):
    """One of both tensors is columns of a wider one."""
    width = shape[-1]
    inputs = [draw(*shape[:-1], 2 * width, dtype=dtype), draw(*shape, dtype=dtype, seed=1)]
    inputs += [draw(*shape, dtype=dtype, seed=2), draw(shape[0], width, seed=3)]
    run = lambda wide, y, gate, bias, impl: blend(wide[..., width:], y, gate, bias, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, inputs, walk=10.0)


@pytest.mark.parametrize("place", [slice(0, 6), slice(6, 12)], ids=str)
def test_columns_of_a_wider_tensor(place):
    """Read rows that lie apart, and tokens in another order, which are copied."""
    wide = draw(2, 3, 5, 12)

    def scaled(joint, scale, impl):
        return scale_heads(joint[..., place].unflatten(-1, (2, 3)), scale, impl=impl)

    def gated(joint, x, impl):
        return gated_product(x, joint.transpose(0, 1)[..., place], "silu", impl=impl)

    assert_forms_match_reference(scaled, [wide, draw(2, 3, 5, 2, seed=1)], walk=6.0)
    assert_forms_match_reference(lambda joint, x, impl: gated_product(x, joint[..., place], "silu", impl=impl),
                                 [wide, draw(2, 3, 5, 6, seed=1)], walk=6.0)  # fmt: skip
    assert_forms_match_reference(gated, [wide, draw(3, 2, 5, 6, seed=1)], walk=6.0)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="scale must be"):
        scale_heads(draw(2, 3, 4), draw(2, 4))
    with pytest.raises(ArgumentError, match="added must be"):
        scale_heads(draw(2, 3, 4), draw(2, 3), draw(2, 4))
    with pytest.raises(ArgumentError, match="gate must be"):
        gated_product(draw(2, 3, 4), draw(2, 3), "silu")
    with pytest.raises(ArgumentError, match="y must be"):
        blend(draw(2, 3, 4), draw(2, 3), draw(2, 3, 4), draw(2, 4))
