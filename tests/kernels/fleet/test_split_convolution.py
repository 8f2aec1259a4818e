"""Convolutions with activation and norm of heads against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.records import HeadColumns
from icl_bench.kernels.fleet.split_convolution import split_convolution
from icl_bench.kernels.fleet.triton import split_convolution as split
from tests.kernels.numerics import assert_forms_match_reference, draw

DELTA = [HeadColumns(2, 5, True), HeadColumns(2, 5, True), HeadColumns(2, 8)]
SHARED = [HeadColumns(1, 3), HeadColumns(1, 3), HeadColumns(3, 25)]


@pytest.mark.parametrize(
    ("biased", "silu", "dtype"),
    [
        (True, True, torch.float16),
        (True, True, torch.float32),
        (False, True, torch.float16),
        (True, False, torch.float32),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("time", "length", "parts"), [(10, 5, DELTA), (5, 4, SHARED), (1, 2, [HeadColumns(1, 6)])], ids=str
)
def test_split_convolution(time, length, parts, biased, silu, dtype, monkeypatch):
    """Sequences are cut into segments, of which the last is a part of one; x is columns of a wider tensor."""
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(split, name, getattr(split, name)._replace(segment=8))
    width = sum(part.heads * part.width for part in parts)
    inputs = [draw(2, 3, time, width + 3, dtype=dtype), draw(2, length, width, dtype=dtype, seed=1)]
    inputs += [draw(2, width, dtype=dtype, seed=2)] * biased

    def run(wide, taps, bias=None, impl="auto"):
        return split_convolution(wide[..., 3:], taps, bias, parts, silu=silu, impl=impl)

    assert_forms_match_reference(run, inputs, walk=3 * (6 * time) ** 0.5)


def test_shapes_are_checked():
    x, taps = draw(1, 2, 3, 4), draw(1, 2, 4)
    with pytest.raises(ArgumentError, match=r"parts must have 4 columns, as x has; got \[5\]"):
        split_convolution(x, taps, None, [HeadColumns(1, 5)])
    with pytest.raises(ArgumentError, match="bias must be"):
        split_convolution(x, taps, draw(1, 5), [HeadColumns(1, 4)])
    with pytest.raises(ArgumentError, match="taps must be"):
        split_convolution(x, draw(1, 2, 5), None, [HeadColumns(1, 4)])
