"""Attention over chosen blocks against its definition."""

import pytest
import torch

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.fleet.block_attention import block_attention
from tests.kernels.numerics import DEVICE, assert_forms_match_reference, assert_within_tf32, draw

SHAPES = [(10, 3, (4, 5), 3), (1, 1, (16, 16), 8), (131, 1, (32, 8), 8)]


def operands(time, heads, widths, block, dtype):
    q, k, v = (draw(2, time, heads, width, dtype=dtype, seed=i) for i, width in enumerate((widths[0], *widths)))
    shape = (2, heads, time, -(-time // block))
    chosen = torch.rand(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.4  # some rows see no key
    return lambda *given, impl: block_attention(*given, chosen, block, impl=impl), [q, k, v]


@pytest.mark.parametrize(("time", "heads", "widths", "block"), SHAPES, ids=str)
def test_block_attention_in_half_precision(time, heads, widths, block):
    assert_forms_match_reference(*operands(time, heads, widths, block, torch.float16))


@pytest.mark.parametrize(("time", "heads", "widths", "block"), SHAPES, ids=str)
def test_block_attention_in_single_precision(time, heads, widths, block):
    function, inputs = operands(time, heads, widths, block, torch.float32)
    # Scores, weights and both on the way back; an exponential has the error of its score, not relative to it.
    largest = (inputs[0].abs().transpose(1, 2) @ inputs[1].abs().permute(0, 2, 3, 1)).max() * widths[0] ** -0.5
    assert_within_tf32(function, inputs, 4 * (1 + float(largest)))


def test_queries_of_the_last_positions():
    q, k, v = (draw(1, 9, 2, 4, seed=i) for i in range(3))
    chosen = torch.ones(1, 2, 9, 3, dtype=torch.bool, device=DEVICE)
    whole, last = block_attention(q, k, v, chosen, 3), block_attention(q[:, 7:], k, v, chosen[:, :, 7:], 3)
    torch.testing.assert_close(last, whole[:, 7:])


def test_arguments_are_checked():
    q = draw(1, 4, 1, 8)
    with pytest.raises(ArgumentError, match="chosen must be"):
        block_attention(q, q, q, torch.ones(1, 1, 4, 4, dtype=torch.bool), 2)
    with pytest.raises(ArgumentError, match="v must be"):
        block_attention(q, q, q[:, 1:], torch.ones(1, 1, 4, 2, dtype=torch.bool), 2)
    with pytest.raises(ArgumentError, match="chosen must be bool"):
        block_attention(q, q, q, torch.ones(1, 1, 4, 2, device=DEVICE), 2)


def test_kernels_refuse_what_they_do_not_take():
    q, wide = draw(1, 4, 1, 8), draw(1, 4, 1, 130)
    chosen = torch.ones(1, 1, 4, 2, dtype=torch.bool, device=DEVICE)
    with pytest.raises(KernelUnavailableError, match=r"queries of all tokens .* got 1 of 4"):
        block_attention(q[:, 3:], q, q, chosen[:, :, 3:], 2, impl="triton")
    with pytest.raises(KernelUnavailableError, match=r"widths of 128; .* V=130"):
        block_attention(q, q, wide, chosen, 2, impl="triton")
