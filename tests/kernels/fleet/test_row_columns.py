"""Operators on columns of rows: a chain of them gives the outputs and gradients of slices."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.gated_norm import gated_norm
from icl_bench.kernels.fleet.products import blend
from icl_bench.kernels.fleet.projection import project
from icl_bench.kernels.fleet.records import HeadColumns, NormOptions
from icl_bench.kernels.fleet.row_columns import (
    blend_columns,
    convolve_columns,
    norm_by_columns,
    product_of_columns,
    take_columns,
)
from icl_bench.kernels.fleet.rows import take_rows
from icl_bench.kernels.fleet.split_convolution import split_convolution
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "width"), [((2, 3, 7), 12), ((1, 70), 150)], ids=str)
def test_blend_and_product(shape, width, dtype):
    """The columns of a product are the last use of the rows."""
    widths = (width, 20, 4)
    inputs = [draw(*shape, sum(widths), dtype=dtype), draw(*shape, width, dtype=dtype, seed=1)]
    inputs += [draw(shape[0], 20, width, dtype=dtype, seed=2), draw(shape[0], width, dtype=dtype, seed=3)]
    inputs += [draw(shape[0], 4, width, dtype=dtype, seed=4)]

    def run(rows, y, weight, bias, opening, impl):
        if impl == "triton":
            rows, blended = blend_columns(rows, 0, y, width, weight, bias)
            return blended, product_of_columns(rows, 20 + width, opening, "sigmoid")
        x, low, part = rows.split(widths, dim=-1)
        wide = torch.float64 if impl == "reference" else rows.dtype
        gate = project(low.to(wide).flatten(1, -2), weight.to(wide)).view(y.shape)
        opened = project(part.to(wide).sigmoid().flatten(1, -2), opening.to(wide)).view(y.shape)
        return blend(x, y, gate, bias, impl=impl), opened

    rows = torch.Size(shape[1:]).numel()
    assert_forms_match_reference(run, inputs, walk=10 * max(rows, width) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_blend_and_columns_at_positions(dtype):
    positions = torch.randint(70, (2, 3, 20), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    inputs = [draw(2, 3, 70, 29, dtype=dtype), draw(2, 3, 70, 9, dtype=dtype, seed=1)]
    inputs += [draw(2, 16, 9, dtype=dtype, seed=2), draw(2, 9, dtype=dtype, seed=3)]

    def run(rows, y, weight, bias, impl):
        if impl == "triton":
            rows, blended = blend_columns(rows, 0, y, 9, weight, bias)
            return blended, take_columns(rows, 25, 4, positions)
        x, low, part = rows.split([9, 16, 4], dim=-1)
        wide = torch.float64 if impl == "reference" else rows.dtype
        gate = project(low.to(wide).flatten(1, -2), weight.to(wide)).view(y.shape)
        return blend(x, y, gate, bias, impl=impl), take_rows(part, positions, impl=impl)

    assert_forms_match_reference(run, inputs, walk=10 * 210**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_convolution_and_gated_norm(dtype):
    parts, options = (
        [HeadColumns(2, 5, True), HeadColumns(2, 5, True), HeadColumns(2, 8)],
        NormOptions(1e-5, False, "silu"),
    )
    inputs = [draw(2, 3, 9, 52, dtype=dtype), draw(2, 4, 36, dtype=dtype, seed=1)]
    inputs += [draw(2, 3, 9, 2, 8, dtype=dtype, seed=2), draw(2, 8, dtype=dtype, seed=3)]

    def run(rows, taps, y, gain, impl):
        if impl == "triton":
            rows, vectors = convolve_columns(rows, taps, None, parts, silu=True)
            return *vectors, norm_by_columns(y, rows, 36, gain, options)
        x, gate = rows.split([36, 16], dim=-1)
        vectors = split_convolution(x, taps, None, parts, silu=True, impl=impl)
        return *vectors, gated_norm(y, gain, None, gate.unflatten(-1, (2, 8)), options, impl=impl)

    assert_forms_match_reference(run, inputs, walk=3 * 54**0.5)


def test_small_columns_keep_their_digits_and_zeros_stay():
    x = torch.tensor([0.0, -1e-7, 1e-4, 0.031, -0.032, 1.0], device=DEVICE)
    found = product_of_columns(x.view(1, 1, 6), 0, torch.eye(6, device=DEVICE)[None], "tanh").view(6)
    exact = x.double().tanh()
    assert found[0] == 0.0 and ((found - exact).abs() <= 2**-15 * exact.abs()).all()


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="rows must be"):
        product_of_columns(draw(2, 3, 9), 7, draw(2, 3, 5), "sigmoid")
    with pytest.raises(ArgumentError, match="weight must be"):
        product_of_columns(draw(2, 3, 9), 5, draw(1, 3, 4), "sigmoid")
    with pytest.raises(ArgumentError, match="rows must be"):
        take_columns(draw(2, 3, 4, 9), 7, 3, torch.zeros(2, 3, 1, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="positions must be"):
        take_columns(draw(2, 3, 4, 9), 5, 3, torch.zeros(2, 2, 1, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="taps must be"):
        convolve_columns(draw(1, 2, 3, 9), draw(1, 4, 5), None, [HeadColumns(2, 3)])
    with pytest.raises(ArgumentError, match="weight must be"):
        norm_by_columns(draw(1, 2, 3, 2, 4), draw(1, 2, 3, 9), 1, draw(1, 3), NormOptions(1e-5, activation="silu"))
    with pytest.raises(ArgumentError, match="bias must be"):
        blend_columns(draw(2, 3, 9), 5, draw(2, 3, 4), 0, draw(2, 5, 4), draw(2, 5))
