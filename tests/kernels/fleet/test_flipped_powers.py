"""Powers of scores with flipped signs against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.flipped_powers import causal_flipped_powers
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (1, 1, 1), (1, 300, 300)], ids=str)
def test_flipped_powers(shape, p, dtype):
    assert_forms_match_reference(
        lambda scores, impl: causal_flipped_powers(scores, p, 0.5, impl=impl), [draw(*shape, dtype=dtype)]
    )


def test_scores_of_zero_have_no_gradient():
    scores = torch.zeros(1, 3, 3, device=DEVICE).requires_grad_()
    for impl in ("torch", "triton"):
        (slopes,) = torch.autograd.grad(causal_flipped_powers(scores, 1, 0.5, impl=impl).sum(), [scores])
        assert not slopes.any()


def test_arguments_are_checked():
    with pytest.raises(ArgumentError, match=r"scores are \[..., T, T\] and p at least 1; got \[2, 3\] and 2"):
        causal_flipped_powers(draw(2, 3), 2, 1.0)
