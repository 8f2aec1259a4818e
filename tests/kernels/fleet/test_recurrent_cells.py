"""Cells of LSTMs over all tokens against their definition in float64."""

import pytest
import torch

from icl_bench.errors import ArgumentError
from icl_bench.kernels.fleet.recurrent_cells import recurrent_cells
from tests.kernels.numerics import assert_forms_match_reference, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("form", "heads", "width"), [("lstm", 1, 5), ("s-lstm", 1, 8), ("s-lstm", 3, 4)])
def test_cells(form, heads, width, dtype):
    members, batch, time = 2, 3, 6
    gates = 2 * draw(members, batch, time, 4 * heads * width, dtype=dtype)
    recur = 0.5 * draw(members, heads, width, 4 * width, dtype=dtype, seed=1)
    assert_forms_match_reference(lambda *given, impl: recurrent_cells(*given, form, impl=impl), [gates, recur])


def test_more_channels_than_a_program_holds():
    inputs = [draw(1, 2, 3, 4 * 130), 0.1 * draw(1, 1, 130, 4 * 130, seed=1)]
    assert_forms_match_reference(lambda *given, impl: recurrent_cells(*given, "lstm", impl=impl), inputs)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="gates must be"):
        recurrent_cells(draw(1, 2, 3, 12), draw(1, 2, 4, 16), "lstm")
    with pytest.raises(ArgumentError, match="recur must be"):
        recurrent_cells(draw(1, 2, 3, 32), draw(1, 2, 4, 12), "lstm")
    with pytest.raises(ArgumentError, match="form must be"):
        recurrent_cells(draw(1, 2, 3, 16), draw(1, 1, 4, 16), "gru")
