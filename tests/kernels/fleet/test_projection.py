"""Products of a fleet, and their weight gradient in parts."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet import projection
from icl_bench.kernels.fleet.projection import project, project_parts, row_parts
from tests.kernels.numerics import assert_within_rounding, draw

CUDA = torch.device("cuda")


@pytest.mark.parametrize("count", [1, 2, 8])
def test_gradients_are_those_of_the_product(count, monkeypatch):
    monkeypatch.setattr(projection, "row_parts", lambda *_: count)
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 16, 5), (3, 5, 7)]
    leaves = [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.equal(project(*leaves), torch.bmm(*leaves))
    assert torch.autograd.gradcheck(project, leaves)
    bias = torch.randn(3, 7, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.equal(project(*leaves, bias), torch.baddbmm(bias[:, None], *leaves))
    assert torch.autograd.gradcheck(project, [*leaves, bias])


def test_projection_in_blocks_of_columns():
    """Outputs and gradients of the device's form and of a CPU are those of one product."""
    leaves = [draw(3, 16, 5).double().requires_grad_(), draw(3, 5, 9, seed=1).double().requires_grad_()]
    along = draw(3, 16, 9, seed=2).double()
    expected = torch.autograd.grad(project(*leaves), leaves, along)
    for form in (project_parts, lambda *given: projection._ProjectedParts.apply(*given)[1:]):
        found = torch.cat(form(*leaves, (2, 4, 3)), dim=-1)
        torch.testing.assert_close(found, project(*leaves), rtol=1e-12, atol=1e-12)
        for actual, wanted in zip(torch.autograd.grad(found, leaves, along), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("used", [(0, 1, 2), (1, 2), (0, 2), (2,), (1,)])
def test_gradient_of_other_uses_joins_that_of_blocks(used):
    """Hold the device's form to separate products, with some of its outputs left unused."""
    leaves = [draw(3, 16, 5).double().requires_grad_(), draw(3, 5, 9, seed=1).double().requires_grad_()]
    along = [draw(3, 16, width, seed=width).double() for width in (5, 7, 2)]

    def gradients(same, *blocks):
        return torch.autograd.grad([(same, *blocks)[i] for i in used], leaves, [along[i] for i in used])

    expected = gradients(leaves[0] * 1, *project(*leaves).split([7, 2], dim=-1))
    same, *blocks = projection._ProjectedParts.apply(*leaves, (7, 2))
    found = gradients(same * 1, *blocks)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("rows", "width", "columns"), [(70, 20, 4), (3, 5, 1), (130, 128, 8)])
def test_projection_to_few_columns(rows, width, columns, monkeypatch):
    """Hold outputs and gradients in float16 to those in float64 of the same inputs, within rounding of each."""
    leaves = [draw(2, rows, width, dtype=torch.float16), draw(2, width, columns, dtype=torch.float16, seed=1)]
    along = draw(2, rows, columns, dtype=torch.float16, seed=2)

    def results(dtype):
        parts = [part.to(dtype).requires_grad_() for part in leaves]
        y = project(*parts)
        return [y, *torch.autograd.grad(y, parts, along.to(dtype))]

    exact, plain = results(torch.float64), results(torch.float16)
    monkeypatch.setattr(projection, "takes_triton", lambda impl, x: True)
    for i, (got, right, own) in enumerate(zip(results(torch.float16), exact, plain, strict=True)):
        assert_within_rounding(f"result {i}", got, right, own)


def test_parts_fill_a_device_and_divide_the_rows():
    assert row_parts(32, 16384, 128, 128, CUDA, torch.float32) == 8
    assert row_parts(1, 16384, 128, 128, CUDA, torch.float32) == 64
    assert row_parts(1, 16384, 128, 384, CUDA, torch.float32) == 64
    assert row_parts(300, 16384, 128, 128, CUDA, torch.float32) == 1
    assert row_parts(1, 16383, 128, 128, CUDA, torch.float32) == 1
    assert row_parts(1, 16384, 512, 256, CUDA, torch.float32) == 1
    assert row_parts(2, 16384, 512, 256, CUDA, torch.float32) == 16
    assert row_parts(1, 96 * 64, 128, 128, CUDA, torch.float32) == 32
    assert row_parts(1, 16384, 128, 128, torch.device("cpu"), torch.float32) == 1


def test_aligned_rows_of_half_types_have_few_parts():
    assert row_parts(32, 65536, 128, 384, CUDA, torch.bfloat16) == 2
    assert row_parts(7, 16384, 128, 128, CUDA, torch.float16) == 2
    assert row_parts(1, 16384, 128, 128, CUDA, torch.bfloat16) == 1
    assert row_parts(7, 16384, 128, 59, CUDA, torch.bfloat16) == 64
    assert row_parts(7, 16384, 128, 131, CUDA, torch.bfloat16) == 32  # rows of the gradient start at odd places
    assert row_parts(1, 16384, 512, 16, CUDA, torch.bfloat16) == 64  # few columns are less than a tile


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="weight must be"):
        project(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3))
    with pytest.raises(ArgumentError, match="bias must be"):
        project(torch.zeros(1, 2, 3), torch.zeros(1, 3, 4), torch.zeros(1, 3))
    with pytest.raises(ArgumentError, match="flatten the rows"):
        project(torch.zeros(1, 2, 2, 3), torch.zeros(1, 3, 3))
