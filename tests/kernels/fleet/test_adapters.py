"""Second factors of adapters, with what reads them, against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.adapters import adapted_decays, adapted_gate, adapted_product
from tests.kernels.numerics import assert_forms_match_reference, draw

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
SHAPES = pytest.mark.parametrize(
    ("shape", "rank", "width"), [((2, 3, 7), 5, 12), ((1, 70), 20, 150), ((3, 2, 40), 64, 128)], ids=str
)


@TYPES
@SHAPES
def test_product(shape, rank, width, dtype):
    inputs = [draw(*shape, rank, dtype=dtype), draw(shape[0], rank, width, seed=1).to(dtype)]
    inputs.append(draw(shape[0], width, seed=2).to(dtype))
    assert_forms_match_reference(adapted_product, inputs, walk=10 * max(torch.Size(shape[1:]).numel(), width) ** 0.5)


@TYPES
@SHAPES
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "none"])
def test_gate(shape, rank, width, activation, dtype):
    """The columns that the adapter reads are some of a wider tensor."""
    inputs = [draw(*shape, width, dtype=dtype), draw(*shape, rank + 3, dtype=dtype, seed=1)]
    inputs += [draw(shape[0], rank, width, seed=2).to(dtype)]
    run = lambda y, x, weight, impl: adapted_gate(y, x[..., 3:], weight, activation, impl=impl)  # noqa: E731
    assert_forms_match_reference(run, inputs, walk=10 * max(torch.Size(shape[1:]).numel(), width) ** 0.5)


@TYPES
@SHAPES
@pytest.mark.parametrize(
    ("form", "factor", "activation"), [("sigmoid", -0.6, "none"), ("log-sigmoid", 0.25, "none"), ("exp", -5.0, "tanh")]
)
@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
def test_decays(shape, rank, width, form, factor, activation, dtype, narrow):
    inputs = [draw(*shape, rank, dtype=dtype), draw(shape[0], rank, width, seed=1).to(dtype)]
    inputs.append(draw(shape[0], width).to(dtype if narrow else torch.float32))
    run = lambda x, weight, bias, impl: adapted_decays(x, weight, bias, form, factor, activation, impl=impl)  # noqa: E731
    walk = 3 * max(1, abs(factor)) * max(torch.Size(shape[1:]).numel(), width) ** 0.5
    assert_forms_match_reference(run, inputs, walk=walk)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="y must be"):
        adapted_gate(draw(2, 3, 4), draw(2, 4, 5), draw(2, 5, 4))
    with pytest.raises(ArgumentError, match="weight must be"):
        adapted_gate(draw(2, 3, 4), draw(2, 3, 5), draw(2, 6, 4))
    with pytest.raises(ArgumentError, match="weight must be"):
        adapted_decays(draw(2, 3, 5), draw(2, 6, 4), draw(2, 4), "sigmoid", -1.0)
    with pytest.raises(ArgumentError, match="bias must be"):
        adapted_product(draw(2, 3, 5), draw(2, 5, 4), draw(2, 5))
    with pytest.raises(ArgumentError, match="bias must be"):
        adapted_decays(draw(2, 3, 5), draw(2, 5, 4), draw(2, 5), "sigmoid", -1.0)
