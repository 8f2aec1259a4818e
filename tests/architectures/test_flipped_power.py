"""Powers of scores with the sign of the other parity."""

import pytest
import torch

from icl_bench.harness.conformance import vary
from tests.architectures.test_contract import inputs, mixer


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5])
def test_weights_are_those_of_the_power_with_other_signs(p: int) -> None:
    """Where all scores are positive it is the power; where all are negative, one of the two has the sign."""
    flipped, power = (
        mixer(f"{name},heads=2,d_key=3,conv=0") for name in (f"flipped-power:p={p}", f"power:p={p},normalizer=rms")
    )
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.rand(2, 2, 5, 2, width, generator=generator, dtype=torch.float64) for width in (3, 3, 6))
    expected = power.core(q, k, v, inputs())
    torch.testing.assert_close(flipped.core(q, k, v, inputs()), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        flipped.core(-q, k, v, inputs()), -power.core(-q, k, v, inputs()), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("p", [2, 3])
def test_gradients_are_those_of_finite_differences(p: int) -> None:
    layer, x = vary(mixer(f"flipped-power:p={p},heads=1,d_key=2,d_value=3,conv=0")), inputs(batch=1, length=4)
    assert torch.autograd.gradcheck(layer, x.requires_grad_())
