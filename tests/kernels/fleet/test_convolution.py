"""Short convolutions against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.convolution import convolution_step, gated_convolution, short_convolution
from tests.kernels.numerics import assert_equal_in_float64, assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)


@TYPES
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize(
    ("time", "width", "length"), [(7, 12, 3), (1, 5, 4), (40, 130, 4), (9, 16, 1), (12, 20, 9), (26, 5, 24)]
)
def test_convolution(time, width, length, gated, dtype):
    inputs = [draw(2, 3, time, width, dtype=dtype), draw(2, length, width, dtype=dtype, seed=1)]
    inputs += [draw(2, 3, time, width, dtype=dtype, seed=2)] * gated
    assert_forms_match_reference(short_convolution, inputs, walk=(6 * time) ** 0.5)


@TYPES
@pytest.mark.parametrize(("time", "width"), [(7, 12), (1, 5)])
def test_gated_convolution(time, width, dtype):
    inputs = [draw(2, 3, time, width, dtype=dtype), draw(2, 3, width, dtype=dtype, seed=1)]
    inputs.append(draw(2, width, width, dtype=dtype, seed=2))
    assert_forms_match_reference(gated_convolution, inputs, walk=3 * (6 * time * width) ** 0.5)


def test_a_step_is_the_convolution_at_its_token():
    x, taps = draw(2, 3, 6, 4).double(), draw(2, 3, 4, seed=1).double()
    whole = short_convolution(x, taps, impl="reference")
    assert_equal_in_float64("step", convolution_step([x[:, :, 5 - j] for j in range(3)], taps), whole[:, :, 5])


def test_plain_convolution_is_differentiated_as_defined():
    inputs = [part.cpu().requires_grad_() for part in (draw(2, 2, 5, 3).double(), draw(2, 4, 3, seed=1).double())]
    assert torch.autograd.gradcheck(short_convolution, inputs)
    impulse = torch.zeros(1, 1, 6, 1)
    impulse[0, 0, 1] = 1.0
    answer = short_convolution(impulse, torch.tensor([[[2.0], [3.0], [5.0]]]))
    assert answer.flatten().tolist() == [0.0, 2.0, 3.0, 5.0, 0.0, 0.0]


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="gate must be"):
        short_convolution(draw(1, 2, 3, 4), draw(1, 2, 4), draw(1, 2, 3, 5))
