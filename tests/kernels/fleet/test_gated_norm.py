"""Norms with a gate against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.gated_norm import gated_norm
from icl_bench.kernels.fleet.records import NormOptions
from tests.kernels.numerics import assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
SHAPES = [((2, 3, 5, 12), (12,)), ((2, 30, 3, 5), (3, 5)), ((1, 3, 130), (130,))]


@TYPES
@pytest.mark.parametrize("gate", ["silu", "sigmoid", None])
@pytest.mark.parametrize("centred", [True, False], ids=["layer", "rms"])
@pytest.mark.parametrize("gate_first", [True, False], ids=["gate-norm", "norm-gate"])
@pytest.mark.parametrize(("shape", "own"), SHAPES, ids=str)
def test_gated_norm(shape, own, gate_first, centred, gate, dtype):
    """An eps of 0.1 bounds the slope of the norm where a gate is near 0."""
    biased = len(own) == 2
    inputs = [draw(*shape, dtype=dtype), draw(shape[0], *own, seed=1)]
    inputs += [draw(shape[0], *own, seed=2)] * biased + [draw(*shape, dtype=dtype, seed=3)] * (gate is not None)
    options = NormOptions(eps=0.1, centred=centred, activation=gate or "none", gate_first=gate_first)

    def run(x, weight, *rest, impl):
        bias = rest[0] if biased else None
        return gated_norm(x, weight, bias, rest[-1] if gate else None, options, impl=impl)

    rows = inputs[0].numel() / (shape[0] * shape[-1])
    assert_forms_match_reference(run, inputs, walk=3 * rows**0.5)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match=r"weight must be \[M, C\] or \[M, H, C\] for x \[2, 3, 4\]; got"):
        gated_norm(draw(2, 3, 4), draw(2, 5, 4))
    with pytest.raises(ArgumentError, match="weight must be"):
        gated_norm(draw(2, 3, 4), draw(2, 3))
    with pytest.raises(ArgumentError, match="bias must be"):
        gated_norm(draw(2, 3, 4), draw(2, 4), draw(2, 3))
    with pytest.raises(ArgumentError, match="gate must be"):
        gated_norm(draw(2, 3, 4), draw(2, 4), gate=draw(2, 4))
