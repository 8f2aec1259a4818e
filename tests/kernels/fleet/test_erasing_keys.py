"""Keys of RWKV-7 against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.erasing_keys import erasing_keys
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7, 2, 12), (1, 2, 60, 1, 32)], ids=str)
def test_erasing_keys(shape, dtype):
    """Keys are columns of a wider tensor, as in the mixer, and at least as long as normal numbers times 1/2 are."""
    members, heads, width = shape[0], *shape[-2:]
    joint = draw(*shape[:-2], heads * width + 4, dtype=dtype)
    inputs = [joint, draw(*shape, dtype=dtype, seed=1)]
    inputs += [draw(members, heads, width, seed=4)]
    inputs += [draw(members, heads, width, seed=2 + i).abs() + 0.5 for i in range(2)]

    def run(wide, rate, shift, erasing, weakening, impl):
        k = wide[..., 4:].unflatten(-1, (heads, width))
        return erasing_keys(k, rate, shift, erasing, weakening, impl=impl)

    rows = rows_of(shape)
    assert_forms_match_reference(run, inputs, walk=6 * rows**0.5)


def rows_of(shape):
    """Return the number of rows whose gradients a parameter adds up."""
    return int(torch.tensor(shape[1:-2]).prod())


def test_a_key_of_zeros_erases_nothing():
    k = torch.zeros(1, 2, 1, 4, device=DEVICE, requires_grad=True)
    ones = torch.ones(1, 1, 4, device=DEVICE)
    for impl in ("torch", "triton"):
        written, read, erase = erasing_keys(k, torch.zeros_like(k), 0 * ones, ones, ones, impl=impl)
        assert not any(part.any() for part in (written, read, erase))
        (slope,) = torch.autograd.grad(written.sum(), k)
        assert slope.isfinite().all()


def test_shapes_are_checked():
    k = draw(2, 3, 4, 5)
    with pytest.raises(ArgumentError, match="rate must be"):
        erasing_keys(k, draw(2, 3, 4), *[draw(2, 4, 5)] * 3)
    with pytest.raises(ArgumentError, match="weakening must be"):
        erasing_keys(k, k, *[draw(2, 4, 5)] * 2, draw(2, 5))
